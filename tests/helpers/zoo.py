"""The zoo: every model of the property suite, with inputs for it and what the suite has to know of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import pytest
import timm_models as timm
import torch
import transformers_models as hf
from models import tiny_vit
from torch import Tensor, nn

import dtme
from dtme.trunk.blocks import find_blocks

Inputs = dict[str, Tensor]
Outputs = dict[str, Tensor]
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes:
        built: Builds it in double precision and evaluation mode, always with the same weights.
        inputs: Inputs for so many samples, by name.
        tasks: Its tasks.
        no_tokens: What the refusal of task tokens says, where its blocks have no place for them.
        adapt_layers: The layers that can be adapted, where some are shared by all streams; `""` where there is none.
        told_batch_size: Whether its heads are told the batch size, and so cannot be given no rows.
    """

    built: Callable[[], Any]
    inputs: Callable[..., Inputs]
    tasks: tuple[str, ...]
    no_tokens: str | None = None
    adapt_layers: str | None = None
    told_batch_size: bool = False

    @cached_property
    def _original(self) -> Any:
        return self.built()

    def make(self, dtype: torch.dtype = torch.float64) -> Any:
        """A new model."""
        return copy.deepcopy(self._original).to(dtype)

    @cached_property
    def blocks(self) -> list[str]:
        """The names of its blocks."""
        return list(find_blocks(self._original))


def _images(name: str, samples: int = 3) -> Inputs:
    return {"image": timm.images(name, samples)}


def _small_images(samples: int = 3) -> Inputs:
    return {"image": torch.randn(samples, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)}


def _entry_of_timm(name: str) -> Entry:
    return Entry(partial(timm.make, name), partial(_images, name), timm.TASKS, timm.TIED.get(name))


TIMM = {name: _entry_of_timm(name) for name in timm.TIMM}
TIMM["CoAtNet"] = replace(TIMM["CoAtNet"], adapt_layers="")
TRANSFORMERS = {
    name: Entry(make, partial(hf.batch_of, name), hf.TASKS, hf.LOCAL.get(name), hf.ADAPT_LAYERS.get(name))
    for name, make in hf.MODELS.items()
}
OTHERS = {name: _entry_of_timm(name) for name in timm.OTHERS} | {
    "by hand, maps": Entry(
        lambda: tiny_vit(timm.TASKS).double().eval(), _small_images, timm.TASKS, told_batch_size=True
    ),
}
ZOO = {**TIMM, **TRANSFORMERS, **OTHERS}
LIBRARIES = {"timm": TIMM, "transformers": TRANSFORMERS, "torch, and trunks written by hand": OTHERS}
ADAPTABLE = [name for name, entry in ZOO.items() if entry.adapt_layers != ""]
EXPANDABLE = [name for name, entry in ZOO.items() if entry.no_tokens is None]
NOT_ADAPTABLE = [name for name in ZOO if name not in ADAPTABLE]
NOT_EXPANDABLE = [name for name in ZOO if name not in EXPANDABLE]
FEW = ("ViT", "Swin", "bert", "llama", "torch encoder, batch first")
"""One of each kind, for properties that take long to check: global and windowed attention, padding, causal masks."""
FEW_AT_FIRST = [name if name in FEW else pytest.param(name, marks=pytest.mark.long) for name in ZOO]
TWO_AT_FIRST = [name if name in ("ViT", "llama") else pytest.param(name, marks=pytest.mark.long) for name in FEW]
"""All of the zoo, and the few, of which `make zoo` alone runs more than few or two."""


def modulation(entry: Entry) -> dtme.Plan:
    """The third task leaves the others in the second block, the first in the last one."""
    first, _, third = entry.tasks
    return dtme.Plan(entry.tasks, {entry.blocks[1]: (third,), entry.blocks[-1]: (first, third)})


def expansion(entry: Entry) -> dtme.Plan:
    """Two tokens for two of the tasks, and for all of them."""
    return dtme.Plan(
        entry.tasks, expand={entry.blocks[1]: entry.tasks[:2], entry.blocks[-1]: entry.tasks}, tokens_per_task=2
    )


def adaptation(entry: Entry) -> dtme.Plan:
    """Updates in the first block for one task, in the last one for all."""
    return dtme.Plan(
        entry.tasks,
        adapt={entry.blocks[0]: entry.tasks[1:2], entry.blocks[-1]: entry.tasks},
        rank=2,
        adapt_layers=entry.adapt_layers or None,
    )


def copying(entry: Entry) -> dtme.Plan:
    """The third task has the second block for itself, the first and the third the last one, and the second a modulator there."""
    first, second, third = entry.tasks
    last = entry.blocks[-1]
    return dtme.Plan(entry.tasks, {last: (second,)}, copies={entry.blocks[1]: (third,), last: (first, third)})


def everything(entry: Entry) -> dtme.Plan:
    """All that the model takes, in one plan."""
    expand = expansion(entry).expand if entry.no_tokens is None else {}
    adapt = adaptation(entry).adapt if entry.adapt_layers != "" else {}
    free = [block for block in entry.blocks[1:] if block not in {*expand, *adapt}]
    return dtme.Plan(
        entry.tasks,
        modulation(entry).modulate,
        expand,
        adapt,
        tokens_per_task=2,
        rank=2,
        adapt_layers=entry.adapt_layers or None,
        copies=dict.fromkeys(free[:1], entry.tasks[:1]),
    )


def little(entry: Entry) -> dtme.Plan:
    """A part of each kind in few places, for what takes long: modulators in the second block, the rest in the last."""
    every = everything(entry)
    last = entry.blocks[-1]
    return replace(
        every,
        modulate={entry.blocks[1]: entry.tasks[2:]},
        expand={last: entry.tasks[:2]} if every.expand else {},
        adapt={last: entry.tasks[:1]} if every.adapt else {},
    )


def filled(model: nn.Module, plan: dtme.Plan) -> Any:
    """The model with the plan applied, every added parameter far from its start and different from the others."""
    dtme.apply(model, plan)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in dtme.added_parameters(model):
            noise = torch.randn(parameter.shape, generator=generator) * 0.3
            if ".copies." in name:  # of weights that are not to become any
                parameter += noise * (0.1 + parameter.std() if parameter.numel() > 1 else 1.0)
            else:
                parameter.copy_(noise + (parameter.ndim == 2) * 1.0)
    return model


def assert_same(one: Outputs, other: Outputs, **close: float) -> None:
    """The same keys, the same values to rounding, and a number of each."""
    assert one.keys() == other.keys()
    for task, output in one.items():
        assert bool(output.isfinite().all()), f"{task} has no numbers"
        torch.testing.assert_close(
            output, other[task], **(close or CLOSE), msg=lambda text, task=task: f"{task}: {text}"
        )


def as_type(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The inputs with numbers, not indices, of a type."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


def loss_of(outputs: Outputs) -> Tensor:
    """One number of all tasks, of each in another way."""
    return torch.stack(
        [(output.float() - 0.1 * place).square().mean() for place, output in enumerate(outputs.values())]
    ).sum()


def gradients_of(model: nn.Module) -> Outputs:
    """The gradients there are, by parameter."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def inert(gradients: Outputs) -> set[str]:
    """Weights in copies of blocks that no output depends on, such as the bias of keys: their gradient is rounding alone."""
    return {
        name
        for name, gradient in gradients.items()
        if ".copies." in name and float(gradient.abs().max()) < (1e-7 if gradient.dtype == torch.float32 else 1e-12)
    }
