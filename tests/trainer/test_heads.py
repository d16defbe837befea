"""What stands on top of a model is told by the class that its config.json names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from trainer.errors import RunError
from trainer.heads import head_of
from trainer.model import Vocabulary, make_model
from trainer.model_config import ModelConfig


def folder_of(path: Path, architecture: str | None, model_type: str = "bert") -> Path:
    path.mkdir(exist_ok=True)
    names = {"architectures": [architecture]} if architecture else {}
    (path / "config.json").write_text(json.dumps({"model_type": model_type, **names}))
    return path


@pytest.mark.parametrize(
    ("architecture", "head"),
    [
        (None, "causal_lm"),
        ("LlamaForCausalLM", "causal_lm"),
        ("GPT2LMHeadModel", "causal_lm"),
        ("RobertaForMaskedLM", "masked_lm"),
        ("BertForPreTraining", "masked_lm"),
        ("ElectraForPreTraining", "encoder"),
        ("AlbertForPreTraining", "encoder"),
        ("BertForSequenceClassification", "classifier"),
        ("BertModel", "encoder"),
    ],
)
def test_the_head_is_told_by_the_architecture(tmp_path: Path, architecture: str | None, head: str) -> None:
    assert head_of(folder_of(tmp_path / "model", architecture)) == head


def test_a_discriminator_is_no_masked_lm(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "electra", "ElectraForPreTraining", "electra")
    vocabulary = Vocabulary(size=10, eos_id=0, pad_id=1)

    with pytest.raises(RunError, match=r"^model.from: '.*electra' is a discriminator \(ElectraForPreTraining\): .*mlm"):
        make_model(
            ModelConfig.model_validate({"from": str(folder)}),
            vocabulary=vocabulary,
            kernel="sdpa",
            dtype=torch.float32,
            seed=1,
            device=torch.device("cpu"),
            head="masked_lm",
        )
