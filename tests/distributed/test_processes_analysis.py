"""Several processes analyse as one: the report is that of one process which reads all batches in turn."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from crew import Crew
from models import make_batches, task_losses, tiny_vit, torch_encoder_multitask
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import dtme
from dtme.distributed import processes as processes_module
from dtme.distributed.processes import Processes, processes_of
from dtme.measure.batches import Steps
from dtme.report.report import ConflictReport

EXACT = ("tasks", "blocks", "widths", "range_rank", "samples", "pairing", "zero_share", "level", "undecided")
RATES = ("range_rate", "null_rate", "range_halfwidth", "null_halfwidth")
CHANCE = ("range_chance", "null_chance", "range_chance_halfwidth", "null_chance_halfwidth")
Batches = list[dict[str, Any]]
Crews = Callable[[int], Crew]


def shared_inputs(sizes: tuple[int, ...] = (3, 2, 4, 1, 3, 2, 5)) -> tuple[nn.Module, Batches]:
    model = tiny_vit()
    return model, make_batches(model, sizes)


def disjoint_inputs() -> tuple[nn.Module, Batches]:
    model = torch_encoder_multitask(True)
    present = [["rating"], ["topic"], ["irony"], ["rating"], ["irony"], ["topic"], ["topic"]]
    return model, make_batches(model, (4, 3, 5, 2, 4, 6, 3), present=present)


def mixed_inputs() -> tuple[nn.Module, Batches]:
    """Two tasks that share some inputs, and one that shares none; the third task comes first."""
    model = torch_encoder_multitask(False)
    present = [["irony"], ["topic", "rating"], ["rating"], ["irony"], ["topic"], ["rating", "topic"]]
    return model, make_batches(model, (4, 3, 5, 2, 4, 6), present=present)


def many_disjoint_inputs() -> tuple[nn.Module, Batches]:
    """More samples of a task than are kept."""
    model = torch_encoder_multitask(True, ("rating", "topic"), depth=2)
    return model, make_batches(model, (300,) * 6, present=[["rating"], ["topic"]] * 3)


KINDS = {made.__name__: made for made in (shared_inputs, disjoint_inputs, mixed_inputs, many_disjoint_inputs)}


def analysed(
    rank: int, kind: str, shares: list[list[int]], options: dict[str, Any], ddp: bool = False
) -> ConflictReport:
    model, batches = KINDS[kind]()
    model = DistributedDataParallel(model) if ddp else model
    return dtme.analyze(model, task_losses, [batches[number] for number in shares[rank]], **options)


def dealt(batches: int, size: int) -> list[list[int]]:
    """As a sampler deals them out: one to each in turn."""
    return [list(range(rank, batches, size)) for rank in range(size)]


def in_turn(shares: list[list[int]]) -> list[int]:
    rounds = itertools.zip_longest(*shares)
    return [number for numbers in rounds for number in numbers if number is not None]


def assert_same_report(one: ConflictReport, other: ConflictReport) -> None:
    for name in EXACT:
        assert getattr(one, name) == getattr(other, name), name
    for name in RATES:
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-12)
    torch.testing.assert_close(one.gradient_size, other.gradient_size, rtol=1e-6, atol=0)  # sums of floats, not counts
    for name in CHANCE:  # unknown where tasks share no inputs
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [2, 4])
def test_several_processes_are_one(kind: str, size: int, crew: Crews):
    shares = dealt(len(KINDS[kind]()[1]), size)
    alone = analysed(0, kind, [in_turn(shares)], {})
    assert len(alone.tasks) in (2, 3)
    for report in crew(size).run(analysed, kind, shares, {}):
        assert_same_report(report, alone)


@pytest.mark.parametrize("shares", [[[0, 1, 2, 3, 4], [5]], [[], [0, 1, 2, 3, 4, 5]], [[2, 4], [0, 3, 1, 5]]], ids=str)
@pytest.mark.parametrize("kind", ["shared_inputs", "mixed_inputs", "disjoint_inputs"])
def test_uneven_shares(kind: str, shares: list[list[int]], crew: Crews):
    alone = analysed(0, kind, [in_turn(shares)], {})
    for report in crew(2).run(analysed, kind, shares, {}):
        assert_same_report(report, alone)


@pytest.mark.parametrize("limit", [1, 4, 5, 8, 100])
def test_max_samples_counts_over_all_processes(limit: int, crew: Crews):
    alone = analysed(0, "shared_inputs", [list(range(7))], {"max_samples": limit})
    reports = crew(2).run(analysed, "shared_inputs", dealt(7, 2), {"max_samples": limit})
    for report in reports:
        assert_same_report(report, alone)


def opposed_at_the_end(model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Two tasks that agree about what leaves the first block and are opposites in what leaves the last."""
    vit: Any = model
    early = vit.blocks[0](vit.embed(*batch["inputs"]))
    late = vit.blocks[2](vit.blocks[1](early)).mean()
    return {"for": 50 * early.mean() + late, "against": 50 * early.mean() - late}


