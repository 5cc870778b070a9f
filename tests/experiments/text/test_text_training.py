"""Training on text tasks: mixed batches against homogeneous ones, routing, controls, measures, resuming."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef
from tiny_text import make_trunk
from torch import Tensor, nn

import dtme
from experiments.baselines import OwnNormsAndBiases
from experiments.text import TextRecipe, begin, build, evaluate, insert, load, objective, task_losses, train
from experiments.text.alternatives import LoRAByRow
from experiments.text.data.metrics import ACCURACY, F1, MATTHEWS, PEARSON, SPEARMAN
from experiments.text.data.suite import TextSuite
from experiments.text.evaluation import average, how_averaged, predict
from experiments.text.glue import glue_task, read_glue
from experiments.text.training import rows_of_tasks
from experiments.training.run import schedule, step

NAMES = ("CoLA", "STS-B", "RTE")
TASKS = tuple(glue_task(name) for name in NAMES)


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trunk without dropout."""
    return make_trunk(tmp_path_factory.mktemp("still"), dropout=0.0)


@pytest.fixture(scope="module")
def suite(cache: None, data: Path, still: str) -> TextSuite:
    return load(TASKS, partial(read_glue, data), still)


def blocks(depth: int = 4) -> list[str]:
    return [f"trunk.encoder.layer.{d}" for d in range(depth)]


def plan_of(kind: str) -> dtme.Plan:
    placed = dict.fromkeys(blocks()[2:], NAMES)
    return {
        "none": dtme.Plan(NAMES),
        "TM": dtme.Plan(NAMES, modulate=placed),
        "TE": dtme.Plan(NAMES, expand={blocks()[1]: NAMES}),
        "all three": dtme.Plan(NAMES, modulate=placed, expand={blocks()[1]: NAMES[1:]}, adapt=placed, rank=2),
        "another order": dtme.Plan(NAMES[::-1], modulate=placed, adapt=placed, rank=2),
    }[kind]


def made(trunk: str, kind: str = "none") -> nn.Module:
    model = build(trunk, TASKS, seed=0).double().eval()
    if kind != "none":
        dtme.apply(model, plan_of(kind))
        torch.manual_seed(5)
        for _, parameter in dtme.added_parameters(model):
            nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.3)
    return model


def mixed_batch(suite: TextSuite):
    batch = suite.batch([(0, 3), (1, 4), (2, 0), (0, 7), (2, 5), (1, 1), (2, 9)])
    return replace(batch, targets=batch.targets.double())


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.parametrize("kind", ["none", "TM", "TE", "all three", "another order"])
def test_a_mixed_batch_gives_the_gradients_of_one_batch_per_task(suite: TextSuite, still: str, kind: str):
    model, batch = made(still, kind), mixed_batch(suite)
    objective(task_losses(model, suite, batch), suite, batch).backward()
    mixed = gradients(model)
    assert all(bool(mixed[name].any()) for name in mixed if ".dtme." in name)
    for place, count in ((0, 2), (1, 2), (2, 3)):
        own = batch.of_task(place)
        assert len(own) == count
        (loss,) = task_losses(model, suite, own).values()
        (loss * count / len(batch)).backward()
    apart = gradients(model)
    for name in mixed:
        torch.testing.assert_close(mixed[name], apart[name], rtol=1e-9, atol=1e-11, msg=lambda t, n=name: f"{n}: {t}")


def test_losses_are_written_out_by_hand(suite: TextSuite, still: str):
    model, batch = made(still), mixed_batch(suite)
    losses = task_losses(model, suite, batch)
    with torch.no_grad():
        outputs: Any = model(**batch.inputs)
    losses = {task: loss.detach() for task, loss in losses.items()}
    terms: list[Tensor] = []
    for row, (task, target) in enumerate(zip(batch.tasks.tolist(), batch.targets, strict=True)):
        predicted = outputs[NAMES[task]][row]
        terms.append((predicted[0] - target).square() if task == 1 else -F.log_softmax(predicted, 0)[int(target)])
    assert float(losses["CoLA"]) == pytest.approx(float((terms[0] + terms[3]) / 2), rel=1e-6)
    assert float(objective(losses, suite, batch)) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-6)


