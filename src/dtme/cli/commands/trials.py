"""What `doctor` tries on copies of a model: each kind of insert in its blocks, and what is done with a model that has some."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import dtme
from dtme.cli.commands.subjects import Subject

KINDS = {"modulate": "modulators", "expand": "task tokens", "adapt": "low-rank updates", "copies": "copies"}
"""Fields of a plan, and what they are called."""


@dataclass(frozen=True)
class Trial:
    """What came of trying one thing.

    Attributes:
        works: Whether it does; `None` where it was not tried.
        why: Why not.
        refused: Where it depends on the block: those that refuse, each with its reason.
    """

    works: bool | None
    why: str = ""
    refused: dict[str, str] = field(default_factory=dict)


def try_inserts(subject: Subject, blocks: Iterable[str]) -> Iterator[tuple[str, Trial]]:
    """Each kind of insert in all blocks at once and, where that is refused, in one block after the other."""
    names = list(blocks)
    for kind in KINDS:
        if _refusal(subject, kind, names) is None:
            yield kind, Trial(True)
            continue
        refused = {name: why for name in names if (why := _refusal(subject, kind, [name])) is not None}
        yield kind, Trial(len(refused) < len(names), refused=refused)


def try_heads(subject: Subject) -> Trial:
    """Whether it is found where each task leaves the trunk."""
    why = _error(lambda: _apply(subject, dtme.Plan(subject.tasks)))
    return Trial(why is None, why or "")


def small_plan(subject: Subject, blocks: list[str], taken: Mapping[str, Trial]) -> dtme.Plan:
    """One of each kind of insert that the model takes, as late as it goes: little is traced, and it holds them all."""

    def late(kind: str) -> dict[str, tuple[str, ...]]:
        free = [name for name in blocks if name not in taken[kind].refused]
        return dict.fromkeys(free[-1:], subject.tasks)

    return dtme.Plan(subject.tasks, late("modulate"), late("expand"), late("adapt"))


def try_uses(subject: Subject, plan: dtme.Plan) -> Iterator[tuple[str, Trial]]:
    """With a plan applied: one task alone, rows of several tasks, one compiled graph, an exported program."""
    if subject.run is not None:
        why = "task_losses does not call the model as a whole, model(...), so that there is no pass to try"
        yield from dict.fromkeys(("one task", "mixed rows", "compile", "export"), Trial(None, why)).items()
        return
    model = _apply(subject, plan)
    with torch.no_grad():
        expected = subject.forward(model)
        yield "one task", _trial(lambda: _check_one_task(subject, model, expected))
        yield "mixed rows", _trial(lambda: _check_mixed_rows(subject, model, expected))
        for name, use in (("compile", _compile), ("export", _export)):
            found = _trial(lambda use=use: _check_same(use(subject, model), expected))
            if not found.works:
                plain = _error(lambda use=use: use(subject, copy.deepcopy(subject.model)))
                found = Trial(
                    False, f"{'the model itself does not, without any plan' if plain else 'with a plan'}: {found.why}"
                )
            yield name, found


def _check_one_task(subject: Subject, model: nn.Module, expected: Any) -> None:
    for task in subject.tasks:
        with dtme.tasks(model, task):
            output = subject.forward(model)
        if isinstance(output, Mapping) and task in output:
            _check_same(output[task], expected[task])


def _check_mixed_rows(subject: Subject, model: nn.Module, expected: Any) -> None:
    rows = [subject.tasks[row % len(subject.tasks)] for row in range(subject.rows)]
    with dtme.tasks(model, per_sample=rows):
        output = subject.forward(model)
    if isinstance(output, Mapping):
        for row, task in enumerate(rows):
            if task in output and len(output[task]) == len(rows):
                _check_same(output[task][row], expected[task][row])


def _compile(subject: Subject, model: nn.Module) -> Any:
    torch.compiler.reset()
    try:
        return subject.forward(torch.compile(model, fullgraph=True, backend="eager"))  # pyright: ignore[reportArgumentType]
    finally:
        torch.compiler.reset()


def _export(subject: Subject, model: nn.Module) -> Any:
    program = torch.export.export(model, subject.args, dict(subject.kwargs or {}), strict=False)
    return program.module()(*subject.args, **(subject.kwargs or {}))


def _check_same(output: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4)  # single precision, through a whole trunk
    elif isinstance(expected, Mapping):
        for name in expected:
            _check_same(output[name], expected[name])


def _refusal(subject: Subject, kind: str, blocks: list[str]) -> str | None:
    """Why a kind of insert does not run in some blocks; of copies, the first task keeps the block."""
    having = subject.tasks[1:] if kind == "copies" else subject.tasks
    placed: dict[str, Any] = {kind: dict.fromkeys(blocks, having)}

    def run() -> None:  # with gradients, as in training, where more is refused
        subject.forward(_apply(subject, dtme.Plan(subject.tasks, **placed)))

    return _error(run)


def _apply(subject: Subject, plan: dtme.Plan) -> nn.Module:
    model = copy.deepcopy(subject.model)
    return dtme.apply(model, plan, branches=subject.branches(model))


def _trial(work: Callable[[], object]) -> Trial:
    why = _error(work)
    return Trial(why is None, why or "")


def _error(work: Callable[[], object]) -> str | None:
    """What went wrong, in the words of the error that came first; `None` if nothing did. Warnings of the tools are theirs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work()
    except Exception as error:  # whatever it is: that it does not work is the answer
        said = str(error).strip().splitlines()
        notes = getattr(error, "__notes__", [])
        return " ".join([said[0] if said else type(error).__name__, *notes])
    return None
