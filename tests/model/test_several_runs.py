"""Blocks that run several times in a pass: recurrent ones, and trunks that read two inputs one after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import reference
import torch
from models import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dtme

TASKS = ("a", "b", "c")
P = 8
CLOSE = {"rtol": 0, "atol": 1e-11}


class Recurrent(nn.Module):
    """One block, three times, as in ALBERT; then one that runs once."""

    def __init__(self):
        super().__init__()
        self.shared, self.last = nn.ModuleList([Block(P, 2, False)]), nn.ModuleList([Block(P, 2, False)])
        self.heads = nn.ModuleDict({task: nn.Linear(P, 2) for task in TASKS})
        self.checkpointed = False

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        for _ in range(3):
            run = self.shared[0]
            tokens = checkpoint(run, tokens, use_reentrant=False) if self.checkpointed else run(tokens)
        tokens = self.last[0](tokens)
        return {task: head(tokens) for task, head in self.heads.items()}


class Siamese(nn.Module):
    """A trunk of two blocks on each of two sequences, of other lengths."""

    def __init__(self):
        super().__init__()
        self.shared = nn.ModuleList(Block(P, 2, False) for _ in range(2))
        self.heads = nn.ModuleDict({task: nn.Linear(2 * P, 2) for task in TASKS})

    def encode(self, tokens: Tensor) -> Tensor:
        for block in self.shared:
            tokens = block(tokens)
        return tokens.mean(1)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        both = torch.cat([self.encode(tokens[:, :3]), self.encode(tokens[:, 3:])], -1)
        return {task: head(both) for task, head in self.heads.items()}


MODELS: dict[str, Callable[[], Any]] = {"recurrent": Recurrent, "siamese": Siamese}


def made(kind: str) -> Any:
    torch.manual_seed(0)
    return MODELS[kind]().double().eval()


def draw(samples: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(samples, 8, P, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def losses(model: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    target = tokens.mean((1, 2))
    outputs = model(tokens)
    return {
        task: (outputs[task].flatten(1).mean(1) * (place + 1) - target).square().mean()
        for place, task in enumerate(TASKS)
    }


def at_run(model: Any, block: str, batch: Tensor, wanted: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The tokens that enter one run of a block, made a leaf, and every task's gradient there."""
    gradients, entered, run = {}, torch.empty(0), -1

    def make_leaf(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor, ...] | None:
        nonlocal entered, run
        run += 1
        if run != wanted:
            return None
        entered = args[0].detach().requires_grad_()
        return (entered,)

    handle = model.get_submodule(block).register_forward_pre_hook(make_leaf)
    for task in TASKS:
        run = -1
        losses(model, batch)[task].backward()
        gradients[task] = entered.grad
    handle.remove()
    return entered.detach(), gradients


def samples_at(model: Any, block: str, batch: Tensor) -> list[reference.Sample]:
    """The tokens of all runs of a block, each run's gradients by a backward pass of its own with that run's input a leaf."""
    runs = 0

    def count(*_: Any) -> None:
        nonlocal runs
        runs += 1

    handle = model.get_submodule(block).register_forward_pre_hook(count)
    losses(model, batch)
    handle.remove()
    parts = [at_run(model, block, batch, run) for run in range(runs)]
    tokens = torch.cat([tokens for tokens, _ in parts], 1)
    return [
        reference.Sample(
            tokens[row],
            torch.ones(tokens.shape[1], dtype=torch.bool),
            {task: torch.cat([gradients[task][row] for _, gradients in parts]) for task in TASKS},
        )
        for row in range(len(batch))
    ]


@pytest.mark.parametrize("kind", MODELS)
def test_the_tokens_of_all_runs_count_together(kind: str):
    model, batches = made(kind), [draw(3), draw(2, seed=1)]
    report = dtme.analyze(model, losses, batches, variance_ratio=10.0)
    assert report.samples == 5
    for d, block in enumerate(report.blocks):
        samples = [sample for batch in batches for sample in samples_at(copy.deepcopy(model), block, batch)]
        rank, onto_range, onto_null = reference.projectors(reference.second_moment(samples), 10.0)
        assert report.range_rank[d] == rank
        for i, j in combinations(range(3), 2):
            for rates, onto in ((report.range_rate, onto_range), (report.null_rate, onto_null)):
                expected = reference.token_rate(onto, samples, TASKS[i], TASKS[j])
                assert rates[d, i, j].item() == pytest.approx(expected, abs=1e-12)


def test_what_checkpointing_repeats_is_no_run():
    model = made("recurrent")
    report = dtme.analyze(model, losses, [draw()])
    model.checkpointed = True
    again = dtme.analyze(model, losses, [draw()])
    assert torch.equal(report.range_rate, again.range_rate)
    assert report.zero_share == again.zero_share


PLANS = {
    "modulated": dtme.Plan(TASKS, {"shared.0": TASKS}),
    "some": dtme.Plan(TASKS, {"shared.0": ("b",)}, {"shared.0": ("a", "b")}, tokens_per_task=2),
    "all": dtme.Plan(TASKS, {"shared.0": ("a", "c")}, {"shared.0": TASKS}, {"shared.0": ("b", "c")}),
}


