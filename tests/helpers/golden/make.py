"""A checkpoint that every later version has to load: made once for each version of the format, and then kept.

Weights, inputs and what was learnt are rational numbers by formula, since random numbers differ between versions of torch.
For a new version of the format: raise it in `dtme.checkpoint.files`, run this file, keep the older ones.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import dtme
from dtme._files import written_whole
from dtme.checkpoint.files import VERSIONS

HERE = Path(__file__).parent
TASKS = ("depth", "semseg", "edges")
OUTPUTS = "outputs.safetensors"
PLAN = dtme.Plan(
    TASKS,
    modulate={"encoder.layers.0": ("semseg",), "encoder.layers.2": TASKS},
    expand={"encoder.layers.1": ("depth", "edges")},
    adapt={"encoder.layers.2": ("edges", "semseg")},
    tokens_per_task=2,
    rank=2,
    adapt_layers="linear1|linear2",
)


class Model(nn.Module):
    """Three layers of torch's own encoder and a linear head per task."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.heads = nn.ModuleDict({task: nn.Linear(8, 2) for task in TASKS})

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        tokens = self.encoder(tokens)
        return {task: head(tokens) for task, head in self.heads.items()}


def numbers(shape: torch.Size, first: int) -> Tensor:
    """Numbers between -0.5 and 0.5 in no visible order, other ones for every `first`."""
    places = torch.arange(first, first + shape.numel(), dtype=torch.int64)
    return (places * 7919 % 1009).to(torch.float32).div(1009).sub(0.5).view(shape)


def base() -> Model:
    """The base of the golden checkpoints."""
    model = Model().eval()
    with torch.no_grad():
        for place, parameter in enumerate(model.parameters()):
            parameter.copy_(numbers(parameter.shape, 101 * place))
    return model


def inputs() -> Tensor:
    """Two samples of five tokens."""
    return numbers(torch.Size((2, 5, 8)), 5)


def make() -> None:
    """Write the checkpoint of this version, and the outputs of its model."""
    folder = HERE / f"v{VERSIONS[-1]}"
    model = dtme.apply(base(), PLAN)
    with torch.no_grad():
        for place, (_, parameter) in enumerate(dtme.added_parameters(model)):
            parameter.add_(-parameter).add_(numbers(parameter.shape, 57 * place + 1)).add_(0.25)
        dtme.save_pretrained(model, folder)
        with written_whole(folder / OUTPUTS) as file:
            save_file(model(inputs()), file)


if __name__ == "__main__":
    make()
