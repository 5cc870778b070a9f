"""One suite of properties over a zoo of vision trunks, torch's encoder and trunks written by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from timm_models import (
    BLOCKS,
    MODELS,
    TASKS,
    TIED,
    TIMM,
    Block,
    Head,
    OnIntermediates,
    OnTimm,
    Output,
    as_tuple,
    images,
    make,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import dtme
from dtme.adaptation import linear_layers
from dtme.blocks import find_blocks, fixed_positions
from dtme.capture import capture
from dtme.insert import layer_key

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
Outputs = dict[str, Tensor]
GLOBAL = [name for name in MODELS if name not in TIED]
ROWS = ("scene", "depth", "semseg")


def filled(model: nn.Module, plan: dtme.Plan) -> Any:
    dtme.apply(model, plan)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in dtme.added_parameters(model):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (parameter.ndim == 2) * 1.0)
    return model


def modulation(name: str) -> dtme.Plan:
    return dtme.Plan(TASKS, {BLOCKS[name][1]: ("scene",), BLOCKS[name][-1]: ("depth", "scene")})


def expansion(name: str) -> dtme.Plan:
    return dtme.Plan(TASKS, expand={BLOCKS[name][1]: ("semseg", "depth"), BLOCKS[name][-1]: TASKS}, tokens_per_task=2)


def adaptation(name: str) -> dtme.Plan:
    return dtme.Plan(TASKS, adapt={BLOCKS[name][0]: ("semseg",), BLOCKS[name][-1]: TASKS}, rank=2)


def assert_same(one: Outputs, other: Outputs) -> None:
    assert one.keys() == other.keys()
    for task, output in one.items():
        torch.testing.assert_close(output, other[task], **CLOSE, msg=lambda text, task=task: f"{task}: {text}")


def adaptable(name: str) -> bool:
    model = make(name)
    return all(linear_layers(model.get_submodule(block)) for block in adaptation(name).adapt)


ADAPTABLE = [name for name in MODELS if adaptable(name)]
PLANNED = [
    *((name, modulation) for name in MODELS),
    *((name, expansion) for name in GLOBAL),
    *((name, adaptation) for name in ADAPTABLE),
]
planned = pytest.mark.parametrize(("name", "plan_of"), PLANNED, ids=lambda value: getattr(value, "__name__", value))


def test_convolutional_attention_alone_has_no_linear_layer_to_adapt():
    assert set(MODELS) - set(ADAPTABLE) == {"CoAtNet"}


@pytest.mark.parametrize("name", MODELS)
def test_blocks_are_found_in_the_order_in_which_they_run(name: str):
    model, ran = make(name), []
    for block, module in find_blocks(model).items():
        module.register_forward_pre_hook(lambda *_, block=block: ran.append(block))
    model(images(name))
    assert list(find_blocks(model)) == ran == BLOCKS[name]


@pytest.mark.parametrize("name", MODELS)
def test_modulators_and_updates_start_as_the_identity_and_leave_no_trace(name: str):
    model, x = make(name), images(name)
    before, keys = model(x), list(model.state_dict())
    adapt = dict.fromkeys(BLOCKS[name], TASKS) if name in ADAPTABLE else {}
    dtme.apply(model, dtme.Plan(TASKS, dict.fromkeys(BLOCKS[name], TASKS), adapt=adapt))
    assert_same(model(x), before)
    with torch.no_grad():
        for _, parameter in dtme.added_parameters(model):
            parameter.add_(0.5)
    after = model(x)
    assert all(not torch.allclose(after[task], before[task]) for task in TASKS)
    dtme.remove(model)
    assert list(model.state_dict()) == keys
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(output, before[task]) for task, output in model(x).items())


@planned
def test_all_tasks_in_one_pass_are_one_task_at_a_time_and_rows_of_their_own(name: str, plan_of: Callable[..., Any]):
    model, x = filled(make(name), plan_of(name)), images(name)
    together = model(x)
    for task in TASKS:
        with dtme.tasks(model, task):
            alone = model(x)
        torch.testing.assert_close(alone[task], together[task], **CLOSE)
        assert all(len(alone[other]) == 0 for other in TASKS if other != task)
    with dtme.tasks(model, per_sample=ROWS):
        mixed = model(x)
    for row, task in enumerate(ROWS):
        torch.testing.assert_close(mixed[task][row], together[task][row], **CLOSE)


def modulated_by_hand(base: nn.Module, applied: nn.Module, plan: dtme.Plan, task: str) -> nn.Module:
    """The base with each tensor that enters a block scaled and shifted for one task."""
    alone = copy.deepcopy(base)
    for block, tasks in plan.modulate.items():
        if task in tasks:
            insert: Any = applied.get_submodule(block).dtme
            scale, shift = (vector[tuple(tasks).index(task)] for vector in (insert.scale, insert.shift))

            def change(_: nn.Module, args: Any, kwargs: Any, scale: Tensor = scale, shift: Tensor = shift) -> Any:
                tokens = args[0] if args else kwargs["tokens"]
                first = tokens.ndim == 4 and tokens.shape[1] == len(scale)
                form = (-1, 1, 1) if first else (-1,)
                tokens = tokens * scale.view(form) + shift.view(form)
                return ((tokens, *args[1:]), kwargs) if args else (args, {**kwargs, "tokens": tokens})

            alone.get_submodule(block).register_forward_pre_hook(change, with_kwargs=True)
    return alone


def expanded_by_hand(base: nn.Module, applied: nn.Module, plan: dtme.Plan, task: str) -> nn.Module:
    """The base with one task's tokens before the others, among those that a rotary attention leaves unturned."""
    alone = copy.deepcopy(base)
    for block, tasks in plan.expand.items():
        if task not in tasks:
            continue
        module: Any = alone.get_submodule(block)
        own: Any = applied.get_submodule(block).dtme.tokens[tuple(tasks).index(task)]
        dim = 1 - int(any(isinstance(m, nn.MultiheadAttention) and not m.batch_first for m in module.modules()))
        if hasattr(getattr(module, "attn", None), "num_prefix_tokens"):
            module.attn.num_prefix_tokens += len(own)
        module.forward = partial(_with_tokens_in_front, module.forward, own, dim)
    return alone


