"""Inserts in parts of blocks: modulators behind the norms, where attention and MLP take their tokens."""

from __future__ import annotations

import copy
import functools
import sys
import warnings
from typing import Any

import pytest
import torch
import transformers as hf
from models import WholeFeatures, displaced
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import dtme
from dtme.attach.cost import plain_products
from dtme.streams.tensor import Streams

TASKS = ("depth", "edges", "semseg")
PARTS = ("attn", "mlp")


@pytest.fixture
def base() -> WholeFeatures:
    return WholeFeatures(TASKS)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()


def changed(base: nn.Module, plan: dtme.Plan) -> Any:
    """A copy with the plan, its inserts away from where they begin."""
    return displaced(copy.deepcopy(base), plan, 0.3)


def checked(model: Any, images: Tensor) -> dict[str, Tensor]:
    """The outputs of all tasks at once, found to be those of one after the other and of rows routed to a task each."""
    outputs = model(images)
    for task in TASKS:
        with dtme.tasks(model, task):
            torch.testing.assert_close(model(images)[task], outputs[task])
        with dtme.tasks(model, per_sample=[task, task]):
            torch.testing.assert_close(model(images)[task], outputs[task])
    return outputs


def flops_of(model: Any, *args: Tensor, **kwargs: Tensor) -> int:
    with torch.no_grad(), plain_products(), FlopCounterMode(display=False) as counter:
        model(*args, **kwargs)
    return counter.get_total_flops()


def behind_norms(*blocks: int) -> dict[str, tuple[str, ...]]:
    return {f"trunk.blocks.{block}.{part}": TASKS for block in blocks for part in PARTS}


@pytest.mark.parametrize("blocks", [(1, 2), (0, 3), (3,)])
def test_modulators_behind_norms_are_norms_of_each_tasks_own(
    base: WholeFeatures, images: Tensor, blocks: tuple[int, ...]
):
    """W * (w * n + c) + b is a norm of weight W * w and bias W * c + b."""
    model = changed(base, dtme.Plan(TASKS, modulate=behind_norms(*blocks)))
    outputs = model(images)
    for place, task in enumerate(TASKS):
        own = copy.deepcopy(base)
        for block in blocks:
            for part, norm in zip(PARTS, ("norm1", "norm2"), strict=True):
                insert: Any = model.get_submodule(f"trunk.blocks.{block}.{part}.dtme")
                layer: Any = own.get_submodule(f"trunk.blocks.{block}.{norm}")
                with torch.no_grad():
                    layer.bias.mul_(insert.scale[place]).add_(insert.shift[place])
                    layer.weight.mul_(insert.scale[place])
        torch.testing.assert_close(outputs[task], own(images)[task])
        assert not isinstance(outputs[task], Streams)


MIXED = dtme.Plan(
    TASKS,
    modulate={**behind_norms(1, 3), "trunk.blocks.1": TASKS, "trunk.blocks.2": ("depth",)},
    expand={"trunk.blocks.1.attn": ("semseg",), "trunk.blocks.3": TASKS},
    adapt={"trunk.blocks.3.mlp": ("depth", "edges")},
)


def test_all_tasks_at_once_are_one_after_the_other(base: WholeFeatures, images: Tensor):
    model = changed(base, MIXED)
    outputs = checked(model, images)
    torch.testing.assert_close(copy.deepcopy(model)(images), outputs)


def test_gradients_reach_every_insert(base: WholeFeatures, images: Tensor):
    model = changed(base, MIXED)
    torch.stack([output.square().mean() for output in model(images).values()]).sum().backward()
    for name, parameter in dtme.added_parameters(model):
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_at_the_start_and_once_removed_outputs_are_the_models_own(base: WholeFeatures, images: Tensor):
    model = copy.deepcopy(base)
    dtme.apply(model, dtme.Plan(TASKS, modulate=behind_norms(1, 2)))
    for task, output in model(images).items():
        torch.testing.assert_close(output, base(images)[task])
    dtme.remove(model)
    assert model.state_dict().keys() == base.state_dict().keys()
    assert all(torch.equal(output, base(images)[task]) for task, output in model(images).items())


def test_compiled(base: WholeFeatures, images: Tensor):
    model = changed(base, dtme.Plan(TASKS, modulate=behind_norms(3)))
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(images), model(images))


