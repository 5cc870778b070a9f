"""Watch and expand a model in the training loop that one has: one's own, or that of accelerate, Lightning or transformers.

- `watching`: `Watch`: an analysis every so many steps, told to trackers.
- `expanding`: `Expand`: an analysis once, a plan, and the optimizer's reserved group filled.
- `analysing`: an analysis in the midst of training, which goes on as if there had been none.
- `loss_weights`: the weighted sum of the losses, which remembers each task's own.
- `trackers`: TensorBoard and W&B behind one protocol of three methods.
- `transformers`, `lightning`, `accelerate`: the same for these loops; each imports its framework when it is imported.
- `pretrained_model`: a plan in the config of a transformers model.
"""

from dtme.integrations.expanding import Expand
from dtme.integrations.loss_weights import LossWeights
from dtme.integrations.trackers import TensorBoard, Tracker, WandB
from dtme.integrations.watching import Watch

__all__ = ["Expand", "LossWeights", "TensorBoard", "Tracker", "WandB", "Watch"]
