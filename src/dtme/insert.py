"""What is inserted into one block: a child module of it, called `dtme`, that holds the new parameters.

The block's class, code and parameters stay as they are. How tokens pass through a block with an insert is in `crossing`,
what becomes of them there in `modulating`, `expanding` and `adapting`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dtme._shapes import Float
from dtme.adaptation import Linear, linear_layers
from dtme.arguments import Call, argument_names
from dtme.block_copy import copy_of
from dtme.blocks import fixed_positions
from dtme.expansion import hiding_buffer, initial_tokens
from dtme.lanes import Lanes, Places
from dtme.layout import Layout, layout_of, only_convolves_sequences
from dtme.low_rank import LowRank
from dtme.modulation import TokenStatistics
from dtme.outputs import tensors_of
from dtme.plan import Plan
from dtme.routing import Routing
from dtme.streams import Groups, Streams


@dataclass(frozen=True)
class Recipe:
    """How tokens are made.

    Attributes:
        made: The tokens.
        make: Makes the same again, to the bit.
        sources: Out of these, the tokens before last.
        version: Of the tokens, when they were made.
    """

    made: Tensor
    make: Callable[..., Tensor]
    sources: tuple[Tensor, ...]
    version: int


@dataclass
class Passage:
    """What is found out about a call when tokens enter, and needed when they leave.

    It lies apart from the module, whose own attributes are slow to set. A pass is made of lanes of equally many samples, one
    after another in the batch: a lane per stream or, where each row has a task of its own, a lane per row.

    Attributes:
        groups: Which tasks each stream serves.
        appended: Task tokens at the end of the sequence.
        hides_later: Whether the block hides later positions by itself.
        adapting: Per lane, the row of its task in the low-rank updates; `None` where that is not known.
        batch_dim: Where the samples lie.
        lane_samples: Samples of a lane.
        idle: Adapted layers that have not been called yet.
        folded: What the call holds besides, and where that has the rows of all lanes; kept where they are told apart again.
        recipe: How the tokens that the block runs on are made, where they are modulated.
        held: The order of all lanes, and the call of those without task tokens, which run when the others leave.
        left_to_a_part: Whether streams part in a part of the block, so that what runs before it runs once.
        entered: Whether the block has ever been called. It is set at every call and read behind the model's, not asked at the
            next: compiled code would be made a second time for the other answer.
        part_ran: Whether a part of the block has ever been called, set likewise.
        ways: Of the calls that one stream alone makes: how it goes through the block, see `one_stream`.
    """

    groups: Groups = ()
    appended: int = 0
    hides_later: bool = False
    adapting: Places | None = field(default_factory=list)
    batch_dim: int = 0
    lane_samples: int = 0
    idle: set[str] = field(default_factory=set)
    folded: list[tuple[Tensor, int | None]] = field(default_factory=list)
    recipe: Recipe | None = None
    held: tuple[Lanes, Call, Places] | None = None
    left_to_a_part: bool = False
    entered: bool = False
    part_ran: bool = False
    ways: dict[Any, Any] = field(default_factory=dict)

    def begin(self, batch_dim: int) -> None:
        """A call begins: nothing of the one before is left."""
        self.entered, self.batch_dim, self.left_to_a_part = True, batch_dim, False
        self.appended, self.held, self.recipe, self.folded = 0, None, None, []

    def __reduce__(self) -> tuple[type[Passage], tuple[()]]:
        """Copies of a model begin with a pass of their own."""
        return Passage, ()


class Insert(nn.Module):
    """What a plan gives the tasks in one block; without anything, the block only keeps its streams folded.

    Attributes:
        scale: `W`, one row per modulated task.
        shift: `b`, one row per modulated task.
        tokens: Task tokens, `n` per expanded task.
        planned: Tasks that the plan has part in the block.
        outer: The insert of the block that this one's module is a part of, if that has one.
        inside: Tasks that parts of the block have inserts for.
        parts: The inserts of parts of the block, but those inside other parts.
        last: Of a part, whether streams may part no sooner than in it.
        low_rank: The updates of the block's linear layers, stacked over the adapted tasks.
        copies: Of the block, one per copied task.
        passage: Of the call just now.
        hiding: A buffer that hides later positions.
        kinds: Of the calls that take task tokens: whether the block hides later positions by itself.
        tried: What has been found out by trying the block.
    """

    is_inserted = True
    scale: Float[Tensor, "modulated p"] | None
    shift: Float[Tensor, "modulated p"] | None
    tokens: Float[Tensor, "expanded n p"] | None
    outer: Insert | None

    def __init__(self, name: str, block: nn.Module, plan: Plan, routing: Routing, width: int) -> None:
        super().__init__()
        like = next((p.detach() for p in block.parameters() if torch.is_floating_point(p)), torch.zeros(()))
        self.name = name
        self.width = width
        self.modulated = tuple(plan.modulate.get(name, ()))
        self.expanded = tuple(plan.expand.get(name, ()))
        self.adapted = tuple(plan.adapt.get(name, ()))
        self.copied = tuple(plan.copies.get(name, ()))
        self.planned = plan.parting(name)
        tied = fixed_positions(block) if self.expanded else None
        if tied is not None:
            raise ValueError(
                f"expand: task tokens have no place in block {name!r}, because {tied}. "
                "Plan modulation there instead: report.plan(expansion=False)."
            )
        self.hiding = hiding_buffer(block) if self.expanded else None
        self.joint = plan.joint_tokens
        self.__dict__["outer"] = None  # past the registry of modules, of which it would make a ring
        self.inside: tuple[str, ...] = ()
        self.parts: list[Insert] = []  # a list, so that they are no modules of this one
        self.last = False
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
        layers = _adapted_layers(name, block, plan) if self.adapted else {}
        self.low_rank = nn.ModuleDict(
            {layer_key(layer): LowRank(len(self.adapted), linear, plan.rank) for layer, linear in layers.items()}
        )
        self.copies = nn.ModuleList([copy_of(name, block, routing.model) for _ in self.copied])
        self.kinds: dict[Any, bool] = {}
        self.tried: set[str] = set()
        self.passage = Passage()

    def extra_repr(self) -> str:
        """The tasks, for `print(model)`."""
        return f"modulated={self.modulated}, expanded={self.expanded}, adapted={self.adapted}, copied={self.copied}"

    def tasks_of(self, own: str) -> tuple[str, ...]:
        """The tasks whose rows a parameter or buffer of the insert stacks, by its name in the insert; of a copy, its task."""
        if own.startswith("copies."):
            return (self.copied[int(own.split(".")[1])],)
        return self.expanded if own == "tokens" else self.adapted if own.startswith("low_rank.") else self.modulated

    def changes_tokens(self) -> bool:
        """Whether the plan gives some task something here, or in a part of the block."""
        return bool(self.expanded or self.parting())

    def runs_in_parts(self) -> bool:
        """Whether some lanes run apart from others: through copies, or without the task tokens that those have."""
        return bool(self.copied) or 0 < len(self.expanded) < len(self.routing.tasks)

    def parting(self) -> tuple[str, ...]:
        """The tasks that have something here, or in a part of the block, that others have not."""
        return (*self.planned, *self.inside)

    def lies_in(self, outer: Insert, last: bool) -> None:
        """Let the insert of a block know this one, of a part of it, and fold the streams for it where they have parted before.

        Args:
            outer: That insert.
            last: Whether this part runs last in the block, and in no other.

        Raises:
            ValueError: The block runs in two parts, with task tokens and without.
        """
        if 0 < len(outer.expanded) < len(outer.routing.tasks) and not outer.joint:
            raise ValueError(
                f"plan: block {outer.name!r} has task tokens for {outer.expanded} alone, so that it runs in two parts, and "
                f"{self.name!r} in it has inserts of its own. Give all tasks task tokens there, or none."
            )
        self.__dict__["outer"] = outer
        outer.parts.append(self)
        self.last = last
        above: Insert | None = outer
        while above is not None:
            above.inside = (*above.inside, *self.parting())
            above = above.outer

    def leaves_to_a_part(self, call: Call) -> bool:
        """Whether what enters as one stream need part no sooner than in the one part that has inserts, the block's last."""
        if self.planned or self.expanded or [part.last for part in self.parts] != [True]:
            return False
        if self.routing.rows is not None or self.within_streams():
            return False
        return not any(isinstance(tensor, Streams) for tensor in tensors_of(call))

    def within_streams(self) -> bool:
        """Whether the block that this one is a part of has folded the streams."""
        return self.outer is not None and not self.outer.passage.left_to_a_part

    def places(self, tasks: tuple[str, ...]) -> Places:
        """Per lane of the pass just now, the row that its task has among those of some tasks."""
        ids = self.routing.rows
        if ids is None:
            return [tasks.index(group[0]) if group[0] in tasks else -1 for group in self.passage.groups]
        return torch.tensor(
            [tasks.index(task) if task in tasks else -1 for task in self.routing.tasks], device=ids.device
        )[ids]

    def layout_of(self, block: nn.Module, tokens: Tensor) -> Layout:
        """As `layout_of`, without looking through all modules of the block at every call where none can say anything."""
        if self.outer is not None and self.outer.passage.batch_dim == 1 and not hasattr(block, "batch_first"):
            return Layout(batch=1, token=0)
        if tokens.ndim == 3 and self.lays_plainly and not hasattr(block, "batch_first"):
            return Layout(batch=0, token=1)
        return layout_of(block, tokens)

    def named(self, call: Call) -> dict[str, Any]:
        """A call's arguments by name, those left to their defaults as `None`."""
        args, kwargs = call
        known = dict.fromkeys((name for name in self.argument_names if name not in ("args", "kwargs")), None)
        return {**known, **dict(zip(self.argument_names, args, strict=False)), **kwargs}

    def told(self) -> str | None:
        """What the block is run with in the pass just now, for an error that rises from it; `None` if as ever."""
        appended, streams = self.passage.appended, len(self.passage.groups)
        if self.passage.left_to_a_part and len(self.parts[0].passage.groups) > 1:
            done = (
                f"run on one stream up to {self.parts[0].name!r}, where streams part. Plan inserts for the whole block"
            )
        elif appended:
            done = (
                f"run with {appended} task tokens behind its own. Plan modulation there: report.plan(expansion=False)"
            )
        elif streams > 1:
            done = f"run on {streams} streams folded into one batch. Plan inserts in other blocks"
        else:
            return None
        return f"{done}, if the model runs without the plan."


