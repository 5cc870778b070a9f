"""What a report says, in sentences, before its figures: where tasks fight, how sure that is, and what to try."""

from __future__ import annotations

import math

from dtme.plan.cost import ModelFlops, price
from dtme.plan.plan import Plan
from dtme.plan.rates import ConflictRates
from dtme.report.notes import compare_to_chance
from dtme.report.table import UNEVEN


def write_verdict(rates: ConflictRates) -> list[str]:
    """The sentences, the most important one first; none says more than the samples bear.

    Example:
        >>> import torch
        >>> rate = torch.tensor([0.1, 0.4]).view(2, 1, 1) * (1 - torch.eye(2))
        >>> width = torch.full((2, 2, 2), 0.01)
        >>> rates = ConflictRates(("a", "b"), ("x.0", "x.1"), (8, 8), (3, 3), rate, rate, width, width, 9,
        ...                       (("", "shared"), ("shared", "")), (0.0, 0.0), 100.0, 0.95)
        >>> print(write_verdict(rates)[0])
        Most conflict in x.1: 40 % of its tokens get gradients of two tasks that point against each other, on average over
        pairs of tasks and both spaces.
    """
    scores = (rates.range_score() + rates.null_score()) / 2
    place = int(scores.argmax())
    sure = "No block is sure to have most; highest is" if rates.blocks[place] in rates.undecided else "Most conflict in"
    found = [
        f"{sure} {rates.blocks[place]}: {100 * float(scores[place]):.0f} % of its tokens get gradients of two tasks "
        "that point against each other, on average over pairs of tasks and both spaces.",
        _describe_chance(rates),
    ]
    open_ = len(rates.undecided)
    found.append(
        f"After {rates.samples} samples, which half of the blocks conflicts most is settled."
        if not open_
        else f"After {rates.samples} samples, {open_} of {len(rates.blocks)} blocks might as well be in the other half of the "
        "ranking: their choice is a coin flip."
    )
    meaning = (
        "A token is what a block takes one of for each patch of an image or piece of a word. Where the gradients of two tasks "
        "point against each other at a token, the tasks conflict: a step that helps one harms the other."
    )
    return [*found, *_describe_weights(rates), meaning]


def list_advice(rates: ConflictRates) -> list[str]:
    """What to try, the cheapest first."""
    found = []
    if rates.gradient_size is not None and bool((rates.gradient_size > 0).all()):
        found.append("Even weights, under which every task pulls equally hard, cost nothing: report.even_weights().")
    if isinstance(rates.flops, ModelFlops):
        found.append("Then report.recommended(): tasks part at the end of the trunk, where it costs least.")
    if rates.undecided:
        found.append("Where the choice of blocks is a coin flip, let analyze read more samples, or take either.")
    found.append(
        "The paper's plan is report.plan(). On the data tried so far its choice of blocks has not beaten chance."
    )
    return found


def price_of(plan: Plan, rates: ConflictRates) -> str:
    """What a plan costs at inference of all tasks, and the parameters it adds, in a sentence each."""
    try:
        added = f"The plan adds {plan.parameters(dict(zip(rates.blocks, rates.widths, strict=True))):,} parameters."
    except (ValueError, KeyError):
        added = "How many parameters the plan adds depends on the layers of the model."
    return f"{_price_inference(plan, rates)} {added}"


def _price_inference(plan: Plan, rates: ConflictRates) -> str:
    if not isinstance(rates.flops, ModelFlops):
        return f"Its price is not known: {rates.flops}"
    try:
        cost = price(plan, rates.flops)
    except (ValueError, KeyError) as error:
        return f"Its price is not known: {error}"
    most = max(cost.streams.values(), default=1)
    return f"Inference of all tasks takes {cost.ratio:.2f} times the plain model's FLOPs; a block runs up to {most} streams."


def _describe_chance(rates: ConflictRates) -> str:
    """In how many blocks tasks conflict more, and less, often than gradients that have nothing to do with each other."""
    meaning = {"Range": "the directions that a block's tokens use", "Null": "those they leave empty"}
    found = []
    for space, signs in compare_to_chance(rates):
        above, below = int((signs > 0).sum()), int((signs < 0).sum())
        counts = f"{above} of {len(signs)} blocks above, {below} below, {len(signs) - above - below} not told apart"
        found.append(f"in the {space.lower()} space, {meaning[space]}, {counts}")
    if not found:
        return "What chance alone would give was not measured."
    return f"Against chance, the same between gradients of different samples, at {rates.level:.0%}: {'; '.join(found)}."


def _describe_weights(rates: ConflictRates) -> list[str]:
    if rates.gradient_size is None:
        return []
    if not bool((rates.gradient_size > 0).all()):
        return ["A task has no gradient in some block."]
    weights = rates.even_weights()
    ratio = max(weights.values()) / min(weights.values())
    if not math.isfinite(ratio) or ratio < UNEVEN:
        return [f"The losses are about even: the largest gradient is {ratio:.1f} times the least."]
    strongest = min(weights, key=lambda task: weights[task])
    return [f"The losses are uneven: {strongest} pulls {ratio:.1f} times as hard as the weakest task."]
