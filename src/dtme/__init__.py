"""Find where the tasks of a transformer fight, in token space, and end the fight there."""
