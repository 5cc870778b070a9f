"""Arguments of another kind than is meant, told in a sentence: a model, a function of losses, an iterable of batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset


class ArgumentTypeError(TypeError, ValueError):
    """An argument of another kind than is meant: a TypeError, as Python has it, and like every other bad argument a ValueError.

    Example:
        >>> issubclass(ArgumentTypeError, ValueError)
        True
    """


def check_arguments(model: Any, task_losses: Any, batches: Any) -> None:
    """Refuse what is no model, no function of losses or no iterable of batches, and a model that no gradient can go through.

    Raises:
        ArgumentTypeError: One of them is of another kind.
        ValueError: The model has no numbers, or gradients are off for good.
    """
    if not isinstance(model, nn.Module):
        swapped = " Are the arguments in another order?" if isinstance(task_losses, nn.Module) else ""
        raise ArgumentTypeError(
            f"model is a {type(model).__name__}, no module: analyze(model, task_losses, batches).{swapped}"
        )
    if not callable(task_losses):
        swapped = " Are the arguments in another order?" if callable(batches) else ""
        raise ArgumentTypeError(
            f"task_losses is a {type(task_losses).__name__}, which cannot be called: give a function, "
            f"task_losses(model, batch) -> {{task: loss}}.{swapped}"
        )
    check_batches(batches)
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ValueError(
                f"parameter {name!r} is on the meta device, which holds no numbers. Load the weights first: "
                "model.to_empty(device=...), then load_state_dict."
            )
        if parameter.is_inference():
            raise ValueError(
                f"parameter {name!r} was made within torch.inference_mode(), so that no gradient can go past it. Build the model "
                "outside."
            )


def check_batches(batches: Any) -> None:
    """Refuse what is no iterable of batches.

    Raises:
        ArgumentTypeError: It is one batch, a data set of single samples, or nothing that can be iterated.
    """
    remedy = "Give an iterable of batches: a loader, or [batch]."
    if isinstance(batches, Tensor | Mapping | str | bytes) or _is_a_pair_of_tensors(batches):
        raise ArgumentTypeError(f"batches is one batch, {_described(batches)}, where several are meant. {remedy}")
    if isinstance(batches, Dataset) and not isinstance(batches, IterableDataset):
        raise ArgumentTypeError(
            f"batches is a data set ({type(batches).__name__}), which gives single samples. Give a loader of it: "
            "DataLoader(dataset, batch_size=16, shuffle=True)."
        )
    if callable(batches) and not hasattr(batches, "__iter__"):
        raise ArgumentTypeError(f"batches is {_described(batches)}. A generator function? Call it. {remedy}")
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise ArgumentTypeError(f"batches={batches!r} is {_described(batches)}, which cannot be iterated. {remedy}")


def _is_a_pair_of_tensors(batches: Any) -> bool:
    """Whether these are inputs and targets of the same samples: tensors that no list of batches holds side by side."""
    if not isinstance(batches, tuple | list) or len(batches) < 2:
        return False
    if not all(isinstance(tensor, Tensor) and tensor.ndim > 0 for tensor in batches):
        return False
    kinds = {(tensor.ndim, tensor.is_floating_point()) for tensor in batches}
    return len(kinds) > 1 and len({len(tensor) for tensor in batches}) == 1


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(map(repr, list(value)[:4]))}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} tensors"
    return f"a {type(value).__name__}"
