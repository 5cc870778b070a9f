"""Which tasks a pass computes, which row belongs to which task, and where tasks leave the trunk."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import TimmMultitask, timm_multitask
from torch import Tensor, nn

import dtme

TASKS = ("depth", "semseg", "scene")
PLAN = dtme.Plan(TASKS, {"trunk.blocks.1": TASKS}, {"trunk.blocks.2": ("depth", "scene")})


def model_of(plan: dtme.Plan = PLAN) -> TimmMultitask:
    model = timm_multitask(TASKS).double()
    dtme.apply(model, plan)
    for _, parameter in dtme.added_parameters(model):
        nn.init.normal_(parameter)
    return model


IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("names", "per_sample", "says"),
    [
        (("depht",), None, r"unknown task 'depht'; this model's plan has \('depth', 'semseg', 'scene'\). Name some of"),
        (("depth", ""), None, "unknown task ''"),
        ((), None, "give task names or per_sample"),
        (("depth",), ["depth"] * 3, "one of the two"),
        ((), ["depth", "normals", "scene"], r"per_sample\[1\]='normals': unknown task.*or its index, or apply a plan"),
        ((), [0, 3, 1], r"per_sample\[1\]=3: unknown task"),
        ((), [0, -1, 1], r"per_sample\[1\]=-1"),
        ((), torch.tensor([0, 1, 3]), r"per_sample holds 0\.\.3: indices into"),
        ((), torch.tensor([0.0, 1.0, 2.0]), r"type torch\.float32: give one whole number a row"),
        ((), torch.zeros(3, 1, dtype=torch.long), r"has shape \(3, 1\)"),
    ],
)
def test_wrong_arguments_are_refused_and_change_nothing(names: Any, per_sample: Any, says: str):
    model = model_of()
    before = model(IMAGES)
    with pytest.raises(ValueError, match=says), dtme.tasks(model, *names, per_sample=per_sample):
        pytest.fail("the context was entered")
    for task, output in model(IMAGES).items():
        assert torch.equal(output, before[task])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_as_many_tasks_as_rows(count: int):
    model = model_of()
    with (
        dtme.tasks(model, per_sample=["depth"] * count),
        pytest.raises(ValueError, match=f"tasks of {count} rows, but 3 rows enter block 'trunk.blocks.1'"),
    ):
        model(IMAGES)
    assert len(model(IMAGES)["depth"]) == 3


@pytest.mark.parametrize("empty", [[], torch.tensor([], dtype=torch.long)])
def test_a_batch_without_rows_has_no_tasks(empty: Any):
    model = model_of(dtme.Plan(TASKS, {"trunk.blocks.1": TASKS}))
    with dtme.tasks(model, per_sample=empty):
        assert len(model(IMAGES[:0])["depth"]) == 0


def test_rows_by_name_number_and_tensor_are_the_same():
    model = model_of()
    together = model(IMAGES)
    rows = ["scene", "depth", "semseg"]
    for per_sample in (rows, [2, 0, 1], torch.tensor([2, 0, 1]), torch.tensor([2, 0, 1], dtype=torch.int8)):
        with dtme.tasks(model, per_sample=per_sample):
            outputs = model(IMAGES)
        for row, task in enumerate(rows):
            assert_close(outputs[task][row], together[task][row])


def test_of_nested_contexts_the_innermost_decides_and_the_outer_returns():
    model = model_of()
    together = model(IMAGES)
    with dtme.tasks(model, "depth", "scene"):
        with dtme.tasks(model, per_sample=["semseg"] * 3):
            assert_close(model(IMAGES)["semseg"], together["semseg"])
            with dtme.tasks(model, "semseg"):
                inner = model(IMAGES)
                assert_close(inner["semseg"], together["semseg"])
                assert len(inner["depth"]) == len(inner["scene"]) == 0
            assert_close(model(IMAGES)["semseg"], together["semseg"])
        outer = model(IMAGES)
        assert_close(outer["depth"], together["depth"])
        assert_close(outer["scene"], together["scene"])
        assert len(outer["semseg"]) == 0
    for task, output in model(IMAGES).items():
        assert torch.equal(output, together[task])


def test_an_exception_inside_restores_all_tasks():
    model = model_of()
    for arguments in ({"names": ("depth",)}, {"names": (), "per_sample": [0, 1, 2]}):
        names = arguments.pop("names")
        with pytest.raises(KeyboardInterrupt), dtme.tasks(model, *names, **arguments):  # type: ignore[arg-type]
            raise KeyboardInterrupt
        assert {len(output) for output in model(IMAGES).values()} == {3}


def test_a_failed_pass_leaves_no_trace_in_the_next():
    model = model_of()
    before = model(IMAGES)
    with pytest.raises(ValueError, match=r"8 channels enter block 'trunk\.blocks\.1'"):
        model.trunk.blocks[1](torch.zeros(2, 17, 8).double())
    after = model(IMAGES)
    assert all(torch.equal(before[task], after[task]) for task in TASKS)


def test_the_model_inside_a_wrapper_is_routed():
    model = model_of()
    with dtme.tasks(nn.Sequential(model), "depth"):
        assert len(model(IMAGES)["scene"]) == 0
    with pytest.raises(ValueError, match=r"no inserts: call dtme\.apply"), dtme.tasks(timm_multitask(), "depth"):
        pytest.fail("the context was entered")


class Normed(nn.Module):
    """A convolutional head with batch normalisation and upsampling, as dense tasks have them."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        grid = tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        return nn.functional.interpolate(self.layers(grid), scale_factor=2, mode="bilinear")


