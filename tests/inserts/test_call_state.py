"""What is known of a call of a block is of that call: a layer that two blocks hold, threads, coroutines, errors."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small import TASKS, Block, Mlp, Small, assert_each_task_is_alone, features, losses, planned
from torch import Tensor

import dtme


def with_shared_mlp() -> Small:
    """A model of which two blocks hold the same MLP."""
    base = Small()
    shared: Any = base.blocks[0]
    other: Any = base.blocks[1]
    other.mlp = shared.mlp
    return base


@pytest.mark.parametrize("block", ["blocks.0", "blocks.1"])
def test_a_layer_that_two_blocks_hold_is_updated_in_the_one_that_is_planned(block: str):
    base = with_shared_mlp()
    assert_each_task_is_alone(base, planned(base, adapt={block: TASKS}, rank=2), features())


def test_the_same_input_gives_the_same_output_again():
    model = planned(with_shared_mlp(), adapt={"blocks.1": TASKS}, rank=2)
    with torch.no_grad(), dtme.tasks(model, "a"):
        first, second, third = (model(features())["a"] for _ in range(3))
    assert torch.equal(first, second)
    assert torch.equal(second, third)


def test_an_error_in_a_block_leaves_nothing_behind():
    base = with_shared_mlp()
    model = planned(base, adapt={"blocks.1": TASKS}, rank=2)

    def fail(*_: Any) -> None:
        raise ArithmeticError

    handle = model.blocks[1].mlp.fc2.register_forward_hook(fail)
    with pytest.raises(ArithmeticError):
        model.blocks[1](model.embed(features()))
    handle.remove()
    assert torch.equal(
        model.blocks[1].mlp(torch.ones(1, 2, 8).double()), base.blocks[1].mlp(torch.ones(1, 2, 8).double())
    )  # pyright: ignore[reportCallIssue]
    assert_each_task_is_alone(base, model, features())


def expected(model: Any, x: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return {task: out.clone() for task, out in model(x).items()}


def test_threads_have_tasks_of_their_own():
    model, x = planned(Small(), modulate={"blocks.1": TASKS}, adapt={"blocks.2": TASKS}, rank=2), features(8, 32)
    want, wrong, go = expected(model, x), list[str](), threading.Barrier(2)

    def serve(task: str) -> None:
        go.wait()
        for _ in range(30):
            with torch.no_grad(), dtme.tasks(model, task):
                if not torch.allclose(model(x)[task], want[task]):
                    wrong.append(task)

    threads = [threading.Thread(target=serve, args=(task,)) for task in TASKS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    torch.testing.assert_close(expected(model, x), want)


def test_coroutines_have_tasks_of_their_own():
    model, x = planned(Small(), modulate={"blocks.1": TASKS}), features()
    want, turn = expected(model, x), asyncio.Event

    async def serve(task: str, mine: asyncio.Event, others: asyncio.Event) -> Tensor:
        with dtme.tasks(model, task), torch.no_grad():
            others.set()
            await mine.wait()
            return model(x)[task]

    async def both() -> list[Tensor]:
        one, other = turn(), turn()
        return await asyncio.gather(serve("a", one, other), serve("b", other, one))

    torch.testing.assert_close(asyncio.run(both()), [want["a"], want["b"]])
    torch.testing.assert_close(expected(model, x), want)


def test_contexts_that_are_left_in_the_order_they_were_entered_in():
    model, x = planned(Small(), modulate={"blocks.1": TASKS}), features()
    want = expected(model, x)
    first, second = dtme.tasks(model, "a"), dtme.tasks(model, "b")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    torch.testing.assert_close(expected(model, x)["b"], want["b"])
    second.__exit__(None, None, None)
    torch.testing.assert_close(expected(model, x), want)


def test_a_generator_that_is_closed_late_takes_no_task_along():
    model, x = planned(Small(), modulate={"blocks.1": TASKS}), features()
    want = expected(model, x)

    def stream() -> Iterator[Tensor]:
        with dtme.tasks(model, "a"):
            yield model(x)["a"]

    made = stream()
    next(made)
    made.close()
    torch.testing.assert_close(expected(model, x), want)


def test_an_analysis_beside_inference_in_another_thread():
    base = planned(Small(), modulate={"blocks.1": TASKS})
    x, alone, model = features(), dtme.analyze(copy.deepcopy(base), losses, [features()]), base
    want, wrong, done = expected(model, x), list[bool](), threading.Event()

    def serve() -> None:
        while not done.is_set():
            with torch.no_grad():
                wrong.append(not torch.allclose(model(x)["a"], want["a"]))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        beside = dtme.analyze(model, losses, [x])
    finally:
        done.set()
        thread.join()
    assert not any(wrong)
    torch.testing.assert_close(beside.range_rate, alone.range_rate, equal_nan=True)


def test_an_analysis_sees_its_own_thread_alone():
    """Another thread runs the model on more samples in the middle of the analysis: in its rates and FLOPs they do not count."""
    base, other = planned(Small(), modulate={"blocks.1": TASKS}), features(7, 3)
    alone = dtme.analyze(copy.deepcopy(base), losses, [features()])
    want, found = expected(base, other), list[dict[str, Tensor]]()

    def losses_beside(model: Any, x: Tensor) -> dict[str, Tensor]:
        def serve() -> None:
            with torch.no_grad(), dtme.tasks(model, "a"):
                found.append(model(other))

        thread = threading.Thread(target=serve)
        handle = model.blocks[1].register_forward_pre_hook(
            lambda *_: (handle.remove(), thread.start(), thread.join())[0]
        )
        return losses(model, x)

    beside = dtme.analyze(base, losses_beside, [features()])
    assert len(found) > 1
    assert all(torch.allclose(one["a"], want["a"]) for one in found)
    for name in ("range_rate", "null_rate", "gradient_size", "spectrum"):
        torch.testing.assert_close(getattr(beside, name), getattr(alone, name), equal_nan=True)
    assert beside.flops == alone.flops
    assert beside.range_rank == alone.range_rank


def test_a_block_with_a_shared_part_that_is_modulated():
    base = with_shared_mlp()
    assert isinstance(base.blocks[0], Block)
    assert isinstance(base.blocks[0].mlp, Mlp)
    assert_each_task_is_alone(base, planned(base, modulate={"blocks.1": TASKS}), features())
