"""A set of text tasks in memory: sentences as token ids, ready to be drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dtme._shapes import Float, Int
from experiments.text.data.tasks import TextTask


@dataclass(frozen=True)
class Encoded:
    """Sentences of one file as a trunk reads them, without padding: one after another in one tensor.

    Attributes:
        ids: Token ids of all sentences.
        segments: Of each token, whether it belongs to the first or the second sentence of a pair.
        offsets: Where each sentence begins in them, and behind the last one their end.
        targets: Class indices or numbers.
        truncated: Sentences that were cut, because they were longer than the trunk or the recipe takes.
    """

    ids: Int[Tensor, " tokens"]
    segments: Int[Tensor, " tokens"]
    offsets: Int[Tensor, " sentences+1"]
    targets: Float[Tensor, " sentences"]
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def lengths(self) -> Int[Tensor, " sentences"]:
        """Tokens per sentence."""
        return self.offsets.diff()

    def sentence(self, row: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Ids and segments of one sentence."""
        own = slice(int(self.offsets[row]), int(self.offsets[row + 1]))
        return self.ids[own], self.segments[own]


@dataclass(frozen=True)
class Batch:
    """Sentences of one task or of several, a row each.

    Attributes:
        inputs: What the model is called with: `input_ids` and `attention_mask`, and `token_type_ids` if the trunk has any.
        tasks: Each row's task, an index into the suite's tasks.
        targets: Each row's class index or number, numbers on the suite's scale.
    """

    inputs: Mapping[str, Int[Tensor, "rows n"]]
    tasks: Int[Tensor, " rows"]
    targets: Float[Tensor, " rows"]

    def __len__(self) -> int:
        return len(self.tasks)

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        moved = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Batch(moved, self.tasks.to(device), self.targets.to(device))

    def of_task(self, task: int) -> Batch:
        """The rows of one task, padded no further than they need."""
        rows = self.tasks == task
        longest = int(self.inputs["attention_mask"][rows].sum(1).max())
        own = {name: tensor[rows][:, :longest] for name, tensor in self.inputs.items()}
        return Batch(own, self.tasks[rows], self.targets[rows])


@dataclass(frozen=True)
class TextSuite:
    """Text tasks with their sentences.

    Attributes:
        tasks: In the order of every table.
        train: By task, what is trained on.
        dev: By task, what is measured on, a file each.
        scales: By task, mean and deviation of its numbers in training; 0 and 1 for classes.
        pad: Id of the padding token.
        segments: Whether the trunk takes `token_type_ids`.
        remarks: What a reader of the results has to know: partial splits, lines left out, sentences cut.
    """

    tasks: tuple[TextTask, ...]
    train: Mapping[str, Encoded]
    dev: Mapping[str, tuple[Encoded, ...]]
    scales: Mapping[str, tuple[float, float]]
    pad: int
    segments: bool
    remarks: tuple[str, ...] = ()

    def only(self, task: TextTask) -> TextSuite:
        """The suite of one task alone."""
        return replace(self, tasks=(task,))

    def sizes(self) -> list[int]:
        """Training sentences per task."""
        return [len(self.train[task.name]) for task in self.tasks]

    def batch(self, rows: Sequence[tuple[int, int]]) -> Batch:
        """Training sentences, each named by its task's index and its own, in one padded batch."""
        names = [task.name for task in self.tasks]
        sentences = [self.train[names[place]].sentence(row) for place, row in rows]
        targets = [self.to_unit(names[place], self.train[names[place]].targets[row]) for place, row in rows]
        return Batch(self.padded(sentences), torch.tensor([place for place, _ in rows]), torch.stack(targets))

    def to_unit(self, task: str, targets: Tensor) -> Tensor:
        """Targets on the scale that losses are taken on: numbers with mean 0 and deviation 1 in training, classes as they are."""
        mean, deviation = self.scales[task]
        return (targets - mean) / deviation

    def from_unit(self, task: str, predictions: Tensor) -> Tensor:
        """Predictions on the scale of the task's targets."""
        mean, deviation = self.scales[task]
        return predictions * deviation + mean

    def padded(self, sentences: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Int[Tensor, "rows n"]]:
        """Sentences as a batch for the model, padded to the longest."""
        ids = torch.nn.utils.rnn.pad_sequence([own for own, _ in sentences], batch_first=True, padding_value=self.pad)
        lengths = torch.tensor([len(own) for own, _ in sentences])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        inputs = {"input_ids": ids.long(), "attention_mask": mask}
        if self.segments:
            segments = torch.nn.utils.rnn.pad_sequence([own for _, own in sentences], batch_first=True)
            inputs["token_type_ids"] = segments.long()
        return inputs
