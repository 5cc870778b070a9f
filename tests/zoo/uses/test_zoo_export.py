"""torch.export and ONNX after `apply`: programs of all tasks and of one, run beside the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnxruntime
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import dtme
from zoo import FEW_AT_FIRST, TWO_AT_FIRST, ZOO, Entry, Inputs, Outputs, as_type, assert_same, filled, little


def in_single_precision(entry: Entry) -> tuple[Any, Inputs]:
    return filled(entry.make(torch.float32), little(entry)), as_type(entry.inputs(), torch.float32)


def exported(model: Any, inputs: Inputs) -> Any:
    return torch.export.export(model, (), kwargs=inputs, strict=False)


@pytest.mark.cell("export")
@pytest.mark.parametrize("name", FEW_AT_FIRST)
def test_exported(name: str):
    entry = ZOO[name]
    model, inputs = filled(entry.make(), little(entry)), entry.inputs()
    assert_same(exported(model, inputs).module()(**inputs), model(**inputs))


@pytest.mark.parametrize("name", TWO_AT_FIRST)
def test_one_task_exported(name: str):
    entry = ZOO[name]
    model, inputs = filled(entry.make(), little(entry)), entry.inputs()
    together, (first, *others) = model(**inputs), entry.tasks
    with dtme.tasks(model, first):
        program = exported(model, inputs).module()
    alone = program(**inputs)
    torch.testing.assert_close(alone[first], together[first])
    assert [len(alone[other]) for other in others] == [0, 0]
    assert products(program, inputs) < 1.5 * products(entry.make(), inputs)  # the streams of other tasks are not in it


def products(model: Any, inputs: Inputs) -> int:
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops()


def to_onnx(model: Any, inputs: Inputs) -> Any:
    return torch.onnx.export(model, (), kwargs=inputs, dynamo=True, verbose=False)


def run(program: Any, inputs: Inputs) -> list[torch.Tensor]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
    wanted = {argument.name for argument in session.get_inputs()}
    fed = {name: value.numpy() for name, value in inputs.items() if name in wanted}
    return [torch.from_numpy(output) for output in session.run(None, fed)]


def named(outputs: list[torch.Tensor], tasks: tuple[str, ...]) -> Outputs:
    return dict(zip(tasks, outputs, strict=True))


@pytest.mark.cell("ONNX")
@pytest.mark.parametrize("name", FEW_AT_FIRST)
def test_exported_to_onnx(name: str, record_property: Callable[[str, object], None]):
    entry = ZOO[name]
    model, inputs = in_single_precision(entry)
    try:
        program = to_onnx(model, inputs)
    except torch.onnx.OnnxExporterError:  # the right outcome where the exporter does not know the model itself either
        with pytest.raises(torch.onnx.OnnxExporterError) as alone:
            to_onnx(entry.make(torch.float32), inputs)
        record_property(
            "refusal",
            f"torch {torch.__version__.split('+')[0]} does not export the model, with a plan or without: {cause(alone.value)}",
        )
        return
    assert_same(named(run(program, inputs), entry.tasks), model(**inputs), rtol=1e-4, atol=1e-5)


def cause(error: BaseException) -> str:
    """The first line of what went wrong first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


@pytest.mark.parametrize("name", TWO_AT_FIRST)
def test_one_task_exported_to_onnx(name: str):
    entry = ZOO[name]
    model, inputs = in_single_precision(entry)
    with dtme.tasks(model, entry.tasks[1]):
        outputs = run(to_onnx(model, inputs), inputs)
    torch.testing.assert_close(
        named(outputs, entry.tasks)[entry.tasks[1]], model(**inputs)[entry.tasks[1]], rtol=1e-4, atol=1e-5
    )
