"""transformers' `save_pretrained` and `from_pretrained`: the plan goes into `config.json`, and comes back before the weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dtme._files import read_json, read_text
from dtme.attach.apply import is_applied
from dtme.attach.load_check import CARRIED
from dtme.checkpoint.plan_file import FILE, FORMAT, adopt, described

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    _PreTrainedModel = PreTrainedModel
else:
    _PreTrainedModel = object

Model = TypeVar("Model")
KEY = "dtme_plan"
"""In the config of a model."""


class PlanInConfig(_PreTrainedModel):
    """Put it in front of the class of your model: `class TwoTasks(PlanInConfig, BertPreTrainedModel)`.

    `save_pretrained` then writes the plan into `config.json`, and `from_pretrained`, from a folder or the hub, applies it before
    it loads the weights.
    """

    def post_init(self) -> None:
        """As transformers does at the end of `__init__`; then the plan of the config is applied."""
        super().post_init()
        ignored = self._keys_to_ignore_on_load_unexpected or ()
        self._keys_to_ignore_on_load_unexpected = {*ignored, re.escape(CARRIED)}
        told = getattr(self.config, KEY, None)
        if told is not None and not is_applied(self):
            adopt(self, told, source=f"config.{KEY}")

    def save_pretrained(self, *args: Any, **options: Any) -> Any:
        """As transformers does, with the plan in the config."""
        told = described(self)
        if told["plan"] is None:
            vars(self.config).pop(KEY, None)
        else:
            setattr(self.config, KEY, told)
        return super().save_pretrained(*args, **options)


def from_pretrained(kind: type[Model], source: str | Path, **options: Any) -> Model:
    """`kind.from_pretrained(source, ...)` with the inserts that lie there, for a class that is not `PlanInConfig`.

    Args:
        kind: The class of the model.
        source: A folder that Trainer saved with the callbacks of this package, or what `PlanInConfig` saved, also on the hub.
        options: Of transformers' `from_pretrained`.

    Raises:
        ValueError: The plan is damaged, or does not fit the model.
    """
    beside = Path(source) / FILE
    told = read_json(read_text(beside), FORMAT, str(beside)) if beside.is_file() else None

    def post_init(self: Any) -> None:
        if told is not None:
            setattr(self.config, KEY, told)
        PlanInConfig.post_init(self)
        vars(self.config).pop(KEY, None)

    loading: Any = type(kind.__name__, (PlanInConfig, kind), {"post_init": post_init, "__module__": kind.__module__})
    from_there: Any = loading.from_pretrained
    loaded: Any = from_there(source, **options)
    model: Any = loaded[0] if options.get("output_loading_info") else loaded  # else it is a pair
    model.__class__ = kind
    return loaded
