"""One pass per task through a model that is the same for all tasks up to some place, and each task's own behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from dtme.trunk.blocks import find_blocks


def pass_per_task(
    model: nn.Module, tasks: Sequence[str], own: Sequence[str], run: Callable[[str], Mapping[str, Any]]
) -> dict[str, Any]:
    """Each task's output of its own pass; blocks that run before anything task-specific run once, for all of them.

    Args:
        model: Its heads are found as the `ModuleDict`s that have all tasks as keys; in a pass they hold one task alone, so
            that no head sees (or averages, in a batch norm) what was computed for another task.
        tasks: Whose outputs are wanted.
        own: Names of the modules or tensors that differ from task to task.
        run: Gives the outputs of a pass, the task's among them.

    Raises:
        ValueError: The model asks for the head of another task in a task's own pass.
    """
    outputs = {}
    with _shared_blocks_once(model, own) as next_pass:
        for task in tasks:
            next_pass()
            with _one_head(model, tasks, task):
                try:
                    outputs[task] = run(task)[task]
                except KeyError as error:
                    raise ValueError(
                        f"in the pass of task {task!r} the model asked for {error}: let it go through the items of its "
                        "ModuleDict of heads, which holds one task at a time here, and return a dictionary by task."
                    ) from error
    return outputs


@contextmanager
def _one_head(model: nn.Module, tasks: Sequence[str], task: str) -> Iterator[None]:
    whole = {m: dict(m._modules) for m in model.modules() if isinstance(m, nn.ModuleDict) and set(tasks) <= set(m)}
    try:
        for heads in whole:
            heads._modules = {task: heads[task]}
        yield
    finally:
        for heads, modules in whole.items():
            heads._modules = modules


@contextmanager
def _shared_blocks_once(model: nn.Module, own: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Within it a block that began before anything of `own` keeps what it gave in the first pass and gives it again."""
    try:
        blocks = find_blocks(model)
    except ValueError:
        blocks = {}
    kept: dict[tuple[str, int], Any] = {}
    calls: Counter[str] = Counter()
    parting = parting_modules(model, tuple(blocks), own)
    parted = parting is None

    def part(*_: Any) -> None:
        nonlocal parted
        parted = True

    def once(name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        place = name, calls[name]  # weights shared between blocks make one of them run several times in a pass
        calls[name] += 1
        if place in kept:
            return kept[place]
        output = forward(*args, **kwargs)
        if not parted:
            kept[place] = output
        return output

    handles = [module.register_forward_pre_hook(part) for module in parting or ()]
    before = {block: vars(block).get("forward") for block in blocks.values()}
    try:
        for name, block in blocks.items():
            block.forward = partial(once, name, block.forward)
        yield calls.clear
    finally:
        for handle in handles:
            handle.remove()
        for block, forward in before.items():
            del block.forward
            if forward is not None:
                block.forward = forward


def parting_modules(model: nn.Module, blocks: Sequence[str], own: Sequence[str]) -> list[nn.Module] | None:
    """The modules at whose call the passes of the tasks part: those around something own that hold no other block.

    All of them, from the block or the layer outside the blocks down to the tensor's own module: an attention may read the
    weights of a layer in it without calling that, and a model may call a module's methods instead of the module. `None`
    where what holds something own holds blocks too, as the positions of a trunk do: there nothing is shared for certain.

    Example:
        >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 2, enable_nested_tensor=False)
        >>> parted = parting_modules(encoder, ("layers.0", "layers.1"), ["layers.1.self_attn.out_proj.weight"])
        >>> [type(module).__name__ for module in parted]
        ['TransformerEncoderLayer', 'MultiheadAttention', 'NonDynamicallyQuantizableLinear']
    """
    modules = dict(model.named_modules())
    found: dict[nn.Module, None] = {}
    for name in own:
        parts = name.split(".")
        around = [place for length in range(len(parts) + 1) if (place := ".".join(parts[:length])) in modules]
        inner = [
            place
            for place in around
            if not any(block != place and block.startswith(f"{place}." if place else "") for block in blocks)
        ]
        if not inner:
            return None
        found |= dict.fromkeys(modules[place] for place in inner)
    return list(found)
