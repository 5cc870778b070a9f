"""Images per second at the size that the paper times, plain training against plans, and how long its analysis takes.

python -m benchmarks.throughput            # ViT-B, 512 pixels, five tasks, bfloat16, compiled: for a GPU
python -m benchmarks.throughput --record   # keeps them in results/throughput.json, one by one, for `make tables`
python -m benchmarks.throughput --trunk vit_tiny_patch16_224 --pixels 64 --samples 2 --eager   # a try without one
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import dtme
from benchmarks.clock import peak_bytes, seconds
from benchmarks.subject import DEVICE, Size, first_half, last_half, task_losses
from dtme._files import write_text
from dtme.trunk.blocks import find_blocks
from experiments.runner.environment import hardware

ROOT = Path(__file__).parents[1]
TASKS = ("edges", "normals", "parsing", "saliency", "semseg")
MT = "nothing (MT)"
IMAGES = 4998
"""The training set of PASCAL-Context, which the paper's minutes are of."""
PAPER = {
    "vit_tiny_patch16_224": (3.61, 8.25),
    "vit_small_patch16_224": (3.74, 16.43),
    "vit_base_patch16_224": (11.54, 21.94),
    "vit_large_patch16_224": (11.96, 58.66),
}
"""Minutes on an RTX A6000 (Tab. 6): for the token space, and for the conflicts."""

Figures = TypeVar("Figures")


@dataclass(frozen=True)
class Speed:
    """What a model with a plan does in a second.

    Attributes:
        plan: What is inserted.
        training: Images through forward, backward and update (AdamW).
        inference: Images through the forward pass, all tasks.
        gigabytes: The peak of a training step beyond parameters and AdamW's state; `None` where compiled code hides it.
        samples: Of a batch, as many as fitted.
    """

    plan: str
    training: float
    inference: float
    gigabytes: float | None
    samples: int


@dataclass(frozen=True)
class Analysis:
    """What an analysis takes, by two of different lengths.

    Attributes:
        per_image: Seconds that each image more takes, in both rounds together.
        fixed: Seconds whatever the number of images: eigenvectors, the count of FLOPs, the first steps.
        samples: Of a batch, as many as fitted.
    """

    per_image: float
    fixed: float
    samples: int


