"""Saving what a plan added, and loading it into a fresh model.

- `pretrained`: save and load a folder: the plan as JSON, the parameters as safetensors.
- `base_model`: what a model has to be for saved inserts to mean anything.
- `weights`: tensors laid apart, and held against what is expected.
- `files`: files of a checkpoint, written together or not at all.
- `commit`: several files that take the place of others by one rename.
- `hub`: a folder goes up to the Hugging Face hub, and comes down again.
- `plan_file`: the plan beside a checkpoint of whatever loop.
- `state_dict`: a state dict that carries its plan.
"""