def test_tasks_that_the_routing_does_not_know_are_refused(suite: TextSuite, still: str):
    model = build(still, TASKS[:2], seed=0)
    dtme.apply(model, dtme.Plan(NAMES[:2], modulate={blocks()[3]: NAMES[:2]}))
    batch = mixed_batch(suite)
    with pytest.raises(
        ValueError,
        match=r"per_sample\[2\]='RTE': unknown task; this model's plan has \('CoLA', 'STS-B'\). Give one of these",
    ):
        task_losses(model, suite, batch)
    with pytest.raises(ValueError, match=r"unknown task 'RTE'.*or apply a plan that has the task"):
        task_losses(model, suite, batch.of_task(2))


def test_a_task_without_a_head_is_named_with_what_to_do(suite: TextSuite, still: str):
    model, batch = build(still, TASKS[:2], seed=0), suite.batch([(0, 3), (2, 0)])
    says = r"no head for task 'RTE', but for \('CoLA', 'STS-B'\): build it for all tasks of the suite, build\(trunk"
    with pytest.raises(ValueError, match=says):
        task_losses(model, suite, batch)
    with pytest.raises(ValueError, match=says):
        predict(model, suite, TASKS[2], suite.dev["RTE"][0])
    assert set(task_losses(model, suite, suite.batch([(0, 3), (1, 0)]))) == {"CoLA", "STS-B"}


def test_norms_and_biases_of_their_own_start_as_the_model_and_part_by_rows(suite: TextSuite, still: str):
    plain, batch = made(still), mixed_batch(suite)
    own = OwnNormsAndBiases(copy.deepcopy(plain), NAMES)
    expected: Any = plain(**batch.inputs)
    with own.per_sample(batch.tasks):
        first = own(**batch.inputs)
    for task in NAMES:
        torch.testing.assert_close(first[task], expected[task], rtol=0, atol=1e-12)
    for _, parameter in own.added_parameters():
        nn.init.normal_(parameter, std=0.2)
    with own.per_sample(batch.tasks):
        rows = own(**batch.inputs)
    together = own(**batch.inputs)
    for place, task in enumerate(NAMES):
        literal: Any = copy.deepcopy(plain)
        for name in own.changed:
            layer, key = literal.get_submodule(name), name.replace(".", "-")
            layer.bias.data += own.shift[key][place]
            if isinstance(layer, nn.LayerNorm):
                layer.weight.data += own.scale[key][place]
        wanted = literal(**batch.inputs)[task]
        torch.testing.assert_close(together[task], wanted, rtol=0, atol=1e-12)
        mine = batch.tasks == place
        torch.testing.assert_close(rows[task][mine], wanted[mine], rtol=0, atol=1e-12)
    count = 4 * (4 * 16 + 32 + 16 + 2 * 2 * 16)  # attention, MLP, two norms with weight and bias, per block
    assert sum(p.numel() for _, p in own.added_parameters()) == 3 * count
    with own.per_sample(batch.tasks[:2]), pytest.raises(ValueError, match=r"tasks of 2 rows, but layer .* gives 7"):
        own(**batch.inputs)
    with pytest.raises(ValueError, match="no LayerNorm with weights and no linear layer"):
        OwnNormsAndBiases(nn.ModuleDict({"a": nn.Sequential(nn.ReLU())}), ("a",), blocks=["a.0"])


def test_one_lora_per_task_runs_each_row_with_its_adapter(suite: TextSuite, still: str):
    batch = mixed_batch(suite)
    model = LoRAByRow(made(still), NAMES, rank=2)
    for _, parameter in model.added_parameters():
        nn.init.normal_(parameter, std=0.3)
    whole: Any = model(**batch.inputs)
    with model.per_sample(batch.tasks):
        rows = model(**batch.inputs)
    for place, task in enumerate(NAMES):
        mine = batch.tasks == place
        torch.testing.assert_close(rows[task][mine], whole[task][mine], rtol=0, atol=1e-11)
    assert sum(p.numel() for _, p in model.added_parameters()) == 3 * 4 * 2 * 2 * (16 + 16)
    losses = task_losses(model, suite, batch)
    objective(losses, suite, batch).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for _, p in model.added_parameters())


