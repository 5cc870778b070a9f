"""A recipe of the dense benchmark that trains in a moment, from a plateau that is none."""

from experiments.dense.recipe import Recipe

TINY = Recipe(
    size=16,
    patch=4,
    width=16,
    depth=3,
    attention_heads=2,
    head_width=8,
    batch=4,
    images=(6, 6, 4),
    start="plateau",
    pretrain_steps=5,
    steps=6,
    expand_at=0,
    analysis_batches=2,
    warmup=1,
)
