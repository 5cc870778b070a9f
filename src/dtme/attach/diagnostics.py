"""What a plan did to a block, told beside an error that rises from the block's own code.

A block may hold what neither streams nor task tokens can be led through by any rule (a layer over positions, a table made for
one length). Its error speaks of shapes then; the note beside it names the block, what the plan did and what to do.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from dtme.inserts.insert import Insert


def name_block(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Add the note, and let tokens go. A forward hook of a block with an insert that is called where its forward fails, too."""
    error = sys.exc_info()[1]
    if output is not None or error is None:  # it did not fail, whatever error is being dealt with elsewhere
        return
    insert: Insert = block.dtme  # pyright: ignore[reportAssignmentType]
    done = insert.describe_call()
    insert.calls.state = None  # activation checkpointing, too, ends every second pass by an error
    if done is None:
        return
    note = f"dtme: this comes from block {insert.name!r} ({type(block).__name__}), {done}"
    if sys.version_info >= (3, 11):
        error.add_note(note)
    else:  # exceptions take no notes: their message does
        error.args = ("\n".join([*map(str, error.args), note]),)
