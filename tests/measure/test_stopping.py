"""When a choice of blocks counts as settled: which scores are judged, their spread, and how often the choice is wrong."""

from __future__ import annotations

import math

import pytest
import torch
from models import make_batches, task_losses, torch_encoder_multitask

import dtme
from dtme._shapes import Bool, Float, Int
from dtme.measure import batches as batches_module
from dtme.measure.rates import normal_quantile
from dtme.measure.stopping import TIE, BlockScores, confidence_sequence
from dtme.plan.placement import highest_first

TOKENS = 1000
"""Per sample, where all samples have as many."""


def added(*batches: tuple[Int[torch.Tensor, "s d k"], Int[torch.Tensor, "s d k"]]) -> BlockScores:
    """The scores after some batches of conflicting and counted tokens."""
    scores = BlockScores(*batches[0][0].shape[1:])
    for conflicting, counted in batches:
        scores.add(conflicting, counted)
    return scores


def equal(rates: Float[torch.Tensor, "s d"]) -> tuple[Int[torch.Tensor, "s d 1"], Int[torch.Tensor, "s d 1"]]:
    """One pair of tasks, and as many tokens in every sample."""
    conflicting = (rates * TOKENS).round().long().unsqueeze(2)
    return conflicting, torch.full_like(conflicting, TOKENS)


def paired_rates(samples: int, means: list[float], generator: torch.Generator) -> Float[torch.Tensor, "s d"]:
    """Rates whose blocks share most of a sample's noise, as blocks of one model do."""
    shared = torch.randn(samples, 1, generator=generator, dtype=torch.float64)
    own = torch.randn(samples, len(means), generator=generator, dtype=torch.float64)
    return (torch.tensor(means, dtype=torch.float64) + 0.1 * shared + 0.07 * own).clamp(0, 1)


def drawn_counts(
    samples: int, blocks: int, pairs: int
) -> tuple[Int[torch.Tensor, "s d k"], Int[torch.Tensor, "s d k"]]:
    """Sentences of 1 to 40 words, of which some have no gradient, and how many of the others conflict."""
    words = torch.randint(1, 41, (samples, 1, 1))
    counted = (words * torch.rand(samples, blocks, pairs)).ceil().long()
    counted[torch.rand(samples, blocks, pairs) < 0.1] = 0
    return (counted * torch.rand(samples, blocks, pairs)).round().long(), counted


@pytest.mark.parametrize("sizes", [(60,), (25, 35), (1,) * 60])
def test_scores_and_their_spread_are_those_of_pooled_rates(sizes: tuple[int, ...]):
    conflicting, counted = drawn_counts(60, 3, 2)
    scores = added(*zip(conflicting.split(sizes), counted.split(sizes), strict=True))
    rates = conflicting.sum(0) / counted.sum(0)
    torch.testing.assert_close(scores.scores(), rates.mean(1).double(), atol=1e-6, rtol=0)
    moved = ((conflicting - rates * counted) / counted.double().mean(0)).mean(2)
    torch.testing.assert_close(scores.covariance(), moved.T.cov(), atol=1e-6, rtol=0)


def test_the_spread_of_a_score_is_that_of_many_analyses():
    """The linearisation against what it stands for: 3000 analyses of 200 samples each."""
    conflicting, counted = drawn_counts(200 * 3000, 2, 2)
    analyses = [part.view(3000, 200, 2, 2).sum(1) for part in (conflicting, counted)]
    spread = (analyses[0] / analyses[1]).mean(2).T.cov()
    found = added((conflicting[:20000], counted[:20000])).covariance() / 200
    torch.testing.assert_close(found.float(), spread, rtol=0.1, atol=0.05 * float(spread.max()))


def undecided_by_means(rates: Float[torch.Tensor, "s d"], chosen: int, level: float) -> Bool[torch.Tensor, " d"]:
    """The test where all samples have as many tokens: of the mean of their rates, written out."""
    samples, blocks = rates.shape
    mean, covariance = rates.mean(0), rates.T.cov()
    alpha, order, open_ = (1 - level) / (chosen * (blocks - chosen)), highest_first(mean), [False] * blocks
    for i in order[:chosen].tolist():
        for o in order[chosen:].tolist():
            spread = covariance[i, i] + covariance[o, o] - 2 * covariance[i, o] + 1 / samples
            if mean[i] - mean[o] - spread.sqrt() * confidence_sequence(samples, alpha) < -TIE:
                open_[i] = open_[o] = True
    return torch.tensor(open_)


