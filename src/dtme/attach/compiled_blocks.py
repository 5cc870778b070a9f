"""Blocks, or parts of them, that are compiled by themselves, which no insert can act in."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from dtme._wrappers import compiled_within
from dtme.plan.plan import Plan


def check_not_compiled(blocks: Mapping[str, nn.Module], plan: Plan) -> None:
    """Refuse inserts inside what is compiled by itself: hooks in it are seen or not by whether others of its class have some.

    Task tokens and modulators act in front of a block.

    Raises:
        ValueError: There are such inserts; the message names what is compiled.
    """
    for name in plan.blocks:
        around = [outer for outer in blocks if f"{name}.".startswith(f"{outer}.")]
        outer = min(around, key=len)
        some = set(plan.expand.get(name, plan.tasks)) != set(plan.tasks) and not plan.joint_tokens
        inside = name in plan.adapt or name in plan.copies or some or outer != name
        compiled = compiled_within(blocks[outer]) if inside else []
        if compiled:
            part = f"{outer}.{compiled[0]}" if compiled[0] else outer
            raise ValueError(
                f"plan: {part!r} is compiled by itself, and compiled code takes no notice of what is inserted inside a block, as "
                f"in {name!r}. Compile the model or its trunk as a whole. Modulators of whole blocks, and task tokens for all "
                "tasks, work as it is."
            )
