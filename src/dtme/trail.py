"""What is made of some tensors: followed by the storages that operations read and write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from dtme.outputs import tensors_of


class Trail:
    """The tensors that were marked, and those that were made of them.

    Example:
        >>> trail = Trail()
        >>> tokens = torch.ones(3)
        >>> trail.mark(tokens)
        >>> trail.leads_to([tokens[:1]]), trail.leads_to([torch.ones(3)])
        (True, False)
    """

    def __init__(self) -> None:
        self._storages: dict[int, StorageWeakRef] = {}

    def mark(self, values: Any) -> None:
        """Follow the tensors among some values."""
        for tensor in _strided(values):  # the reference keeps the address from being used again
            self._storages[_address(tensor)] = StorageWeakRef(tensor.untyped_storage())

    def leads_to(self, values: Any) -> bool:
        """Whether one of the tensors among some values is followed."""
        return any(_address(tensor) in self._storages for tensor in _strided(values))

    def follow(self, inputs: Any, output: Any) -> bool:
        """Follow what an operation makes of followed tensors; whether it does."""
        led = self.leads_to(inputs)
        if led:
            self.mark(output)
        return led

    def forget(self) -> None:
        """Follow nothing any more."""
        self._storages.clear()


def _strided(values: Any) -> Iterator[Tensor]:
    """The tensors among some values that have a storage."""
    return (tensor for tensor in tensors_of(values) if tensor.layout == torch.strided)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
