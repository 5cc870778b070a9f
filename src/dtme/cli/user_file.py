"""The user's file, loaded by its path: `model`, `task_losses` and `batches`, and two more that are optional."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtme.cli.answer import UsageError
from dtme.cli.paths import check_input

if TYPE_CHECKING:
    from torch import nn

NAMES = {
    "model": "model() gives the model",
    "task_losses": "task_losses(model, batch) gives each task's loss",
    "batches": "batches() gives the batches",
}


@dataclass(frozen=True)
class UserFile:
    """What `dtme` asks of a user's file.

    Attributes:
        model: Gives the model.
        task_losses: Gives each task's loss.
        batches: Gives the batches.
        branches: Where each task leaves the model given, if the file says so; a module or its name by task.
        token_mask: Which tokens of a batch are real, if the file says so.
    """

    model: Callable[[], nn.Module]
    task_losses: Callable[[nn.Module, Any], Mapping[str, Any]]
    batches: Callable[[], Iterable[Any]]
    branches: Callable[[nn.Module], Mapping[str, Any]] | None = None
    token_mask: Callable[[Any], Any] | None = None

    def branches_of(self, model: nn.Module) -> Mapping[str, Any] | None:
        """Where each task leaves a model, or a copy of it; `None` where the file does not say."""
        return None if self.branches is None else self.branches(model)

    def first_batch(self) -> Any:
        """The first batch there is.

        Raises:
            UsageError: There is none.
        """
        for batch in self.batches():
            return batch
        raise UsageError("batches() gave none: let it give at least one batch.")


def load_user_file(path: Path) -> UserFile:
    """Run a file as a module called like it, beside what lies in its folder, and take the functions that are asked for.

    No compiled copy of it, or of what it imports, is written.

    Raises:
        UsageError: It is no Python file, is called like a module that is in use, or lacks a function.
    """
    check_input(path, "the file that `dtme init` writes, with model(), task_losses(model, batch) and batches()")
    name = path.stem
    loaded = sys.modules.get(name)
    if path.suffix != ".py" or not name.isidentifier():
        raise UsageError(f"{path}: give a Python file with a name that can be imported, mine.py say.")
    if loaded is not None and not getattr(loaded, "_dtme_user_file", False):
        raise UsageError(f"{path} is called like the module {name!r}, which is in use: give the file another name.")
    spec = importlib.util.spec_from_file_location(name, path.absolute())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    vars(module)["_dtme_user_file"] = True
    sys.dont_write_bytecode = True
    if str(path.absolute().parent) not in sys.path:
        sys.path.insert(0, str(path.absolute().parent))
    sys.modules[name] = module
    spec.loader.exec_module(module)
    for wanted, what in NAMES.items():
        if not callable(getattr(module, wanted, None)):
            raise UsageError(
                f"{path} has no function {wanted!r}: {what}. `dtme init` writes a file that has all three."
            )
    optional = {wanted: getattr(module, wanted, None) for wanted in ("branches", "token_mask")}
    return UserFile(module.model, module.task_losses, module.batches, **optional)
