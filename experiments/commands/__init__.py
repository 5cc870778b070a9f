"""What `python -m experiments` does, command by command."""
