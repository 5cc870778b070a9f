"""Vision transformers at the sizes they are published in: their blocks are found, and a plan costs what the paper says."""

import pytest
import timm
import torch
from torch import nn

import dtme
from dtme.attach.block_trial import find_late_part
from dtme.trunk.blocks import find_blocks
from dtme.trunk.layout import width_of


def at_full_size(name: str, tasks: tuple[str, ...]) -> nn.Module:
    with torch.device("meta"):
        trunk = timm.create_model(name, num_classes=0)
        return nn.ModuleDict({"trunk": trunk, "heads": nn.ModuleDict({task: nn.Identity() for task in tasks})})


@pytest.mark.parametrize(
    ("name", "depth", "width"),
    [
        ("vit_tiny_patch16_224", 12, 192),
        ("vit_small_patch16_224", 12, 384),
        ("vit_base_patch16_224", 12, 768),
        ("vit_large_patch16_224", 24, 1024),
        ("deit3_base_patch16_224", 12, 768),
        ("vit_large_patch14_dinov2", 24, 1024),
        ("eva02_base_patch14_224", 12, 768),
        ("swin_base_patch4_window7_224", 24, None),
    ],
)
def test_all_blocks_are_found(name: str, depth: int, width: int | None):
    blocks = find_blocks(at_full_size(name, ("a", "b")))
    assert len(blocks) == depth
    assert width is None or {width_of(block) for block in blocks.values()} == {width}


@pytest.mark.parametrize(("tasks", "percent"), [(4, 0.24), (5, 0.30)])
def test_half_of_the_blocks_of_vit_tiny_take_the_share_of_parameters_that_the_paper_gives(tasks: int, percent: float):
    names = tuple(f"task {number}" for number in range(tasks))
    model = at_full_size("vit_tiny_patch16_224", names)
    own = sum(parameter.numel() for parameter in model.parameters())
    chosen = dict.fromkeys(list(find_blocks(model))[6:], names)
    plan = dtme.Plan(names, modulate=chosen, expand=chosen)
    assert 0 <= 100 * plan.parameters(192) / own - percent < 0.02  # the paper's model has decoders on top of the trunk


@pytest.mark.parametrize(("rank", "percent"), [(12, 0.85), (None, 16.36)])
def test_the_recommended_places_take_their_share_of_vit_small(rank: int | None, percent: float):
    names = ("a", "b", "c", "d")
    model = at_full_size("vit_small_patch16_224", names)
    block = list(find_blocks(model))[-1]
    late = find_late_part(model.get_submodule(block))
    own = sum(parameter.numel() for parameter in model.trunk.parameters())
    place = f"{block}.{late}"
    dtme.apply(
        model,
        dtme.Plan(names, adapt={place: names}, rank=rank) if rank else dtme.Plan(names, copies={place: names[1:]}),
    )
    added = sum(parameter.numel() for _, parameter in dtme.added_parameters(model))
    assert 100 * added / own == pytest.approx(percent, abs=0.05)
