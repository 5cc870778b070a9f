"""The README says what the files of `results/` say, and names only what exists."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dtme
from models import timm_multitask


class Images(nn.Module):
    """The tiny model of the tests behind the README's call, `model(images)`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.inner(images)


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_it_calls_exists():
    called = set(re.findall(r"dtme\.(\w+)\(", README))
    assert called >= {"analyze", "apply", "remove", "tasks"}
    assert all(hasattr(dtme, name) for name in called)


def test_the_lines_at_its_head_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    diff = README.split("```diff\n")[1].split("```")[0]
    code = "\n".join(line[1:] for line in diff.splitlines())
    model = timm_multitask(("depth", "semseg"), seed=0, depth=2)
    shapes = {task: output.shape for task, output in Images(model)(torch.zeros(3, 3, 32, 32)).items()}
    batch = {"image": torch.randn(3, 3, 32, 32), **{task: torch.randn(shape) for task, shape in shapes.items()}}
    scope = {
        "model": Images(model),
        "batches": [batch],
        "loader": [batch],
        "l1": nn.functional.l1_loss,
        "ce": nn.functional.mse_loss,
        "lr": 1e-3,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3),
    }
    exec(code, scope)
    assert (tmp_path / "runs" / "nyud" / "model.safetensors").is_file()
    assert len(scope["optimizer"].param_groups) == 2


def test_its_pictures_are_there():
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert len(pictures) == 2
    assert all((ROOT / picture).is_file() for picture in pictures)
