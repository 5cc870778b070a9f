"""What `dtme` does, one file a command: a function whose signature and docstring are its options, and which gives an `Answer`.

- `init`, `doctor`, `analyze`, `plan`, `cost`, `report`, `compare`, `env`: the commands, called like their functions.
- `trials`: what `doctor` tries on a model. `subjects`: the models it is given, a file's, timm's or transformers'.
"""