@pytest.mark.parametrize("pairs", [1, 3])
def test_equal_counts_are_judged_by_the_mean_of_the_rates_of_samples(pairs: int):
    seen = set()
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        rates = [paired_rates(16 * (1 + seed % 20), [0.6, 0.5, 0.45, 0.3], generator) for _ in range(pairs)]
        counts = [equal(rate) for rate in rates]
        conflicting, counted = (torch.cat([count[which] for count in counts], 2) for which in range(2))
        found = added((conflicting, counted)).undecided(2, 0.95)
        assert torch.equal(found, undecided_by_means((conflicting / TOKENS).double().mean(2), 2, 0.95))
        seen.add(int(found.sum()))
    assert seen >= {0, 2, 4}


def test_what_is_settled_is_what_the_plan_ranks():
    """Short samples conflict in the first block, long ones in the second: their mean says the one, all tokens the other."""
    short = torch.arange(64) % 2 == 0
    counted = torch.where(short, 2, 40).view(-1, 1, 1).expand(-1, 2, 1)
    conflicting = torch.stack([torch.where(short, 2, 12), torch.where(short, 0, 20)], 1).unsqueeze(2)
    rates = (conflicting / counted).double().squeeze(2)
    assert highest_first(rates.mean(0)).tolist() == [0, 1]
    assert not undecided_by_means(rates, 1, 0.95).any()
    scores = added((conflicting, counted))
    assert scores.scores().tolist() == pytest.approx([14 / 42, 20 / 42])
    assert not scores.undecided(1, 0.95).any()  # and is so for the other block


def test_the_scores_that_are_judged_are_those_of_the_report(monkeypatch: pytest.MonkeyPatch):
    """Sentences of 2 to 7 words, and a batch without one of the tasks."""
    judged: list[tuple[int, float]] = []
    last: list[BlockScores] = []

    def undecided(self: BlockScores, chosen: int, level: float) -> Bool[torch.Tensor, " d"]:
        last[:] = [*last[-1:], self]
        judged.append((chosen, level))
        return torch.ones(len(self.counted), dtype=torch.bool)

    monkeypatch.setattr(BlockScores, "undecided", undecided)
    monkeypatch.setattr(batches_module, "MOMENT_SAMPLES", 8)
    model = torch_encoder_multitask(True)
    tasks = tuple(model.tasks)
    batches = make_batches(model, (8, 5, 9), present=[tasks, tasks[:2], tasks])
    report = dtme.analyze(model, task_losses, batches, confidence=0.9)
    for scores, ranked in zip(last, (report.range_score(), report.null_score()), strict=True):
        torch.testing.assert_close(scores.scores(), ranked, rtol=0, atol=1e-12)
    assert {(chosen, round(level, 9)) for chosen, level in judged} == {(2, 0.95)}  # the two spaces share the error


def samples_taken(rates: Float[torch.Tensor, "s d"], chosen: int, level: float = 0.95) -> int | None:
    """How many samples a measurement takes, asked after every 8, until it calls itself settled."""
    scores = BlockScores(rates.shape[1], 1)
    for batch in rates.split(8):
        scores.add(*equal(batch))
        if not bool(scores.undecided(chosen, level).any()):
            return scores.samples
    return None


SHORT, LONG = 2, 14


@pytest.mark.parametrize(
    ("short", "long"),
    [((0.5, 0.5 + TIE + 0.001),) * 2, ((0.9, 0.1), (0.45, (0.507 + TIE + 0.001) * 8 / 7 - 0.1 / 7))],
    ids=["equal", "unequal"],
)
def test_a_measurement_seldom_stops_at_a_wrong_choice(short: tuple[float, float], long: tuple[float, float]):
    """Two blocks that conflict in all of a sample or in nothing; the second's rate is higher by little more than a tie.

    Wrong is to call the first settled at any look. Asked about are those looks alone at which it leads by more than a
    one-sided interval of 95 %, as any test has to demand that is worth the name; an interval made for one look is wrong in
    more than a tenth of the analyses.
    """
    analyses, samples, step = 300, 4096, 16
    tokens = torch.where(torch.rand(analyses, samples, 1) < 0.5, SHORT, LONG)
    odds = torch.where(tokens == SHORT, torch.tensor(short), torch.tensor(long))
    if short == long:
        tokens = torch.full_like(tokens, LONG)
    conflicting = tokens * (torch.rand(analyses, samples, 2) < odds)
    looks = torch.arange(step, samples + 1, step)
    sums, squares = ((part.cumsum(1)[:, looks - 1]).double() for part in (conflicting, tokens.square()))
    whole = tokens.cumsum(1)[:, looks - 1].double()
    first, second = (sums / whole).unbind(2)
    error = squares.squeeze(2).sqrt() / whole.squeeze(2) / math.sqrt(2)  # of the difference, at rates of a half
    leads = (first > second) & (first - second + TIE > normal_quantile(0.9) * error)
    wrong = 0
    for own, tokens_of, at in zip(conflicting, tokens, leads, strict=True):
        for look in looks[at].tolist():
            pooled = added((own[:look].unsqueeze(2), tokens_of[:look].expand(-1, 2).unsqueeze(2)))
            if not bool(pooled.undecided(1, 0.95).any()):
                wrong += 1
                break
    assert 0 < wrong <= 0.05 * analyses


