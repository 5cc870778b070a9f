"""From finished rows to the tables of README and docs."""
