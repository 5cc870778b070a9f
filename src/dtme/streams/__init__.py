"""One tensor per stream behind the face of one: what streams are, which tasks they serve, how a batch holds them.

- `tensor`: streams, handled by a model's own code as one tensor.
- `groups`: which tasks share which stream.
- `folding`: one batch that holds all streams, and streams made of one.
- `lanes`: the parts of a folded batch that belong to one stream or to one row each.
- `joining`: one output of parts of a block that ran one after the other.
- `routing`: which tasks a pass computes, and which row belongs to which task.
- `fsdp`: streams under FSDP2.
- `torchjd`: streams under TorchJD's engine of Gramians.
"""

from dtme._moved import moved

__getattr__ = moved("dtme.streams", "Streams")  # where 0.1.0 had the class, and its pickles look for it
