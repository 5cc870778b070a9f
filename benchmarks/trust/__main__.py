"""python -m benchmarks.trust --seconds 300: spoilt files, flipped bits and kills; fails where one of them finds something."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

import torch

from benchmarks.trust import flips, fuzz, kills


def main() -> None:
    """Run the campaigns for as long as is given, print their figures, and fail where one found something."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trust", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="in all: six tenths for files, two for bits, two for kills"
    )
    parser.add_argument("--seed", type=int, default=None, help="of what is drawn; by default another one each time")
    parser.add_argument("--only", nargs="*", default=(), help="names of files, to spoil no others")
    parser.add_argument("--keep", type=Path, default=None, help="a folder for the first input of each fault")
    options = parser.parse_args()
    seed = int(time.time()) if options.seed is None else options.seed
    torch.set_num_threads(1)
    logging.getLogger("dtme").setLevel(logging.ERROR)
    print(f"seed {seed}")
    killed, lost = kills.run(0.2 * options.seconds, seed)
    print(
        f"kills: {killed.total()} ({', '.join(f'{name} {n}' for name, n in killed.items())}), lost or left: {len(lost)}"
    )
    flipped, silent = flips.run(0.2 * options.seconds, seed)
    print(f"flips: {flipped.total()} in {len(flipped)} kinds of files, taken in silence: {len(silent)}")
    inputs, faults = fuzz.run(0.6 * options.seconds, seed, options.only)
    print(
        f"spoilt files: {inputs.total()} for {len(inputs)} readers, answered otherwise than by name: {len(faults)} kinds"
    )
    for told in [*lost[:10], *silent[:10], *faults]:
        print(f"  {told}")
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        for number, (told, content) in enumerate(faults.items()):
            (options.keep / f"{number}-{told.partition(':')[0]}").write_bytes(content)
    sys.exit(bool(lost or silent or faults))


if __name__ == "__main__":
    main()