def test_a_block_that_runs_in_two_parts_takes_none_inside(base: WholeFeatures):
    plan = dtme.Plan(TASKS, modulate={"trunk.blocks.1.attn": TASKS}, expand={"trunk.blocks.1": ("depth",)})
    with pytest.raises(ValueError, match=r"block 'trunk.blocks.1' has task tokens for \('depth',\) alone"):
        dtme.apply(base, plan)


def test_a_part_that_is_not_given_every_stream_is_refused():
    class Shared(nn.Module):
        """Its second layer takes one row, whatever the samples."""

        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.attn, self.mlp = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, tokens: Tensor) -> Tensor:
            return tokens + self.attn(self.norm1(tokens)) + self.mlp(tokens.new_ones(1, 1, 8))

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Shared(), Shared()])
            self.heads = nn.ModuleDict({task: nn.Linear(8, 1) for task in TASKS})

        def forward(self, tokens: Tensor) -> dict[str, Tensor]:
            for block in self.blocks:
                tokens = block(tokens)
            return {task: head(tokens) for task, head in self.heads.items()}

    model = dtme.apply(Other(), dtme.Plan(TASKS, modulate={"blocks.1.mlp": TASKS, "blocks.0": TASKS}))
    with pytest.raises(
        ValueError,
        match=r"1 rows enter 'blocks\.1\.mlp' where the block 'blocks\.1' around it runs 3 streams",
    ):
        model(torch.randn(2, 5, 8))


def lanes_seen(model: Any, images: Tensor) -> dict[str, int]:
    """How many times the samples of the images ran through each part, in one pass for all tasks."""
    seen: dict[str, int] = {}

    def tell(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[name] = args[0].shape[0] // len(images)

    handles = [
        model.get_submodule(f"trunk.blocks.{block}.{part}").register_forward_pre_hook(
            functools.partial(tell, f"{block}.{part}")
        )
        for block in range(4)
        for part in PARTS
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return seen


LATE = {
    "updates": dtme.Plan(TASKS, adapt={"trunk.blocks.2.mlp": TASKS}),
    "copies": dtme.Plan(TASKS, copies={"trunk.blocks.2.mlp": TASKS[1:]}),
    "modulators": dtme.Plan(TASKS, modulate={"trunk.blocks.2.mlp": TASKS, "trunk.blocks.3": TASKS}),
}


@pytest.mark.parametrize("kind", LATE)
def test_streams_part_no_sooner_than_at_the_last_part_if_it_alone_has_inserts(
    base: WholeFeatures, images: Tensor, kind: str
):
    model = changed(base, LATE[kind])
    lanes = lanes_seen(model, images)
    assert [lanes[f"2.{part}"] for part in PARTS] == [1, 3]
    assert [lanes[f"{block}.{part}"] for block in (1, 3) for part in PARTS] == [1, 1, 3, 3]
    outputs = checked(model, images)
    assert len({float(output.detach().sum()) for output in outputs.values()}) == len(TASKS)


def test_tasks_that_share_a_stream_go_on_sharing_it(base: WholeFeatures, images: Tensor):
    model = changed(base, dtme.Plan(TASKS, adapt={"trunk.blocks.2.mlp": ("edges",)}))
    assert [lanes_seen(model, images)[f"{block}.mlp"] for block in range(4)] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    "plan",
    [
        dtme.Plan(TASKS, adapt={"trunk.blocks.2.mlp": TASKS, "trunk.blocks.2.attn": TASKS}),
        dtme.Plan(TASKS, expand={"trunk.blocks.2.attn": TASKS}),
        dtme.Plan(TASKS, adapt={"trunk.blocks.2.mlp": TASKS}, modulate={"trunk.blocks.2": TASKS}),
        dtme.Plan(TASKS, adapt={"trunk.blocks.2.mlp": TASKS}, modulate={"trunk.blocks.1": TASKS}),
    ],
)
def test_streams_that_have_parted_are_folded_for_the_whole_block(base: WholeFeatures, images: Tensor, plan: dtme.Plan):
    lanes = lanes_seen(changed(base, plan), images)
    assert [lanes[f"2.{part}"] for part in PARTS] == [3, 3]


@pytest.mark.parametrize("kind", LATE)
def test_parting_late_has_the_gradients_of_one_task_at_a_time(base: WholeFeatures, images: Tensor, kind: str):
    together = changed(base, LATE[kind])
    apart = copy.deepcopy(together)
    checkpointed = copy.deepcopy(together)
    block = checkpointed.get_submodule("trunk.blocks.2")
    forward = block.forward
    block.forward = functools.partial(checkpoint, forward, use_reentrant=False)
    for model in (together, checkpointed):
        torch.stack([output.square().mean() for output in model(images).values()]).sum().backward()
    for task in TASKS:
        with dtme.tasks(apart, task):
            apart(images)[task].square().mean().backward()
    for other in (apart, checkpointed):
        for (name, one), (_, two) in zip(together.named_parameters(), other.named_parameters(), strict=True):
            assert (one.grad is None) == (two.grad is None), name
            if one.grad is not None:
                torch.testing.assert_close(one.grad, two.grad, msg=name)


def test_parting_at_the_mlp_is_adapting_its_layers_alone(base: WholeFeatures, images: Tensor):
    late = changed(base, dtme.Plan(TASKS, adapt={"trunk.blocks.2.mlp": TASKS, "trunk.blocks.3": TASKS}, rank=3))
    early = changed(base, dtme.Plan(TASKS, adapt={"trunk.blocks.2": TASKS, "trunk.blocks.3": TASKS}, rank=3))
    own = dict(late.named_parameters())
    with torch.no_grad():
        for name, parameter in early.named_parameters():
            if "blocks.2.dtme.low_rank." in name:
                part, rest = name.split("low_rank.")[1].split("-", 1)
                if part == "mlp":
                    parameter.copy_(own[f"trunk.blocks.2.mlp.dtme.low_rank.{rest}"])
                else:
                    parameter.zero_()
            else:
                parameter.copy_(own[name])
    torch.testing.assert_close(late(images), early(images))


@pytest.mark.parametrize("kind", LATE)
def test_parting_late_compiled(base: WholeFeatures, images: Tensor, kind: str):
    model = changed(base, LATE[kind])
    torch.testing.assert_close(torch.compile(model, backend="eager")(images), model(images))


def test_a_tensor_that_all_tasks_share_is_not_written_inside_a_block(base: WholeFeatures, images: Tensor):
    def forward(tokens: Tensor) -> Tensor:
        kept = tokens.clone()
        kept += block.attn(block.norm1(kept))
        kept += block.mlp(block.norm2(kept))
        return kept

    model: Any = copy.deepcopy(base)
    block: Any = model.get_submodule("trunk.blocks.2")
    block.forward = forward
    displaced(model, LATE["updates"], 0.3)
    with pytest.raises(
        RuntimeError, match=r"add_: the model writes task-specific streams into a tensor that all tasks"
    ):
        model(images)


SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}


