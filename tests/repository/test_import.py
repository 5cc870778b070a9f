"""`import dtme` needs torch, safetensors and huggingface_hub, and nothing of the extras."""

import subprocess
import sys

EXTRAS = (
    "jaxtyping",
    "beartype",
    "torchmetrics",
    "numba",
    "scipy",
    "matplotlib",
    "jinja2",
    "timm",
    "PIL",
    "rich",
    "tyro",
    "torchjd",
    "peft",
)


def test_the_core_works_without_the_extras():
    code = f"""
import sys
for name in {EXTRAS!r}:
    sys.modules[name] = None  # importing it fails from here on
import torch, dtme
from torch import nn
trunk = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, batch_first=True), 2, enable_nested_tensor=False)
model = nn.ModuleDict({{"trunk": trunk, "heads": nn.ModuleDict({{"a": nn.Linear(8, 1), "b": nn.Linear(8, 1)}})}})
def task_losses(model, batch):
    tokens = model["trunk"](batch)
    return {{task: head(tokens).square().mean() for task, head in model["heads"].items()}}
report = dtme.analyze(model, task_losses, [torch.randn(4, 5, 8)])
dtme.apply(model, report.plan())
print(report, len(list(dtme.added_parameters(model))))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("3")
