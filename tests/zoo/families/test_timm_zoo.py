"""What is particular to vision trunks: intermediate features, grids, tables of positions, decoders, several trunks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from by_hand import BY_HAND, modulated
from timm_models import (
    BLOCKS,
    MODELS,
    SWIN,
    TASKS,
    TIMM,
    VIT,
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

import dtme
from dtme.trunk.blocks import find_blocks
from zoo import CLOSE, EXPANDABLE, NOT_ADAPTABLE, ZOO, Outputs, adaptation, assert_same, expansion, filled, modulation

ROWS = ("scene", "depth", "semseg")


@pytest.mark.parametrize("name", MODELS)
def test_blocks_have_the_names_they_are_known_by(name: str):
    assert ZOO[name].blocks == BLOCKS[name]


@pytest.mark.parametrize(
    ("name", "plan_of"),
    [
        *((name, modulation) for name in TIMM),
        *((name, expansion) for name in TIMM if name in EXPANDABLE),
        *((name, adaptation) for name in TIMM if name not in NOT_ADAPTABLE),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_intermediate_features_of_timm(name: str, plan_of: Callable[..., Any]):
    base, x, plan = make(name, OnIntermediates), images(name), plan_of(ZOO[name])
    model = filled(copy.deepcopy(base), plan)
    together = model(x)
    for task in TASKS:
        expected = BY_HAND[plan_of](base, model, plan, task)(x)[task]
        torch.testing.assert_close(together[task], expected, **CLOSE)
        with dtme.tasks(model, task):
            torch.testing.assert_close(model(x)[task], expected, **CLOSE)


def losses(model: nn.Module, x: Tensor) -> Outputs:
    target = x.mean((1, 2, 3))
    return {task: (output.flatten(1).mean(1) - target).square().mean() for task, output in model(x).items()}


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
        plan, by_hand = plan_of(ZOO[name]), BY_HAND[plan_of]
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
    base, x, plan = make("ViT", Attributes), images("ViT"), modulation(ZOO["ViT"])
    with pytest.raises(ValueError, match=r"branches: no ModuleDict.*Say where each task leaves the trunk"):
        dtme.apply(base, plan)
    model = copy.deepcopy(base)
    branches = {task: f"to_{task}" if named else model.get_submodule(f"to_{task}") for task in TASKS}
    dtme.apply(model, plan, branches=branches)
    with torch.no_grad():
        for _, parameter in dtme.added_parameters(model):
            parameter.add_(torch.randn_like(parameter))
    for task, output in model(x).items():
        torch.testing.assert_close(output, modulated(base, model, plan, task)(x)[task], **CLOSE)


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
    base, x, plan = make(name, Pyramid), images(name), modulation(ZOO[name])
    model = filled(copy.deepcopy(base), plan)
    together = model(x)
    for task, output in together.items():
        torch.testing.assert_close(output, modulated(base, model, plan, task)(x)[task], **CLOSE)
        with dtme.tasks(model, task):
            torch.testing.assert_close(model(x)[task], output, **CLOSE)


class OnFeatures(nn.Module):
    """A trunk made with `features_only=True`, which is a dictionary of modules that runs."""

    def __init__(self, name: str, **sizes: Any):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = timm.create_model(name, pretrained=False, features_only=True, **sizes)
        early, *_, late = self.trunk.feature_info.channels()
        self.lateral = nn.Conv2d(early, late, 1)
        self.heads = nn.ModuleDict({task: nn.Conv2d(late, 2, 1) for task in TASKS})

    def forward(self, image: Tensor) -> Outputs:
        last = self.trunk.feature_info.get_dicts()[-1]["num_chs"]
        grids = self.trunk(image)
        early, *_, late = (grid.movedim(-1, 1) if grids[-1].shape[-1] == last else grid for grid in grids)
        late = late + nn.functional.adaptive_avg_pool2d(self.lateral(early), late.shape[-2:])
        return {task: head(late) for task, head in self.heads.items()}


@pytest.mark.parametrize(
    ("name", "sizes", "block"),
    [
        ("vit_tiny_patch16_224", {**VIT, "out_indices": (0, 1, 2)}, "trunk.model.blocks.2"),
        ("swin_tiny_patch4_window7_224", {**SWIN, "out_indices": (0, 1)}, "trunk.layers_1.blocks.1"),
    ],
)
def test_trunks_that_return_features_only(name: str, sizes: dict[str, Any], block: str):
    base, x = OnFeatures(name, **sizes).double().eval(), images("ViT")
    blocks = list(find_blocks(base))
    assert blocks[-1] == block
    plan = dtme.Plan(TASKS, {blocks[1]: TASKS[:1], block: TASKS})
    model = filled(copy.deepcopy(base), plan)
    for task, output in model(x).items():
        torch.testing.assert_close(output, modulated(base, model, plan, task)(x)[task], **CLOSE)
    assert dtme.analyze(base, losses, [x]).blocks == tuple(blocks)


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
        torch.testing.assert_close(output, modulated(base, model, plan, task)(x)[task], **CLOSE)
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
        with context, pytest.raises(ValueError, match=r"layer 'out' of block 'trunk.1'.*streams"):
            model(images("ViT"))


@pytest.mark.parametrize("name", ["BEiT", "EVA-02", "Swin v2"])
def test_fused_projections_run_as_layers_while_they_are_adapted(name: str):
    model, x = make(name), images(name)
    before = model(x)
    switches = [module for module in model.modules() if hasattr(module, "qkv_bias_separate")]
    dtme.apply(model, adaptation(ZOO[name]))
    assert [module.qkv_bias_separate for module in switches] == [
        block in adaptation(ZOO[name]).adapt for block in BLOCKS[name]
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