def _with_tokens_in_front(forward: Callable[..., Any], own: Tensor, dim: int, *args: Any, **kwargs: Any) -> Any:
    tokens = args[0] if args else kwargs.pop("tokens")
    extra = own.unsqueeze(1 - dim).expand(*(tokens.shape[0], -1, -1) if dim == 1 else (-1, tokens.shape[1], -1))
    if kwargs.get("shared_rel_pos_bias") is not None:
        kwargs["shared_rel_pos_bias"] = nn.functional.pad(kwargs["shared_rel_pos_bias"], (len(own), 0, len(own), 0))
    output = forward(torch.cat([extra, tokens], dim), *args[1:], **kwargs)
    cut = partial(torch.narrow, dim=dim, start=len(own), length=tokens.shape[dim])
    if isinstance(output, Tensor):
        return cut(output)
    if isinstance(output, tuple):
        return cut(output[0]), output[1]
    output = copy.copy(output)
    output.__setitem__("tokens", cut(output["tokens"])) if isinstance(output, dict) else setattr(
        output, "tokens", cut(output.tokens)
    )
    return output


@pytest.mark.parametrize("name", TIED)
def test_blocks_tied_to_their_positions_refuse_task_tokens_and_stay_as_they_were(name: str):
    model = make(name)
    with pytest.raises(ValueError, match=f"'{BLOCKS[name][1]}'.*{TIED[name]}.*Plan modulation there instead"):
        dtme.apply(model, expansion(name))
    assert not any("dtme" in module_name for module_name, _ in model.named_modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", GLOBAL)
def test_nothing_ties_global_attention_to_positions(name: str):
    assert not any(fixed_positions(block) for block in find_blocks(make(name)).values())


def adapted_by_hand(base: nn.Module, applied: nn.Module, plan: dtme.Plan, task: str) -> nn.Module:
    """The base with the updates of one task added to its weights."""
    alone = copy.deepcopy(base)
    for block, tasks in plan.adapt.items():
        for layer, linear in linear_layers(base.get_submodule(block)).items() if task in tasks else ():
            assert linear.in_features > 2  # coordinates are no tokens
            own: Any = applied.get_submodule(block).dtme.low_rank[layer_key(layer)]
            row = tuple(tasks).index(task)
            alone.get_submodule(f"{block}.{layer}").weight.data += (own.up[row] @ own.down[row]).detach()
    return alone


BY_HAND = {modulation: modulated_by_hand, expansion: expanded_by_hand, adaptation: adapted_by_hand}


@planned
def test_every_task_is_the_model_changed_by_hand(name: str, plan_of: Callable[..., Any]):
    base, x, plan = make(name), images(name), plan_of(name)
    model = filled(copy.deepcopy(base), plan)
    before = base(x)
    for task, output in model(x).items():
        torch.testing.assert_close(output, BY_HAND[plan_of](base, model, plan, task)(x)[task], **CLOSE)
        inserted = any(task in tasks for tasks in (plan.modulate | plan.expand | plan.adapt).values())
        assert inserted != torch.allclose(output, before[task])


def flops(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Products per block, without the tables of biases that a block computes once for all streams."""
    with FlopCounterMode(display=False, depth=None) as counter:
        model(x)
    counts = {key.partition(".")[2]: sum(kinds.values()) for key, kinds in counter.get_flop_counts().items()}
    tables = {key: count for key, count in counts.items() if key.endswith(("cpb_mlp", "rel_pos.mlp"))}
    return {
        block: counts[block] - sum(count for key, count in tables.items() if key.startswith(f"{block}."))
        for block in find_blocks(model)
    }


@pytest.mark.parametrize("name", MODELS)
def test_cost_is_the_number_of_streams(name: str):
    base, x, blocks = make(name), images(name), BLOCKS[name]
    before = flops(base, x)
    model = filled(copy.deepcopy(base), modulation(name))
    after = flops(model, x)
    streams = dict.fromkeys(blocks[:1], 1) | dict.fromkeys(blocks[1:-1], 2) | {blocks[-1]: 3}
    assert {block: after[block] / before[block] for block in blocks} == streams
    with dtme.tasks(model, "semseg", "depth"):  # shared as far as the last block
        fewer = flops(model, x)
    streams = dict.fromkeys(blocks[:-1], 1) | {blocks[-1]: 2}
    assert {block: fewer[block] / before[block] for block in blocks} == streams


@pytest.mark.parametrize(
    ("name", "plan_of"),
    [(name, plan_of) for name, plan_of in PLANNED if name in TIMM],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_intermediate_features_of_timm(name: str, plan_of: Callable[..., Any]):
    base, x, plan = make(name, OnIntermediates), images(name), plan_of(name)
    model = filled(copy.deepcopy(base), plan)
    together = model(x)
    for task in TASKS:
        expected = BY_HAND[plan_of](base, model, plan, task)(x)[task]
        torch.testing.assert_close(together[task], expected, **CLOSE)
        with dtme.tasks(model, task):
            torch.testing.assert_close(model(x)[task], expected, **CLOSE)


@pytest.mark.parametrize("name", TIMM)
def test_checkpointed_activations_give_the_same_gradients(name: str):
    plan = dtme.Plan(
        TASKS,
        modulation(name).modulate,
        expansion(name).expand if name in GLOBAL else {},
        adaptation(name).adapt if name in ADAPTABLE else {},
    )
    model = filled(make(name), plan)
    twin = copy.deepcopy(model)
    twin.trunk.set_grad_checkpointing()
    gradients = []
    for each in (model, twin):
        torch.stack([output.square().mean() for output in each(images(name)).values()]).sum().backward()
        gradients.append({key: p.grad for key, p in each.named_parameters() if p.grad is not None})
    assert {key for key, _ in dtme.added_parameters(model)} <= gradients[0].keys()
    assert_same(*gradients)


def losses(model: nn.Module, x: Tensor) -> Outputs:
    target = x.mean((1, 2, 3))
    return {task: (output.flatten(1).mean(1) - target).square().mean() for task, output in model(x).items()}


@pytest.mark.parametrize("name", MODELS)
def test_the_analysis_reads_every_block(name: str):
    model = make(name)
    report = dtme.analyze(model, losses, [images(name), images(name, 2).flip(0)])
    assert report.blocks == tuple(BLOCKS[name])
    assert report.widths == tuple(entry.tokens.shape[entry.layout.channel] for entry in entries(model, name))
    assert report.samples == 5
    off = ~torch.eye(3, dtype=torch.bool).expand_as(report.range_rate)
    for rates in (report.range_rate, report.null_rate):
        assert bool(((rates >= 0) & (rates <= 1))[off].all())
    assert float(report.range_rate[off].max()) > 0
    dtme.apply(model, report.plan(expansion=False))
    assert_same(model(images(name)), make(name)(images(name)))


def entries(model: nn.Module, name: str) -> list[Any]:
    with capture(find_blocks(model), differentiable=False) as caught, torch.no_grad():
        model(images(name))
    return list(caught.entries.values())


class Grids(nn.Module):
    """The same blocks called with a sequence, with a grid, or with a grid whose channels come first."""

    def __init__(self, layout: str):
        super().__init__()
        torch.manual_seed(0)
        self.layout = layout
        self.embed = nn.Conv2d(3, 16, 8, stride=8)
        self.blocks = nn.ModuleList(OnGrid(layout) for _ in range(2))
        self.heads = nn.ModuleDict({task: Head(16, 2, task == "scene") for task in TASKS})

    def forward(self, image: Tensor) -> Outputs:
        tokens = self.embed(image).flatten(2).transpose(1, 2)
        tokens = to_layout(tokens, self.layout)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = to_sequence(tokens, self.layout)
        return {task: head(tokens) for task, head in self.heads.items()}


class OnGrid(nn.Module):
    def __init__(self, layout: str):
        super().__init__()
        self.layout, self.attention = layout, Block(as_tuple)
        self.attention.norm1 = LayerNorm2d(16) if layout == "channels first" else nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        return to_layout(self.attention(to_sequence(x, self.layout), 1.0)[0], self.layout)


class LayerNorm2d(nn.LayerNorm):
    """A norm of channels that its name says come first; the block calls it on a sequence all the same."""


def to_layout(tokens: Tensor, layout: str) -> Tensor:
    if layout == "sequence":
        return tokens
    grid = tokens.unflatten(1, (4, -1))
    return grid.permute(0, 3, 1, 2) if layout == "channels first" else grid


def to_sequence(tokens: Tensor, layout: str) -> Tensor:
    if layout == "sequence":
        return tokens
    return tokens.flatten(2).transpose(1, 2) if layout == "channels first" else tokens.flatten(1, 2)


@pytest.mark.parametrize("side", [32, 128])  # 128: a grid of 16 columns, as many as channels
def test_a_grid_says_what_the_sequence_says(side: int):
    x = torch.randn(3, 3, 32, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    models = [Grids(layout).double().eval() for layout in ("sequence", "grid", "channels first")]
    reports = [dtme.analyze(model, losses, [x]) for model in models]
    for report in reports[1:]:
        assert torch.equal(report.range_rate, reports[0].range_rate)
        assert torch.equal(report.null_rate, reports[0].null_rate)
        assert report.range_rank == reports[0].range_rank
    for modulator in ("affine", "batchnorm"):
        outputs = []
        for model in models:
            filled(model, dtme.Plan(TASKS, {"blocks.0": ("depth",), "blocks.1": TASKS}, modulator=modulator))
            model.train()
            together = model(x)
            model.eval()
            with dtme.tasks(model, per_sample=ROWS):
                outputs.append(together | {f"row of {task}": output for task, output in model(x).items()})
            dtme.remove(model)
        assert_same(outputs[1], outputs[0])
        assert_same(outputs[2], outputs[0])


@pytest.mark.parametrize("layout", ["grid", "channels first"])
def test_task_tokens_have_no_place_on_a_grid(layout: str):
    model = dtme.apply(Grids(layout).eval(), dtme.Plan(TASKS, expand={"blocks.1": TASKS}))
    with pytest.raises(ValueError, match=r"'blocks.1' takes tokens on a grid \(.*Plan modulation there instead"):
        model(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("samples", [1, 2, 3, 16, 17])
@pytest.mark.parametrize("name", ["EVA-02", "ViT, mixed rotary", "BEiT, shared bias"])
def test_tables_of_positions_are_shared_whatever_the_size_of_the_batch(name: str, samples: int):
    base, x = make(name), images(name, samples)
    for plan_of in (modulation, expansion):
        plan, by_hand = plan_of(name), BY_HAND[plan_of]
        model = filled(copy.deepcopy(base), plan)
        for task, output in model(x).items():
            torch.testing.assert_close(output, by_hand(base, model, plan, task)(x)[task], **CLOSE)


class Attributes(OnTimm):
    """Heads as attributes."""

    def __init__(self, trunk: Any):
        super().__init__(trunk)
        heads = self._modules.pop("heads")
        self.to_depth, self.to_semseg, self.to_scene = (heads[task] for task in TASKS)

    def forward(self, image: Tensor) -> Outputs:
        tokens = self.trunk.forward_features(image)
        return {"depth": self.to_depth(tokens), "semseg": self.to_semseg(tokens), "scene": self.to_scene(tokens)}


@pytest.mark.parametrize("named", [True, False])
def test_heads_as_attributes(named: bool):
    base, x, plan = make("ViT", Attributes), images("ViT"), modulation("ViT")
    with pytest.raises(ValueError, match=r"branches: no ModuleDict.*Say where each task leaves the trunk"):
        dtme.apply(base, plan)
    model = copy.deepcopy(base)
    branches = {task: f"to_{task}" if named else model.get_submodule(f"to_{task}") for task in TASKS}
    dtme.apply(model, plan, branches=branches)
    with torch.no_grad():
        for _, parameter in dtme.added_parameters(model):
            parameter.add_(torch.randn_like(parameter))
    for task, output in model(x).items():
        torch.testing.assert_close(output, modulated_by_hand(base, model, plan, task)(x)[task], **CLOSE)


class MultiScale(nn.Module):
    """A decoder of several blocks' features, of one in a mapping of its own kind."""

    def __init__(self, widths: list[int], outputs: int):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, 8, 1) for width in widths)
        self.out = nn.Conv2d(8, outputs, 3, padding=1)

    def forward(self, features: list[Tensor], *, more: Output) -> Tensor:
        size = features[0].shape[-2:]
        maps = [nn.functional.interpolate(layer(f), size=size) for layer, f in zip(self.lateral, features, strict=True)]
        return self.out(torch.stack(maps).sum(0).tanh() + more.last.mean(1, keepdim=True))


