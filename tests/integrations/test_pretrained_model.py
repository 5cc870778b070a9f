"""`save_pretrained` and `from_pretrained` of transformers bring the plan back, or say that they do not."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import TASKS, assert_same
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import BertConfig, BertModel, BertPreTrainedModel, Trainer, TrainingArguments

import dtme
from dtme.integrations.pretrained_model import PlanInConfig, from_pretrained
from dtme.integrations.transformers import Expand, TrainerMixin

BLOCK = "bert.encoder.layer.{}".format
PLAN = dtme.Plan(TASKS, {BLOCK(1): TASKS}, {BLOCK(2): ("kind",)}, {BLOCK(2): TASKS}, copies={BLOCK(0): ("size",)})
CONFIG = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 8,
}


class Plain(BertPreTrainedModel):
    """BERT with two heads, as people write it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.heads = nn.ModuleDict({"kind": nn.Linear(16, 3), "size": nn.Linear(16, 1)})
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Any = None, kind: Any = None, size: Any = None
    ) -> dict[str, Any]:
        tokens = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
        out: dict[str, Any] = {task: head(tokens)[:, 0] for task, head in self.heads.items()}
        if kind is None:
            return out
        losses = functional.cross_entropy(out["kind"], kind), functional.mse_loss(out["size"].squeeze(-1), size)
        return {"loss": torch.stack(losses).sum(), **out}


class Ours(PlanInConfig, Plain):
    """The same, whose config holds the plan."""


class Sentences(Dataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        self.ids = torch.randint(20, (16, 6), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        ids = self.ids[place]
        return {"input_ids": ids, "kind": ids.sum() % 3, "size": ids.float().mean() / 20}


IDS = torch.arange(12).view(2, 6)


def learnt(kind: type[Plain]) -> Any:
    torch.manual_seed(0)
    model = dtme.apply(kind(BertConfig(**CONFIG)), PLAN)
    with torch.no_grad():
        for _, parameter in dtme.added_parameters(model):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def assert_like(one: Any, other: Any) -> None:
    assert dtme.plan_of(one) == dtme.plan_of(other) == PLAN
    assert_same(one.state_dict(), other.state_dict())
    assert_same(one(IDS), other(IDS))


def test_a_plan_in_the_config_comes_back(tmp_path: Path):
    model = learnt(Ours)
    model.save_pretrained(tmp_path)
    again = Ours.from_pretrained(tmp_path)
    assert_like(again, model)
    dtme.remove(again).save_pretrained(tmp_path / "plain")
    assert "dtme_plan" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert dtme.plan_of(Ours.from_pretrained(tmp_path / "plain")) is None


def test_in_another_precision(tmp_path: Path):
    learnt(Ours).save_pretrained(tmp_path)
    again = Ours.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in again.parameters()} <= {torch.bfloat16, torch.float32}
    assert all(output.isfinite().all() for output in again(IDS).values())


def test_a_class_that_knows_nothing_is_given_the_plan(tmp_path: Path):
    model = learnt(Plain)
    model.save_pretrained(tmp_path)
    dtme.save_plan(model, tmp_path)
    again = from_pretrained(Plain, tmp_path)
    assert type(again) is Plain
    assert_like(again, model)
    assert not hasattr(again.config, "dtme_plan")
    again, told = from_pretrained(Plain, tmp_path, output_loading_info=True)
    assert type(again) is Plain
    assert not any(told.values())
    learnt(Ours).save_pretrained(tmp_path / "ours")
    assert_like(from_pretrained(Plain, tmp_path / "ours"), learnt(Ours))
    plain = dtme.remove(learnt(Plain))
    plain.save_pretrained(tmp_path / "plain")
    assert dtme.plan_of(from_pretrained(Plain, tmp_path / "plain")) is None


def test_without_either_the_report_of_transformers_says_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    dtme.carry_plan(learnt(Plain)).save_pretrained(tmp_path)
    logger = logging.getLogger("transformers")
    logger.propagate, before = True, logger.propagate
    try:
        model = Plain.from_pretrained(tmp_path)
    finally:
        logger.propagate = before
    assert dtme.plan_of(model) is None
    assert "dtme_plan: call dtme.carry_plan(model) before loading" in caplog.text


class Mixed(TrainerMixin, Trainer):
    """Trainer, as the docs say."""


@pytest.mark.parametrize("kind", [Plain, Ours])
def test_trainer_s_checkpoints_are_models(kind: type[Plain], tmp_path: Path):
    arguments = {
        "max_steps": 4,
        "save_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "label_names": ["kind", "size"],
    }

    def train(model: Any, resume: Any = None) -> Any:
        trainer = Mixed(
            model,
            TrainingArguments(str(tmp_path), **arguments),
            train_dataset=Sentences(),
            callbacks=[Expand(at=2, plan=PLAN)],
        )
        trainer.train(resume_from_checkpoint=resume)
        return model

    torch.manual_seed(0)
    undisturbed = train(kind(BertConfig(**CONFIG)))
    for step in (1, 2, 3):
        resumed = train(kind(BertConfig(**CONFIG)), str(tmp_path / f"checkpoint-{step}"))
        assert_same(resumed.state_dict(), undisturbed.state_dict())
    load = Ours.from_pretrained if kind is Ours else lambda folder: from_pretrained(Plain, folder)
    last = load(tmp_path / "checkpoint-4")
    assert_like(last, strip(undisturbed))
    assert dtme.plan_of(load(tmp_path / "checkpoint-1")) is None


def strip(model: Any) -> Any:
    """The model without the key that its state dicts carry."""
    model._state_dict_hooks.clear()
    return model.eval()