def until_settled(rank: int, size: int, losses: Any) -> ConflictReport:
    model = tiny_vit(("depth", "normals"), depth=3)
    share = make_batches(model, (6,) * 17)[rank::size]
    return dtme.analyze(model, losses, iter(share), blocks=[0, 2], confidence=0.9)


@pytest.mark.parametrize("losses", [opposed_at_the_end, task_losses])
def test_all_processes_stop_where_one_stops(losses: Any, crew: Crews):
    alone = until_settled(0, 1, losses)
    for report in crew(2).run(until_settled, 2, losses):
        assert_same_report(report, alone)
    if losses is opposed_at_the_end:
        assert alone.samples < 102
        assert not alone.undecided
        assert alone.samples % 12 == 6  # in the middle of a step: the second process leaves its batch out
    else:
        assert alone.samples == 102
        assert alone.undecided == alone.blocks


class Loader:
    """Counts what is read of it, and can be read again."""

    def __init__(self, batches: Batches):
        self.batches, self.read = batches, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.batches:
            self.read += 1
            yield batch


def read_until_limit(rank: int) -> int:
    model, batches = shared_inputs((4,) * 8)
    loader = Loader(batches[rank::2])
    dtme.analyze(model, task_losses, loader, max_samples=8)
    return loader.read


def test_nothing_is_read_that_is_not_needed(crew: Crews):
    assert crew(2).run(read_until_limit) == [2, 2]  # one batch of each process, in each of the two rounds


def failing(rank: int, how: str) -> str:
    model, batches = shared_inputs()
    share: Any = batches[rank::2]
    first, second = share[:2]

    def losses(model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        if rank == 1 and batch is second:
            if how == "key":
                raise KeyError("depht")
            if how == "not finite":
                return {task: loss * float("nan") for task, loss in task_losses(model, batch).items()}
        found = task_losses(model, batch)
        if rank == 1 and how == "detached" and torch.is_grad_enabled():
            found["depth"] = found["depth"].detach()
        return found

    def breaking() -> Iterator[Any]:
        yield first
        raise OSError("disk gone")

    if rank == 1 and how == "loader":
        share = breaking()

    before = [parameter.requires_grad for parameter in model.parameters()]
    try:
        dtme.analyze(
            model,
            losses,
            share,
            blocks=("no such block" if rank else None) if how == "blocks" else None,
            variance_ratio=(10.0 if rank else 100.0) if how == "options" else 100.0,
        )
    except (ValueError, RuntimeError) as error:
        assert [parameter.requires_grad for parameter in model.parameters()] == before
        assert not any(module._forward_pre_hooks for module in model.modules())
        distributed.barrier()  # nobody is left waiting in the group
        return f"{type(error).__name__}: {error}"
    return "no error"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("not finite", "ValueError: rank 1 of 2: the loss of task 'depth' is nan in batch 1; all tokens"),
        ("detached", "ValueError: rank 1 of 2: the loss of task 'depth' does not reach the trunk"),
        ("key", "RuntimeError: rank 1 of 2: KeyError: 'depht'"),
        ("loader", "RuntimeError: rank 1 of 2: OSError: disk gone"),
        ("blocks", "ValueError: rank 1 of 2: blocks='no such block' matches the whole name of no module"),
        ("options", "ValueError: rank 0 and rank 1 call analyze differently"),
    ],
)
def test_an_error_in_one_process_is_raised_in_all(how: str, message: str, crew: Crews):
    started = time.monotonic()
    for raised in crew(2).run(failing, how):
        assert raised.startswith(message), raised
    assert time.monotonic() - started < 30


def without_batches(rank: int) -> str:
    model, _ = shared_inputs()
    with pytest.raises(ValueError, match="batches is empty") as raised:
        dtme.analyze(model, task_losses, [])
    return str(raised.value)


def test_no_batch_in_any_process(crew: Crews):
    assert len(set(crew(2).run(without_batches))) == 1


def differing_models(rank: int) -> str:
    model, batches = shared_inputs()
    if rank:
        with torch.no_grad():
            model.heads["depth"].project.weight[0, 0] += 1e-3
    with pytest.raises(ValueError, match="differ") as raised:
        dtme.analyze(model, task_losses, batches)
    own = dtme.analyze(model, task_losses, batches, process_group="alone")
    assert own.samples == 20
    return str(raised.value)


def test_processes_with_models_of_their_own_are_told_so(crew: Crews):
    for message in crew(2).run(differing_models):
        assert "the models of rank 0 and rank 1 differ, first in 'heads.depth.project.weight'" in message
        assert "process_group='alone'" in message


def on_the_first_alone(rank: int) -> ConflictReport | None:
    model, batches = shared_inputs()
    report = dtme.analyze(model, task_losses, batches, process_group="alone") if rank == 0 else None
    distributed.barrier()
    return report