class Pyramid(nn.Module):
    def __init__(self, trunk: Any):
        super().__init__()
        self.trunk = trunk
        widths = [info["num_chs"] for info in trunk.feature_info]
        self.decoders = nn.ModuleDict({task: MultiScale(widths, 2) for task in TASKS})

    def forward(self, image: Tensor) -> Outputs:
        features = self.trunk.forward_intermediates(image, intermediates_only=True)
        more = Output(last=nn.functional.interpolate(features[-1], size=features[0].shape[-2:]))
        return {task: decoder(features, more=more) for task, decoder in self.decoders.items()}


@pytest.mark.parametrize("name", ["ViT", "Swin v2", "PVT v2", "MaxViT"])
def test_a_decoder_takes_features_from_before_and_after_streams_part(name: str):
    base, x, plan = make(name, Pyramid), images(name), modulation(name)
    model = filled(copy.deepcopy(base), plan)
    together = model(x)
    for task, output in together.items():
        torch.testing.assert_close(output, modulated_by_hand(base, model, plan, task)(x)[task], **CLOSE)
        with dtme.tasks(model, task):
            torch.testing.assert_close(model(x)[task], output, **CLOSE)


class TwoTrunks(nn.Module):
    """An image and its depth map, each through a trunk of its own; the tasks read both."""

    def __init__(self, name: str):
        super().__init__()
        self.colour, self.range = TIMM[name](), TIMM["ViT"]()
        self.heads = nn.ModuleDict({task: Head(32, 2, task == "scene") for task in TASKS})

    def forward(self, image: Tensor) -> Outputs:
        both = torch.cat([self.colour.forward_features(image), self.range.forward_features(image.flip(1))], -1)
        return {task: head(both) for task, head in self.heads.items()}


