"""Several processes: what they share, and models wrapped for them.

- `processes`: processes that work as one: each reads a share, and all hear of everything.
- `wrappers`: models replicated by DistributedDataParallel, or sharded by `fully_shard`.
- `gradient_sharing`: gradients that DistributedDataParallel does not know of, averaged as its own.
"""
