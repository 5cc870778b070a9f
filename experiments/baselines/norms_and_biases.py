"""LayerNorms and biases of each task's own: the control for what a modulator does at the entry of some blocks alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtme._shapes import Float, Int
from dtme.trunk.blocks import find_blocks
from experiments.baselines.pass_per_task import pass_per_task


class OwnNormsAndBiases(nn.Module):
    """Every LayerNorm of the blocks, and every bias of their linear layers, differs from task to task.

        y = (w + dw_i) * norm(x) + b + db_i,    y = W x + b + db_i,    dw = db = 0 at the start

    In the manner of BitFit (Ben Zaken et al., ACL 2022) with norms added, but the shared weights train along, as in the other
    rows of a table. By default the model runs once per task; within `per_sample` each row runs as its own task, in one pass.

    Args:
        model: Given its inputs it returns a dictionary by task, from the heads in a `ModuleDict`. It becomes a child; its
            tokens have samples first.
        tasks: Its tasks.
        blocks: Which blocks, as `dtme.trunk.blocks.find_blocks` takes them; all by default.

    Raises:
        ValueError: The blocks hold neither a LayerNorm with weights nor a linear layer with a bias.

    Example:
        >>> trunk = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
        >>> model = nn.ModuleDict({"trunk": trunk, "heads": nn.ModuleDict({"a": nn.Linear(8, 1), "b": nn.Linear(8, 1)})})
        >>> own = OwnNormsAndBiases(model, ("a", "b"), blocks=[-1])
        >>> sum(parameter.numel() for _, parameter in own.added_parameters())  # 2 x (two norms, two linear layers)
        112
    """

    def __init__(
        self, model: nn.Module, tasks: Sequence[str], *, blocks: str | Sequence[str | int] | int | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.tasks = tuple(tasks)
        self._rows: Int[Tensor, " rows"] | int | None = None
        self.changed = tuple(
            f"{block}.{name}"
            for block, module in find_blocks(model, blocks).items()
            for name, layer in module.named_modules()
            if type(layer) in (nn.LayerNorm, nn.Linear) and layer.bias is not None  # not what attention never calls
        )
        if not self.changed:
            raise ValueError(
                f"blocks={blocks!r}: these blocks hold no LayerNorm with weights and no linear layer with a bias."
            )
        self.scale, self.shift = nn.ParameterDict(), nn.ParameterDict()
        for name in self.changed:
            layer: Any = model.get_submodule(name)
            key = name.replace(".", "-")
            zeros = layer.bias.detach().new_zeros(len(self.tasks), layer.bias.numel())
            self.shift[key] = nn.Parameter(zeros)
            if isinstance(layer, nn.LayerNorm):
                self.scale[key] = nn.Parameter(zeros.clone())

    @contextmanager
    def per_sample(self, rows: Int[Tensor, " rows"]) -> Iterator[None]:
        """While it lasts, each row of the batch runs as its own task, an index into `tasks`, and heads see all rows."""
        before, self._rows = self._rows, rows
        try:
            yield
        finally:
            self._rows = before

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs: each row's as its task, or each task's of a pass of its own."""
        handles = [
            self.model.get_submodule(name).register_forward_hook(partial(self._change, name.replace(".", "-")))
            for name in self.changed
        ]
        try:
            if self._rows is not None:
                return self.model(*args, **kwargs)
            return pass_per_task(self.model, self.tasks, self.changed, partial(self._run, args, kwargs))
        finally:
            for handle in handles:
                handle.remove()

    def added_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of what the model did not have."""
        return ((name, p) for name, p in self.named_parameters() if name.startswith(("scale.", "shift.")))

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], task: str) -> Any:
        self._rows = self.tasks.index(task)
        try:
            return self.model(*args, **kwargs)
        finally:
            self._rows = None

    def _change(self, key: str, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        rows = self._rows
        assert rows is not None
        if isinstance(rows, Tensor) and len(rows) != len(output):
            raise ValueError(f"per_sample names the tasks of {len(rows)} rows, but layer {key!r} gives {len(output)}.")
        output = output + _of_rows(self.shift[key], rows, output)
        if isinstance(layer, nn.LayerNorm):
            normed = F.layer_norm(args[0], layer.normalized_shape, eps=layer.eps)
            output = output + _of_rows(self.scale[key], rows, output) * normed
        return output


def _of_rows(own: Float[Tensor, "tasks p"], rows: Int[Tensor, " rows"] | int, like: Tensor) -> Tensor:
    """The row of each sample's task, shaped to fit samples first and channels last."""
    if isinstance(rows, int):
        return own[rows]
    chosen = torch.index_select(own, 0, rows)
    return chosen.view(len(rows), *[1] * (like.ndim - 2), own.shape[1])
