"""The models that `doctor` is given: a user's file, or a trunk of timm or transformers with two heads that are made up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dtme.cli.answer import UsageError
from dtme.cli.user_file import load_user_file

TASKS = ("first", "second")
FEW = 2
"""Samples that things are tried on."""
LARGEST = 2_000_000_000
"""Parameters of a model of transformers that is built for a trial."""


@dataclass(frozen=True)
class Subject:
    """A model and how it is run.

    Attributes:
        name: What was asked for.
        model: The model, in evaluation mode.
        tasks: Its tasks.
        args: What its forward takes, by place.
        kwargs: And by name.
        run: Where its forward is never called as a whole: runs what is.
        branches: Where tasks leave the model given, if that is told.
    """

    name: str
    model: nn.Module
    tasks: tuple[str, ...]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    run: Callable[[nn.Module], Any] | None = None
    branches: Callable[[nn.Module], Mapping[str, Any] | None] = lambda model: None

    def forward(self, model: nn.Module) -> Any:
        """One pass of the model, or of a copy of it."""
        return self.run(model) if self.run is not None else model(*self.args, **(self.kwargs or {}))

    @property
    def rows(self) -> int:
        """Samples in the pass, by the first tensor that goes in."""
        return next((len(tensor) for tensor in _tensors((self.args, dict(self.kwargs or {}))) if tensor.ndim), 1)


class TwoHeads(nn.Module):
    """A trunk of timm or transformers, and two heads on the mean of its features."""

    def __init__(self, trunk: Any, width: int) -> None:
        super().__init__()
        self.trunk, self.width = trunk, width
        self.heads = nn.ModuleDict({task: nn.Linear(width, 2) for task in TASKS})

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Both outputs."""
        if hasattr(self.trunk, "forward_features"):
            features = self.trunk.forward_features(**inputs)
        else:
            features = self.trunk(**inputs).last_hidden_state
        if features.ndim == 4 and features.shape[-1] != self.width:  # channels first
            features = features.movedim(1, -1)
        pooled = features.flatten(1, -2).mean(1)
        return {task: head(pooled) for task, head in self.heads.items()}


def find_subject(target: str) -> Subject:
    """A model by `mine.py`, `timm:NAME` or `hf:NAME`.

    Raises:
        UsageError: There is no such model.
    """
    library, colon, name = target.partition(":")
    if colon and library in ("timm", "hf"):
        try:
            return _of_timm(name) if library == "timm" else _of_transformers(name)
        except ModuleNotFoundError as error:
            raise UsageError(f"{target} needs {error.name}, which is not installed: pip install {error.name}") from None
    return _of_file(Path(target))


def _of_file(path: Path) -> Subject:
    """The model of a user's file, with the first call of it in `task_losses`."""
    user = load_user_file(path)
    model, batch = user.model().eval(), user.first_batch()
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    handle = model.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    try:
        tasks = tuple(user.task_losses(model, batch))
    finally:
        handle.remove()
    keyed = [tuple(module) for module in model.modules() if isinstance(module, nn.ModuleDict)]
    tasks = next(
        (keys for keys in keyed if tasks and set(tasks) < set(keys)), tasks
    )  # some have no labels in this batch
    subject = Subject(str(path), model, tasks, branches=user.branches_of)
    if not calls:
        return replace(subject, run=lambda copied: user.task_losses(copied, batch))
    return _with_few(replace(subject, args=calls[0][0], kwargs=calls[0][1]))


def _with_few(subject: Subject) -> Subject:
    """The same on few of its samples, if it runs on few."""
    many = subject.rows

    def cut(value: Any) -> Any:
        return value[:FEW] if isinstance(value, Tensor) and value.ndim and len(value) == many else value

    args, kwargs = pytree.tree_map(cut, (subject.args, dict(subject.kwargs or {})))
    smaller = replace(subject, args=args, kwargs=kwargs)
    try:
        with torch.no_grad():
            smaller.forward(subject.model)
    except Exception:  # a model that is told how many there are
        return subject
    return smaller


def _of_timm(name: str) -> Subject:
    import timm

    if not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:8]
        raise UsageError("\n  ".join([f"timm has no model {name!r}.{' Near it:' if near else ''}", *near]))
    trunk: Any = timm.create_model(name, pretrained=False, num_classes=0)
    images = torch.randn(FEW, *trunk.default_cfg.get("input_size", (3, 224, 224)))
    return Subject(f"timm:{name}", TwoHeads(trunk, trunk.num_features).eval(), TASKS, kwargs={"x": images})


def _of_transformers(name: str) -> Subject:
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

    try:
        config: Any = AutoConfig.for_model(name) if name in CONFIG_MAPPING else AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        raise UsageError(
            f"hf:{name}: give a kind of model (bert, vit), a folder, or a name on the hub. {said}"
        ) from error
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in AutoModel.from_config(config).parameters())
    if count > LARGEST:
        raise UsageError(
            f"hf:{name} has {count / 1e9:.1f} billion parameters, too many for a trial: give a smaller one of its kind."
        )
    trunk: Any = AutoModel.from_config(config)
    trunk = trunk.get_encoder() if config.is_encoder_decoder else trunk
    if trunk.main_input_name == "pixel_values":
        size = getattr(config, "image_size", 224)
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        inputs = {"pixel_values": torch.randn(FEW, getattr(config, "num_channels", 3), *sides)}
    elif trunk.main_input_name == "input_ids" and hasattr(config, "vocab_size"):
        ids = torch.randint(3, config.vocab_size, (FEW, 16))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    else:
        raise UsageError(
            f"hf:{name} takes {trunk.main_input_name!r}: put it into a file of yours, `dtme init mine.py --like hf`."
        )
    width = getattr(config, "hidden_size", None) or config.hidden_sizes[-1]
    return Subject(f"hf:{name}", TwoHeads(trunk, width).eval(), TASKS, kwargs=inputs)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
