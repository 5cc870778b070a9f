"""Training that is killed at random moments through the command line ends in what an undisturbed run ends in, bit for bit."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

COMMAND = [sys.executable, "-m", "benchmarks.trust.tiny_bench", "bench", "scenes", "--regime", "plateau"]
METHODS = ("MT", "TM+TE")


def begin(out: Path, cache: Path) -> subprocess.Popen[bytes]:
    """The command, training into a folder, in a process of its own."""
    told = (out.parent / f"{out.name}.log").open("ab")
    command = [*COMMAND, "--out", str(out), "--methods", *METHODS]
    return subprocess.Popen(command, env={**os.environ, "DTME_CACHE": str(cache)}, stdout=told, stderr=told)


def what_is_there(out: Path) -> dict[str, Any]:
    """All that a finished run leaves and that does not depend on time: weights, and figures of every row."""
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    figures = {f"{row['method']} {row['seed']}": {"metrics": row["metrics"], "delta_m": row["delta_m"]} for row in rows}
    weights = {
        str(path.relative_to(out)): {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}
        for path in sorted(out.rglob("*.safetensors"))
    }
    return {**figures, **weights}


def processes_of(command: int) -> list[int]:
    """The command and the workers that it has started."""
    try:
        children = Path(f"/proc/{command}/task/{command}/children").read_text().split()
    except OSError:
        return [command]
    return [command, *map(int, children)]


def run(kills: int, seed: int) -> tuple[int, int, list[str]]:
    """Kill so many times, the command or one of its workers, and begin again where nothing is left to train.

    Returns:
        Kills, runs that came to their end, and how these differ from an undisturbed one.
    """
    chance, done, ends, faults = random.Random(seed), 0, 0, list[str]()
    with tempfile.TemporaryDirectory() as root:
        folder, cache = Path(root), Path(root) / "cache"
        if begin(folder / "warm", cache).wait():  # renders the scenes
            raise RuntimeError((folder / "warm.log").read_text())
        began = time.monotonic()
        begin(folder / "whole", cache).wait()
        whole, longest = what_is_there(folder / "whole"), time.monotonic() - began
        if what_is_there(folder / "warm") != whole:
            faults.append("two undisturbed runs differ")
        while done < kills:
            out = folder / f"killed{ends}"
            process = begin(out, cache)
            try:
                process.wait(chance.uniform(0.1, 0.5) * longest)  # what is left is less each time
            except subprocess.TimeoutExpired:
                killed = chance.choice(processes_of(process.pid))
                os.kill(killed, signal.SIGKILL)
                done += 1
                process.wait()
            if process.returncode == 0:
                faults += compare(out, whole)
                ends += 1
            print(f"kills {done}, ended {ends}, differences {len(faults)}", flush=True)
        if begin(out, cache).wait():
            faults.append(f"a run is not taken up: {(folder / f'{out.name}.log').read_text()[-300:]}")
        else:
            faults += compare(out, whole)
            ends += 1
    return done, ends, faults


def compare(out: Path, whole: dict[str, Any]) -> list[str]:
    """What of a run differs from the undisturbed one, and what lies about."""
    found = what_is_there(out)
    differ = [name for name in sorted(whole.keys() | found.keys()) if whole.get(name) != found.get(name)]
    left = [path.name for path in out.rglob(".*")]
    return [f"{out.name}: {name} differs" for name in differ] + [f"{out.name}: left {left}" for _ in left[:1]]


def main() -> None:
    """Kill, print the figures, and fail where something differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trust.training", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    done, ends, faults = run(options.kills, options.seed)
    print(f"kills of training: {done}, ended runs compared: {ends}, differences: {len(faults)}")
    print("\n".join(f"  {told}" for told in faults[:20]))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
