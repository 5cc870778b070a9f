"""Campaigns that try to lose, to spoil or to break in: kills, flipped bits and spoilt files, for as long as they are given.

- `specimens`: small files of every kind that is read, and who reads them.
- `fuzz`: spoilt files for every reader, each answered by its own error.
- `flips`: one flipped bit in what was written, which no reader may take.
- `kills`: writers that are killed at any moment, and what is there afterwards.
- `load`: a model that serves threads and coroutines while it is analysed; by itself, as long as it is told.
- `mutants`: small changes of the core, each of which some test has to notice; `make mutants`.
"""
