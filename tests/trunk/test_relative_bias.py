"""Task tokens in attention with a table of relative positions of its own, against the equations of BEiT's attention."""

import copy

import pytest
import torch
from timm_models import TASKS, make
from torch import Tensor, nn

import dtme
from dtme.trunk.relative_bias import spanning_tables

BLOCK = "trunk.blocks.1"


def by_hand(block: nn.Module, tokens: Tensor, own: Tensor) -> Tensor:
    """The block on tokens that end in task tokens, written out; the task tokens leave at its end."""
    attention = block.attn
    x = torch.cat([tokens, own.expand(len(tokens), -1, -1)], 1)
    count, known = x.shape[1], tokens.shape[1]
    heads = attention.num_heads
    bias = torch.zeros(heads, count, count, dtype=x.dtype)
    for i in range(known):
        for j in range(known):
            bias[:, i, j] = attention.relative_position_bias_table[attention.relative_position_index[i, j]]
    packed = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    q, k, v = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2)
        for part in nn.functional.linear(block.norm1(x), attention.qkv.weight, packed).chunk(3, -1)
    )
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias).softmax(-1)
    attended = attention.proj((weights @ v).transpose(1, 2).flatten(2))
    x = x + block.gamma_1 * attended if block.gamma_1 is not None else x + attended
    fed = block.mlp(block.norm2(x))
    x = x + block.gamma_2 * fed if block.gamma_2 is not None else x + fed
    return x[:, :known]


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "by products"])
@pytest.mark.parametrize("tokens_per_task", [1, 3])
@pytest.mark.parametrize("expanded", [TASKS, TASKS[:1]], ids=["all tasks", "one task"])
def test_task_tokens_are_at_no_distance(tokens_per_task: int, expanded: tuple[str, ...], fused: bool):
    model = make("BEiT")
    block = model.get_submodule(BLOCK)
    block.attn.fused_attn = fused
    plain = copy.deepcopy(block)
    dtme.apply(model, dtme.Plan(TASKS, expand={BLOCK: expanded}, tokens_per_task=tokens_per_task))
    with torch.no_grad():
        block.dtme.tokens.normal_()
    seen: list[Tensor] = []
    left: list[Tensor] = []
    model.get_submodule("trunk.blocks.0").register_forward_hook(lambda m, args, out: seen.append(out))
    for task in TASKS:
        handle = block.register_forward_hook(lambda m, args, out: left.append(out))
        with torch.no_grad(), dtme.tasks(model, task):
            model(torch.randn(2, 3, 32, 32, dtype=torch.float64))
        handle.remove()
        entered, given = seen.pop(), left.pop()
        own = block.dtme.tokens[expanded.index(task)] if task in expanded else None
        expected = plain(entered) if own is None else by_hand(plain, entered, own)
        torch.testing.assert_close(torch.as_tensor(given), expected, rtol=0, atol=1e-10)


def test_removed_it_is_as_it_was():
    model = make("BEiT")
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    before, keys = model(images), set(vars(model.get_submodule(BLOCK).attn))
    dtme.apply(model, dtme.Plan(TASKS, expand={BLOCK: TASKS}))
    dtme.remove(model)
    after = model(images)
    assert all(torch.equal(before[task], after[task]) for task in TASKS)
    assert set(vars(model.get_submodule(BLOCK).attn)) == keys
    assert not model.get_submodule(BLOCK).attn._forward_pre_hooks


def test_a_copy_looks_at_its_own_sequence():
    model = dtme.apply(make("BEiT"), dtme.Plan(TASKS, expand={BLOCK: TASKS}, tokens_per_task=2))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = model(images)
    twin = copy.deepcopy(model)
    (own,) = spanning_tables(model.get_submodule(BLOCK)).values()
    (copied,) = spanning_tables(twin.get_submodule(BLOCK)).values()
    assert copied._get_rel_pos_bias.args[0] is copied
    assert copied._get_rel_pos_bias.args[1] is not own._get_rel_pos_bias.args[1]
    found = twin(images)
    assert all(torch.equal(found[task], expected[task]) for task in TASKS)


def test_windows_are_no_sequence():
    model = make("Swin")
    assert not any(spanning_tables(module) for module in model.modules())
