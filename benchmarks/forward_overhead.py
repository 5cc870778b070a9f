"""What a forward pass with a plan costs: its time over the unmodified model's, beside the ratio of their FLOPs.

    python benchmarks/forward_overhead.py

One process and one thread. The unmodified model, the three applied ones, and the unmodified model on as many samples as
there are streams times samples (what the larger batch alone costs) run in turn, so that what else the machine
does falls on all of them alike; a ratio is the median over the turns, with its quartiles. Writes results/overhead.json,
from which tests/helpers/zoo_table.py makes the second table of docs/zoo.md; `make overhead` does both.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import dtme
from dtme.trunk.blocks import find_blocks

RESULT = Path(__file__).parents[1] / "results/overhead.json"
TASKS = ("depth", "normals", "semseg")
WORDS = 64


class Multitask(nn.Module):
    """A trunk, and a linear head per task on its tokens."""

    def __init__(self, trunk: Any, width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict({task: nn.Linear(width, 4) for task in TASKS})

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """The tokens of the trunk through every head."""
        tokens = self.tokens(inputs).flatten(1, -2)
        return {task: head(tokens) for task, head in self.heads.items()}

    def tokens(self, inputs: Tensor) -> Tensor:
        """The trunk's last tokens."""
        return self.trunk.forward_features(inputs)


class OfTransformers(Multitask):
    """The same on a trunk of the transformers library."""

    def tokens(self, inputs: Tensor) -> Tensor:
        """The trunk's last hidden state."""
        return self.trunk(inputs).last_hidden_state


class OfTorch(Multitask):
    """The same on `nn.TransformerEncoder`, which is given tokens."""

    def tokens(self, inputs: Tensor) -> Tensor:
        """The encoder's output."""
        return self.trunk(inputs)


def vit() -> Multitask:
    """A ViT-Ti of timm, 12 blocks of 192 channels, on images of 112 pixels: 50 tokens."""
    return Multitask(timm.create_model("vit_tiny_patch16_224", img_size=112, num_classes=0), 192)


def swin() -> Multitask:
    """A Swin of timm with windows of 7, cut to 6 blocks of 96 and 192 channels."""
    options = {"img_size": 112, "embed_dim": 96, "depths": (2, 4), "num_heads": (3, 6), "num_classes": 0}
    return Multitask(timm.create_model("swin_tiny_patch4_window7_224", **options), 192)


def bert() -> Multitask:
    """BERT with 6 blocks of 192 channels, on 64 words."""
    config = transformers.BertConfig(
        vocab_size=1000, hidden_size=192, num_hidden_layers=6, num_attention_heads=3, intermediate_size=768
    )
    return OfTransformers(transformers.BertModel(config, add_pooling_layer=False), 192)


def encoder() -> Multitask:
    """`nn.TransformerEncoder` with 6 layers of 192 channels, on 64 tokens."""
    layer = nn.TransformerEncoderLayer(192, 3, 768, batch_first=True, norm_first=True)
    return OfTorch(nn.TransformerEncoder(layer, 6, enable_nested_tensor=False), 192)


def images() -> Tensor:
    """16 images."""
    return torch.randn(16, 3, 112, 112)


def words() -> Tensor:
    """16 sentences."""
    return torch.randint(1000, (16, WORDS))


def tokens() -> Tensor:
    """16 sequences."""
    return torch.randn(16, WORDS, 192)


MODELS: dict[str, tuple[Callable[[], Multitask], Callable[[], Tensor]]] = {
    "timm ViT-Ti, 12 blocks": (vit, images),
    "timm Swin, 6 blocks": (swin, images),
    "transformers BERT, 6 blocks": (bert, words),
    "torch encoder, 6 blocks": (encoder, tokens),
}


def flops(model: nn.Module, inputs: Tensor) -> int:
    """Floating-point operations of one forward pass."""
    with FlopCounterMode(display=False) as counter:
        model(inputs)
    return counter.get_total_flops()


def seconds(model: nn.Module, inputs: Tensor) -> float:
    """Processor time of one forward pass, which does not count what others do meanwhile."""
    start = time.process_time()
    model(inputs)
    return time.process_time() - start


def measured(name: str, repeats: int) -> list[dict[str, Any]]:
    """A row for each block at which the streams of the model part."""
    torch.manual_seed(0)
    make, draw = MODELS[name]
    base, inputs = make().eval(), draw()
    blocks = list(find_blocks(base))
    places = (0, len(blocks) // 2, len(blocks) - 1)
    applied = [dtme.apply(copy.deepcopy(base), dtme.Plan(TASKS, {blocks[place]: TASKS})) for place in places]
    counts = [flops(model, inputs) for model in (base, *applied)]
    runs = [(base, inputs), *((model, inputs) for model in applied), (base, torch.cat([inputs] * len(TASKS)))]
    for run in runs:
        seconds(*run)
    turns = [[seconds(*run) for run in runs] for _ in range(repeats)]
    of_batch = statistics.median(turn[-1] / turn[0] for turn in turns)
    rows = []
    for column, place in enumerate(places, 1):
        ratios = [turn[column] / turn[0] for turn in turns]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "model": name,
                "parts": place,
                "flop_ratio": counts[column] / counts[0],
                "time_ratio": middle,
                "quartiles": [low, high],
                "time_ratio_of_batch": of_batch,
                "seconds": statistics.median(turn[column] for turn in turns),
                "seconds_unmodified": statistics.median(turn[0] for turn in turns),
            }
        )
    return rows


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30, help="turns of all models (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=RESULT, help="where the result goes (default: results/overhead.json)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(f"{'model':32} {'parts at':>8} {'FLOPs':>7} {'time':>7}   quartiles     of batch")
    with torch.no_grad():
        for name in MODELS:
            rows += measured(name, options.repeats)
            for row in rows[-3:]:
                low, high = row["quartiles"]
                print(
                    f"{row['model']:32} {row['parts']:8} {row['flop_ratio']:7.2f} {row['time_ratio']:7.2f}   "
                    f"{low:.2f} to {high:.2f}  {row['time_ratio_of_batch']:8.2f}"
                )
    result = {
        "command": "python benchmarks/forward_overhead.py",
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "threads": 1,
        "repeats": options.repeats,
        "versions": {"torch": torch.__version__, "timm": timm.__version__, "transformers": transformers.__version__},
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
