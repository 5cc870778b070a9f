"""Copies of blocks that do more than take tokens and give tokens: hooks, tables, losses, masks, modes, tied weights."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers as hf
from models import displaced
from torch import Tensor, nn

import dtme
from dtme.streams.joining import join_outputs

TASKS = ("a", "b", "c")
COPIES = {"blocks.1": ("b", "c")}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn, self.fc = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Any:
        mixed = (
            self.attn(tokens).mean(1, keepdim=True)
            if mask is None
            else (mask.unsqueeze(-1) * self.attn(tokens)).sum(1, True)
        )
        return tokens + self.fc(self.norm(tokens + mixed)).tanh()


class Model(nn.Module):
    def __init__(self, kind: type[Block] = Block) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([kind() for _ in range(3)])
        self.heads = nn.ModuleDict({task: nn.Linear(4, 1) for task in TASKS})
        self.double()

    def forward(self, tokens: Tensor, *rest: Tensor) -> dict[str, Tensor]:
        for block in self.blocks:
            tokens = block(tokens, *rest)
        return {task: head(tokens) for task, head in self.heads.items()}


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def changed(model: Any, plan: dtme.Plan) -> Any:
    """The model with the plan, every added parameter away from where it begins."""
    return displaced(model, plan, 0.3)


def alone(make: Any, model: Any, task: str) -> Any:
    """A plain model with one task's copies in the place of the blocks."""
    plain = make()
    for block, tasks in COPIES.items():
        if task in tasks:
            own = model.get_submodule(block).dtme.copies[tasks.index(task)]
            plain.get_submodule(block).load_state_dict(own.state_dict())
    return plain


def check_alone(make: Any, model: Any, *inputs: Tensor) -> None:
    together = model(*inputs)
    for task in TASKS:
        torch.testing.assert_close(together[task], alone(make, model, task)(*inputs)[task], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("samples", "length"), [(1, 2), (1, 3), (2, 4), (2, 6), (3, 5)])
@pytest.mark.parametrize("given", [("c",), ("b", "c")])
def test_a_mask_as_long_as_the_folded_batch_is_led_where_its_samples_go(
    samples: int, length: int, given: tuple[str, ...]
):
    model = Model()
    changed(model, dtme.Plan(TASKS, {"blocks.0": TASKS}, copies={"blocks.1": given}))
    tokens, mask = drawn(samples, length, 4), drawn(samples, length)
    together = model(tokens, mask)
    for task in TASKS:
        with dtme.tasks(model, task):
            torch.testing.assert_close(together[task], model(tokens, mask)[task], rtol=1e-9, atol=1e-9)


def test_hooks_of_a_block_run_once_around_all_of_its_copies():
    model, tokens = Model(), drawn(2, 3, 4)
    model.blocks[1].register_forward_hook(lambda block, args, output: output + 1)
    before = model(tokens)
    dtme.apply(model, dtme.Plan(TASKS, copies=COPIES))
    for task, output in model(tokens).items():
        torch.testing.assert_close(output, before[task], rtol=1e-12, atol=1e-12)


def test_what_parts_give_besides_tokens_is_put_together():
    tokens = [torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0]])]
    shared = torch.ones(5, 5)
    parts: list[Any] = [
        (
            own,
            {
                "loss": loss,
                "rows": own * 10,
                "first": torch.full((1, 2), float(place)),
                "shared": shared,
            },
        )
        for place, (own, loss) in enumerate(zip(tokens, (torch.tensor(1.0), torch.tensor(4.0)), strict=True))
    ]
    order = [0, 2, 1]  # the second part is the lane in the middle
    whole, more = join_outputs("x", parts, tokens, order, 0)
    assert whole.flatten().tolist() == [0, 2, 1]
    assert more["rows"].flatten().tolist() == [0, 20, 10]
    assert float(more["loss"]) == 2.0  # a mean over samples: two of 1 and one of 4
    assert more["first"].tolist() == [[0, 0], [1, 1], [0, 0]]
    assert more["shared"] is shared
    behind = [own.unsqueeze(0) for own in tokens]  # samples in the second dimension
    whole, other = join_outputs("x", [(own, own * 10) for own in behind], behind, order, 1)
    assert (whole.flatten().tolist(), other.flatten().tolist()) == ([0, 2, 1], [0, 20, 10])


class WithTable(Block):
    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Any:
        return super().forward(tokens), self.fc.weight @ self.fc.weight.T


class ModelWithTable(Model):
    def __init__(self) -> None:
        super().__init__(WithTable)

    def forward(self, tokens: Tensor, *rest: Tensor) -> dict[str, Tensor]:
        for block in self.blocks:
            tokens, _ = block(tokens)
        return {task: head(tokens) for task, head in self.heads.items()}