def runs_last(part: str, block: nn.Module) -> bool:
    """Whether no matrix of a block comes behind those of a part, in the order in which the block holds its modules.

    Example:
        >>> block = nn.ModuleDict({"attn": nn.Linear(2, 2), "mlp": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
        >>> runs_last("attn", block), runs_last("mlp", block)
        (False, True)
    """
    weighing = [
        name
        for name, module in block.named_modules()
        if any(weight.ndim > 1 for weight in module.parameters(recurse=False))
    ]
    return bool(weighing) and f"{weighing[-1]}.".startswith(f"{part}.")


def layer_key(layer: str) -> str:
    """The name of a linear layer as a key of a `ModuleDict`, which may hold no dot."""
    return layer.replace(".", "-")


def _adapted_layers(name: str, block: nn.Module, plan: Plan) -> dict[str, Linear]:
    try:
        layers = linear_layers(block, plan.adapt_layers)
    except ValueError as why:
        raise ValueError(f"plan.adapt: in block {name!r}, {why}") from None
    if not layers:
        raise ValueError(
            f"plan.adapt: block {name!r} has no linear layer to adapt that matches adapt_layers={plan.adapt_layers!r}; "
            f"it has {list(linear_layers(block)) or 'none'}."
        )
    for part in plan.copies:
        inside = part.removeprefix(f"{name}.")
        taken = [layer for layer in layers if f"{layer}.".startswith(f"{inside}.")]
        if part != inside and taken:
            raise ValueError(
                f"plan.adapt: layer {taken[0]!r} of block {name!r} lies in {part!r}, of which tasks have copies. Leave it out: "
                "choose the layers by adapt_layers, a regular expression over their names."
            )
    return layers
