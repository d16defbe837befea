"""A run's new rows, from its config to a model that has them: which tokens are new, and what their rows begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from data_pipeline.shards.format import TOKENIZER_FOLDER, read_shards_manifest, tokenizer_folder
from data_pipeline.stream.batch import Batch
from data_pipeline.tokenizer.encode import Encoder
from data_pipeline.tokenizer.extend_descent import NewToken, new_tokens
from data_pipeline.tokenizer.fingerprint import TOKENIZER_FILE
from trainer.errors import RunError
from trainer.model import Kernel, Vocabulary, packed_inputs
from trainer.new_rows import RowsPlan, base_rows, install, plan_rows
from trainer.new_rows_config import NewRowsConfig
from trainer.new_rows_init import starting_values
from trainer.new_rows_phases import check_phases
from trainer.new_rows_proof import Logits, Proof, probe_rows, prove_old_tokens

if TYPE_CHECKING:
    from trainer.config import TrainConfig
    from trainer.setup import Run


def find_new_tokens(config: TrainConfig, tokenizer: Path | None) -> list[NewToken]:
    """The tokens that the shards' tokenizer has beyond the model's own, by the two files; [] without `new_rows`.

    Raises:
        RunError: `new_rows` without such tokens, or such tokens without `new_rows`; the model brings no tokenizer.
    """
    shards = Path(config.data.shards)
    if tokenizer is None:
        if config.new_rows is None:
            return []
        raise RunError(
            f"new_rows: {config.model.source} brings no tokenizer.json, so that nothing shows which tokens of {shards} "
            "are new to it; put the model's own tokenizer beside it"
        )
    if config.new_rows is None:
        companion = shards / TOKENIZER_FOLDER
        found = new_tokens(tokenizer, companion) if (companion / TOKENIZER_FILE).is_file() else None
        if found:
            raise RunError(
                f"new_rows: missing, but the tokenizer of {shards} has {len(found):,} tokens that "
                f"{config.model.source} does not know, from id {found[0].id:,} on; set new_rows: {{}} to give them rows"
            )
        return []
    found = new_tokens(tokenizer, tokenizer_folder(shards))
    if found is None:
        told = str(read_shards_manifest(shards)["tokenizer_fingerprint"])[:16]
        raise RunError(
            f"new_rows: the tokenizer of {shards} ({told}…) is not that of {config.model.source} with tokens added by "
            "`dure tokenizer extend`, so that old words may have other ids; extend the model's own tokenizer"
        )
    if not found:
        raise RunError(
            f"new_rows: set, but {config.model.source} knows every token of {shards}; leave it out, or build the "
            "shards with an extended tokenizer"
        )
    return found


def without(vocabulary: Vocabulary, tokens: Sequence[NewToken]) -> Vocabulary:
    """The vocabulary that the model knows itself."""
    return replace(vocabulary, size=tokens[0].id) if tokens else vocabulary


def add_rows(
    model: nn.Module,
    config: NewRowsConfig,
    tokens: Sequence[NewToken],
    *,
    vocabulary: Vocabulary,
    tokenizer: Path,
    dtype: torch.dtype,
    seed: int,
) -> RowsPlan:
    """Give `tokens` their rows in `model`, as `config` says; `vocabulary` and `tokenizer` are the extended ones.

    Raises:
        RunError: the model can't have them, or a phase would move nothing.
    """
    plan = plan_rows(
        first=tokens[0].id,
        num_tokens=len(tokens),
        base_rows=base_rows(model),
        multiple=config.pad_to_multiple,
        needs_pad=vocabulary.pad_id == vocabulary.eos_id,
    )
    values = starting_values(
        model,
        plan,
        tokens,
        init=config.init,
        output_init=config.head_start,
        token_id=old_token_id(tokenizer, first=plan.first),
        seed=seed,
    )
    install(model, plan, values, dtype=dtype)
    check_phases(config, model)
    return plan


def old_token_id(tokenizer: Path, *, first: int) -> Any:
    """A function that gives the id of an old token by its text: its spelling in the vocabulary, or a text of one id."""
    encoder = Encoder(tokenizer, backend="tokenizers", needs_eos=False)

    def find(text: str) -> int | None:
        found = encoder.tokenizer.token_to_id(text)
        if found is None:
            ids, _ = encoder.encode_batch([text])
            found = int(ids[0]) if len(ids) == 1 else None
        return found if found is not None and found < first else None

    return find


def prove(run: Run) -> Proof:
    """Law 11 on the run's real model, kernel and engine; every rank calls it."""
    plan = run.new_rows
    assert plan is not None, "there are new rows"
    rows = probe_rows(tokenizer_folder(Path(run.config.data.shards)), first=plan.first)
    logits = logits_by(run.kernel.kernel, device=run.ranks.device)
    return prove_old_tokens(run.engine.module, run.engine.model, rows, first=plan.first, logits=logits)


def logits_by(kernel: Kernel, *, device: torch.device) -> Logits:
    """How a model of any head is asked: its logits, or the states of one without a head."""

    def logits(module: nn.Module, ids: np.ndarray) -> torch.Tensor:
        positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        batch = Batch(
            input_ids=np.ascontiguousarray(ids),
            labels=np.full_like(ids, -100),
            position_ids=np.ascontiguousarray(positions),
            row_ids=np.arange(len(ids), dtype=np.int64),
            num_targets=0,
        )
        told = module(**packed_inputs(batch, kernel=kernel, device=device))
        found: torch.Tensor = told.logits if hasattr(told, "logits") else told.last_hidden_state
        return found

    return logits
