"""Spoilt files for every reader: whatever they hold, the answer is the reader's own error with the file's name, or a value."""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import logging
import random
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.trust.specimens import SPECIMENS, Specimen

CORPUS = Path(__file__).with_name("corpus.json")
"""By reader a few inputs, in base64: for each kind of answer the shortest of those that were tried."""
MOST_KEPT = 16
"""Inputs of a reader in the corpus."""
SLOWEST = 5.0
"""Seconds that no answer may take."""
_STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, 1e400, float("nan"), "", "a", "\0", "x" * 5000, "((.|.)*)*!", "../../x",
    [], {}, [[]], [None], {"": None}, [1, "a"], {"a": {"b": []}}, [[[[[[]]]]]], "depth", ["depth"], [["depth"]], "\ud800",
)  # fmt: skip
_BYTES = (
    b"",
    b"\0",
    b"\xff",
    b"\n",
    b"\t",
    b",",
    b'"',
    b"[" * 3000,
    b"{" * 50,
    b"9" * 5000,
    b"\xed\xa0\x80",
    b"1e999",
    b"\r",
)


def spoil(content: bytes, chance: random.Random) -> bytes:
    """A file like the one given, and not the same."""
    if chance.random() < 0.5:
        with contextlib.suppress(ValueError, RecursionError):
            return _spoil_json(content, chance)
    found = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        place = chance.randrange(len(found) + 1)
        end = min(len(found), place + chance.choice((1, 1, 4, 40, 400)))
        kind = chance.randrange(6)
        if kind == 0:
            found[place:end] = chance.choice(_BYTES)
        elif kind == 1:
            found[place:place] = found[place:end]
        elif kind == 2:
            del found[place:end]
        elif kind == 3:
            del found[place:]
        elif place < len(found):
            found[place] = found[place] ^ 1 << chance.randrange(8) if kind == 4 else chance.randrange(256)
    return bytes(found)


def _spoil_json(content: bytes, chance: random.Random) -> bytes:
    """Another value in one place of a JSON text, or of one of its lines."""
    lines = (
        content.decode().split("\n") if b'"row-of' in content or content.count(b'{"format"') > 1 else [content.decode()]
    )
    number = chance.randrange(len(lines))
    data = json.loads(lines[number])
    if isinstance(data, dict) and chance.random() < 0.9:
        data.pop("digest", None)
        data.pop("files", None)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        node = data
        while isinstance(node, dict | list) and node:
            key = chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
            inner = node[key]
            if not isinstance(inner, dict | list) or not inner or chance.random() < 0.3:
                if chance.random() < 0.15:
                    del node[key]
                else:
                    node[key] = chance.choice(_STRANGE)
                break
            node = inner
    lines[number] = json.dumps(data)
    return "\n".join(lines).encode()


def find_fault(specimen: Specimen, folder: Path) -> str | None:
    """What is wrong with a reader's answer to the file in a folder; `None` where nothing is."""
    return _answer(specimen, folder)[0]


def _answer(specimen: Specimen, folder: Path) -> tuple[str | None, str]:
    """What is wrong with an answer, and of what kind it is."""
    began, kind = time.monotonic(), "read"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            specimen.read(folder)
    except (ValueError, OSError) as error:
        told = str(error)
        kind = re.sub(r"[^a-z ]+", "", re.sub(r"'[^']*'|\S*[/\d]\S*", "", told))[:30]
        named = any(name in told for name in (specimen.name, *specimen.beside)) or str(folder) in told
        if type(error).__module__ in ("builtins", "json.decoder") and isinstance(
            error, UnicodeError | json.JSONDecodeError
        ):
            return f"{type(error).__name__}: {told[:150]}", kind
        if not named and "plan" not in told:
            return f"unnamed {type(error).__name__}: {told[:150]}", kind
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:150]}", kind
    seconds = time.monotonic() - began
    return (f"took {seconds:.1f} s" if seconds > SLOWEST else None), kind


def run(
    seconds: float, seed: int, only: Sequence[str] = (), kinds: dict[tuple[str, str], bytes] | None = None
) -> tuple[Counter[str], dict[str, bytes]]:
    """Spoil and read for so long, every reader in turn.

    Args:
        seconds: How long.
        seed: Of what is drawn.
        only: Names of files, to spoil no others.
        kinds: Is given, by reader and kind of answer, the shortest input.

    Returns:
        Inputs by reader, and by fault the first input that showed it.
    """
    chance, until = random.Random(seed), time.monotonic() + seconds
    inputs: Counter[str] = Counter()
    faults: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as root:
        chosen = [one for one in SPECIMENS if not only or one.name in only]
        folders = {one.name: Path(root) / str(place) for place, one in enumerate(chosen)}
        for one in chosen:
            folders[one.name].mkdir()
            one.write(folders[one.name])
            assert find_fault(one, folders[one.name]) is None, f"{one.name} is not read as it was written"
        whole = {one.name: (folders[one.name] / one.name).read_bytes() for one in chosen}
        while time.monotonic() < until:
            for one in chosen:
                spoilt = spoil(whole[one.name], chance)
                (folders[one.name] / one.name).write_bytes(spoilt)
                inputs[one.name] += 1
                fault, kind = _answer(one, folders[one.name])
                if kinds is not None:
                    kinds[one.name, kind] = min(kinds.get((one.name, kind), spoilt), spoilt, key=len)
                if fault is not None:
                    faults.setdefault(f"{one.name}: {fault}", spoilt)
    return inputs, faults


def main() -> None:
    """Go on to so many inputs from where the last call has come to, and fail where one found something."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trust.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="at most")
    parser.add_argument("--state", type=Path, default=Path("runs/fuzz.json"), help="what was found so far")
    parser.add_argument("--corpus", action="store_true", help=f"write {CORPUS.name} anew from what is tried now")
    options = parser.parse_args()
    logging.getLogger("dtme").setLevel(logging.ERROR)
    state: dict[str, Any] = {"rounds": 0, "inputs": {}, "faults": []}
    if options.state.exists():
        state = json.loads(options.state.read_text(encoding="utf-8"))
    until, kinds = time.monotonic() + options.seconds, dict[tuple[str, str], bytes]()
    while sum(state["inputs"].values()) < options.inputs and time.monotonic() < until:
        inputs, faults = run(min(60.0, until - time.monotonic()), state["rounds"], kinds=kinds)
        state["rounds"] += 1
        state["inputs"] = dict(Counter(state["inputs"]) + inputs)
        state["faults"] += [fault for fault in faults if fault not in state["faults"]]
        options.state.parent.mkdir(parents=True, exist_ok=True)
        options.state.write_text(json.dumps(state, indent=1), encoding="utf-8")
        print(
            f"{sum(state['inputs'].values())} inputs for {len(inputs)} readers, faults: {len(state['faults'])}",
            flush=True,
        )
    if options.corpus:
        kept: dict[str, list[str]] = {}
        for (name, _), content in sorted(kinds.items(), key=lambda one: len(one[1])):
            if len(kept.setdefault(name, [])) < MOST_KEPT:
                kept[name].append(base64.b64encode(content).decode())
        CORPUS.write_text(json.dumps(kept, indent=0) + "\n", encoding="utf-8")
    print("\n".join(f"  {fault}" for fault in state["faults"]))
    sys.exit(bool(state["faults"]))


if __name__ == "__main__":
    main()
