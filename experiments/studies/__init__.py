"""Commands that make every committed result, and the studies that stand alone."""