def test_a_table_that_differs_from_copy_to_copy_and_has_no_samples_is_refused():
    model = changed(ModelWithTable(), dtme.Plan(TASKS, copies=COPIES))
    with pytest.raises(
        ValueError, match=r"copies: besides its tokens block 'blocks.1' returns a tensor \(4, 4\) that differs"
    ):
        model(drawn(2, 3, 4))


class OnT5(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = hf.T5Config(vocab_size=30, d_model=8, d_kv=4, d_ff=16, num_layers=3, num_heads=2, dropout_rate=0.0)
        self.trunk: Any = hf.T5EncoderModel(config)
        self.heads = nn.ModuleDict({task: nn.Linear(8, 2) for task in TASKS})
        self.double().eval()

    def forward(self, words: Tensor, hidden: bool = False) -> Any:
        found = self.trunk(words, output_hidden_states=hidden)
        tokens = found.hidden_states[2] if hidden else found.last_hidden_state
        return {task: head(tokens) for task, head in self.heads.items()}


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("hidden", [False, True])
def test_biases_of_positions_that_a_copy_makes_are_those_of_its_task(block: int, hidden: bool):
    name = f"trunk.encoder.block.{block}"
    model = changed(OnT5(), dtme.Plan(TASKS, copies={name: TASKS[1:]}))
    words = torch.tensor([[4, 5, 6, 7], [8, 9, 3, 2]])
    together = model(words, hidden)
    for place, task in enumerate(TASKS):
        plain = OnT5()
        if place:
            plain.get_submodule(name).load_state_dict(model.get_submodule(name).dtme.copies[place - 1].state_dict())
        torch.testing.assert_close(together[task], plain(words, hidden)[task], rtol=1e-5, atol=1e-6)


class Odd(Block):
    """A fixed table, a scalar parameter, a part in evaluation, two names of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(4), requires_grad=False)
        self.size = nn.Parameter(torch.ones(()))
        self.again = self.fc
        self.dropout = nn.Dropout(0.5)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Any:
        return tokens + self.size * self.dropout(self.again(self.norm(tokens)) * self.table)


def test_a_copy_has_the_modes_and_flags_of_the_block(tmp_path: Any):
    def make() -> Model:
        model = Model(Odd).train()
        for block in model.blocks:
            block.dropout.eval()
        return model

    model = changed(make(), dtme.Plan(TASKS, copies=COPIES))
    own = model.blocks[1].dtme.copies[0]
    assert not own.table.requires_grad
    assert own.size.requires_grad
    assert own.training
    assert not own.dropout.training
    assert own.again is own.fc
    check_alone(lambda: make(), model, drawn(2, 3, 4))
    torch.stack([output.sum() for output in model(drawn(2, 3, 4)).values()]).sum().backward()  # watched
    assert own.size.grad is not None
    dtme.save_pretrained(model, tmp_path)
    loaded = dtme.load_pretrained(make(), tmp_path)
    for task, output in loaded(drawn(2, 3, 4)).items():
        torch.testing.assert_close(output, model(drawn(2, 3, 4))[task], rtol=0, atol=0)


def test_what_a_block_refers_to_outside_it_is_not_copied():
    model = Model()
    for block in model.blocks:
        object.__setattr__(block, "owner", [model])
    dtme.apply(model, dtme.Plan(TASKS, copies=COPIES))
    assert model.blocks[1].dtme.copies[0].owner[0] is model


def test_what_cannot_be_copied_is_said():
    model = Model()
    model.blocks[1] = torch.compile(model.blocks[1])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"copies: block 'blocks.1' is compiled by itself"):
        dtme.apply(model, dtme.Plan(TASKS, copies=COPIES))
    model = Model()
    model.blocks[1].kept = model.blocks[1].fc(drawn(1, 4))
    with pytest.raises(ValueError, match=r"copies: block 'blocks.1' cannot be copied"):
        dtme.apply(model, dtme.Plan(TASKS, copies=COPIES))
    with pytest.raises(ValueError, match=r"plan.adapt: layer 'fc' of block 'blocks.1' lies in 'blocks.1.fc'"):
        dtme.apply(Model(), dtme.Plan(TASKS, adapt={"blocks.1": TASKS}, copies={"blocks.1.fc": ("c",)}))


def test_a_forward_put_around_ours_outlives_the_plan():
    model, tokens = Model(), drawn(2, 3, 4)
    before = model(tokens)
    dtme.apply(model, dtme.Plan(TASKS, copies=COPIES))
    model.blocks[1].forward = functools.partial(model.blocks[1].forward)
    dtme.remove(model)
    for task, output in model(tokens).items():
        torch.testing.assert_close(output, before[task], rtol=0, atol=0)
    assert not any("dtme" in name for name in model.state_dict())
