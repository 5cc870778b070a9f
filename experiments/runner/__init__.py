"""Jobs side by side, what of them is kept, and how they go on after an interruption."""
