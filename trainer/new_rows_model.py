"""`dure tokenizer extend --model`: a model folder with rows for new tokens, and the tokenizer, for use anywhere.

Any model of transformers that has an embedding: BERT's kind, whose head is tied and has a bias, as well as causal ones.
Old texts must give what they gave: every output is compared before anything is written (law 11).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.tokenizer.extend import Plan
from data_pipeline.tokenizer.extend_write import write_tokenizer_folder
from data_pipeline.tokenizer.fingerprint import tokenizer_fingerprint
from trainer.base import model_tokenizer
from trainer.errors import RunError
from trainer.export import made_beside
from trainer.model import check_source
from trainer.model_config import ModelConfig
from trainer.new_rows import RowsPlan, Values, base_rows, plan_rows, resize
from trainer.new_rows_config import checked_start
from trainer.new_rows_init import starting_values
from trainer.new_rows_proof import ROW_LENGTH, ROWS_AT_ONCE, probe_rows
from trainer.new_rows_setup import old_token_id
from trainer.quiet import quiet_prints

MULTIPLE = 64
# A wider head's product may round otherwise where a library chooses another kernel for it.
MAX_ERROR = 1e-5


def write_extended_model(plan: Plan, *, source: str, output: Path, init: str | None) -> list[str]:
    """Write the folder `output`; returns what to tell of it.

    Raises:
        RunError: the model is of another tokenizer, can't be loaded, or would say other things of old texts.
    """
    try:
        start = checked_start(init or "mean_of_subtokens")
    except ValueError as error:
        raise RunError(f"--init: {error}") from None
    _check_tokenizer(plan, source)
    model = _load(source)
    with made_beside(output) as folder:
        write_tokenizer_folder(plan, folder, is_final=False)
        rows = probe_rows(folder, first=plan.tokens[0].id, length=_row_length(model))
        before = _outputs(model, rows)
        places = extend_in_place(model, plan, tokenizer=folder, init=start)
        largest = _largest_error(before, _outputs(model, rows), places)
        if not largest <= MAX_ERROR:
            raise RunError(
                f"{source}: with new rows its outputs for old texts differ by {largest:.3g}, more than {MAX_ERROR:g}; "
                "this is a fault of this model's class: report it"
            )
        with quiet_prints():
            model.save_pretrained(folder)
    told = "to the bit" if largest == 0 else f"but for {largest:.3g}, which a wider head rounds otherwise here"
    return [
        f"rows {places.first:,} to {places.first + places.num_tokens - 1:,} begin as {start}; the embedding has "
        f"{places.total:,} rows",
        f"{len(rows):,} texts without new tokens: outputs equal {told}",
    ]


def _check_tokenizer(plan: Plan, source: str) -> None:
    check_source(source)
    try:
        file = model_tokenizer(ModelConfig.model_validate({"from": source}))
    except (OSError, ValueError) as error:
        raise RunError(f"--model: {source}: {str(error).strip().splitlines()[0]}; check the path or the name") from None
    if file is None:
        print(
            f"--model: {source} brings no tokenizer.json, so that nothing shows whether {plan.config.tokenizer} is its"
        )
    elif (found := tokenizer_fingerprint(file)) != plan.base_fingerprint:
        raise RunError(
            f"--model: {source} has tokenizer {found[:16]}…, but {plan.config.tokenizer} is "
            f"{plan.base_fingerprint[:16]}…; extend the model's own tokenizer"
        )


def _load(source: str) -> Any:
    """The model as the class that saved it, in the type of its weights."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(source)
        name = (getattr(config, "architectures", None) or ["AutoModel"])[0]
        kind = getattr(transformers, name, None)
        if kind is None:
            raise RunError(f"--model: {source} is a {name}, which transformers {transformers.__version__} has not")
        with quiet_prints():
            return kind.from_pretrained(source, dtype="auto").eval()
    except (OSError, ValueError) as error:
        raise RunError(f"--model: {source}: {str(error).strip().splitlines()[0]}; check the path or the name") from None


@torch.no_grad()
def extend_in_place(model: Any, plan: Plan, *, tokenizer: Path, init: str) -> RowsPlan:
    """Resize the embedding and the head of `model` and fill the new rows; `tokenizer` is the extended one."""
    first = plan.tokens[0].id
    places = plan_rows(
        first=first, num_tokens=len(plan.tokens), base_rows=base_rows(model), multiple=MULTIPLE, needs_pad=False
    )
    token_id = old_token_id(tokenizer, first=first)
    values = starting_values(model, places, plan.tokens, init=init, output_init=init, token_id=token_id, seed=1)
    resize(model, places)
    fill(model, places, values)
    return places


def fill(model: Any, places: RowsPlan, values: Values) -> None:
    """Write rows into a resized embedding and head."""
    place = slice(places.first, places.first + places.num_rows)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    embedding.weight[place] = values.input.to(embedding.weight)
    if values.output is not None:
        head.weight[place] = values.output.to(head.weight)
    if values.bias is not None:
        head.bias[place] = values.bias.to(head.bias)


def _row_length(model: Any) -> int:
    """BERT's positions end somewhere, and RoBERTa's begin at 2."""
    return min(ROW_LENGTH, int(getattr(model.config, "max_position_embeddings", ROW_LENGTH) or ROW_LENGTH) - 2)


@torch.no_grad()
def _outputs(model: Any, rows: np.ndarray) -> list[dict[str, torch.Tensor]]:
    """All tensors that the model gives for the rows, some at once."""
    found = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        told: Mapping[str, Any] = model(input_ids=torch.from_numpy(rows[start : start + ROWS_AT_ONCE]))
        found.append({name: value for name, value in told.items() if isinstance(value, torch.Tensor)})
    return found


def _largest_error(
    before: list[dict[str, torch.Tensor]], after: list[dict[str, torch.Tensor]], places: RowsPlan
) -> float:
    """The largest difference of an output; of logits over the vocabulary those of old tokens count."""
    largest = 0.0
    for one, two in zip(before, after, strict=True):
        for name, value in one.items():
            other = two[name]
            if other.shape[-1] != value.shape[-1] or value.shape[-1] == places.total:
                value, other = value[..., : places.first], other[..., : places.first]
            largest = max(largest, float((value.float() - other.float()).abs().max()))
    return largest
