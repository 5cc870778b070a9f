"""Nothing reaches for the network at import, nor for what needs none: every way out is closed."""

from __future__ import annotations

import os
import subprocess
import sys

CLOSED = """
import socket, sys

def refused(*args, **options):
    raise AssertionError("the network was asked for: " + repr(args))

class Closed(socket.socket):
    def __new__(cls, family=socket.AF_INET, *args, **options):
        if family != socket.AF_UNIX:
            refused(family)
        return super().__new__(cls, family, *args, **options)

socket.socket = Closed
socket.create_connection = socket.getaddrinfo = refused
"""

IMPORTS = """
import importlib, pkgutil
import dtme
for module in pkgutil.walk_packages(dtme.__path__, "dtme."):
    importlib.import_module(module.name)
"""

USED = """
import tempfile
import torch
from torch import nn
import dtme

def model():
    trunk = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 2, enable_nested_tensor=False)
    heads = nn.ModuleDict({"a": nn.Linear(8, 1), "b": nn.Linear(8, 1)})
    return nn.ModuleDict({"trunk": trunk, "heads": heads})

def losses(model, batch):
    tokens = model["trunk"](batch)
    return {task: head(tokens).square().mean() for task, head in model["heads"].items()}

own = model()
report = dtme.analyze(own, losses, [torch.randn(4, 5, 8)])
folder = tempfile.mkdtemp()
dtme.save_pretrained(dtme.apply(own, report.plan()), folder, base=True)
dtme.load_pretrained(model(), folder)
"""


def run(code: str) -> None:
    # As if there were no setting that keeps the hub's client at home.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    }
    done = subprocess.run(
        [sys.executable, "-c", CLOSED + code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_network_is_asked_for_at_import_nor_from_an_analysis_to_a_loaded_checkpoint():
    run(IMPORTS + USED)


def test_the_door_is_closed():
    done = subprocess.run(
        [sys.executable, "-c", CLOSED + "socket.socket()"], capture_output=True, text=True, check=False
    )
    assert "the network was asked for" in done.stderr
