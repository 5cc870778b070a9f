"""Blocks that a model runs without calling them: `block.forward(x)` leads tokens past every hook, and so past its insert.

That a part of a block runs in a pass and the block itself never tells of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from dtme._tracing import runs_as_written
from dtme.inserts.insert import Insert
from dtme.trunk.blocks import holders_of


def watch_for_passing_by(
    model: nn.Module, blocks: Mapping[str, nn.Module], inserts: Mapping[str, Insert]
) -> Iterator[RemovableHandle]:
    """Let every pass of a model end in an error where tokens ran through a block that a plan changes and past its insert.

    Args:
        model: Whose passes these are.
        blocks: Blocks by name.
        inserts: Their inserts, by the same names.
    """
    holders = holders_of(model)
    changed = {name: insert for name, insert in inserts.items() if insert.changes_tokens()}
    for name, insert in changed.items():
        parts = (part for part in blocks[name].children() if part is not insert and holders[part] == 1)
        part = next((part for part in parts if next(part.parameters(), None) is not None), None)
        if part is not None:
            yield part.register_forward_pre_hook(partial(_note, insert))
    yield model.register_forward_hook(partial(check_entered, tuple(changed.values())))


@runs_as_written
def _note(insert: Insert, part: nn.Module, args: tuple[Any, ...]) -> None:
    insert.calls.part_ran = True


@runs_as_written
def check_entered(inserts: tuple[Insert, ...], model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Refuse a pass in which a part of a block ran without the block. A forward hook of the model."""
    if torch.compiler.is_compiling():
        return
    for insert in inserts:
        if insert.calls.part_ran and not insert.calls.entered:
            raise ValueError(
                f"the model runs block {insert.name!r} without calling it (block.forward(...) in place of block(...)), past its "
                "hooks, so that what a plan inserts there would do nothing. Call the block, or plan inserts in other blocks."
            )
