"""What a plan adds to a block: modulators, task tokens, low-rank updates, copies, and the state of a call.

- `insert`: the child module of a block, called `dtme`, that holds the new parameters.
- `host`: the block around it: what is read off it once, and what is found out by trying.
- `call_state`: what is known of one call of the block, from its entry to its exit.
- `modulation`: a task scales and shifts every channel of its tokens (TM, Sec. 4.3).
- `task_tokens`: tokens of a task join the sequence before a block and leave it after (TE, Sec. 4.3).
- `expandable`: which blocks take task tokens, in which calls.
- `masks`: masks and matrices over positions, extended for task tokens.
- `positions`: what a block is told of positions, extended by task tokens.
- `low_rank`: low-rank updates of a linear layer, one per task.
- `layer_updates`: the hooks of the layers that add them.
- `block_copies`: copies of blocks that tasks get for themselves.
- `variants`: lanes of a block that run apart: through a copy, or with task tokens that others lack.
- `loading`: what an insert finds in a state dict of an earlier version.
"""
