"""Multi-task benchmarks: suites of data, the models and the training loop that run on them, and the tables they end in."""
