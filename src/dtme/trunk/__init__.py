"""Reading a stranger's transformer: its blocks and branches, how tokens lie, what a call of a block is given and returns.

- `blocks`: the places where tokens enter.
- `branches`: the modules where tasks leave the trunk.
- `call`: one call of a block: its tokens, their layout, its other arguments.
- `batched_arguments`: which arguments hold a row per sample.
- `layout`: the width of tokens, and which dimension holds samples, positions and channels.
- `batch_dim`: the dimension of the samples, held against what the model was given.
- `probe`: which positions or rows see which, found by trying it.
- `output`: what a block returns.
- `padding`: which tokens are padding.
- `linear_layers`: the linear layers of a block that take its tokens.
- `attention`: `nn.MultiheadAttention` computed in the open, so that something can be added to its projections.
- `relative_bias`: attention with a table of relative positions of its own.
- `fast_paths`: fast ways through a model that would pass hooks by.
"""
