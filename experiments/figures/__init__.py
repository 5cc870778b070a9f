"""Pictures of results: what methods gained, at which price, over training, and on which samples."""
