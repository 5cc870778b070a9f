"""What to insert where: plans, their cost, and how they are chosen from rates of conflict.

- `plan`: the plan: which tasks get what in which blocks; plain data.
- `rates`: rates of conflict per block, pair of tasks and space: what plans are made from.
- `placement`: which blocks get modulators and which task tokens (Alg. 1, second half).
- `cost`: what a plan costs at inference, by arithmetic.
- `budget`: plans for a price: tasks part where that resolves most conflict per FLOP.
- `search`: the search for them.
- `recommended`: our own default: tasks part late.
- `stream_layout`: which tasks share a stream in which block, read off a plan.
- `table`: a plan as a table for the terminal.
"""

from dtme._moved import moved

__getattr__ = moved("dtme.plan", "Plan")  # where 0.1.0 had the class, and its pickles look for it
