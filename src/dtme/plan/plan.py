"""The plan: which tasks get modulators and task tokens in which blocks. Plain data, written by a report or by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from dtme._files import read_json, read_text, write_text
from dtme._patterns import compiled
from dtme.plan.table import format_plan

Placement = Mapping[str, Sequence[str]]
FORMAT = "dtme.plan"
MOST = {"tokens_per_task": 4096, "rank": 4096}
"""What no plan means to exceed; a file that does is damaged, or means harm."""
MOST_TASKS, MOST_BLOCKS = 1000, 2000


@dataclass(frozen=True)
class Plan:
    """What is inserted where.

    Attributes:
        tasks: Every task of the model, in the order of its streams.
        modulate: Block name to the tasks that get a modulator at its entry.
        expand: Block name to the tasks that get task tokens in it.
        adapt: Block name to the tasks that get low-rank updates of its linear layers (ours, not the paper's). Also the name of a
            part: with `"blocks.11.mlp"` what runs in that block before its MLP runs once for all tasks, a third of the block.
        tokens_per_task: Task tokens n per task and block.
        rank: Rank of the low-rank updates.
        modulator: `"affine"` (the paper's), or `"batchnorm"` (Tab. 11).
        adapt_layers: Which linear layers of a block are adapted, a regular expression that their whole name in the block
            matches (`"attn.qkv|mlp.fc1"`, `".*(in|out)_proj"` of an `nn.MultiheadAttention`); `None` adapts all. Without
            references back, looks behind and flags but `(?i)`, so that none out of a file takes long.
        copies: Block name to the tasks that get a copy of the block for themselves (ours, not the paper's); the others go on
            through the block as it is, so leave one out, or no task trains it. Also the name of a part, `"blocks.11.mlp"`.
        joint_tokens: All tasks share one stream that sees the task tokens of all (the literal reading of Sec. 4.3); by
            default a task's tokens are seen by its own stream alone.
        notes: What the report says of the samples that the plan was chosen by: printed with it, and neither saved nor compared.

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
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.tasks, str | Mapping) or not all(isinstance(task, str) and task for task in self.tasks):
            raise ValueError(f"tasks={self.tasks!r}: give a sequence of task names, ('depth', 'semseg').")
        object.__setattr__(self, "tasks", tuple(self.tasks))
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks={self.tasks!r}: at least one task is needed and no name may occur twice.")
        if len(self.tasks) > MOST_TASKS:
            raise ValueError(f"tasks: {len(self.tasks)} of them, {MOST_TASKS} are the most.")
        for name in ("modulate", "expand", "adapt", "copies"):
            object.__setattr__(self, name, self._checked(name, getattr(self, name)))
        for name, most in MOST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r}: give a whole number of at least 1.")
            if value > most:
                raise ValueError(f"{name}={value}: {most} are the most.")
        if self.modulator not in ("affine", "batchnorm"):
            raise ValueError(f"modulator={self.modulator!r}: choose 'affine' or 'batchnorm'.")
        if self.adapt_layers is not None:
            try:
                compiled(self.adapt_layers)
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"adapt_layers={self.adapt_layers!r} is no regular expression that is matched here ({error})."
                ) from error
        if not isinstance(self.joint_tokens, bool):
            raise ValueError(f"joint_tokens={self.joint_tokens!r}: give True or False.")
        self._check_copies()

    def _checked(self, name: str, placement: Placement) -> dict[str, tuple[str, ...]]:
        if not isinstance(placement, Mapping):
            raise ValueError(f"{name}={placement!r}: give a mapping from block names to task names.")
        if len(placement) > MOST_BLOCKS:
            raise ValueError(f"{name}: {len(placement)} blocks, {MOST_BLOCKS} are the most.")
        checked = {}
        for block, tasks in placement.items():
            if not isinstance(block, str):
                raise ValueError(f"{name}: {block!r} is no name of a block.")
            if isinstance(tasks, str) or not isinstance(tasks, Sequence):
                raise ValueError(f"{name}[{block!r}]={tasks!r}: give a sequence of task names, {self.tasks[:1]}.")
            unknown = [task for task in tasks[: len(self.tasks) + 1] if task not in self.tasks]
            if unknown or len(set(tasks)) < len(tasks):
                raise ValueError(
                    f"{name}[{block!r}]={tuple(tasks[:MOST_TASKS])!r}: each of {self.tasks} may occur once, nothing else."
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

    def __str__(self) -> str:
        """A table: what each block gets, for which tasks, and who parts there; below, what is known of the samples."""
        return format_plan(self)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data; without copies they are not mentioned, so that files are those of versions that knew none."""
        return {name: value for name, value in asdict(self).items() if name != "notes" and (name != "copies" or value)}

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
        if not isinstance(data, Mapping):
            raise ValueError(f"{source} is a {type(data).__name__}, no plan: a plan has fields.")
        names = {f.name for f in fields(cls) if f.compare}
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