def test_a_branch_without_rows_keeps_its_statistics():
    model = timm_multitask(TASKS)
    model.heads = nn.ModuleDict({task: Normed() for task in TASKS})
    dtme.apply(model.train(), PLAN)
    with dtme.tasks(model, "depth"):
        outputs = model(IMAGES.float())
    assert outputs["depth"].shape == (3, 2, 8, 8)
    assert outputs["scene"].shape == (0, 2, 8, 8)
    norm: Any = model.heads["scene"].layers[1]
    assert torch.equal(norm.running_mean, torch.zeros(8))
    assert torch.equal(norm.running_var, torch.ones(8))
    assert model.heads["depth"].layers[1].running_mean.any()


class Attributes(nn.Module):
    """Heads that are attributes, behind no dictionary."""

    def __init__(self):
        super().__init__()
        self.trunk = timm_multitask(TASKS).trunk
        self.near, self.far = nn.Linear(16, 1), nn.Linear(16, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.trunk.forward_features(images).mean(1)
        return self.near(tokens), self.far(tokens)


BOTH = dtme.Plan(("a", "b"), {"trunk.blocks.3": ("a", "b")})


def test_branches_are_given_by_name_or_module():
    outputs = []
    for given in ({"a": "near", "b": "far"}, None):
        model = Attributes()
        model.load_state_dict(REFERENCE.state_dict())
        dtme.apply(model, BOTH, branches=given or {"a": model.near, "b": model.far})
        with torch.no_grad():
            model.trunk.blocks[3].dtme.shift[1].normal_(generator=torch.Generator().manual_seed(0))
            outputs.append(model(IMAGES.float()))
    plain = REFERENCE(IMAGES.float())
    assert torch.equal(outputs[0][1], outputs[1][1])
    torch.testing.assert_close(outputs[0][0], plain[0])
    assert not torch.allclose(outputs[0][1], plain[1])


REFERENCE = Attributes().eval()


@pytest.mark.parametrize(
    ("branches", "says"),
    [
        (None, r"branches: no ModuleDict of this model has the tasks \('a', 'b'\).*has no ModuleDict.*branches={task"),
        ({"a": "near"}, r"branches names \('a',\), the plan has the tasks"),
        ({"a": "near", "b": "far", "c": "far"}, "give one module per task"),
        ({"a": "near", "b": "middle"}, r"branches\['b'\]='middle': this model has no module of that name"),
        ({"a": "near", "b": "near"}, "'a' and 'b' leave by the same module, which cannot take two streams"),
    ],
)
def test_branches_that_do_not_fit(branches: Any, says: str):
    model = Attributes()
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=says):
        dtme.apply(model, BOTH, branches=branches)
    assert list(model.state_dict()) == keys


def test_a_head_that_two_tasks_share_is_refused():
    model = timm_multitask(("depth",))
    model.heads = nn.ModuleDict({"a": model.heads["depth"], "b": model.heads["depth"]})
    with pytest.raises(ValueError, match=r"leave by the same module.*nn\.Identity"):
        dtme.apply(model, BOTH)


def test_a_branch_that_the_plan_does_not_know_is_refused():
    with pytest.raises(ValueError, match="the model has a branch for 'scene', a task that the plan"):
        dtme.apply(timm_multitask(TASKS), dtme.Plan(("depth", "semseg"), {"trunk.blocks.1": ("depth",)}))


def test_streams_that_leave_by_no_branch_are_refused_at_the_loss():
    class Auxiliary(TimmMultitask):
        def forward(self, image: Tensor) -> Any:
            tokens = self.trunk.forward_features(image)
            return {task: head(tokens) for task, head in self.heads.items()}, tokens.square().mean()

    model = Auxiliary(TASKS)
    dtme.apply(model, PLAN)
    outputs, auxiliary = model(IMAGES.float())
    loss = outputs["depth"].mean() + auxiliary
    with pytest.raises(RuntimeError, match=r"backward\(\) on the streams of .*branches="):
        loss.backward()
    with dtme.tasks(model, "depth"):
        outputs, auxiliary = model(IMAGES.float())
        (outputs["depth"].mean() + auxiliary).backward()


@pytest.mark.parametrize("joint", [False, True])
def test_a_task_alone_is_that_task_among_all(joint: bool):
    model = model_of(dtme.Plan(TASKS, {"trunk.blocks.2": ("scene",)}, {"trunk.blocks.0": TASKS}, joint_tokens=joint))
    together = model(IMAGES)
    for task in TASKS:
        with dtme.tasks(model, task):
            assert_close(model(IMAGES)[task], together[task])
    with dtme.tasks(model, per_sample=TASKS):
        rows = model(IMAGES)
    for row, task in enumerate(TASKS):
        assert_close(rows[task][row], together[task][row])
