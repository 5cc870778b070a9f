"""Putting inserts into a model, running them, and taking them out again.

- `apply`: put a plan into a model, and take it out again.
- `hooks`: how tokens pass through a block with an insert.
- `replan`: another plan in place of the one that is applied: what both have goes on.
- `cost`: what a plan costs on a model, exactly, counted on a twin.
- `block_trial`: what a block takes, found by trying it.
- `optimizer`: a group of the optimizer that is reserved, and filled when a plan is applied.
- `optimizer_group`: that group, and the state of its parameters.
- `gradient_check`: a warning where training would change nothing.
- `compiled_blocks`: blocks that are compiled by themselves, where a plan could not reach.
- `load_check`: inserts that a state dict and a model do not have in common, explained.
- `diagnostics`: what a plan did to a block, told beside an error of the block.
- `passed_by`: blocks that a model runs without calling them.
- `size_check`: a plan that adds out of all proportion, refused before anything is made.
"""
