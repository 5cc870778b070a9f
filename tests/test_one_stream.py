"""What is known of one stream's calls is forgotten where anything that it depends on is another."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dtme
from dtme import crossing, one_stream
from dtme.insert import Insert

TASKS = ("depth", "semseg")
PLANS = {
    "modulation": dtme.Plan(TASKS, {"layers.1": TASKS}),
    "expansion": dtme.Plan(TASKS, expand={"layers.1": TASKS}),
    "tokens of all tasks": dtme.Plan(TASKS, expand={"layers.0": TASKS}, joint_tokens=True),
    "updates": dtme.Plan(TASKS, adapt={"layers.0": TASKS}, rank=2),
    "some of each": dtme.Plan(TASKS, {"layers.0": TASKS[:1]}, {"layers.0": TASKS[1:], "layers.1": TASKS[:1]}),
    "normalised": dtme.Plan(TASKS, {"layers.0": TASKS}, modulator="batchnorm"),
}


class Block(nn.Module):
    """Samples first or second, which it does not say; a mask may be given."""

    def __init__(self, batch: int):
        super().__init__()
        self.norm, self.mix, self.out, self.dim = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8), 1 - batch

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        seen = self.mix(self.norm(tokens))
        if mask is not None:
            seen = seen * mask[..., None]
        return tokens + self.out(seen.sum(self.dim, keepdim=True) + tokens).tanh()


class Model(nn.Module):
    def __init__(self, batch: int = 0):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Block(batch) for _ in range(2))
        self.heads = nn.ModuleDict({task: nn.Linear(8, 2) for task in TASKS})
        self.double().eval()

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        for layer in self.layers:
            tokens = layer(tokens, mask)
        return {task: head(tokens) for task, head in self.heads.items()}


def applied(plan: str, batch: int = 0) -> Model:
    model = Model(batch)
    dtme.apply(model, PLANS[plan])
    with torch.no_grad():
        for _, parameter in dtme.added_parameters(model):
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def tokens_of(*shape: int) -> Tensor:
    return torch.randn(*shape, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def looked_at_anew(model: Model, *given: Any, task: str = TASKS[0]) -> Tensor:
    """What comes out where nothing is known of any call."""
    before = crossing.kind_of
    crossing.kind_of = lambda *_: None
    try:
        with dtme.tasks(model, task):
            return model(*given)[task]
    finally:
        crossing.kind_of = before


def known(model: nn.Module) -> int:
    return sum(len(inner.passage.ways) for inner in model.modules() if isinstance(inner, Insert))


@pytest.mark.parametrize("plan", PLANS)
@torch.no_grad()
def test_other_sizes_types_tasks_masks_and_weights_are_looked_at(plan: str):
    model = applied(plan)
    mask = torch.ones(3, 5, dtype=torch.float64)
    mask[0, 3:] = 0
    givens = [(tokens_of(3, 5),), (tokens_of(2, 5),), (tokens_of(3, 6),), (tokens_of(3, 5), mask), (tokens_of(5, 5),)]
    for _ in range(2):
        for given in givens:
            for task in TASKS:
                with dtme.tasks(model, task):
                    for _ in range(2):
                        assert torch.equal(model(*given)[task], looked_at_anew(model, *given, task=task))
        for parameter in model.parameters():
            parameter.mul_(1.1)
    model.float()
    given = tokens_of(3, 5).float()
    with dtme.tasks(model, TASKS[0]):
        assert torch.equal(model(given)[TASKS[0]], looked_at_anew(model, given))


@torch.no_grad()
def test_a_word_about_where_samples_lie_counts_from_the_next_call_on():
    model, given = applied("expansion", batch=1), tokens_of(6, 3)
    with dtme.tasks(model, TASKS[0]):
        for _ in range(2):
            model(given)
        assert known(model)
        for layer in model.layers:
            layer.batch_first = False
        together = model(given)[TASKS[0]]
        torch.testing.assert_close(
            together, torch.cat([model(row)[TASKS[0]] for row in given.split(1, 1)], 1), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("said", ["by the class", "by a property"])
@torch.no_grad()
def test_a_class_has_a_say_too(said: str, monkeypatch: pytest.MonkeyPatch):
    model, given = applied("expansion", batch=1), tokens_of(6, 3)
    with dtme.tasks(model, TASKS[0]):
        for _ in range(2):
            model(given)
        word: Any = False if said == "by the class" else property(lambda _: False)
        monkeypatch.setattr(Block, "batch_first", word, raising=False)
        assert torch.equal(model(given)[TASKS[0]], looked_at_anew(model, given))


class Flagged(Block):
    """Takes its tokens as what it reads as well, or something else, and a flag that asks for a mask."""

    def forward(self, tokens: Tensor, read: Tensor | None = None, use_mask: bool = False) -> Tensor:
        return super().forward(tokens) + (0 if read is None else self.mix(read).mean())


@pytest.mark.parametrize("how", ["the tokens twice", "a flag by place", "a flag by name"])
@torch.no_grad()
def test_with_task_tokens_a_call_that_says_more_is_looked_at(how: str):
    model, given = applied("expansion"), tokens_of(3, 5)
    block: Any = model.layers[1]
    block.__class__ = Flagged
    block.dtme.argument_names = ("tokens", "read", "use_mask")
    call = {
        "the tokens twice": lambda: block(given, given),
        "a flag by place": lambda: block(given, None, True),
        "a flag by name": lambda: block(given, use_mask=True),
    }[how]
    with dtme.tasks(model, TASKS[0]):
        for _ in range(3):
            call()
        assert known(model) == 0
        for _ in range(3):
            block(given)
        assert known(model) == 1


@torch.no_grad()
def test_one_sample_of_one_token_is_known_too():
    model = applied("modulation")
    with dtme.tasks(model, TASKS[0]):
        model(tokens_of(1, 1))
    assert known(model) == 1


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@torch.no_grad()
def test_nested_tensors_beside_the_tokens_are_not_asked_for_a_shape():
    model, given = applied("modulation"), tokens_of(3, 5)
    block: Any = model.layers[1]
    block.__class__ = Flagged
    block.forward = lambda tokens, words=None: Block.forward(block, tokens)
    words = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with dtme.tasks(model, TASKS[0]):
        alone = block(given)
        for _ in range(2):
            assert torch.equal(block(given, words), alone)


def test_with_gradients_every_call_is_looked_at():
    model, given = applied("some of each"), tokens_of(3, 5)
    with dtme.tasks(model, TASKS[0]):
        with torch.no_grad():
            model(given)
        before = known(model)
        model(given)[TASKS[0]].sum().backward()
    assert known(model) == before > 0
    assert all(p.grad is not None for name, p in dtme.added_parameters(model) if "layers.0.dtme.scale" in name)


@torch.no_grad()
def test_streams_and_rows_of_several_tasks_are_looked_at():
    model, given = applied("some of each"), tokens_of(3, 5)
    model(given)
    with dtme.tasks(model, per_sample=[0, 1, 0]):
        model(given)
    assert known(model) == 0


@torch.no_grad()
def test_a_plan_that_comes_after_another_knows_nothing_of_its_calls():
    model, given = applied("modulation"), tokens_of(3, 5)
    with dtme.tasks(model, TASKS[0]):
        model(given)
    twin = copy.deepcopy(model)
    dtme.remove(model)
    dtme.apply(model, PLANS["expansion"])
    with dtme.tasks(model, TASKS[0]):
        assert torch.equal(model(given)[TASKS[0]], looked_at_anew(model, given))
    with dtme.tasks(twin, TASKS[1]):
        assert torch.equal(twin(given)[TASKS[1]], looked_at_anew(twin, given, task=TASKS[1]))


@torch.no_grad()
def test_no_more_kinds_of_calls_are_known_than_so_many(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(one_stream, "MOST", 4)
    model = applied("modulation")
    with dtme.tasks(model, TASKS[0]):
        for samples in range(1, 12):
            model(tokens_of(samples, 20))
    assert 0 < known(model) <= 4


@torch.no_grad()
def test_a_model_is_saved_without_what_is_known_of_its_calls():
    model = applied("modulation")
    size = len(pickle.dumps(model))
    with dtme.tasks(model, TASKS[0]):
        model(tokens_of(3, 5))
    assert known(model)
    assert len(pickle.dumps(model)) <= size + 200
    assert known(copy.deepcopy(model)) == 0
