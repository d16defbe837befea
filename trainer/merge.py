"""What a merge cost: the merged model beside the one that was trained, over held-out rows.

An adapter was trained beside a base in 4 bits. Merged, the base is what those 4 bits stand for, and each sum is rounded
once. Both are compared in float32, so that nothing but the merge is measured.
Shapes: T places of a row, V vocabulary.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data_pipeline.shards.format import read_shards
from data_pipeline.shards.reader import open_shard
from trainer.errors import RunError

NUM_ROWS = 64
# A row's logits are kept: 64 rows of 128 places over 30,080 ids are 1 GB.
MAX_TOKENS = 128
MAX_LOGIT_ERROR = 2e-3
MIN_TOP_1_AGREEMENT = 0.999

Rows = Sequence[Sequence[int]]


class MergeError(RunError):
    """A merged model that says other things than the one that was trained."""


@dataclass(frozen=True)
class MergeMeasure:
    """The largest difference of a logit, and the share of places whose likeliest id is the same."""

    max_logit_error: float
    top_1_agreement: float
    num_rows: int
    num_places: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"largest logit error {self.max_logit_error:.3g}, top-1 agreement {self.top_1_agreement:.4%} over "
            f"{self.num_places:,} places of {self.num_rows} held-out rows"
        )


def heldout_rows(shards: Path, *, num_rows: int = NUM_ROWS, max_tokens: int = MAX_TOKENS) -> list[list[int]]:
    """Ids of held-out rows, taken evenly over the split and cut at `max_tokens`."""
    heldout = read_shards(shards, split="heldout")
    count = min(num_rows, heldout.num_documents)
    wanted = set(np.linspace(0, heldout.num_documents - 1, count).astype(int).tolist())
    rows, start = [], 0
    for file in heldout.files:
        num_documents = sum(file.batch_documents)
        if not any(start <= place < start + num_documents for place in wanted):
            start += num_documents
            continue
        for batch in open_shard(file):
            column = batch.column("input_ids")
            inside = [place - start for place in sorted(wanted) if 0 <= place - start < len(column)]
            rows += [column[place].as_py()[:max_tokens] for place in inside]
            start += len(column)
    return rows


@torch.no_grad()
def logits_of(model: nn.Module, rows: Rows, *, device: torch.device) -> list[torch.Tensor]:
    """(T, V) float32 logits of each row, on the host; of a classifier one place, of an encoder its last states."""
    found = []
    for row in rows:
        told = model(input_ids=torch.tensor([list(row)], device=device), use_cache=False)
        logits = told.logits if "logits" in told else told.last_hidden_state
        found.append(logits.reshape(-1, logits.shape[-1]).float().cpu())
    return found


def measure_merge(trained: list[torch.Tensor], merged: list[torch.Tensor]) -> MergeMeasure:
    """Both models' logits over the same rows, compared."""
    errors = [float((one - other).abs().max()) for one, other in zip(trained, merged, strict=True)]
    same = [int((one.argmax(-1) == other.argmax(-1)).sum()) for one, other in zip(trained, merged, strict=True)]
    num_places = sum(len(logits) for logits in trained)
    return MergeMeasure(
        max_logit_error=max(errors),
        top_1_agreement=sum(same) / num_places,
        num_rows=len(trained),
        num_places=num_places,
    )


def check_merge(measure: MergeMeasure, *, where: str, is_accepted: bool) -> bool:
    """Whether the measure is within the limits; beyond them it raises MergeError unless a person accepts it."""
    # Written so that NaN is beyond them too.
    is_within = measure.max_logit_error <= MAX_LOGIT_ERROR and measure.top_1_agreement >= MIN_TOP_1_AGREEMENT
    if not (is_within or is_accepted):
        raise MergeError(
            f"{where}: merged, it differs from what was trained: {measure}; the limits are {MAX_LOGIT_ERROR:g} and "
            f"{MIN_TOP_1_AGREEMENT:.1%}: export the adapter instead (without --merge), or take it as it is with "
            "--accept-merge-error"
        )
    return is_within


def unpack(model: nn.Module) -> None:
    """Replace packed layers by what their 4 bits stand for, in float32 on the host, one after the other."""
    packed = [name for name, module in model.named_modules() if hasattr(module, "compute_type_is_set")]
    if not packed:
        return
    import bitsandbytes.functional

    for name in packed:
        layer = model.get_submodule(name)
        weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)  # type: ignore[arg-type, union-attr]
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")  # type: ignore[arg-type]
        plain.weight = nn.Parameter(weight.to(device="cpu", dtype=torch.float32), requires_grad=False)
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias.data.to(device="cpu", dtype=torch.float32), requires_grad=False)  # type: ignore[union-attr]
        model.set_submodule(name, plain)
    # transformers refuses to move or to save what it believes to be packed.
    model.hf_quantizer = None  # type: ignore[assignment]
    for name in ("is_loaded_in_4bit", "is_quantized", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    del model.config.quantization_config  # type: ignore[union-attr]


def merge_in_place(model: nn.Module) -> None:
    """Add each adapter to the layer that it stands beside, and leave a plain model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, layer in layers:
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    # What is left of peft's notes would make transformers save an adapter.
    vars(model).pop("peft_config", None)


def free_memory() -> None:
    """Give back what the last model held, before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
