"""The page of a finished run, one file, with its tables, figures and what they bear out."""
