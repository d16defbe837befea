"""What stands on top of a model, by the stage that trains it: which class of transformers makes it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.disk import read_object
from trainer.errors import RunError
from trainer.stages import Head

NEW_HEAD = "has_new_head"  # an attribute of a model whose source brings no head of its kind

_ENDINGS: tuple[tuple[str, Head], ...] = (
    ("ForCausalLM", "causal_lm"),
    ("LMHeadModel", "causal_lm"),
    ("ForMaskedLM", "masked_lm"),
    ("ForSequenceClassification", "classifier"),
)

_DISCRIMINATORS = ("ElectraForPreTraining",)

# Their positions count from the pad id on.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert")


def auto_class(head: Head) -> Any:
    """The class of transformers that builds and loads models with this head."""
    import transformers

    names = {
        "causal_lm": "AutoModelForCausalLM",
        "masked_lm": "AutoModelForMaskedLM",
        "classifier": "AutoModelForSequenceClassification",
        "encoder": "AutoModel",
    }
    return getattr(transformers, names[head])


def head_of(folder: Path) -> Head:
    """The head of the model in a folder, by the class that its config.json names; a causal LM where it names none."""
    names = read_object(folder / "config.json").get("architectures") or ["ForCausalLM"]
    name = str(names[0])
    if name.endswith("ForPreTraining"):  # of other classes it may be a discriminator, as ELECTRA's
        return "masked_lm" if name == "BertForPreTraining" else "encoder"
    return next((head for ending, head in _ENDINGS if name.endswith(ending)), "encoder")


def check_predicts_tokens(architectures: Sequence[str] | None, *, source: str) -> None:
    """Refuse a discriminator as a masked LM: it was trained to tell replaced tokens, and its head predicts none.

    Raises:
        RunError: the architectures of a config.json are of one.
    """
    name = next(iter(architectures or ()), "")
    if name in _DISCRIMINATORS:
        raise RunError(
            f"model.from: {source!r} is a discriminator ({name}): it tells replaced tokens from others and predicts "
            "none, so stage 'mlm' can't continue it; give its generator or a BERT, or begin stage 'classify' or "
            "'embed' on it"
        )


def trained_whole(model: Any) -> list[str]:
    """Names of the modules of a classifier that an adapter's run trains whole: its head, and the pooler under it."""
    prefix = str(model.base_model_prefix)
    has_pooler = getattr(getattr(model, prefix), "pooler", None) is not None
    return [*own_parts(model), *([f"{prefix}.pooler"] if has_pooler else [])]


def own_parts(model: Any) -> list[str]:
    """Names of what stands beside the body of a model and has weights."""
    prefix = str(model.base_model_prefix)
    return [name for name, child in model.named_children() if name != prefix and any(True for _ in child.parameters())]


def positions_of(model: Any) -> int | None:
    """How many ids of a text a model has positions for: RoBERTa's rows up to its pad id stand for none."""
    rows: int | None = getattr(model.config, "max_position_embeddings", None)
    is_offset = model.config.model_type in _OFFSET_POSITIONS
    return rows - model.config.pad_token_id - 1 if rows and is_offset else rows


def note_padding(model: Any, pad_id: int) -> None:
    """Say in the model's config what pads: who reads from left to right classifies by the last token that does not.

    Where positions are counted from the pad id on, it stays what the weights were made with.
    """
    if model.config.model_type not in _OFFSET_POSITIONS:
        model.config.pad_token_id = pad_id


def head_options(described: Any, *, head: Head, labels: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments of the class for this head. A pooler that nothing reads would be trained by nothing."""
    if head == "classifier":
        described.num_labels = len(labels)
        described.id2label = dict(enumerate(labels))
        described.label2id = {label: number for number, label in enumerate(labels)}
        # One output is a score: pipelines of transformers then give it as it is.
        described.problem_type = "single_label_classification" if len(labels) > 1 else "regression"
    if head == "encoder":
        kind = auto_class(head)._model_mapping[type(described)]
        if "add_pooling_layer" in inspect.signature(kind.__init__).parameters:
            return {"add_pooling_layer": False}
    return {}