def filled(model: nn.Module, plan: dtme.Plan) -> Any:
    dtme.apply(model, plan)
    with torch.no_grad():
        for place, (_, parameter) in enumerate(dtme.added_parameters(model)):
            generator = torch.Generator().manual_seed(place)
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3 + 0.5)
    return model


class Once(nn.Module):
    """A block with what one task has been given, by hand."""

    def __init__(self, block: Block, insert: Any, task: str):
        super().__init__()
        self.block = copy.deepcopy(block)
        self.own = {kind: getattr(insert, kind).index(task) for kind in ("modulated", "expanded", "adapted")
                    if task in getattr(insert, kind)}  # fmt: skip
        self.insert = insert
        for name, linear in self.block.named_modules():
            if "adapted" in self.own and isinstance(linear, nn.Linear):
                update, row = insert.low_rank[name.replace(".", "-")], self.own["adapted"]
                linear.weight.data += (update.up[row] @ update.down[row]).detach()

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        if "modulated" in self.own:
            row = self.own["modulated"]
            tokens = tokens * self.insert.scale[row] + self.insert.shift[row]
        if "expanded" in self.own:
            extra = self.insert.tokens[self.own["expanded"]]
            tokens = torch.cat([tokens, extra.expand(len(tokens), -1, -1)], 1)
        return self.block(tokens)[:, :length]


@pytest.mark.parametrize("which", PLANS)
@pytest.mark.parametrize("kind", MODELS)
def test_inserts_act_in_every_run(kind: str, which: str):
    base, tokens = made(kind), draw()
    model = filled(copy.deepcopy(base), PLANS[which])
    together = model(tokens)
    with dtme.tasks(model, per_sample=TASKS):
        mixed = model(tokens)
    for row, task in enumerate(TASKS):
        alone = copy.deepcopy(base)
        alone.shared[0] = Once(base.shared[0], model.shared[0].dtme, task)
        expected = alone(tokens)[task]
        torch.testing.assert_close(together[task], expected, **CLOSE)
        torch.testing.assert_close(mixed[task][row], expected[row], **CLOSE)
        with dtme.tasks(model, task):
            torch.testing.assert_close(model(tokens)[task], expected, **CLOSE)
    report = dtme.analyze(model, losses, [tokens])  # streams that parted in the first run enter the second
    assert report.blocks == ("shared.0", *(("last.0",) if kind == "recurrent" else ("shared.1",)))


def test_samples_that_differ_from_run_to_run_are_named():
    class Uneven(Siamese):
        def forward(self, tokens: Tensor) -> dict[str, Tensor]:
            one, two = self.encode(tokens), self.encode(tokens[:1]).expand(len(tokens), -1)
            return {task: head(torch.cat([one, two], -1)) for task, head in self.heads.items()}

    says = r"block 'shared.0' runs on 3 samples and again on 1 in one pass"
    with pytest.raises(ValueError, match=says):
        dtme.analyze(Uneven().double(), losses, [draw()])


def test_a_pass_per_task_is_named():
    """No token of one pass has gradients of two tasks."""
    model = made("siamese")

    def apart(model: Any, tokens: Tensor) -> dict[str, Tensor]:
        return {task: model(tokens)[task].square().mean() for task in TASKS}

    with pytest.raises(
        ValueError, match=r"'a' and 'b' read different runs of block 'shared.0' in batch 0.*one forward"
    ):
        dtme.analyze(model, apart, [draw()])


def test_albert():
    hf = pytest.importorskip("transformers")
    config = hf.AlbertConfig(
        vocab_size=30, embedding_size=P, hidden_size=P, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip

    class OnAlbert(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk: Any = hf.AlbertModel(config, add_pooling_layer=False)
            self.heads = nn.ModuleDict({task: nn.Linear(P, 2) for task in TASKS})

        def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
            tokens = self.trunk(**inputs).last_hidden_state
            return {task: head(tokens[:, 0]) for task, head in self.heads.items()}

    torch.manual_seed(0)
    model = OnAlbert().double().eval()
    keep = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    inputs = {"input_ids": torch.tensor([[4, 5, 6, 7], [8, 9, 0, 0]]), "attention_mask": keep}
    report = dtme.analyze(
        model, lambda model, batch: {t: (o.sin() * (i + 1)).mean() for i, (t, o) in enumerate(model(**batch).items())},
        [inputs],
    )  # fmt: skip
    (block,) = report.blocks
    assert report.samples == 2
    before = model(**inputs)
    filled(model, dtme.Plan(TASKS, {block: ("a", "b")}, {block: ("b",)}, {block: ("a",)}))
    together = model(**inputs)
    assert torch.equal(together["c"], before["c"])
    for row, task in ((0, "a"), (1, "b")):
        assert not torch.allclose(together[task], before[task])
        with dtme.tasks(model, task):
            torch.testing.assert_close(model(**inputs)[task], together[task], **CLOSE)
        single = {key: value[row : row + 1, : int(keep[row].sum())] for key, value in inputs.items()}
        torch.testing.assert_close(model(**single)[task][0], together[task][row], **CLOSE)
