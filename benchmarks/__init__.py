"""Speed and memory of dtme as ratios: `python -m benchmarks`, or `make bench`."""
