"""`python -m benchmarks.trust.tiny_bench`: the command line of the study, with a recipe of seconds that is written down often."""

from experiments import cli
from experiments.commands import options
from experiments.dense.recipe import Recipe
from experiments.training import unfinished

unfinished.KEPT_EVERY = 5  # workers import this module, too

if __name__ == "__main__":
    options.REGIMES["plateau"] = Recipe(
        size=16,
        patch=4,
        width=16,
        depth=3,
        attention_heads=2,
        head_width=8,
        batch=4,
        images=(6, 6, 4),
        start="plateau",
        pretrain_steps=30,
        steps=40,
        expand_at=0,
        analysis_batches=2,
        warmup=1,
    )
    cli.main()
