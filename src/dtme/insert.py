"""What is inserted into one block, and how the streams pass through it.

An insert is a child module of its block, called `dtme`, that holds the new parameters. Two hooks of the block lead the
tokens through it: `enter` folds the streams into the batch, modulates and expands; `leave` drops the task tokens and
hands the streams back as one tensor. The block's class, code and parameters stay as they are.

A pass is made of lanes of equally many samples, one after another in the batch: a lane per stream or, where each row
has a task of its own, a lane per row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dtme._shapes import Float
from dtme.adaptation import Linear, LowRank, linear_layers, low_rank_update
from dtme.arguments import Call, argument_names, change_rows, exchange, has_rows
from dtme.blocks import Layout, fixed_positions, layout_of, only_convolves_sequences, put, take, tokens_key
from dtme.expansion import (
    append,
    causal_mask,
    crop,
    drop,
    extend_mask,
    extend_positions,
    extend_rows,
    hiding_buffer,
    initial_tokens,
    is_causal,
    is_mask,
    is_mask_over_others,
    kind_of_call,
    mask_argument,
    meets_another,
    position_bias_of,
    refusal,
)
from dtme.lanes import Lanes, Places, at, choose_lanes, rows_of, split
from dtme.modulation import TokenStatistics, modulate
from dtme.outputs import map_tensors, tensors_of, tokens_of
from dtme.parallel import show_streams_plainly
from dtme.plan import Plan
from dtme.routing import Routing
from dtme.sample_axis import check_companions, check_samples, check_square
from dtme.sight import shows_its_end
from dtme.streams import Groups, Streams, fold, groups_of, part, refine

_EXPERT = re.compile(r"(^|-)experts?-")
"""Keys of layers that belong to one of several experts."""
ALL = slice(None)
"""All output channels of a linear layer."""


@dataclass
class Passage:
    """What `enter` finds out about a call and `leave` needs; apart from the module, whose own attributes are slow to set.

    Attributes:
        groups: Which tasks each stream serves.
        appended: Task tokens at the end of the sequence.
        hides_later: Whether the block hides later positions by itself.
        adapting: Per lane, the row of its task in the low-rank updates; `None` where that is not known.
        batch_dim: Where the samples lie.
        lane_samples: Samples of a lane.
        idle: Adapted layers that have not been called yet.
        held: The order of all lanes, and the call of those without task tokens, which run when the others leave.
    """

    groups: Groups = ()
    appended: int = 0
    hides_later: bool = False
    adapting: Places | None = field(default_factory=list)
    batch_dim: int = 0
    lane_samples: int = 0
    idle: set[str] = field(default_factory=set)
    held: tuple[Lanes, Call, Places] | None = None


class Insert(nn.Module):
    """What a plan gives the tasks in one block; without anything, the block only keeps its streams folded.

    Attributes:
        scale: `W`, one row per modulated task.
        shift: `b`, one row per modulated task.
        tokens: Task tokens, `n` per expanded task.
        low_rank: The updates of the block's linear layers, stacked over the adapted tasks.
    """

    scale: Float[Tensor, "modulated p"] | None
    shift: Float[Tensor, "modulated p"] | None
    tokens: Float[Tensor, "expanded n p"] | None

    def __init__(self, name: str, block: nn.Module, plan: Plan, routing: Routing, width: int) -> None:
        super().__init__()
        like = next((p.detach() for p in block.parameters() if torch.is_floating_point(p)), torch.zeros(()))
        self.name = name
        self.width = width
        self.modulated = tuple(plan.modulate.get(name, ()))
        self.expanded = tuple(plan.expand.get(name, ()))
        self.adapted = tuple(plan.adapt.get(name, ()))
        tied = fixed_positions(block) if self.expanded else None
        if tied is not None:
            raise ValueError(
                f"expand: task tokens have no place in block {name!r}, because {tied}. "
                "Plan modulation there instead: report.plan(expansion=False)."
            )
        self._hiding = hiding_buffer(block) if self.expanded else None
        self.joint = plan.joint_tokens
        self.routing = routing
        self.argument_names = argument_names(block)
        self.true_hides = any(isinstance(inner, nn.MultiheadAttention) for inner in block.modules())
        self.lays_plainly = not self.true_hides and not only_convolves_sequences(block)
        shape = (len(self.modulated), width)
        self.register_parameter("scale", nn.Parameter(like.new_ones(shape)) if self.modulated else None)
        self.register_parameter("shift", nn.Parameter(like.new_zeros(shape)) if self.modulated else None)
        batchnorm = self.modulated and plan.modulator == "batchnorm"
        self.statistics = TokenStatistics(*shape, like=like) if batchnorm else None
        tokens = initial_tokens(len(self.expanded), plan.tokens_per_task, like, width) if self.expanded else None
        self.register_parameter("tokens", None if tokens is None else nn.Parameter(tokens))
        layers = self._layers_of(block, plan) if self.adapted else {}
        if self.adapted and not layers:
            raise ValueError(
                f"plan.adapt: block {name!r} has no linear layer to adapt that matches adapt_layers={plan.adapt_layers!r}; "
                f"it has {list(linear_layers(block)) or 'none'}."
            )
        self.low_rank = nn.ModuleDict(
            {layer_key(layer): LowRank(len(self.adapted), linear, plan.rank) for layer, linear in layers.items()}
        )
        self._known: dict[Any, bool] = {}  # kinds of calls that take task tokens: does the block hide later positions
        self._tried: set[str] = set()  # what has been found out by trying the block
        self.entered = self.part_ran = False  # whether the block, and a part of it, have ever been called
        self._passage = Passage()

    def _layers_of(self, block: nn.Module, plan: Plan) -> dict[str, Linear]:
        try:
            return linear_layers(block, plan.adapt_layers)
        except ValueError as why:
            raise ValueError(f"plan.adapt: in block {self.name!r}, {why}") from None

    def extra_repr(self) -> str:
        """The tasks, for `print(model)`."""
        return f"modulated={self.modulated}, expanded={self.expanded}, adapted={self.adapted}"

    def tasks_of(self, own: str) -> tuple[str, ...]:
        """The tasks whose rows a parameter or buffer of the insert stacks, by its name in the insert."""
        return self.expanded if own == "tokens" else self.adapted if own.startswith("low_rank.") else self.modulated

    def changes_tokens(self) -> bool:
        """Whether the plan gives some task something here."""
        return bool(self.modulated or self.expanded or self.adapted)

    def told(self) -> str | None:
        """What the block is run with in the pass just now, for an error that rises from it; `None` if as ever."""
        appended, streams = self._passage.appended, len(self._passage.groups)
        if appended:
            done = (
                f"run with {appended} task tokens behind its own. Plan modulation there: report.plan(expansion=False)"
            )
        elif streams > 1:
            done = f"run on {streams} streams folded into one batch. Plan inserts in other blocks"
        else:
            return None
        return f"{done}, if the model runs without the plan."

    def enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The block's call with its streams folded into the batch, modulated and expanded."""
        if not self.entered:  # attributes of a module are slow to set
            self.entered = True
        if self._is_passed_by(args, kwargs):
            self._passage.groups = ()
            return args, kwargs
        key, layout = self._place_and_layout(block, args, kwargs)
        given: Tensor = take(args, kwargs, key)
        if given.shape[layout.channel] != self.width:
            raise ValueError(
                f"tokens of {given.shape[layout.channel]} channels enter block {self.name!r}; its insert was made for "
                f"{self.width}, which its first layer takes. Plan inserts in other blocks."
            )
        if not torch.compiler.is_compiling():
            check_samples(self.name, block, given, layout, self.routing.given)
            if "samples" not in self._tried and check_square(self.name, block, (args, kwargs), key, layout):
                self._tried.add("samples")
        self._passage.appended, self._passage.held, self._passage.batch_dim = 0, None, layout.batch
        samples = given.shape[layout.batch]
        ids = self.routing.rows
        if ids is None:
            parting = (*self.modulated, *self.adapted, *(() if self.joint else self.expanded))
            self._passage.groups = refine(groups_of(given, self.routing.active), parting)
            lanes = len(self._passage.groups)
            if lanes > 1 and not isinstance(given, Streams) and not torch.compiler.is_compiling():
                show_streams_plainly(self.routing.model)
        else:
            if len(ids) != samples:
                raise ValueError(
                    f"per_sample names the tasks of {len(ids)} rows, but {samples} rows enter block {self.name!r}."
                )
            self._passage.groups, lanes = (self.routing.active,), samples
        self._passage.adapting = self._places(self.adapted) if self.adapted else []
        self._passage.lane_samples = samples if ids is None else 1
        self._passage.idle = set(self.low_rank)
        modulated = self._modulate(given, lanes, layout)
        call = exchange((args, kwargs), given, modulated)
        if len(self._passage.groups) > 1:
            call = self._fold_others(call, samples, modulated, given, layout)
        return call if self.tokens is None else self._expand(block, call, key, lanes, layout)

    def _place_and_layout(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[int | str, Layout]:
        try:
            key = tokens_key(args, kwargs, self.argument_names)
            return key, self._layout_of(block, take(args, kwargs, key))
        except ValueError as why:
            raise ValueError(f"block {self.name!r}: {why} Plan inserts in other blocks.") from None

    def _fold_others(self, call: Call, samples: int, modulated: Tensor, given: Tensor, layout: Layout) -> Call:
        """The call with what else it holds per sample folded as the tokens are."""
        length = None if layout.token is None else given.shape[layout.token]
        if not torch.compiler.is_compiling():
            check_companions(self.name, self._named(call), samples, self.routing.given)
        change = partial(fold, groups=self._passage.groups)
        try:
            return change_rows(call, self.argument_names, samples, length, change, modulated, layout.batch)
        except ValueError as why:
            raise ValueError(f"block {self.name!r}: {why} Plan inserts in other blocks.") from None

    def _layout_of(self, block: nn.Module, tokens: Tensor) -> Layout:
        """As `layout_of`, without looking through all modules of the block at every call where none can say anything."""
        if tokens.ndim == 3 and self.lays_plainly and not hasattr(block, "batch_first"):
            return Layout(batch=0, token=1)
        return layout_of(block, tokens)

    def _is_passed_by(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the block has nothing of its own and no streams of tokens come: one of a decoder, whatever it takes."""
        if self.changes_tokens():
            return False
        given = (
            value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.is_floating_point()
        )
        tokens = next(given, None)
        return not (isinstance(tokens, Streams) and tokens.ndim in (3, 4))

    def _places(self, tasks: tuple[str, ...]) -> Places:
        ids = self.routing.rows
        if ids is None:
            return [tasks.index(group[0]) if group[0] in tasks else -1 for group in self._passage.groups]
        return torch.tensor(
            [tasks.index(task) if task in tasks else -1 for task in self.routing.tasks], device=ids.device
        )[ids]

    def _modulate(self, given: Tensor, lanes: int, layout: Layout) -> Tensor:
        """The folded tokens of every lane, modulated where its task has a modulator here."""
        places = self._places(self.modulated)
        if self.scale is None or self.shift is None or (isinstance(places, list) and max(places) < 0):
            return fold(given, self._passage.groups, layout.batch)
        if self.routing.rows is not None:
            unfolded = given.unsqueeze(layout.batch + 1)
        elif isinstance(given, Streams):
            unfolded = fold(given, self._passage.groups, layout.batch).unflatten(layout.batch, (lanes, -1))
        else:
            unfolded = given.unsqueeze(layout.batch)  # broadcast over the lanes: the product makes the copies
        if self.statistics is not None:
            unfolded = self._normalise(unfolded, places, lanes, layout)
        shape = [1] * unfolded.ndim
        shape[layout.batch], shape[_behind_lanes(layout.channel)] = lanes, self.width
        scale, shift = rows_of(self.scale, places, 1.0), rows_of(self.shift, places, 0.0)
        return modulate(unfolded, scale.view(shape), shift.view(shape)).flatten(layout.batch, layout.batch + 1)

    def _normalise(self, unfolded: Tensor, places: Places, lanes: int, layout: Layout) -> Tensor:
        """Normalise the lanes of each task together, by that task's statistics."""
        assert self.statistics is not None

        def own(tokens: Tensor, row: int, channel: int) -> Tensor:
            assert self.statistics is not None
            return self.statistics(tokens.movedim(channel, -1), row).movedim(-1, channel)

        unfolded = unfolded.expand([lanes if dim == layout.batch else size for dim, size in enumerate(unfolded.shape)])
        if isinstance(places, list):
            apart = zip(unfolded.unbind(layout.batch), places, strict=True)
            return torch.stack([t if row < 0 else own(t, row, layout.channel) for t, row in apart], layout.batch)
        normed = unfolded
        for row in range(len(self.modulated)):
            members = (places == row).nonzero().flatten()
            if len(members):
                chosen = unfolded.index_select(layout.batch, members)
                normed = normed.index_copy(layout.batch, members, own(chosen, row, _behind_lanes(layout.channel)))
        return normed

    def _expand(self, block: nn.Module, call: Call, key: int | str, lanes: int, layout: Layout) -> Call:
        """Append the task tokens; lanes whose task has none here are held back, and run when the others leave."""
        assert self.tokens is not None
        tokens: Tensor = take(*call, key)
        if layout.token is None:
            raise ValueError(
                f"expand: block {self.name!r} takes tokens on a grid {tuple(tokens.shape)}, where task tokens have no place. "
                "Plan modulation there instead: report.plan(expansion=False)."
            )
        self._ask(block, self._named(call), tokens.shape[layout.token])
        rows = tokens.shape[layout.batch]
        samples = rows // lanes
        if self.joint:
            return self._append(block, call, key, layout, self.tokens.flatten(0, 1).expand(rows, -1, -1))
        places = self._places(self.expanded)
        if len(self.expanded) < len(self.routing.tasks):
            having, lacking, order = split(places)
            adapting = self._passage.adapting
            assert adapting is not None
            if not len(having):
                return call
            if len(lacking):
                choose = partial(self._choose, call, key, lanes, layout, rows, tokens.shape[layout.token])
                self._passage.held = order, choose(lacking), at(adapting, lacking) if self.adapted else []
                call, places = choose(having), at(places, having)
                self._passage.adapting = at(adapting, having) if self.adapted else []
        extra = rows_of(self.tokens, places, 0.0).unsqueeze(1).expand(-1, samples, -1, -1).flatten(0, 1)
        return self._append(block, call, key, layout, extra)

    def _choose(
        self, call: Call, key: int | str, lanes: int, layout: Layout, rows: int, length: int, chosen: Lanes
    ) -> Call:
        tokens: Tensor = take(*call, key)
        own = choose_lanes(tokens, lanes, chosen, layout.batch)
        choose = partial(choose_lanes, lanes=lanes, chosen=chosen)
        return change_rows(exchange(call, tokens, own), self.argument_names, rows, length, choose, own, layout.batch)

    def _ask(self, block: nn.Module, named: dict[str, Any], length: int) -> None:
        """Whether the block takes task tokens in such a call, and whether it hides later positions by itself.

        To look through its modules costs a few per cent of a small block's time, so it is asked once for calls of a kind.
        """
        kind = None if torch.compiler.is_compiling() else kind_of_call(named, length)
        if kind is None or kind not in self._known:
            reason = refusal(block, named, length, self._hiding)
            if reason is not None:
                raise ValueError(self._refused(block, reason))
            self._passage.hides_later = is_causal(block, named)
            if kind is not None:
                self._known[kind] = self._passage.hides_later
        else:
            self._passage.hides_later = self._known[kind]

    def _refused(self, block: nn.Module, reason: str) -> str:
        return (
            f"expand: block {self.name!r} ({type(block).__name__}) takes no task tokens: {reason}. Or plan modulation there: "
            "report.plan(expansion=False)."
        )

    def _named(self, call: Call) -> dict[str, Any]:
        """A call's arguments by name, those left to their defaults as `None`."""
        args, kwargs = call
        known = dict.fromkeys((name for name in self.argument_names if name not in ("args", "kwargs")), None)
        return {**known, **dict(zip(self.argument_names, args, strict=False)), **kwargs}

    def _append(
        self, block: nn.Module, call: Call, key: int | str, layout: Layout, extra: Float[Tensor, "samples n p"]
    ) -> Call:
        assert layout.token is not None
        tokens: Tensor = take(*call, key)
        self._passage.appended, rows, length = extra.shape[1], tokens.shape[layout.batch], tokens.shape[layout.token]
        whole = append(tokens, extra, layout)

        def widened(place: int | str, value: Any) -> Any:
            name = place if isinstance(place, str) else "".join(self.argument_names[place : place + 1])
            if value is tokens:
                return whole
            if name == "is_causal":
                return False  # a hint about the mask beside it, which is causal no longer
            if is_mask_over_others(name, value, length):
                return extend_rows(value, self._passage.appended)
            if not is_mask(name, value, length):
                try:
                    return extend_positions(name, value, length, self._passage.appended)
                except ValueError as why:
                    raise ValueError(self._refused(block, str(why))) from None
            by_sample = value.ndim == 2 and has_rows(name, value, rows, length)
            return extend_mask(value, length, self._passage.appended, true_hides=self.true_hides, by_sample=by_sample)

        args, kwargs = self._told_positions(block, call, tokens, length)
        wide = tuple(widened(i, v) for i, v in enumerate(args)), {name: widened(name, v) for name, v in kwargs.items()}
        if "task tokens" not in self._tried and not torch.compiler.is_compiling():
            shown = shows_its_end(block, wide, key, layout, self._passage.appended)
            if shown is False:
                raise ValueError(
                    self._refused(block, "earlier positions do not see later ones, whatever mask it is given")
                )
            if shown is not None:
                self._tried.add("task tokens")
        return wide

    def _told_positions(self, block: nn.Module, call: Call, tokens: Tensor, length: int) -> Call:
        """The call with the mask and the biases of positions that the block, told none, would make from the length."""
        named = self._named(call)
        mask = mask_argument(tuple(named)) if self._passage.hides_later else None
        if mask is not None and named[mask] is None:
            call = self._with_argument(call, mask, causal_mask(length, tokens))
        wanted = "position_bias" in named and named["position_bias"] is None
        bias = position_bias_of(block) if wanted else None
        if bias is not None:
            call = self._with_argument(call, "position_bias", bias(length, length))
        return call

    def _with_argument(self, call: Call, name: str, value: Tensor) -> Call:
        place = self.argument_names.index(name) if name in self.argument_names else len(call[0])
        return put(*call, place if place < len(call[0]) else name, value)

    def leave(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """The block's output without task tokens, its streams behind one tensor."""
        self._check_all_ran()
        if not (self._passage.appended or self._passage.held or len(self._passage.groups) > 1):
            return output
        entered: Tensor = take(args, kwargs, tokens_key(args, kwargs, self.argument_names))
        layout = self._layout_of(block, entered)
        whole = tokens = output if isinstance(output, Tensor) else tokens_of(output, entered, self.name)
        if self._passage.appended:
            self._check_length(block, entered, tokens, layout)
            tokens = drop(tokens, self._passage.appended, layout)
            if output is not whole:
                assert layout.token is not None
                others = meets_another(self._named((args, kwargs)), whole.shape[layout.token], layout)
                output = crop(output, whole, self._passage.appended, layout, meets_as_long=others)
        if self._passage.held is not None:
            order, (held_args, held_kwargs), self._passage.adapting = self._passage.held
            self._passage.held = None
            key = tokens_key(held_args, held_kwargs, self.argument_names)
            held = block.forward(*held_args, **held_kwargs)
            self._passage.adapting = None  # a recomputation of the block's forward alone is of one part or the other
            held_tokens = tokens_of(held, take(held_args, held_kwargs, key), self.name)
            rows = whole.shape[layout.batch], held_tokens.shape[layout.batch]
            output = self._rejoin_others(output, held, whole, order, rows)
            tokens = self._rejoin(tokens, held_tokens, order, layout.batch)
        output = (
            tokens if output is whole else map_tensors(output, lambda tensor: tokens if tensor is whole else tensor)
        )
        if len(self._passage.groups) > 1:
            rows = tokens.shape[layout.batch]
            output = map_tensors(
                output, partial(_part, tokens=tokens, groups=self._passage.groups, rows=rows, dim=layout.batch)
            )
        return output

    def _check_length(self, block: nn.Module, entered: Tensor, returned: Tensor, layout: Layout) -> None:
        assert layout.token is not None
        lengths = [tokens.shape[layout.token] for tokens in (entered, returned)]
        if returned.ndim != entered.ndim or lengths[0] != lengths[1]:
            told = f"of {lengths[0]} tokens, the task's own included, it returns {lengths[1]}, and which these are is not known"
            raise ValueError(self._refused(block, told))

    def _rejoin(self, expanded: Tensor, held: Tensor, order: Lanes, dim: int) -> Tensor:
        return choose_lanes(torch.cat([expanded, held], dim), len(order), order, dim)

    def _check_all_ran(self) -> None:
        idle = self._passage.idle
        if idle:
            raise ValueError(
                f"adapt: block {self.name!r} uses the weight of its layer {min(idle)!r} without calling the layer, so that "
                "an update would do nothing. Leave it out: choose the layers by adapt_layers, a regular expression over their "
                "names."
            )

    def _rejoin_others(self, output: Any, held: Any, whole: Tensor, order: Lanes, rows: tuple[int, int]) -> Any:
        """The output with what it holds per row beside its tokens (biases, attention) for the lanes held back as well."""
        others = iter(tensors_of(held))

        def joined(tensor: Tensor) -> Tensor:
            other = next(others, tensor)
            both = 0 not in (tensor.ndim, other.ndim) and tensor is not whole
            per_row = both and (len(tensor), len(other)) == rows and tensor.shape[1:] == other.shape[1:]
            return self._rejoin(tensor, other, order, 0) if per_row else tensor

        return map_tensors(output, joined)

    def adapt(
        self,
        layer: str,
        inputs: Tensor,
        outputs: Tensor,
        channels: slice = ALL,
        batch_dim: int | None = None,
        *,
        fresh: bool = True,
    ) -> Tensor:
        """The outputs, or some channels of them, of a linear layer of the block, with the low-rank update of each lane's task.

        Its samples lie where those of the block's tokens do, or in `batch_dim`. Outputs that are `fresh`, and no one else's,
        may be written to.
        """
        self._passage.idle.discard(layer)
        places = self._passage.adapting
        if layer not in self.low_rank or (isinstance(places, list) and max(places, default=-1) < 0):
            return outputs
        if places is None:
            raise ValueError(
                f"adapt: activation checkpointing recomputes the forward of block {self.name!r} without its hooks, and the block "
                f"ran in two parts, with task tokens for {self.expanded} and without, which cannot be told apart then. Plan task "
                "tokens there for all tasks, or updates elsewhere, or turn checkpointing off."
            )
        batch_dim = self._passage.batch_dim if batch_dim is None else batch_dim
        if inputs.ndim < 3 and batch_dim != 0:
            raise ValueError(
                f"adapt: layer {layer!r} of block {self.name!r} takes rows of shape {tuple(inputs.shape)}, positions before "
                "samples, where streams cannot be told apart. Use batch_first=True, or leave it out with adapt_layers."
            )
        if inputs.ndim < 3 and _EXPERT.search(layer):
            raise ValueError(
                f"adapt: layer {layer!r} of block {self.name!r} belongs to one of several experts, and takes the tokens "
                f"{tuple(inputs.shape)} that are sent to it, whichever task they serve. Leave it out: choose the layers by "
                "adapt_layers, a regular expression over their names."
            )
        rows = inputs.shape[batch_dim]
        if rows % (len(places) * self._passage.lane_samples):
            raise ValueError(
                f"adapt: layer {layer!r} of block {self.name!r} is given {tuple(inputs.shape)}, shared by all streams, and so "
                "cannot be adapted per task. Choose the layers by adapt_layers, a regular expression over their names."
            )
        own = self.low_rank[layer]
        assert isinstance(own, LowRank)
        down, up = rows_of(own.down, places, 0.0), rows_of(own.up, places, 0.0)
        return low_rank_update(inputs, outputs, down, up[:, channels], batch_dim, fresh=fresh)


def layer_key(layer: str) -> str:
    """The name of a linear layer as a key of a `ModuleDict`, which may hold no dot."""
    return layer.replace(".", "-")


def adapt_projection(
    insert: Insert, prefix: str, batch_dim: int, name: str, inputs: Tensor, outputs: Tensor, channels: slice
) -> Tensor:
    """What an attention in a block that is adapted calls for each of its projections."""
    return insert.adapt(layer_key(prefix + name), inputs, outputs, channels, batch_dim)


def adapt(insert: Insert, layer: str, linear: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """The forward hook of a linear layer in a block that is adapted."""
    fresh = type(linear) is nn.Linear and len(linear._forward_hooks) == 1  # no other hook may have kept it
    return insert.adapt(layer, args[0], output, fresh=fresh)


def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The forward pre-hook of a block with an insert."""
    insert: Insert = block.dtme  # pyright: ignore[reportAssignmentType]
    return insert.enter(block, args, kwargs)


def leave(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """The forward hook of a block with an insert."""
    insert: Insert = block.dtme  # pyright: ignore[reportAssignmentType]
    return insert.leave(block, args, kwargs, output)


def _behind_lanes(dim: int) -> int:
    """A dimension of the tokens once the batch is unfolded into lanes and samples."""
    return dim if dim < 0 else dim + 1


def _part(tensor: Tensor, tokens: Tensor, groups: Groups, rows: int, dim: int) -> Tensor:
    weights = tensor is not tokens and tensor.ndim > 2 and tensor.shape[-1] == tensor.shape[-2]
    for axis in (0, dim) if weights else (dim, 0):  # attention weights come with samples first, whatever the tokens do
        if tensor.ndim > axis and tensor.shape[axis] == rows:
            return part(tensor, groups, axis)
    return tensor
