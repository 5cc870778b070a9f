"""`python -m dtme`, also under torchrun: `torchrun --nproc-per-node 2 -m dtme analyze mine.py`."""

from dtme.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
