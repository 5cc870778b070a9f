"""The study behind the numbers: suites of data, models, methods, runs, and the tables and figures they end in.

Not part of what is installed: `python -m experiments demo | bench | ablate | probe | tune | table` from the repository.
"""
