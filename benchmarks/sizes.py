"""What is measured on which device: models and batches that fill it, so that starting kernels is not what is timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.subject import Size


@dataclass(frozen=True)
class Sizes:
    """The models and batches of one kind of device.

    Attributes:
        usual: Of every row that does not name its own.
        literal: Of the literal way, which takes a full backward pass per task and block: ViT-Ti.
        adapted: Of low-rank updates on top of modulators, by what rows call them.
        one_task: Of inference of a single task in eager mode, by what rows call them: each with its limit.
        compiled: Of the same in compiled mode, and what its row calls it.
    """

    usual: Size
    literal: Size
    adapted: Mapping[str, Size]
    one_task: Mapping[str, tuple[Size, float]]
    compiled: tuple[str, Size]


ONE_TASK = 1.03
"""What one task through an expanded model may cost, by the unmodified one."""
_TI, _B = Size(), Size("vit_base_patch16_224", pixels=224, samples=32)
_B_SMALL = Size("vit_base_patch16_224", pixels=112, samples=128)
_SHORT = "112 pixels (limit of its own: the task token alone is 2 % of 51 tokens)"
_SHORT_LIMIT = 1.07
"""2 % for the task token, a row of 51, and twice that in products whose rows are no multiple of 16 any more, and the hooks."""

SIZES = {
    "cpu": Sizes(
        usual=_TI,
        literal=Size(pixels=64),
        adapted={"ViT-Ti": _TI, "ViT-S": Size("vit_small_patch16_224", samples=4)},
        one_task={
            "224 pixels": (Size(pixels=224, samples=8), ONE_TASK),
            _SHORT: (_TI, _SHORT_LIMIT),
        },
        compiled=("224 pixels, 4 blocks", Size(depth=4, pixels=224, samples=8)),
    ),
    "cuda": Sizes(
        usual=_B,
        literal=Size(pixels=224, samples=32),
        adapted={"ViT-B": _B, "ViT-S": Size("vit_small_patch16_224", pixels=224, samples=64)},
        one_task={"224 pixels": (_B, ONE_TASK), _SHORT: (_B_SMALL, _SHORT_LIMIT)},
        compiled=("224 pixels", _B),
    ),
}