def plans(model: nn.Module, tasks: tuple[str, ...]) -> dict[str, dtme.Plan | None]:
    """Nothing, the paper's inserts with streams from the first block and from half way, and rank-8 updates in the last."""
    late, early = (dict.fromkeys(half(model), tasks) for half in (last_half, first_half))
    last = dict.fromkeys(list(find_blocks(model))[-1:], tasks)
    return {
        MT: None,
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
    torch._dynamo.reset()  # else the models before count as compilations of the same code, of which few are allowed
    run: Any = torch.compile(model) if compiled else model
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        torch.stack(list(in_bfloat16(run, batch).values())).sum().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    def inference() -> None:
        with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
            run(batch["image"])

    model.train()
    training = _per_second(step, size.samples, turns)
    gigabytes = peak_bytes(step) / 2**30 if not compiled or DEVICE == "cuda" else None
    model.eval()
    return Speed(name, training, _per_second(inference, size.samples, turns), gigabytes, size.samples)


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Let each block run compiled and its hooks, by which an analysis catches tokens, as written.

    Where a mode watches every operation, as the one that counts FLOPs in the first pass does, blocks run as written, too.
    """
    for block in find_blocks(model).values():
        block.forward = _compiled(block.forward, backend)


def _compiled(plain: Callable[..., Any], backend: str) -> Callable[..., Any]:
    fast = torch.compile(plain, backend=backend)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return (plain if torch._C._len_torch_dispatch_stack() else fast)(*args, **kwargs)

    return forward


def analysis(size: Size, few: int, many: int, turns: int, *, compiled: bool) -> Analysis:
    """Time analyses of a few batches and of many: what both take is fixed, the rest goes with the images."""
    model, held = size.model(), [size.batch(seed) for seed in range(min(few, 4))]
    if compiled:
        torch._dynamo.reset()
        compile_blocks(model)

    def analyse(batches: int) -> None:
        dtme.analyze(model, in_bfloat16, list(islice(cycle(held), batches)), max_samples=None)

    # One graph serves the backward passes of all tasks, so that none of them may write over what the next one reads.
    with torch._functorch.config.patch(donated_buffer=False):  # pyright: ignore[reportAttributeAccessIssue]
        for _ in range(2):
            analyse(few)
        short, long = (
            statistics.median(seconds(lambda: analyse(batches)) for _ in range(turns))  # noqa: B023
            for batches in (few, many)
        )
    per_image = (long - short) / (many - few) / size.samples
    return Analysis(per_image, short - few * size.samples * per_image, size.samples)


def with_what_fits(run: Callable[[Size], Figures], size: Size) -> Figures:
    """Run with half of the batch, and half again, for as long as memory does not suffice."""
    while True:
        try:
            return run(size)
        except torch.OutOfMemoryError:
            if size.samples == 1:
                raise
        # Behind the handler, when nothing holds the failed run's tensors any more.
        size = replace(size, samples=size.samples // 2)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()


def measure(
    size: Size, *, turns: int = 10, few: int = 8, many: int = 40, compiled: bool = True
) -> Iterator[dict[str, Any]]:
    """All figures so far, as they are kept, each time that there is one more; what failed is among them."""
    found: dict[str, Any] = {
        "command": "python -m benchmarks.throughput --record",
        "hardware": hardware(),
        "versions": {"torch": torch.__version__, "dtme": dtme.__version__, "python": platform.python_version()},
        "size": asdict(size),
        "compiled": compiled,
        "speeds": [],
        "analysis": None,
        "failed": {},
    }

    def add(name: str, run: Callable[[Size], Any], keep: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        try:
            keep(asdict(with_what_fits(run, size)))
        except Exception as why:  # whatever one does, the others are to be measured
            found["failed"][name] = f"{type(why).__name__}: {str(why).strip().partition(chr(10))[0]}"
        return found

    for name, plan in plans(size.model(), size.tasks).items():

        def run(fitting: Size, name: str = name, plan: dtme.Plan | None = plan) -> Speed:
            return speed(name, plan, fitting, turns, compiled=compiled)

        yield add(name, run, found["speeds"].append)
    yield add(
        "analysis",
        lambda fitting: analysis(fitting, few, many, max(turns // 3, 1), compiled=compiled),
        lambda figures: found.update(analysis=figures),
    )


def section(found: Mapping[str, Any]) -> str:
    """What was found, as a section of docs/speed.md."""
    size, speeds = found["size"], found["speeds"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    how = "compiled" if found["compiled"] else "eager"
    lines = [
        "",
        f"## Images per second, {found['hardware']}",
        "",
        f"{size['trunk']} at {size['pixels']} pixels, {len(size['tasks'])} tasks, bfloat16, {how}; training is forward, backward",
        f"and update (AdamW, fused); {versions} (`{found['command']}`).",
        "",
        "| inserts | images a batch | training | of MT | inference | of MT | peak of a step, GB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    plain = next((own for own in speeds if own["plan"] == MT), None)
    for own in speeds:
        shares = ["-" if plain is None else f"{own[what] / plain[what]:.2f}" for what in ("training", "inference")]
        peak = "-" if own["gigabytes"] is None else f"{own['gigabytes']:.2f}"
        lines.append(
            f"| {own['plan']} | {own['samples']} | {own['training']:.1f} | {shares[0]} | {own['inference']:.1f} | {shares[1]} | "
            f"{peak} |"
        )
    if found["analysis"] is not None:
        lines += ["", *_of_analysis(found["analysis"], size["trunk"])]
    lines += [f"\nNot measured, {name}: {why}" for name, why in found["failed"].items()]
    return "\n".join(lines) + "\n"


def _of_analysis(own: Mapping[str, float], trunk: str) -> Iterator[str]:
    each, fixed = own["per_image"], own["fixed"]
    yield f"The analysis reads {1 / each:.1f} images a second, {own['samples']} a batch, and takes {fixed:.1f} s besides:"
    minutes = f"{IMAGES:,} images, read from memory, in {(fixed + IMAGES * each) / 60:.1f} minutes."
    if trunk in PAPER:
        spaces, conflicts = PAPER[trunk]
        minutes += f" The paper gives {spaces + conflicts:.1f} minutes for them on an RTX A6000."
    yield minutes


def _per_second(work: Callable[[], None], samples: int, turns: int) -> float:
    for _ in range(3):  # compiled, and its allocations made
        work()
    return samples / statistics.median(seconds(work) for _ in range(turns))


def main() -> int:
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
    found: dict[str, Any] = {}
    for found in measure(size, compiled=not asked.eager):
        print(json.dumps(found["analysis"] or found["failed"] or found["speeds"][-1]), flush=True)
        if asked.record:
            write_text(ROOT / "results/throughput.json", json.dumps(found, indent=2) + "\n")
    print(section(found))
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
