"""What a plan did to a block, told beside an error that rises from the block's own code.

A block may hold what neither streams nor task tokens can be led through by any rule (a layer over positions, a table made for
one length). Its error speaks of shapes then; the note beside it names the block, what the plan did and what to do.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from dtme.insert import Insert


def name_block(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Add the note. A forward hook of a block with an insert that is called where its forward fails, too."""
    error = sys.exc_info()[1]
    if output is not None or error is None:  # it did not fail, whatever error is being dealt with elsewhere
        return
    insert: Insert = block.dtme  # pyright: ignore[reportAssignmentType]
    note, add = insert.told(), getattr(error, "add_note", None)  # exceptions take notes from Python 3.11 on
    if note and add is not None:
        add(f"dtme: this comes from block {insert.name!r} ({type(block).__name__}), {note}")
