"""GLUE (Wang et al., ICLR 2019): nine tasks about English sentences, none of which shares its sentences with another."""

from experiments.text.glue.hub import read_hub
from experiments.text.glue.tasks import TASKS, folders_in, glue_task, read_glue

__all__ = ["TASKS", "folders_in", "glue_task", "read_glue", "read_hub"]
