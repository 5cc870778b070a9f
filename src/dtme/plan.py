"""The plan: which tasks get modulators and task tokens in which blocks. Plain data, written by a report or by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dtme._files import read_json, read_text, write_text

if TYPE_CHECKING:
    from torch import nn

    from dtme.cost import Cost

Placement = Mapping[str, Sequence[str]]
FORMAT = "dtme.plan"


@dataclass(frozen=True)
class Plan:
    """What is inserted where.

    Attributes:
        tasks: Every task of the model, in the order of its streams.
        modulate: Block name to the tasks that get a modulator at its entry.
        expand: Block name to the tasks that get task tokens in it.
        adapt: Block name to the tasks that get low-rank updates of its linear layers (ours, not the paper's).
        tokens_per_task: Task tokens n per task and block.
        rank: Rank of the low-rank updates.
        modulator: `"affine"` (the paper's), or `"batchnorm"` (Tab. 11).
        adapt_layers: Which linear layers of a block are adapted, a regular expression that their whole name in the block
            matches (`"attn.qkv|mlp.fc1"`, `".*(in|out)_proj"` of an `nn.MultiheadAttention`); `None` adapts all.
        copies: Block name to the tasks that get a copy of the block for themselves (ours, not the paper's); the others go on
            through the block as it is, so leave one out, or no task trains it. Also the name of a part, `"blocks.11.mlp"`.
        joint_tokens: All tasks share one stream that sees the task tokens of all (the literal reading of Sec. 4.3); by
            default a task's tokens are seen by its own stream alone.

    Raises:
        ValueError: A field does not fit the others; the message names it.

    Example:
        >>> plan = Plan(tasks=("depth", "semseg"), modulate={"blocks.3": ("depth", "semseg")})
        >>> plan.parameters(192)
        768
        >>> plan == Plan.from_json(plan.to_json())
        True
    """

    tasks: tuple[str, ...]
    modulate: Placement = field(default_factory=dict)
    expand: Placement = field(default_factory=dict)
    adapt: Placement = field(default_factory=dict)
    tokens_per_task: int = 1
    rank: int = 4
    modulator: Literal["affine", "batchnorm"] = "affine"
    joint_tokens: bool = False
    adapt_layers: str | None = None
    copies: Placement = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.tasks, str) or not all(isinstance(task, str) and task for task in self.tasks):
            raise ValueError(f"tasks={self.tasks!r}: give a sequence of task names, ('depth', 'semseg').")
        object.__setattr__(self, "tasks", tuple(self.tasks))
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks={self.tasks!r}: at least one task is needed and no name may occur twice.")
        for name in ("modulate", "expand", "adapt", "copies"):
            object.__setattr__(self, name, self._checked(name, getattr(self, name)))
        for name, least in (("tokens_per_task", 1), ("rank", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}={value!r}: give a whole number of at least {least}.")
        if self.modulator not in ("affine", "batchnorm"):
            raise ValueError(f"modulator={self.modulator!r}: choose 'affine' or 'batchnorm'.")
        if self.adapt_layers is not None:
            try:
                re.compile(self.adapt_layers)
            except (re.error, TypeError) as error:
                raise ValueError(f"adapt_layers={self.adapt_layers!r} is no regular expression ({error}).") from error
        if not isinstance(self.joint_tokens, bool):
            raise ValueError(f"joint_tokens={self.joint_tokens!r}: give True or False.")
        self._check_copies()

    def _checked(self, name: str, placement: Placement) -> dict[str, tuple[str, ...]]:
        if not isinstance(placement, Mapping):
            raise ValueError(f"{name}={placement!r}: give a mapping from block names to task names.")
        checked = {}
        for block, tasks in placement.items():
            if isinstance(tasks, str) or not isinstance(tasks, Sequence):
                raise ValueError(f"{name}[{block!r}]={tasks!r}: give a sequence of task names, {self.tasks[:1]}.")
            unknown = [task for task in tasks if task not in self.tasks]
            if unknown or len(set(tasks)) < len(tasks):
                raise ValueError(
                    f"{name}[{block!r}]={tuple(tasks)!r}: each of {self.tasks} may occur once, nothing else."
                )
            if tasks:
                checked[block] = tuple(task for task in self.tasks if task in tasks)
        return checked

    def _check_copies(self) -> None:
        for block in self.copies:
            inside = [name for name in self.blocks if name.startswith(f"{block}.")]
            beside = [name for name in ("expand", "adapt") if block in getattr(self, name)]
            if inside or beside:
                raise ValueError(
                    f"copies[{block!r}]: "
                    + (f"{inside[0]!r} in it has inserts" if inside else f"{beside[0]} has the block as well")
                    + ", which copies of the block would not have. Give it copies or those."
                )

    @property
    def blocks(self) -> tuple[str, ...]:
        """Every block that gets an insert."""
        return tuple(dict.fromkeys([*self.modulate, *self.expand, *self.adapt, *self.copies]))

    def parting(self, block: str) -> tuple[str, ...]:
        """The tasks that have something in a block that others have not, and so go their own way from there on.

        Example:
            >>> Plan(("a", "b", "c"), {"x.1": ("c",)}, copies={"x.1": ("a",)}).parting("x.1")
            ('c', 'a')
        """
        placements = (self.modulate, self.adapt, self.copies, {} if self.joint_tokens else self.expand)
        return tuple(dict.fromkeys(task for placement in placements for task in placement.get(block, ())))

    def starting_at(self, part: str) -> Plan:
        """The same plan, but in its first block no sooner than from a part of it on.

        What runs in that block before the part then runs once for all tasks, for a third less than a block of a ViT takes if
        the part is its MLP; so it is for adaptation and copies, which gain little in attention (`docs/findings.md`).
        Blocks come in the order in which the plan names them, which for those of a report is that of the trunk.
        What the block does behind the part it does to each stream by itself: a sum, as a rule. One that runs several times in a
        pass, or sums in code that takes streams for one tensor (a scripted function, an in-place sum), wants its inserts whole.

        Args:
            part: Its name in the block, `"mlp"`.

        Raises:
            ValueError: The plan has modulators or task tokens, whose place would be another, `adapt_layers`, which name layers
                from the block, both adaptation and copies, or nothing.

        Example:
            >>> Plan(("a", "b"), adapt={"x.1": ("a", "b"), "x.2": ("a", "b")}).starting_at("mlp").adapt
            {'x.1.mlp': ('a', 'b'), 'x.2': ('a', 'b')}
        """
        if self.adapt_layers is not None or (self.adapt and self.copies):
            raise ValueError(
                f"starting_at({part!r}): the plan has "
                + ("both adaptation and copies" if self.adapt_layers is None else f"adapt_layers={self.adapt_layers!r}")
                + ", of which it is not known what starts late. Write its places out: adapt={'blocks.11.mlp': tasks}."
            )
        if self.modulate or self.expand or not self.blocks:
            raise ValueError(
                f"starting_at({part!r}): the plan has {'modulators or task tokens' if self.blocks else 'nothing'}, and what "
                "starts late is adaptation or copies alone. Plan those: report.recommended()."
            )
        first = self.blocks[0]
        if first.endswith(f".{part}"):  # as those of report.recommended() do
            return self

        def moved(placement: Placement) -> Placement:
            return {f"{block}.{part}" if block == first else block: tasks for block, tasks in placement.items()}

        return replace(self, adapt=moved(self.adapt), copies=moved(self.copies))

    def parameters(self, width: int | Mapping[str, int]) -> int:
        """Parameters that the modulators and task tokens of this plan add: 2p a modulator, n p for a task's tokens.

        Args:
            width: Channels p of the tokens, one number or one per block.

        Raises:
            ValueError: The plan adapts or copies blocks: the count depends on the shapes in them; after `apply`, sum over
                `dtme.added_parameters(model)`.
        """
        if self.adapt or self.copies:
            raise ValueError(
                "parameters(width): low-rank updates and copies are counted by the shapes in a model's blocks. After apply: "
                "sum(p.numel() for _, p in dtme.added_parameters(model))."
            )
        per_token = {block: width if isinstance(width, int) else width[block] for block in self.blocks}
        modulators = sum(2 * per_token[block] * len(tasks) for block, tasks in self.modulate.items())
        tokens = sum(self.tokens_per_task * per_token[block] * len(tasks) for block, tasks in self.expand.items())
        return modulators + tokens

    def cost(self, model: nn.Module, sample: Any, *, branches: Mapping[str, nn.Module | str] | None = None) -> Cost:
        """What inference of all tasks costs under this plan, without applying it: FLOPs, and the streams of every block.

        One plain pass is counted, in evaluation mode and beside it a few runs of every block; the rest is arithmetic. The
        FLOPs are those that torch's `FlopCounterMode` counts of the model with the plan applied, attention as plain products
        on every device.

        Args:
            model: A model without inserts; it is left as it was found.
            sample: What its forward takes: a tensor, a tuple of arguments, or a dictionary of named ones.
            branches: Where tasks leave the trunk, as in `apply`.

        Raises:
            ValueError: The plan does not fit the model, or the model has inserts already.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> class Model(nn.Module):
            ...     def __init__(self):
            ...         super().__init__()
            ...         layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            ...         self.trunk = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            ...         self.heads = nn.ModuleDict({"depth": nn.Linear(8, 1), "semseg": nn.Linear(8, 3)})
            ...     def forward(self, x):
            ...         tokens = self.trunk(x)
            ...         return {task: head(tokens) for task, head in self.heads.items()}
            >>> plan = Plan(("depth", "semseg"), modulate={"trunk.layers.1": ("depth", "semseg")})
            >>> cost = plan.cost(Model(), torch.randn(2, 5, 8))
            >>> cost.streams, round(cost.ratio, 2)
            ({'trunk.layers.0': 1, 'trunk.layers.1': 2}, 1.49)
        """
        from dtme.cost import measure

        return measure(self, model, sample, branches)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data; without copies they are not mentioned, so that files are those of versions that knew none."""
        return {name: value for name, value in asdict(self).items() if name != "copies" or value}

    def to_json(self) -> str:
        """The plan as JSON, fit for editing."""
        return json.dumps({"format": FORMAT, "version": 1, **self.to_dict()}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "the text") -> Plan:
        """A plan out of its JSON.

        Raises:
            ValueError: It is no JSON, another format, or its fields do not fit; the message names `source`.
        """
        return cls.from_dict(read_json(text, FORMAT, source), source)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "the plan") -> Plan:
        """A plan out of plain data, as `to_json` lays it out."""
        names = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - names - {"format", "version"})
        if unknown or "tasks" not in data:
            what = f"unknown fields {unknown}" if unknown else "no 'tasks'"
            raise ValueError(f"{source} is no plan this version reads: {what}. A plan has the fields {sorted(names)}.")
        try:
            return cls(**{name: data[name] for name in names & set(data)})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all."""
        write_text(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that `save` wrote or a person edited.

        Raises:
            ValueError: The file is no plan.
        """
        return cls.from_json(read_text(Path(path)), str(path))
