"""The state of one call of a block with an insert: found out when tokens enter, needed inside the block and when they leave.

It is of the thread that runs the block, and gone when the block has run: a layer that another block holds as well finds none.
Passes that are repeated on the way back without the block's hooks find what the last call left.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dtme._shapes import Int
from dtme._tracing import OfThread
from dtme.streams.groups import Groups
from dtme.streams.lanes import Places
from dtme.trunk.call import BlockCall


@dataclass
class CallState:
    """What is known of a call.

    It is made of lanes of equally many samples, one after another in the batch: a lane per stream or, where each row has a task
    of its own, a lane per row.

    Attributes:
        call: What the block runs with.
        tasks: Every task of the plan.
        groups: Which tasks each stream serves.
        rows: The task of each row, where rows have tasks of their own.
        within: Whether the block that this one is a part of has folded the streams.
        lane_samples: Samples of a lane.
        appended: Task tokens at the end of the sequence.
        adapting: Per lane, the row of its task in the low-rank updates.
        idle: Adapted layers that have not been called yet.
        seen: Which tensors of the call have rows, and where; kept where lanes run apart.
        ran_apart: Whether lanes have run apart from others, through variants of the block.
        left_to_a_part: Whether streams part in a part of the block, so that what runs before it runs once.
    """

    call: BlockCall
    tasks: tuple[str, ...]
    groups: Groups = ()
    rows: Int[Tensor, " batch"] | None = None
    within: bool = False
    lane_samples: int = 1
    appended: int = 0
    adapting: Places = field(default_factory=list)
    idle: set[str] = field(default_factory=set)
    seen: list[tuple[Tensor, int | None]] = field(default_factory=list)
    ran_apart: bool = False
    left_to_a_part: bool = False

    @property
    def lanes(self) -> int:
        """How many there are."""
        return len(self.groups) if self.rows is None else len(self.rows)

    @property
    def batch(self) -> int:
        """The dimension of the tokens in which the lanes lie."""
        return self.call.layout.batch

    def places(self, tasks: tuple[str, ...]) -> Places:
        """Per lane, the row that its task has among those of some tasks; -1 where it has none."""
        if self.rows is None:
            return [tasks.index(group[0]) if group[0] in tasks else -1 for group in self.groups]
        of_tasks = [tasks.index(task) if task in tasks else -1 for task in self.tasks]
        return torch.tensor(of_tasks, device=self.rows.device)[self.rows]

    def without_tensors(self) -> CallState:
        """What a repetition of the call needs to know, and no token of it."""
        return replace(self, call=self.call.given((), {}), seen=[])


@dataclass
class _Here:
    state: CallState | None = None


class Calls:
    """The calls of one block.

    Attributes:
        last: What the last one left.
        entered: Whether the block has ever been called. It is set at every call and read behind the model's, not asked at the
            next: compiled code would be made a second time for the other answer.
        part_ran: Whether a part of the block has ever been called, set likewise.
    """

    def __init__(self) -> None:
        self._here = OfThread(_Here)
        self.last: CallState | None = None
        self.entered = False
        self.part_ran = False

    def __reduce__(self) -> tuple[type[Calls], tuple[()]]:
        """Copies of a model begin with no call."""
        return Calls, ()

    @property
    def state(self) -> CallState | None:
        """Of the call that is running in this thread, `None` where none is."""
        return self._here.own.state

    @state.setter
    def state(self, state: CallState | None) -> None:
        self._here.own.state = state

    @property
    def state_inside(self) -> CallState | None:
        """As `state`, for what runs inside the block; where a pass is repeated on the way back, what the last call left."""
        state = self._here.own.state
        if state is None and not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            return self.last
        return state
