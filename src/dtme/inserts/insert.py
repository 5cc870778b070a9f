"""What is inserted into one block: a child module of it, called `dtme`, that holds the new parameters.

The block's class, code and parameters stay as they are. How tokens pass through a block with an insert is in `attach.hooks`,
what becomes of them there in the files beside this one.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dtme._pytree import tensors_of
from dtme._shapes import Float
from dtme._wrappers import named_modules
from dtme.inserts.block_copies import copy_of
from dtme.inserts.call_state import Calls
from dtme.inserts.expandable import fixed_positions
from dtme.inserts.host import Host, wide_dtype
from dtme.inserts.layer_updates import adapted_layers, layer_key
from dtme.inserts.loading import read_scale
from dtme.inserts.low_rank import LowRank, is_watched_when_called
from dtme.inserts.modulation import TokenStatistics
from dtme.inserts.task_tokens import draw_task_tokens
from dtme.plan.plan import Plan
from dtme.streams.routing import Routing
from dtme.streams.tensor import Streams


class Insert(nn.Module):
    """What a plan gives the tasks in one block; without anything, the block only keeps its streams folded.

    Attributes:
        scale: `W`, one row per modulated task. The parameter of that name holds `W - 1`: whatever decays it, it decays to the
            identity. To change it, write to the parameter.
        shift: `b`, one row per modulated task.
        tokens: Task tokens, `n` per expanded task.
        low_rank: The updates of the block's linear layers, stacked over the adapted tasks.
        copies: Of the block, one per copied task.
        planned: Tasks that the plan has part in the block.
        outer: The insert of the block that this one's module is a part of, if that has one.
        inside: Tasks that parts of the block have inserts for.
        parts: The inserts of parts of the block, but those inside other parts.
        last: Of a part, whether streams may part no sooner than in it.
        host: Facts about the block.
        calls: Of the block.
        routing: Which tasks a pass computes.
    """

    is_inserted = True
    _version = 2
    """Of its state dict. Version 1 held `W` in `scale`."""
    shift: Float[Tensor, "modulated p"] | None
    tokens: Float[Tensor, "expanded n p"] | None
    outer: Insert | None

    def __init__(self, name: str, block: nn.Module, plan: Plan, routing: Routing, width: int) -> None:
        super().__init__()
        like = wide_dtype(block)
        self.name = name
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
        self.joint = plan.joint_tokens
        self.__dict__["outer"] = None  # past the registry of modules, of which it would make a ring
        self.inside: tuple[str, ...] = ()
        self.parts: list[Insert] = []  # a list, so that they are no modules of this one
        self.last = False
        self.routing = routing
        self.host = Host(name, block, width, expanded=bool(self.expanded))
        self.calls = Calls()
        for own, tasks, shape in (
            ("scale", self.modulated, (width,)),
            ("shift", self.modulated, (width,)),
            ("tokens", self.expanded, (plan.tokens_per_task, width)),
        ):
            self._parameters[own] = nn.Parameter(like.new_empty(len(tasks), *shape)) if tasks else None
        batchnorm = self.modulated and plan.modulator == "batchnorm"
        self.statistics = TokenStatistics(len(self.modulated), width, like=like) if batchnorm else None
        layers = adapted_layers(name, block, plan.adapt_layers, iter(plan.copies)) if self.adapted else {}
        self.layers = tuple(layers)
        self.low_rank = nn.ModuleDict(
            {layer_key(layer): LowRank(len(self.adapted), linear, plan.rank, like) for layer, linear in layers.items()}
        )
        self.copies = nn.ModuleList([copy_of(name, block, routing.model) for _ in self.copied])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin anew: modulators as the identity, task tokens small; the modules inside have a method of their own."""
        for own in (self._parameters["scale"], self.shift):
            if own is not None:
                nn.init.zeros_(own)
        if self.tokens is not None:
            draw_task_tokens(self.tokens)

    def forward(self) -> dict[str, Any]:
        """Its own parameters, for who has to call a module to have its weights brought from elsewhere."""
        return dict(self._parameters)

    @property
    def scale(self) -> Float[Tensor, "modulated p"] | None:
        """`W`, one row per modulated task; where the model is sharded, the parameter, which FSDP2 asks for by this name."""
        offset = self._parameters["scale"]
        return offset if offset is None or hasattr(offset, "device_mesh") else 1 + offset

    def extra_repr(self) -> str:
        """The tasks, for `print(model)`."""
        return f"modulated={self.modulated}, expanded={self.expanded}, adapted={self.adapted}, copied={self.copied}"

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        read_scale(state_dict, f"{prefix}scale", local_metadata.get("version"))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def tasks_of(self, own: str) -> tuple[str, ...]:
        """The tasks whose rows a parameter or buffer of the insert stacks, by its name in the insert; of a copy, its task."""
        if own.startswith("copies."):
            return (self.copied[int(own.split(".")[1])],)
        return self.expanded if own == "tokens" else self.adapted if own.startswith("low_rank.") else self.modulated

    def changes_tokens(self) -> bool:
        """Whether the plan gives some task something here, or in a part of the block."""
        return bool(self.expanded or self.parting())

    @property
    def apart(self) -> tuple[str, ...]:
        """The tasks that have task tokens here which others lack, so that their lanes run apart."""
        some = 0 < len(self.expanded) < len(self.routing.tasks) and not self.joint
        return self.expanded if some else ()

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
        if outer.apart:
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

    def leaves_to_a_part(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether what enters as one stream need part no sooner than in the one part that has inserts, the block's last."""
        if self.planned or self.expanded or [part.last for part in self.parts] != [True]:
            return False
        if self.routing.choice.rows is not None or self.lies_within_streams():
            return False
        return not any(isinstance(tensor, Streams) for tensor in tensors_of((args, kwargs)))

    def lies_within_streams(self) -> bool:
        """Whether the block that this one is a part of has folded the streams."""
        around = None if self.outer is None else self.outer.calls.state_inside
        return around is not None and not around.left_to_a_part

    def describe_call(self) -> str | None:
        """What the block is run with in the call just now, for an error that rises from it; `None` if as ever."""
        state = self.calls.state
        if state is None:
            return None
        inner = self.parts[0].calls.last if state.left_to_a_part else None
        if inner is not None and len(inner.groups) > 1:
            done = (
                f"run on one stream up to {self.parts[0].name!r}, where streams part. Plan inserts for the whole block"
            )
        elif state.appended:
            done = f"run with {state.appended} task tokens behind its own. Plan modulation there: report.plan(expansion=False)"
        elif len(state.groups) > 1:
            done = f"run on {len(state.groups)} streams folded into one batch. Plan inserts in other blocks"
        else:
            return None
        return f"{done}, if the model runs without the plan."


def inserts_of(model: nn.Module) -> dict[str, Insert]:
    """The inserts of a model, by the names that their modules have without wrappers."""
    return {name: module for name, module in named_modules(model) if isinstance(module, Insert)}


def inserted_names(model: nn.Module) -> set[str]:
    """The names of all parameters and buffers of a model that inserts hold, as the model gives them."""
    return {
        f"{name}.{own}"
        for name, insert in model.named_modules()
        if isinstance(insert, Insert)
        for own in (*dict(insert.named_parameters()), *dict(insert.named_buffers()))
    }


def values_of(insert: Insert) -> dict[str, Any]:
    """The insert's own parameters, brought from elsewhere if they are kept there, and seen by who watches modules."""
    if is_watched_when_called(insert):
        return insert()
    return dict(insert._parameters)
