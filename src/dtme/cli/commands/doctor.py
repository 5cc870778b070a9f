"""`dtme doctor`: what works on a model, by trying it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from dtme.cli.answer import Answer

if TYPE_CHECKING:
    from dtme.cli.commands.trials import Trial


def doctor(target: Positional[str], seed: int = 0) -> Answer:
    """Try each insert in the blocks of a model, and what is done with a model that has some. Nothing is trained or written.

    The answer is no where blocks or heads are not found, or no block takes any insert.

    Args:
        target: Your file, or timm:NAME, or hf:NAME (a kind of model, a folder, a name on the hub), built with random weights.
        seed: Of the random numbers of torch, before the model is made.
    """
    import torch

    import dtme
    from dtme.cli.commands.subjects import find_subject
    from dtme.cli.commands.trials import KINDS, small_plan, try_heads, try_inserts, try_uses

    begun = time.monotonic()
    torch.manual_seed(seed)
    subject = find_subject(target)
    data: dict[str, Any] = {
        "model": subject.name,
        "tasks": subject.tasks,
        "blocks": [],
        "heads": None,
        "inserts": {},
        "uses": {},
    }
    try:
        blocks = list(dtme.find_blocks(subject.model))
    except ValueError as why:
        return Answer({**data, "error": str(why)}, f"{subject.name}: no blocks are found. {why}", yes=False)
    lines = [f"{subject.name}: {len(blocks)} blocks", *(f"  {name}" for name in blocks)]
    lines += [f"{len(subject.tasks)} tasks", *(f"  {task}" for task in subject.tasks)]
    heads = try_heads(subject)
    data |= {"blocks": blocks, "heads": heads.works}
    lines += ["", _line("heads", heads)]
    if not heads.works:
        return Answer({**data, "error": heads.why}, "\n".join(lines), yes=False)
    taken = dict(try_inserts(subject, blocks))
    for kind, trial in taken.items():
        lines += [_line(KINDS[kind], trial, len(blocks)), *_reasons(trial.refused)]
    uses: dict[str, Trial] = {}
    works = any(trial.works for trial in taken.values())
    if works:
        uses = dict(try_uses(subject, small_plan(subject, blocks, taken)))
        lines += [_line(name, trial) for name, trial in uses.items()]
    data["inserts"] = {KINDS[kind]: {"works": own.works, "refused": own.refused} for kind, own in taken.items()}
    data["uses"] = {name: {"works": own.works, "why": own.why} for name, own in uses.items()}
    data["seconds"] = round(time.monotonic() - begun, 2)
    lines += ["", f"Tried in {data['seconds']:.1f} s, with copies of the model on few samples."]
    return Answer(data, "\n".join(lines), yes=works)


def _line(name: str, trial: Trial, blocks: int = 0) -> str:
    """What came of a trial, in a line."""
    if trial.refused:
        told = f"in {blocks - len(trial.refused)} of {blocks} blocks"
    elif trial.works:
        told = "in every block" if blocks else "yes"
    else:
        told = f"{'not tried' if trial.works is None else 'no'}: {trial.why}"
    return f"{name:<16}  {told}"


def _reasons(refused: Mapping[str, str]) -> Iterator[str]:
    """Every reason, once, and below it the blocks that gave it, one per line."""
    same: dict[str, list[str]] = {}
    for name, why in refused.items():
        same.setdefault(why.replace(name, "BLOCK"), []).append(name)
    for why, names in same.items():
        yield f"    {why}"
        yield from (f"      {name}" for name in names)
