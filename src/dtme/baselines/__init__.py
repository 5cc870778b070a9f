"""What the paper's method is compared with: gradients balanced, losses weighted, parameters of each task's own.

- `Balancing`: what a training loop calls in the place of `loss.backward()`. Of gradients, by methods that TorchJD mostly
  supplies: `pcgrad`, `cagrad`, `mgda`, `imtl_g`, `nash_mtl`, `aligned_mtl`, `graddrop`, `fairgrad`, `upgrad`. Of losses:
  `UW`, `DWA`, `FAMO`. `ConflictCount` is Recon's first phase.
- Models in the place of the model, which list what they add by `added_parameters()`: `OwnCopies` (Recon's second phase),
  `branch`, `LoRAPerTask`, `FinalAffine`, `OwnNormsAndBiases`.

A balancing works on any model: with a plan applied, on one of these, on a plain one.
"""

from dtme.baselines.aggregations import (
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
from dtme.baselines.balancing import Balancing, GradientBalancing
from dtme.baselines.branching import branch
from dtme.baselines.final_affine import FinalAffine
from dtme.baselines.lora import LoRAPerTask
from dtme.baselines.own_copies import OwnCopies
from dtme.baselines.own_norms import OwnNormsAndBiases
from dtme.baselines.recon import ConflictCount
from dtme.baselines.weightings import DWA, FAMO, UW

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
