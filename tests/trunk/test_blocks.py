"""Which modules are taken for blocks, and how their tokens lie."""

from __future__ import annotations

import pytest
import timm
import torch
from models import timm_multitask, tiny_vit, torch_encoder_multitask
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from dtme.trunk.blocks import find_blocks
from dtme.trunk.layout import Layout, layout_of, width_of

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 0}


class Layer(nn.Module):
    """A transformer layer nothing in which is called by a telling name."""

    def __init__(self, width: int):
        super().__init__()
        self.first_norm, self.mix, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(self.first_norm(x)).chunk(3, -1)
        return x + self.out((q @ k.mT).softmax(-1) @ v)


class Trunk(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.ModuleList([nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)])
        self.stack = nn.ModuleList([Layer(8) for _ in range(3)])


def swin() -> SwinTransformer:
    return SwinTransformer(
        img_size=32, patch_size=2, window_size=4, embed_dim=8, depths=(2, 1), num_heads=(1, 2), num_classes=0
    )


def test_blocks_of_a_timm_vision_transformer():
    assert list(find_blocks(timm.create_model("vit_tiny_patch16_224", **VIT))) == ["blocks.0", "blocks.1", "blocks.2"]


class Parts(nn.Module):
    """A trunk in a dictionary of the model's parts, beside heads in another one."""

    def __init__(self, **heads: nn.Module):
        super().__init__()
        self.parts = nn.ModuleDict({"stem": nn.Linear(3, 8), "encoder": Trunk()})
        self.heads = nn.ModuleDict(heads)


def decoder() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), Trunk())


@pytest.mark.parametrize(
    "model",
    [
        Parts(a=nn.Linear(8, 1), b=nn.Linear(8, 2)),
        Parts(a=decoder(), b=decoder()),
        nn.Sequential(nn.Identity(), nn.ModuleDict({"emb": nn.Linear(3, 8), "trunk": Trunk(), "a": nn.Linear(8, 1)})),
    ],
    ids=["heads are linear", "heads hold blocks", "one dictionary of all"],
)
def test_blocks_in_one_member_of_a_dictionary_that_is_not_the_root(model: nn.Module):
    where = "parts.encoder" if isinstance(model, Parts) else "1.trunk"
    assert list(find_blocks(model)) == [f"{where}.stack.{place}" for place in range(3)]


def test_a_head_that_alone_holds_blocks_is_not_told_from_a_trunk_in_a_dictionary():
    with pytest.raises(ValueError, match=r"no transformer blocks were found.*parts\.encoder\.stack\.\*"):
        find_blocks(Parts(a=decoder(), b=nn.Linear(8, 1)))


def test_blocks_of_all_stages_of_swin():
    blocks = find_blocks(swin())
    assert list(blocks) == ["layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0"]
    assert [width_of(block) for block in blocks.values()] == [8, 8, 16]


@pytest.mark.parametrize("batch_first", [True, False])
def test_blocks_of_a_torch_encoder(batch_first: bool):
    blocks = find_blocks(torch_encoder_multitask(batch_first, depth=2))
    assert list(blocks) == ["encoder.layers.0", "encoder.layers.1"]
    expected = Layout(0, 1) if batch_first else Layout(1, 0)
    assert all(layout_of(block, torch.zeros(2, 3, 16)) == expected for block in blocks.values())


def test_repeated_layers_without_a_telling_name():
    assert list(find_blocks(Trunk())) == ["stack.0", "stack.1", "stack.2"]


def test_a_dictionary_of_heads_is_no_trunk():
    model = timm_multitask(depth=2)
    heads = {"a": nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2), 2, enable_nested_tensor=False)}
    model.heads = nn.ModuleDict({**heads, "b": nn.Sequential(nn.MultiheadAttention(16, 2))})
    assert list(find_blocks(model)) == ["trunk.blocks.0", "trunk.blocks.1"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (r"blocks\.[13]", ["blocks.1", "blocks.3"]),
        (["blocks.3", "blocks.0"], ["blocks.0", "blocks.3"]),
        (["0.attention"], ["blocks.0.attention"]),
        ([-1, 0], ["blocks.0", "blocks.3"]),
        (-2, ["blocks.2"]),
        ([-1, "blocks.3"], ["blocks.3"]),
    ],
)
def test_blocks_by_pattern_name_suffix_and_number(wanted: object, found: list[str]):
    assert list(find_blocks(tiny_vit(), wanted)) == found


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("block", r"blocks='block' matches the whole name of no module. Candidates: .*blocks\.\* \(Block\)"),
        (["layers.1"], r"no module is called or ends in 'layers.1'. Candidates: blocks\.\* \(Block\)"),
        (["locks.1"], "no module is called or ends in 'locks.1'"),
        ([4], "there is no block 4; this model has 4 blocks"),
        (-5, "there is no block -5"),
        ([], "names nothing. Candidates"),
    ],
)
def test_what_matches_nothing_prints_candidates(wanted: object, says: str):
    with pytest.raises(ValueError, match=says):
        find_blocks(tiny_vit(), wanted)


@pytest.mark.parametrize(
    ("model", "candidates"),
    [(nn.Linear(2, 2), "none"), (nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)), r"\* \(Conv2d\)")],
)
def test_a_model_without_blocks_says_how_to_name_them(model: nn.Module, candidates: str):
    with pytest.raises(ValueError, match=f"blocks=None: no transformer blocks.*Modules that repeat: {candidates}"):
        find_blocks(model)


def test_layouts_bring_samples_first():
    block = swin().layers[0].blocks[0]
    grid = torch.arange(192.0).view(2, 3, 4, 8)
    assert layout_of(block, grid) == Layout(0, None)
    assert torch.equal(layout_of(block, grid).samples_first(grid), grid.flatten(1, 2))
    sequence = torch.arange(24.0).view(3, 4, 2)
    assert torch.equal(Layout(1, 0).samples_first(sequence), sequence.transpose(0, 1))
    assert torch.equal(Layout(0, 1).samples_first(sequence), sequence)


@pytest.mark.parametrize("shape", [(3, 8), (2, 2, 2, 2, 8)])
def test_tokens_of_other_shapes_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"enter Layer: expected \(samples, tokens, channels\)"):
        layout_of(Layer(8), torch.zeros(shape))


def test_width_needs_a_norm_a_linear_layer_or_a_convolution():
    assert width_of(nn.Linear(5, 7)) == 5
    assert width_of(nn.Conv2d(3, 4, 1)) == 3
    with pytest.raises(ValueError, match="width of Embedding cannot be read off"):
        width_of(nn.Embedding(3, 3))


def test_a_grid_that_is_not_as_wide_as_the_block_is_refused():
    block = nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))
    assert layout_of(block, torch.zeros(2, 8, 3, 3)) == Layout(0, None, 1)
    with pytest.raises(ValueError, match="enter Sequential, whose first layer takes 8 channels; neither"):
        layout_of(block, torch.zeros(2, 4, 3, 3))


@pytest.mark.parametrize("length", [3, 8])
def test_a_sequence_whose_channels_come_before_its_positions_is_refused(length: int):
    block = nn.Sequential(nn.Conv1d(8, 8, 1), nn.GELU(), nn.Conv1d(8, 8, 1))
    with pytest.raises(ValueError, match=r"convolutions that take \(samples, channels, tokens\)"):
        layout_of(block, torch.zeros(2, 8, length))