@pytest.mark.parametrize("parting", [("colour",), ("range",), ("colour", "range")])
def test_two_trunks_in_one_model(parting: tuple[str, ...]):
    torch.manual_seed(0)
    base, x = TwoTrunks("DINOv2").double().eval(), images("ViT")
    assert [name.split(".")[0] for name in find_blocks(base)] == ["colour"] * 3 + ["range"] * 3
    plan = dtme.Plan(TASKS, {f"{trunk}.blocks.{2 - i}": TASKS[i:] for i, trunk in enumerate(parting)})
    model = filled(copy.deepcopy(base), plan)
    for task, output in model(x).items():
        torch.testing.assert_close(output, modulated_by_hand(base, model, plan, task)(x)[task], **CLOSE)
    assert dtme.analyze(base, losses, [x]).blocks == tuple(find_blocks(base))


def test_a_block_that_returns_no_tensor_is_named():
    class Opaque:
        pass

    model = make("by hand, tuples")
    model.trunk[1].returns = lambda tokens, weights: Opaque()
    dtme.apply(model, dtme.Plan(TASKS, {"trunk.1": TASKS}))
    with pytest.raises(ValueError, match=r"block 'trunk.1' returned Opaque, in which no tensor is found"):
        model(images("ViT"))


def test_layers_shared_by_all_streams_cannot_be_adapted():
    class Shared(Block):
        def forward(self, tokens: Tensor, gain: Tensor) -> Any:
            return super().forward(tokens + self.out(torch.ones(1, 5, 16, dtype=tokens.dtype)).sum(1), gain)

    model = make("by hand, tuples")
    model.trunk[1].__class__ = Shared
    dtme.apply(model, dtme.Plan(TASKS, adapt={"trunk.1": TASKS}))
    for context in (dtme.tasks(model, *TASKS), dtme.tasks(model, "depth"), dtme.tasks(model, per_sample=ROWS)):
        with context, pytest.raises(ValueError, match=r"layer 'out' of block 'trunk.1'.*shared by all streams"):
            model(images("ViT"))


