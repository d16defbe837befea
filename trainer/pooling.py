"""A text as one vector: what an encoder says of its tokens, pooled; and what a saved model tells of how.

Shapes: S sequences of T ids, H hidden.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional

from data_pipeline.disk import read_object
from data_pipeline.stream.examples import ExampleBatch
from trainer.errors import RunError
from trainer.model import padded_inputs

if TYPE_CHECKING:
    from trainer.saved import Saved

Pooling = Literal["mean", "cls"]

# Of sentence-transformers' folder format, which is what tells it of an exported model.
MODULES_NAME = "modules.json"
POOLING_FOLDER = "1_Pooling"
NORMALIZE_FOLDER = "2_Normalize"


@dataclass(frozen=True)
class VectorForm:
    """How a model's vectors are made of its states; `normalize`: to length 1."""

    pooling: Pooling
    normalize: bool

    def vectors(self, module: nn.Module, batch: ExampleBatch, *, device: torch.device) -> torch.Tensor:
        """(S, H) float32 of the sequences of `batch`, as they are written out."""
        vectors = sequence_vectors(module, batch, pooling=self.pooling, device=device)
        return functional.normalize(vectors, dim=1) if self.normalize else vectors


def vector_form(saved: Saved) -> VectorForm | None:
    """Of a run of stage embed or a folder of sentence-transformers; None where nothing says that it makes vectors.

    Raises:
        RunError: a folder that makes them in a way which is not known here.
    """
    if saved.config is not None:
        embed = saved.config.embed if saved.config.stage == "embed" else None
        return VectorForm(embed.pooling, embed.normalize) if embed is not None else None
    told = read_object(saved.path / POOLING_FOLDER / "config.json")
    if not told:
        return None
    modules = json.loads((saved.path / MODULES_NAME).read_text(encoding="utf-8"))
    kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise RunError(
            f"{saved.path / MODULES_NAME}: its modules are {', '.join(kinds)}, but known here are Transformer, Pooling "
            "and Normalize; use sentence-transformers for this model"
        )
    return VectorForm(_told_pooling(told, saved.path), normalize=len(kinds) == 3)


def needed_form(saved: Saved) -> VectorForm:
    """The same of a model that is asked for vectors."""
    if (form := vector_form(saved)) is not None:
        return form
    raise RunError(
        f"{saved.path}: an encoder, but nothing tells how its states become one vector ({POOLING_FOLDER}/config.json, "
        "as sentence-transformers has it); name a run of stage embed, or what was exported from one"
    )


def _told_pooling(told: dict[str, Any], folder: Path) -> Pooling:
    # Until version 5 a key for each way.
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    old = [names.get(key, key) for key, value in told.items() if key.startswith("pooling_mode_") and value is True]
    found: Any = told.get("pooling_mode", old[0] if len(old) == 1 else old)
    if found not in get_args(Pooling):
        raise RunError(
            f"{folder / POOLING_FOLDER}: pools by {found!r}, but known here are {' and '.join(get_args(Pooling))}; use "
            "sentence-transformers for this model"
        )
    return found  # type: ignore[no-any-return]


def sequence_vectors(module: nn.Module, batch: ExampleBatch, *, pooling: Pooling, device: torch.device) -> torch.Tensor:
    """(S, H) float32, a vector of each sequence of `batch`; of no particular length."""
    inputs = padded_inputs(batch, device=device)
    return pooled(module(**inputs).last_hidden_state, inputs["attention_mask"], pooling=pooling)


def pooled(states: torch.Tensor, is_text: torch.Tensor, *, pooling: Pooling) -> torch.Tensor:
    """(S, H) float32 from states (S, T, H) and `is_text` (S, T): the mean over what is no padding, its frame included,
    or the first.

    Reimers and Gurevych 2019, "Sentence-BERT", section 3; padding stands on the right.
    """
    if pooling == "cls":
        return states[:, 0].float()
    weights_ST1 = is_text[:, :, None].float()
    return (states.float() * weights_ST1).sum(dim=1) / weights_ST1.sum(dim=1)
