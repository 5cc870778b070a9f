"""The command `dtme`, on one's own model.

- `entry`: from arguments to an exit code; what is printed where. `answer`: what a command found, and how it refuses.
- `commands/`: one file a command. `templates/`: what `dtme init` writes.
- `user_file`: the user's file, loaded by its path. `faults`: whose code raised. `paths`: files checked before work starts.
- `progress`: a bar on a terminal, lines in a log. `ranks`: several processes under torchrun.
"""

from dtme.cli.entry import main

__all__ = ["main"]