class Sentences(nn.Module):
    """An encoder or decoder of transformers with a head per task."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict({task: nn.Linear(32, 1) for task in TASKS})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        hidden = self.trunk(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return {task: head(hidden) for task, head in self.heads.items()}


@pytest.mark.parametrize("kind", ["adapt", "copies"])
@pytest.mark.parametrize(
    ("make", "block", "part"),
    [
        (lambda: hf.BertModel(hf.BertConfig(**SMALL), add_pooling_layer=False), "encoder.layer.1", "output"),
        (lambda: hf.LlamaModel(hf.LlamaConfig(**SMALL, num_key_value_heads=2, use_cache=False)), "layers.1", "mlp"),
        (
            lambda: hf.T5EncoderModel(
                hf.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4, vocab_size=50)
            ),
            "encoder.block.1",
            "layer.1",
        ),
    ],
    ids=["BERT", "Llama", "T5"],
)
def test_late_parting_in_text_trunks_is_one_task_at_a_time_and_priced_to_the_flop(
    make: Any, block: str, part: str, kind: str
):
    model = Sentences(make()).double().eval()
    batch = {"input_ids": torch.arange(14).view(2, 7) + 3, "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    batch["attention_mask"][1, 5:] = 0
    placed = {f"trunk.{block}.{part}": TASKS if kind == "adapt" else TASKS[1:]}
    plan = dtme.Plan(TASKS, rank=2, **{kind: placed})
    late: Any = changed(model, plan)
    outputs = late(**batch)
    assert flops_of(late, **batch) == dtme.cost(model, plan, batch).flops
    assert not torch.equal(outputs["edges"], model(**batch)["edges"])
    for task in TASKS:
        with dtme.tasks(late, task):
            torch.testing.assert_close(late(**batch)[task], outputs[task])


class Chain(nn.Module):
    """Blocks of any kind on tokens, a head per task."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.heads = nn.ModuleDict({task: nn.Linear(16, 1) for task in TASKS})

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        for block in self.blocks:
            tokens = block(tokens)
        return {task: head(tokens) for task, head in self.heads.items()}


