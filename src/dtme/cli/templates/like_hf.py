"""Your model for `dtme`: a trunk of transformers, a head per task, and made-up texts until you put yours here.

dtme doctor mine.py
dtme analyze mine.py --out report.json
dtme plan report.json --max-cost 1.5 --out plan.json
dtme cost mine.py plan.json
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import BertConfig, BertModel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WORDS, LENGTH, PADDING = 200, 24, 0


class Multitask(nn.Module):
    """One trunk for all tasks. Heads in a `ModuleDict` called like the tasks are found by themselves."""

    def __init__(self) -> None:
        super().__init__()
        # Yours: AutoModel.from_pretrained("..."). An untrained trunk says little about where tasks will conflict.
        size = BertConfig(
            vocab_size=WORDS, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128
        )
        self.trunk = BertModel(size)
        self.heads = nn.ModuleDict({"topic": nn.Linear(64, 4), "length": nn.Linear(64, 1)})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Every task's output. The mask tells dtme which tokens are padding."""
        hidden = self.trunk(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return {task: head(hidden[:, 0]) for task, head in self.heads.items()}


class Texts(Dataset):
    """Words drawn at random. Yours: your own texts, through your tokenizer."""

    def __len__(self) -> int:
        """How many there are."""
        return 256

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One text with the label of each task."""
        generator = torch.Generator().manual_seed(index)
        length = int(torch.randint(6, LENGTH + 1, (), generator=generator))
        words = torch.randint(1, WORDS, (LENGTH,), generator=generator)
        mask = torch.arange(LENGTH) < length
        ids = words.where(mask, torch.tensor(PADDING))
        label = {"topic": words[0] % 4, "length": torch.tensor(length / LENGTH)}
        return {"input_ids": ids, "attention_mask": mask.long(), **label}


def model() -> nn.Module:
    """The model, with the weights it is trained from: load your checkpoint here."""
    return Multitask().to(DEVICE)


def task_losses(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each task's loss, a scalar, without weights. A task that a batch has no labels for is left out."""
    batch = {name: value.to(DEVICE) for name, value in batch.items()}
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return {
        "topic": F.cross_entropy(output["topic"], batch["topic"]),
        "length": F.mse_loss(output["length"][:, 0], batch["length"]),
    }


def batches() -> Iterable[dict[str, Tensor]]:
    """Batches in random order: those read first speak for the rest. Under torchrun, each process takes its share of them."""
    return DataLoader(Texts(), batch_size=16, shuffle=True)


# Heads that are no ModuleDict: say where each task leaves the trunk, by the name of a module.
# def branches(model):
#     return {"topic": "topic_head", "length": "length_head"}

# In training, before the optimizer is made:
# dtme.apply(model, dtme.Plan.load("plan.json"))
