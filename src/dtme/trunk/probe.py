"""Which positions of a block see which, found by trying it on tokens that are changed in a part.

How a block's code is written says little about what it hides: causality may be a constant in it, and samples may lie in
either dimension. A twin of the block, with its parameters but without hooks, runs on the tokens as they are and on tokens
changed at some indices; where the output differs, those were seen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dtme._shapes import Bool
from dtme._wrappers import unwrapped
from dtme.streams.tensor import Streams
from dtme.trunk.call import BlockCall
from dtme.trunk.output import tokens_of

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
Watch = Callable[[dict[nn.Module, nn.Module]], None]
"""Told the twin of each module before the first run."""
_NOISE = 0.05
"""Of the largest difference: dynamic quantisation rounds by what all samples of a batch hold."""
_ROUNDING = 1e-5
"""Of the largest difference: experts, say, compute the same rows in groups of another size."""


def seeing(block: nn.Module, call: BlockCall, dim: int, changed: slice) -> Bool[Tensor, " n"] | None:
    """At which indices along a dimension a block's output depends on what enters at the `changed` ones.

    Args:
        block: Any block; it is left as it is, and so is the state of the random numbers.
        call: What it is called with.
        dim: Which dimension of the tokens.
        changed: Which indices.

    Returns:
        A truth value per index, or `None` where trying is not possible: parameters that are sharded, tokens without values,
        a call whose operations are watched or that fails, an output of another length.

    Example:
        >>> from dtme.trunk.layout import Layout
        >>> layer, x = nn.TransformerEncoderLayer(8, 2, batch_first=True), torch.randn(3, 4, 8)
        >>> call = BlockCall((x,), {}, ("src",), 0, Layout(batch=0, token=1))
        >>> seeing(layer, call, 0, slice(0, 1)).tolist(), seeing(layer, call, 1, slice(0, 1)).tolist()
        ([True, False, False], [True, True, True, True])
    """
    tokens = call.tokens
    ran = _run_all(block, [call, call.with_tokens(_changed(tokens, dim, changed))])
    if ran is None:
        return None
    before, after = ran
    if before.shape != after.shape or before.ndim != tokens.ndim or before.shape[dim] != tokens.shape[dim]:
        return None
    moved = (after - before).abs().nan_to_num(0.0, 0.0).movedim(dim, 0).flatten(1).amax(1)
    return moved > _ROUNDING * moved.max()


def shows_its_end(block: nn.Module, call: BlockCall, count: int) -> bool | None:
    """Whether the last `count` positions of a block's tokens, task tokens, are seen by those in the first half.

    Args:
        block: Any block.
        call: What it is called with, task tokens included.
        count: Task tokens at the end.

    Returns:
        False only where the first positions see none of them and are themselves seen by others: where nothing sees anything,
        as while a projection is zero, there is no saying. `None` where `seeing` cannot tell.
    """
    token = call.layout.token
    assert token is not None
    length = call.tokens.shape[token] - count
    half = max(length // 2, 1)
    seen = seeing(block, call, token, slice(length, length + count))
    if seen is None or bool(seen[:half].any()):
        return None if seen is None else True
    first = seeing(block, call, token, slice(0, half))
    return None if first is None else not bool(first[half:].any())


def find_row_dims(block: nn.Module, call: BlockCall, inner: Mapping[str, nn.Module]) -> dict[str, int | None] | None:
    """Which dimension of what modules inside a block take holds the rows of its call, one sample's after another's.

    A block may turn its tokens round on the way, cut them into windows or send them to experts. So the tokens of the first
    row are changed, then those of the first half: where the rows lie, just as many of the first entries change.

    Args:
        block: Any block; it is left as it is.
        call: What it is called with.
        inner: Modules in it, by name.

    Returns:
        A dimension per name, `None` where rows lie in none; names of modules that are not called are left out. Nothing at all
        where trying is not possible, as for `seeing`.

    Example:
        >>> from dtme.trunk.layout import Layout
        >>> layer, x = nn.TransformerEncoderLayer(8, 2, batch_first=False), torch.randn(5, 3, 8)
        >>> call = BlockCall((x,), {}, ("src",), 0, Layout(batch=1, token=0))
        >>> find_row_dims(layer, call, {"linear1": layer.linear1})
        {'linear1': 1}
    """
    if call.rows == 1:  # one alone is told from nothing

        def twice(tensor: Tensor, dim: int) -> Tensor:
            return torch.cat([tensor, tensor], dim)

        call = call.change_rows(twice, 1).with_tokens(twice(call.tokens, call.layout.batch))
    rows, batch = call.rows, call.layout.batch
    counts = sorted({1, rows // 2})
    calls = [call, *(call.with_tokens(_changed(call.tokens, batch, slice(0, count))) for count in counts)]
    taken: dict[str, list[Tensor]] = {name: [] for name in inner}

    def watch(twins: dict[nn.Module, nn.Module]) -> None:
        for name, module in inner.items():
            if module in twins:
                twins[module].register_forward_pre_hook(partial(_note_taken, taken[name]), with_kwargs=True)

    if rows == 0 or _run_all(block, calls, watch) is None:
        return None
    return {
        name: _row_dim(t, rows, counts) for name, t in taken.items() if t and _depends_on_tokens(t, len(counts) + 1)
    }


def _depends_on_tokens(taken: list[Tensor], calls: int) -> bool:
    """Whether what a module takes differs from call to call: what an encoder has read does not."""
    runs = len(taken) // calls
    return any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(taken[:runs], taken[runs:], strict=False))


def _note_taken(taken: list[Tensor], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.is_floating_point())
    taken += [tensor.clone() for tensor in [next(given, None)] if tensor is not None]


def _row_dim(taken: list[Tensor], rows: int, counts: list[int]) -> int | None:
    """The dimension in which the first entries, and no others, differ from what the module takes unchanged, in all its calls."""
    runs, rest = divmod(len(taken), len(counts) + 1)
    if rest:
        return None
    found: list[set[int]] = []
    for place in range(runs):
        plain = taken[place]
        for turn, count in enumerate(counts, 1):
            other = taken[turn * runs + place]
            if other.shape != plain.shape:
                return None
            moved = (other - plain).abs().nan_to_num(0.0, 0.0)
            moved = moved > _NOISE * moved.max() if moved.numel() else moved.bool()
            dims = (dim for dim in range(plain.ndim) if plain.shape[dim] and plain.shape[dim] % rows == 0)
            found.append({dim for dim in dims if _are_the_first(moved, dim, plain.shape[dim] // rows * count)})
    return min(set.intersection(*found), default=None)


def _are_the_first(moved: Tensor, dim: int, count: int) -> bool:
    along = moved.movedim(dim, 0).flatten(1).any(1)
    return bool(along[:count].any()) and not bool(along[count:].any())


def shares_rows(block: nn.Module, call: BlockCall, argument: Tensor) -> bool | None:
    """Whether an argument that is as long as the call has rows is for all of them alike, and has no row for each.

    Its first entry is changed: does what leaves for other rows than the first change, too?

    Returns:
        `None` where nothing changes, or trying is not possible.
    """
    if call.rows < 2 or not argument.shape or isinstance(argument, Streams):
        return None
    other = argument.clone()
    if argument.dtype == torch.bool:
        other[0] = ~other[0]
    elif argument.is_floating_point():
        other[0] = other[0].nan_to_num(0.0, 0.0, 0.0) + torch.linspace(1, 2, other[0].numel()).view_as(other[0]).to(
            other
        )
    else:
        return None

    def exchange(own: str, value: Any) -> Any:
        return other if value is argument else value

    ran = _run_all(block, [call, call.change_each(exchange)])
    if ran is None or ran[0].shape != ran[1].shape:
        return None
    moved = (ran[1] - ran[0]).abs().nan_to_num(0.0, 0.0).movedim(call.layout.batch, 0).flatten(1).amax(1)
    return bool((moved[1:] > _ROUNDING * moved.max()).any()) if bool(moved.max() > 0) else None


def _is_sharded(parameter: Tensor) -> bool:
    return type(parameter) is not nn.Parameter


def make_twin(module: nn.Module, made: dict[nn.Module, nn.Module] | None = None) -> nn.Module:
    """The same module in evaluation, without hooks and wrappers: it holds the same tensors; what it sets on itself is its own.

    Args:
        module: The module.
        made: Twins there are already, of modules that it holds as well.
    """
    made = {} if made is None else made
    module = unwrapped(module)
    if module not in made:
        made[module] = twin = object.__new__(type(module))
        twin.__dict__ = {**module.__dict__, "training": False, **{hooks: OrderedDict() for hooks in _HOOKS}}
        forward: Any = twin.__dict__.get("forward")
        if getattr(forward, "runs_variants", False):  # of a block with copies, which would lead back to the block
            del twin.__dict__["forward"]
            if forward.before is not None:
                twin.__dict__["forward"] = forward.before
        twin.__dict__["_modules"] = {
            name: child if child is None else make_twin(child, made) for name, child in module._modules.items()
        }
        for own in ("_parameters", "_buffers"):
            twin.__dict__[own] = dict(module.__dict__[own])
    return made[module]


def _changed(tokens: Tensor, dim: int, changed: slice) -> Tensor:
    """The tokens with others of their size at some indices, which no norm over the channels makes the same again."""
    rows = tokens.detach().clone()
    part = rows.narrow(dim, *_bounds(changed, rows.shape[dim]))
    size = tokens.detach().abs().mean().clamp(min=1e-3)
    part.copy_(size * torch.linspace(2, -1, part.shape[-1], device=part.device).to(part.dtype).square() - part)
    return rows


def _bounds(changed: slice, length: int) -> tuple[int, int]:
    start, stop, _ = changed.indices(length)
    return start, stop - start


def _run_all(block: nn.Module, calls: Sequence[BlockCall], watch: Watch | None = None) -> list[Tensor] | None:
    """The tokens that leave a block in several calls of a twin of it; `None` where that is not possible."""
    first = calls[0].tokens
    if torch._C._len_torch_dispatch_stack() or first.is_meta or not first.numel():
        return None
    if any(map(_is_sharded, block.parameters())):
        return None
    caches = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # weights cast here, without gradients, must not serve the pass itself
    try:
        with torch.no_grad():
            twins: dict[nn.Module, nn.Module] = {}
            twin = make_twin(block, twins)
            if watch is not None:
                watch(twins)
            return [_run(twin, call) for call in calls]
    except Exception:  # whatever the block raises: its own call will raise it likewise, and be heard
        return None
    finally:
        torch.set_autocast_cache_enabled(caches)


def _run(twin: nn.Module, call: BlockCall) -> Tensor:
    tokens = call.tokens
    devices: list[Any] = [tokens.device] if tokens.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        own = call.with_own_caches()
        return tokens_of(twin(*own.args, **own.kwargs), tokens, type(twin).__name__)