def test_one_process_may_analyse_alone(crew: Crews):
    report, nothing = crew(2).run(on_the_first_alone)
    assert nothing is None
    assert_same_report(report, analysed(0, "shared_inputs", [list(range(7))], {}))


def within_groups(rank: int) -> tuple[ConflictReport, str]:
    """Ranks 0 and 2 analyse the first batches, ranks 1 and 3 the others."""
    groups = [distributed.new_group([0, 2]), distributed.new_group([1, 3])]
    model, batches = shared_inputs((3, 2, 4, 1))
    own, other = groups[rank % 2], groups[1 - rank % 2]
    with pytest.raises(ValueError, match="does not belong to it") as raised:
        dtme.analyze(model, task_losses, batches, process_group=other)
    share = batches[2 * (rank % 2) + rank // 2]
    return dtme.analyze(model, task_losses, [share], process_group=own), str(raised.value)


def test_groups_of_processes_analyse_apart(crew: Crews):
    reports = [report for report, _ in crew(4).run(within_groups)]
    model, batches = shared_inputs((3, 2, 4, 1))
    for half in range(2):
        alone = dtme.analyze(model, task_losses, batches[2 * half : 2 * half + 2])
        for report in reports[half::2]:
            assert_same_report(report, alone)


class Normed(nn.Module):
    """Tokens that pass through a batch norm first, whose statistics each replica keeps for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.vit = tiny_vit()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.vit(self.norm(image))


def replicated(rank: int, moved: bool, shares: list[list[int]]) -> ConflictReport:
    torch.manual_seed(0)
    model: Any = Normed()
    _, batches = shared_inputs()
    if moved and rank:
        model.norm.running_mean.add_(1.0)
    wrapped = DistributedDataParallel(model)
    statistics = model.norm.running_mean.clone()
    if rank == 1 and moved:
        model.norm.running_mean.add_(2.0)  # as after a step of its own
        statistics = model.norm.running_mean.clone()
    report = dtme.analyze(wrapped, task_losses, [batches[number] for number in shares[rank]])
    assert torch.equal(model.norm.running_mean, statistics)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    wrapped.train()
    sum(task_losses(wrapped, batches[rank]).values()).backward()  # it still trains, and its replicas still agree
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    for gradient in gradients:
        mine = gradient.clone()
        distributed.broadcast(gradient, 0)
        assert torch.equal(mine, gradient)
    return report


@pytest.mark.parametrize("moved", [False, True])
def test_replicas_are_analysed_as_one_model_also_on_uneven_shares(moved: bool, crew: Crews):
    shares = [[0, 2, 4, 5], [1]]
    torch.manual_seed(0)
    _, batches = shared_inputs()
    alone = dtme.analyze(Normed(), task_losses, [batches[number] for number in in_turn(shares)])
    for report in crew(2).run(replicated, moved, shares):
        assert_same_report(report, alone)


def shows_progress(rank: int) -> list[str]:
    shown = []
    model, batches = shared_inputs()

    def progress(batches: Any, what: str) -> Any:
        shown.append(what)
        return batches

    dtme.analyze(model, task_losses, batches[rank::2], progress=progress)
    return shown


def test_the_first_process_shows_the_progress(crew: Crews):
    assert crew(2).run(shows_progress) == [["token space", "conflicts"], []]


def test_who_waits_for_the_others_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(processes_module, "PATIENCE", 0.01)
    with caplog.at_level(logging.WARNING, "dtme"), processes_module.patience(Processes(None, 1, 4)):
        deadline = time.monotonic() + 10
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "rank 1 has waited 0 s for the other 3 processes" in caplog.text
    assert "process_group='alone'" in caplog.text
    before = threading.active_count()
    with processes_module.patience(Processes()):
        assert threading.active_count() == before


def test_an_unknown_group_is_refused():
    with pytest.raises(ValueError, match="process_group='rank 0': give a process group, None for the default group"):
        processes_of("rank 0")  # pyright: ignore[reportArgumentType]
    model, batches = shared_inputs()
    assert dtme.analyze(model, task_losses, batches, process_group="alone").samples == 20


def test_a_process_alone_exchanges_with_itself():
    def broken() -> tuple[None, None]:
        raise KeyError("as it is")

    alone = Processes()
    assert alone.exchange(lambda: (1, 2)) == ([1], 2)
    with pytest.raises(KeyError, match="as it is"):
        alone.exchange(broken)
    tensor = torch.ones(2)
    assert alone.total(tensor) is tensor
    assert alone.total_at(0, tensor) is tensor
    assert alone.from_first(tensor) is tensor
    assert [(step.number, step.batch, step.reading) for step in Steps(alone, [None, "b"], sharded=True)] == [
        (0, None, (True,)),
        (1, "b", (True,)),
    ]