@pytest.mark.parametrize("name", ["BEiT", "EVA-02", "Swin v2"])
def test_fused_projections_run_as_layers_while_they_are_adapted(name: str):
    model, x = make(name), images(name)
    before = model(x)
    switches = [module for module in model.modules() if hasattr(module, "qkv_bias_separate")]
    dtme.apply(model, adaptation(name))
    assert [module.qkv_bias_separate for module in switches] == [
        block in adaptation(name).adapt for block in BLOCKS[name]
    ]
    assert_same(model(x), before)
    dtme.remove(model)
    assert not any(module.qkv_bias_separate for module in switches)


def test_a_layer_whose_weight_alone_is_used_cannot_be_adapted():
    class Functional(Block):
        def forward(self, tokens: Tensor, gain: Tensor) -> Any:
            return super().forward(tokens + nn.functional.linear(tokens, self.idle.weight), gain)

    model = make("by hand, tuples")
    model.trunk[1].idle = nn.Linear(16, 16).double()
    model.trunk[1].__class__ = Functional
    dtme.apply(model, dtme.Plan(TASKS, adapt={"trunk.1": TASKS}))
    with pytest.raises(
        ValueError, match=r"block 'trunk.1' uses the weight of its layer 'idle' without calling the layer"
    ):
        model(images("ViT"))
    dtme.remove(model)
    dtme.apply(model, dtme.Plan(TASKS, adapt={"trunk.1": TASKS}, adapt_layers="qkv|out"))
    model(images("ViT"))