AT_THE_MLP = dtme.Plan(TASKS, adapt={"blocks.1.mlp": TASKS})


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("places", [(1, 2), (0, 1)])
def test_a_part_that_two_blocks_share_is_folded_with_the_whole_block(tokens: Tensor, places: tuple[int, int]):
    blocks = [Block(16, 2) for _ in range(3)]
    blocks[places[1]].mlp = blocks[places[0]].mlp
    name = f"blocks.{places[0]}.mlp"
    plan = dtme.Plan(TASKS, adapt={name: TASKS})
    outputs = checked(changed(Chain(*blocks), plan), tokens)
    assert dtme.cost(Chain(*blocks), plan, tokens).flops == flops_of(changed(Chain(*blocks), plan), tokens)
    assert not any(isinstance(output, Streams) for output in outputs.values())


def test_a_block_that_runs_twice_parts_late_once(tokens: Tensor):
    block = Block(16, 2)
    first = Block(16, 2)
    model = Chain(first, block, block)
    checked(changed(model, AT_THE_MLP), tokens)
    cost = dtme.cost(model, AT_THE_MLP, tokens)
    assert cost.flops == flops_of(changed(model, AT_THE_MLP), tokens)
    assert cost.streams == {"blocks.0": 1, "blocks.1": 3}


class Scripted(Block):
    """Its sum is TorchScript, which takes streams for one tensor."""

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return SUM(tokens, self.mlp(self.norm2(tokens)))


class Asking(Block):
    """Asks for a number of what its MLP returns."""

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens)).detach().sum().item()


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TorchScript is on its way out

    @torch.jit.script
    def SUM(one: Tensor, two: Tensor) -> Tensor:  # noqa: N802
        return one + two


def test_streams_go_through_scripted_functions_behind_the_part(tokens: Tensor):
    checked(changed(Chain(Block(16, 2), Scripted(16, 2)), AT_THE_MLP), tokens)
    checked(changed(Chain(Block(16, 2), Scripted(16, 2)), dtme.Plan(TASKS, adapt={"blocks.1": TASKS})), tokens)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions take no notes before")
def test_an_error_behind_the_part_says_how_to_part_with_the_block(tokens: Tensor):
    model = changed(Chain(Block(16, 2), Asking(16, 2)), AT_THE_MLP)
    with pytest.raises(RuntimeError) as caught:
        model(tokens)
    assert "up to 'blocks.1.mlp', where streams part. Plan inserts for the whole block" in caught.value.__notes__[0]


@pytest.mark.parametrize("part", ["linear1", "linear2"])
@pytest.mark.parametrize("parted", [False, True])
def test_a_part_lays_its_tokens_as_its_block_does(part: str, parted: bool):
    layers = [nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0) for _ in range(2)]
    base = Chain(*layers)
    placed = {"modulate": {f"blocks.1.{part}": TASKS, **({"blocks.0": TASKS} if parted else {})}}
    model = changed(base, dtme.Plan(TASKS, **placed))
    tokens = torch.randn(5, 2, 16, generator=torch.Generator().manual_seed(1))
    outputs = checked(model, tokens)
    assert not torch.equal(outputs["depth"], base(tokens)["depth"])


def test_a_part_that_is_one_layer_is_priced_and_has_none_to_adapt(tokens: Tensor):
    model = Chain(Block(16, 2), Block(16, 2))
    last = "blocks.1.mlp.fc2"
    assert dtme.cost(model, dtme.Plan(TASKS, copies={last: TASKS[1:]}), tokens).ratio > 1
    with pytest.raises(ValueError, match=rf"block '{last}' has no linear layer to adapt"):
        dtme.apply(model, dtme.Plan(TASKS, adapt={last: TASKS}))
