"""Images per second at the size that the paper times, plain training against plans, and how long its analysis takes.

python -m benchmarks.throughput            # ViT-B, 512 pixels, five tasks, bfloat16, compiled: for a GPU
python -m benchmarks.throughput --record   # keeps them in results/throughput.json, for `make tables`
python -m benchmarks.throughput --trunk vit_tiny_patch16_224 --pixels 64 --samples 2 --eager   # a try without one
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dtme
from benchmarks.clock import peak_bytes, seconds
from benchmarks.subject import DEVICE, Size, first_half, last_half, task_losses
from dtme._files import write_text
from dtme.bench.hardware import hardware
from dtme.blocks import find_blocks

ROOT = Path(__file__).parents[1]
TASKS = ("edges", "normals", "parsing", "saliency", "semseg")
IMAGES = 4998
"""The training set of PASCAL-Context, which the paper's minutes are of."""
PAPER = {
    "vit_tiny_patch16_224": (3.61, 8.25),
    "vit_small_patch16_224": (3.74, 16.43),
    "vit_base_patch16_224": (11.54, 21.94),
    "vit_large_patch16_224": (11.96, 58.66),
}
"""Minutes on an RTX A6000 (Tab. 6): for the token space, and for the conflicts."""


@dataclass(frozen=True)
class Speed:
    """What a model with a plan does in a second.

    Attributes:
        plan: What is inserted.
        training: Images through forward and backward.
        inference: Images through the forward pass, all tasks.
        gigabytes: The peak of a training step; `None` where compiled code hides it.
    """

    plan: str
    training: float
    inference: float
    gigabytes: float | None


def plans(model: nn.Module, tasks: tuple[str, ...]) -> dict[str, dtme.Plan | None]:
    """Nothing, the paper's inserts with streams from the first block and from half way, and rank-8 updates in the last."""
    late, early = (dict.fromkeys(half(model), tasks) for half in (last_half, first_half))
    last = dict.fromkeys(list(find_blocks(model))[-1:], tasks)
    return {
        "nothing (MT)": None,
        "TM+TE from the first block": dtme.Plan(tasks, modulate=late, expand=early),
        "TM+TE from half way": dtme.Plan(tasks, modulate=late, expand=late),
        "rank-8 updates, last block": dtme.Plan(tasks, adapt=last, rank=8),
    }


def in_bfloat16(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The losses, under autocast."""
    with torch.autocast(DEVICE, torch.bfloat16):
        return task_losses(model, batch)


def speed(name: str, plan: dtme.Plan | None, size: Size, turns: int, *, compiled: bool) -> Speed:
    """Train and run a model with a plan."""
    model, batch = size.model(), size.batch()
    if plan is not None:
        dtme.apply(model, plan)
    run: Any = torch.compile(model) if compiled else model

    def step() -> None:
        torch.stack(list(in_bfloat16(run, batch).values())).sum().backward()
        model.zero_grad(set_to_none=True)

    def inference() -> None:
        with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
            run(batch["image"])

    model.train()
    training = _per_second(step, size.samples, turns)
    gigabytes = peak_bytes(step) / 2**30 if not compiled or DEVICE == "cuda" else None
    model.eval()
    return Speed(name, training, _per_second(inference, size.samples, turns), gigabytes)


def analysis_per_second(size: Size, batches: int) -> float:
    """Images of an analysis in a second, its two rounds, eigenvectors and all."""
    model, data = size.model(), [size.batch(seed) for seed in range(batches)]
    work = partial(dtme.analyze, model, in_bfloat16, data)
    work()
    return batches * size.samples / seconds(work)


def measure(size: Size, *, turns: int = 10, batches: int = 16, compiled: bool = True) -> dict[str, Any]:
    """All of it, as it is kept."""
    model = size.model()
    found = [speed(name, plan, size, turns, compiled=compiled) for name, plan in plans(model, size.tasks).items()]
    return {
        "command": "python -m benchmarks.throughput --record",
        "hardware": hardware(),
        "versions": {"torch": torch.__version__, "dtme": dtme.__version__, "python": platform.python_version()},
        "size": asdict(size),
        "compiled": compiled,
        "speeds": [asdict(one) for one in found],
        "analysis": analysis_per_second(size, batches),
    }


def section(found: Mapping[str, Any]) -> str:
    """What was found, as a section of docs/speed.md."""
    size, speeds, analysis = found["size"], found["speeds"], found["analysis"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    how = "compiled" if found["compiled"] else "eager"
    lines = [
        "",
        f"## Images per second, {found['hardware']}",
        "",
        f"{size['trunk']} at {size['pixels']} pixels, {len(size['tasks'])} tasks, {size['samples']} images a batch, bfloat16,",
        f"{how}; {versions} (`{found['command']}`).",
        "",
        "| inserts | training | of MT | inference | of MT | peak, GB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    plain = speeds[0]
    for own in speeds:
        shares = [own[what] / plain[what] for what in ("training", "inference")]
        peak = "-" if own["gigabytes"] is None else f"{own['gigabytes']:.2f}"
        lines.append(
            f"| {own['plan']} | {own['training']:.1f} | {shares[0]:.2f} | {own['inference']:.1f} | {shares[1]:.2f} | {peak} |"
        )
    minutes = IMAGES / analysis / 60
    lines += ["", f"The analysis reads {analysis:.1f} images a second: {IMAGES:,} images in {minutes:.1f} minutes."]
    if size["trunk"] in PAPER:
        spaces, conflicts = PAPER[size["trunk"]]
        lines[-1] += f" The paper gives {spaces + conflicts:.1f} minutes for them on an RTX A6000."
    return "\n".join(lines) + "\n"


def _per_second(work: Callable[[], None], samples: int, turns: int) -> float:
    for _ in range(3):  # compiled, and its allocations made
        work()
    return samples / statistics.median(seconds(work) for _ in range(turns))


def main() -> None:
    """Measure, and print or keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", default="vit_base_patch16_224")
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--samples", type=int, default=16, help="images of a batch")
    parser.add_argument("--depth", type=int, help="blocks, if not as many as are published")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--record", action="store_true", help="keep the figures")
    asked = parser.parse_args()
    size = Size(asked.trunk, asked.pixels, asked.samples, asked.depth, TASKS)
    found = measure(size, compiled=not asked.eager)
    if asked.record:
        write_text(ROOT / "results/throughput.json", json.dumps(found, indent=2) + "\n")
    print(section(found))


if __name__ == "__main__":
    main()
