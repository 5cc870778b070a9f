"""One training run for every suite, generic in how a batch gives losses: loop, state, rows, costs."""