@pytest.mark.parametrize("kind", ["mixed", "homogeneous"])
def test_a_run_that_was_interrupted_ends_the_same(suite: TextSuite, tmp_path_factory, kind):
    trunk = make_trunk(tmp_path_factory.mktemp("dropped"))
    recipe = TextRecipe(trunk=trunk, batch=6, steps=8, batches=kind, learning_rate=1e-3)

    def begun():
        return begin(build(trunk, TASKS, 0), suite, recipe, seed=3)

    whole, half, rest = begun(), begun(), begun()
    for run in (whole, half):
        train(run, 3)
        insert(run, plan_of("all three"), seed=1)
    train(whole)
    train(half, 5)
    train(rest, 0)
    insert(rest, plan_of("all three"), seed=9)
    rest.restore(half.state())
    train(rest)
    assert rest.step == 8
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[name]), name
    assert whole.curves == rest.curves
    assert evaluate(whole.model, suite) == evaluate(rest.model, suite)


def test_training_learns(suite: TextSuite, still: str):
    recipe = TextRecipe(trunk=still, batch=24, steps=150, learning_rate=3e-3, head_rate=1.0)
    run = begin(build(still, TASKS, 0), suite, recipe)
    train(run)
    points = run.curves["CoLA"]
    assert [step for step, _ in points] == [25, 50, 75, 100, 125, 150]
    assert points[-1][1] < 0.7 * points[0][1]
    dev_as_train = replace(suite, dev={name: (suite.train[name],) for name in NAMES})
    assert evaluate(run.model, dev_as_train)["CoLA"]["MCC"] > 30


def test_numbers_are_predicted_in_their_own_unit(suite: TextSuite, still: str):
    model, task, data = build(still, TASKS, 0), TASKS[1], suite.dev["STS-B"][0]
    nn.init.zeros_(model.heads["STS-B"].predict.weight)
    predicted = predict(model, suite, task, data)
    assert predicted.squeeze(1).tolist() == pytest.approx([suite.scales["STS-B"][0]] * len(data))
    nn.init.normal_(model.heads["STS-B"].predict.weight)
    assert torch.allclose(predict(model, suite, task, data, batch=4), predict(model, suite, task, data), atol=1e-4)


def test_measures_are_those_of_other_libraries():
    generator = torch.Generator().manual_seed(0)
    scores, targets = torch.randn(60, 2, generator=generator), torch.randint(2, (60,), generator=generator).float()
    chosen = scores.argmax(1)
    assert MATTHEWS(scores, targets) == pytest.approx(100 * matthews_corrcoef(targets, chosen))
    assert F1(scores, targets) == pytest.approx(100 * f1_score(targets, chosen))
    assert ACCURACY(scores, targets) == pytest.approx(100 * float((chosen == targets).float().mean()))
    numbers = torch.randn(50, 1, generator=generator)
    wanted = (numbers[:, 0] + torch.randn(50, generator=generator)).round(decimals=1)  # with ties
    assert PEARSON(numbers, wanted) == pytest.approx(100 * pearsonr(numbers[:, 0], wanted)[0], abs=1e-4)
    assert SPEARMAN(numbers, wanted) == pytest.approx(100 * spearmanr(numbers[:, 0], wanted)[0], abs=1e-4)
    assert MATTHEWS(torch.tensor([[1.0, 0.0]] * 4), torch.tensor([0.0, 1.0, 1.0, 0.0])) == 0
    for measure in (PEARSON, SPEARMAN):
        assert measure(torch.ones(4, 1), torch.tensor([1.0, 2.0, 3.0, 4.0])) == 0
    with pytest.raises(ValueError, match="Pearson: predictions are not finite"):
        PEARSON(torch.full((4, 1), math.nan), torch.ones(4))


