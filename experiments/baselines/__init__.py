"""What the paper's method is compared with: gradients balanced, losses weighted, parameters of each task's own.

- `Balancing`: what a training loop calls in the place of `loss.backward()`. Of gradients, by methods that TorchJD mostly
  supplies: `pcgrad`, `cagrad`, `mgda`, `imtl_g`, `nash_mtl`, `aligned_mtl`, `graddrop`, `fairgrad`, `upgrad`. Of losses:
  `UW`, `DWA`, `FAMO`. `ConflictCount` is Recon's first phase.
- Models in the place of the model, which list what they add by `added_parameters()`: `OwnCopies` (Recon's second phase),
  `branch`, `LoRAPerTask`, `FinalAffine`, `OwnNormsAndBiases`.

A balancing works on any model: with a plan applied, on one of these, on a plain one.
"""

from experiments.baselines.aggregations import (
    aligned_mtl,
    cagrad,
    fairgrad,
    graddrop,
    imtl_g,
    mgda,
    nash_mtl,
    pcgrad,
    upgrad,
)
from experiments.baselines.balancing import Balancing, GradientBalancing
from experiments.baselines.branched import branch
from experiments.baselines.final_affine import FinalAffine
from experiments.baselines.layer_copies import OwnCopies
from experiments.baselines.lora import LoRAPerTask
from experiments.baselines.norms_and_biases import OwnNormsAndBiases
from experiments.baselines.recon import ConflictCount
from experiments.baselines.weightings import DWA, FAMO, UW

__all__ = [
    "DWA",
    "FAMO",
    "UW",
    "Balancing",
    "ConflictCount",
    "FinalAffine",
    "GradientBalancing",
    "LoRAPerTask",
    "OwnCopies",
    "OwnNormsAndBiases",
    "aligned_mtl",
    "branch",
    "cagrad",
    "fairgrad",
    "graddrop",
    "imtl_g",
    "mgda",
    "nash_mtl",
    "pcgrad",
    "upgrad",
]