def test_the_error_is_shared_among_all_comparisons():
    """Blocks far off make the two at the cut take longer, though they are never in doubt themselves."""
    rates = paired_rates(400, [0.6, 0.5, *[0.0] * 30], torch.Generator().manual_seed(0))
    alone, among_many = samples_taken(rates[:, :2], 1), samples_taken(rates, 1)
    assert alone is not None
    assert among_many is not None
    assert among_many > 1.2 * alone


@pytest.mark.parametrize(("often", "always"), [(0.1, 0.05), (0.05, 0.02), (0.041, 0.02)])
def test_a_conflict_that_is_rare_is_not_overlooked(often: float, always: float):
    """A block whose samples conflict altogether or not at all, and a worse one whose samples all conflict a little."""
    generator, wrong = torch.Generator().manual_seed(0), 0
    for _ in range(100):
        scores = BlockScores(2, 1)
        while scores.samples < 1000:
            rare = (torch.rand(8, generator=generator) < often).double()
            little = always + 0.001 * torch.randn(8, generator=generator).double()
            scores.add(*equal(torch.stack([rare, little], 1)))
            if not bool(scores.undecided(1, 0.95).any()):
                break
        wrong += int(scores.scores().argmax()) and not bool(scores.undecided(1, 0.95).any())
    assert wrong <= 5


def test_a_clear_choice_stops_early_and_an_unclear_one_goes_on():
    for seed in range(10):
        clear = paired_rates(400, [0.6, 0.6, 0.3, 0.3], torch.Generator().manual_seed(seed))
        assert samples_taken(clear, 2, level=0.8) is not None
    half = torch.full((300, 3), 0.5)
    scores = added(equal(half[:15]))
    assert scores.undecided(1, 0.9).all()  # too few samples to say
    assert not scores.undecided(3, 0.9).any()  # all are chosen
    scores.add(*(0 * counts for counts in equal(half[:9])))
    assert scores.samples == 15  # samples without a comparable token tell nothing
    scores.add(*equal(half[:1]))
    assert scores.undecided(1, 0.9).all()
    scores.add(*equal(half))
    assert not scores.undecided(1, 0.9).any()  # exact ties are settled, once what is rare would have shown


def test_only_blocks_at_the_cut_are_open():
    rates = paired_rates(40, [0.9, 0.5, 0.49, 0.1], torch.Generator().manual_seed(0))
    assert added(equal(rates)).undecided(2, 0.9).tolist() == [False, True, True, False]


def test_nothing_is_settled_before_each_two_tasks_have_met():
    counted = torch.full((300, 2, 2), TOKENS)
    conflicting = torch.tensor([[0.9], [0.1]]).mul(counted).long()
    counted[:, :, 1], conflicting[:, :, 1] = 0, 0
    assert added((conflicting, counted)).undecided(1, 0.9).all()
    counted[:, 1, 1] = TOKENS  # a block where they never meet has the rate of 0 there, as in the plan
    scores = added((conflicting, counted))
    assert not scores.undecided(1, 0.9).any()
    assert scores.scores().tolist() == pytest.approx([0.45, 0.05])


def test_a_pair_of_tasks_seldom_met_keeps_a_choice_open():
    """Two pairs, the second met in every twentieth sample only: with as many samples it is known less well."""
    often = equal(paired_rates(80, [0.6, 0.52], torch.Generator().manual_seed(0)))
    rare = [counts * (torch.arange(80) % 20 == 0).view(-1, 1, 1) for counts in often]
    for second, open_ in ((often, False), (rare, True)):
        conflicting, counted = (torch.cat(pairs, 2) for pairs in zip(often, second, strict=True))
        assert added((conflicting, counted)).undecided(1, 0.95).tolist() == [open_, open_]


def test_the_confidence_sequence_narrows_and_is_wider_than_an_interval_at_one_look():
    widths = [confidence_sequence(n, 0.05) for n in (16, 64, 256, 1024)]
    assert widths == sorted(widths, reverse=True)
    assert all(
        width > normal_quantile(0.95) / math.sqrt(n) for width, n in zip(widths, (16, 64, 256, 1024), strict=True)
    )
    assert confidence_sequence(64, 0.01) > confidence_sequence(64, 0.05)