def test_the_average_says_how_it_is_formed():
    tasks = tuple(glue_task(name) for name in ("MRPC", "MNLI", "WNLI"))
    figures = {
        "MRPC": {"F1": 90.0, "accuracy": 86.0},
        "MNLI": {"dev_matched accuracy": 80.0, "dev_mismatched accuracy": 82.0},
        "WNLI": {"accuracy": 56.0},
    }
    assert average(figures, tasks) == pytest.approx((88 + 81) / 2)
    assert how_averaged(tasks) == (
        "unweighted mean over MRPC (mean of F1 and accuracy), MNLI (accuracy, mean over dev_matched and dev_mismatched); WNLI is "
        "not in it"
    )
    assert average({"WNLI": {"accuracy": 56.0}}, tasks[2:]) == 56


def test_a_loss_that_is_not_finite_stops_before_the_update(suite: TextSuite, still: str):
    run = begin(build(still, TASKS, 0), suite, TextRecipe(trunk=still, batch=6, steps=4))
    nn.init.constant_(run.model.heads["STS-B"].predict.bias, math.inf)  # type: ignore[union-attr]
    before = run.model.trunk.embeddings.word_embeddings.weight.clone()  # type: ignore[union-attr]
    with pytest.raises(FloatingPointError, match="loss of task 'STS-B' is inf at step 1: lower the learning rate"):
        step(run, mixed_batch(suite))
    assert torch.equal(before, run.model.trunk.embeddings.word_embeddings.weight)  # type: ignore[union-attr]


def test_bfloat16_is_close_and_leaves_weights_in_float32(suite: TextSuite, still: str):
    model, batch = build(still, TASKS, 0).eval(), suite.batch([(0, 3), (1, 4), (2, 0)])
    dtme.apply(model, plan_of("all three"))
    with torch.no_grad():
        full, half = task_losses(model, suite, batch), task_losses(model, suite, batch, "bfloat16")
    for task in NAMES:
        assert float(half[task]) == pytest.approx(float(full[task]), rel=0.05, abs=0.02)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("kind", ["none", "all three"])
def test_heads_compute_in_float32_behind_a_trunk_in_bfloat16(suite: TextSuite, still: str, kind: str, pooling: Any):
    model, batch = build(still, TASKS, 0, pooling=pooling).eval(), suite.batch([(0, 3), (1, 4), (2, 0)])
    if kind != "none":
        dtme.apply(model, plan_of(kind))
    read: dict[str, list[Tensor]] = {task: [] for task in NAMES}
    for task, head in model.heads.items():
        head.register_forward_hook(lambda head, given, output, task=task: read[task].append(given[0]))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        outputs: Any = model(**batch.inputs)
    with torch.no_grad():
        precise: Any = model(**batch.inputs)
    mask = batch.inputs["attention_mask"].unsqueeze(-1).float()
    for task, head in model.heads.items():
        tokens = read[task][0].float()
        pooled = (tokens * mask).sum(1) / mask.sum(1) if pooling == "mean" else tokens[:, 0]
        assert outputs[task].dtype == torch.float32
        assert torch.equal(outputs[task], F.linear(pooled, head.predict.weight, head.predict.bias))
        assert not torch.equal(outputs[task], precise[task])  # the trunk is in bfloat16


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 1}, "at least 2 steps"),
        ({"expand_after": 1.0}, r"expand_after=1\.0"),
        ({"fraction": 0.0}, r"fraction=0\.0"),
        ({"learning_rate": -1.0}, r"learning_rate=-1\.0: give a number above 0"),
    ],
)
def test_recipes_that_cannot_be(options: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        TextRecipe(**options)


def test_the_schedule_starts_low_and_ends_at_nothing():
    assert schedule(99, 100, 0, 1.0) == pytest.approx(0.01)
    assert [schedule(step, 10, 4, 1.0) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_a_plain_model_is_not_asked_whose_rows_are_whose(suite: TextSuite, still: str):
    model, batch = build(still, TASKS, 0), mixed_batch(suite)
    with rows_of_tasks(model, suite, batch):
        assert set(model(**batch.inputs)) == set(NAMES)
