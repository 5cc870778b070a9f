"""Measuring where tasks fight: tokens and gradients of a pass, token spaces, conflicts, rates, and when to stop.

- `analyze`: the public function: its arguments, the two rounds, the report.
- `batches`: one batch of each process at a time, and how many are read.
- `eval_mode`: the model as the analysis wants it, and afterwards as it was.
- `losses`: what `task_losses` gives: checked, and which of it are tasks.
- `capture`: the tokens that enter the blocks in a pass.
- `moments`: the first round: second moments of the tokens, summed over batches and processes.
- `token_space`: range space and null space of a block's tokens (Eq. 1-3).
- `gradients`: each task's gradient by these tokens.
- `conflict`: where the gradients of two tasks point against each other (Def. 1, Eq. 4).
- `accumulator`: what the second round sums up.
- `rates`: counts to rates, with the sample as the unit.
- `reservoir`: a bounded sample of gradients, for tasks that share no inputs.
- `stopping`: when a choice of blocks is settled.
- `flops`: FLOPs of one plain pass, told apart by what a plan repeats.
- `products`: the products of tokens and weights in a pass, counted.
"""
