"""The gate's checks: counts of the first rows, ids, fingerprints and a loss, each held against what it has to be.

No check knows a run: what it is given is what it judges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from data_pipeline.config import Config
from trainer.gate_rows import Seen, SpecialIds

# A new model knows nothing: ln V, and more by the spread of its logits, at 0.02 * sqrt(width) 1 nat at width 5,120.
NEW_MODEL_FACTOR = 1.5
# So many EOS must be due before their absence says anything: of 20, none comes by chance once in 5e8 (Poisson).
MIN_EXPECTED_EOS = 20


class GateConfig(Config):
    """What the first batches of a run must look like; the run is refused before step 1 where they do not.

    The shares are of `stage: sft`: in pretraining every token of a document but its first is a target, and must be.
    """

    num_steps: int = Field(default=4, ge=1)
    """The rows of so many first steps are looked at; the first micro-batch of each rank goes through the model."""
    min_target_share: float = Field(default=0.01, ge=0, le=1)
    max_target_share: float = Field(default=0.99, ge=0, le=1)
    max_first_loss: float = Field(default=6.0, gt=0)
    """Nats a target, for a model that is continued (`model.from`); a new one may have 1.5 ln(vocabulary)."""

    @model_validator(mode="after")
    def _limits_are_in_order(self) -> GateConfig:
        if self.min_target_share > self.max_target_share:
            raise ValueError(
                f"min_target_share {self.min_target_share} is above max_target_share {self.max_target_share}; swap them"
            )
        return self


@dataclass(frozen=True)
class Check:
    """One line of the gate: what was found, what it had to be, and what to do where it is not."""

    name: str
    value: str
    limit: str
    is_ok: bool
    advice: str


@dataclass(frozen=True)
class Limits:
    """What the checks hold the counts against. `eos_share`: of all targets that the shards can give, the EOS ones."""

    stage: str
    gate: GateConfig
    ids: SpecialIds
    eos_share: float


def check_rows(seen: Seen, limits: Limits) -> list[Check]:
    """The checks that need no model: EOS, target share, BOS, padding, emptied rows."""
    docs = f"{seen.num_documents:,}"
    pad_note = " (pad is EOS)" if limits.ids.pad == limits.ids.eos else ""
    return [
        _check_eos(seen, limits),
        _check_share(seen, limits),
        Check(
            name="BOS once a document",
            value=f"{seen.num_documents_with_more_bos:,} of {docs} have more" if limits.ids.bos else "there is no BOS",
            limit="0",
            is_ok=seen.num_documents_with_more_bos == 0,
            advice="the template and the tokenizer both write a BOS: take it out of one, and build the shards again",
        ),
        Check(
            name="padding is no target",
            value=f"{seen.num_pad_targets:,} of {seen.num_targets:,} targets{pad_note}",
            limit="0",
            is_ok=seen.num_pad_targets == 0,
            advice=f"id {limits.ids.pad} pads and must have label -100; a model that learns it says it instead of EOS; "
            "build the shards again",
        ),
        Check(
            name="no emptied rows",
            value=f"{seen.num_documents_without_target:,} of {docs} documents, {seen.num_rows_without_target:,} of "
            f"{seen.num_rows:,} rows without target",
            limit="0",
            is_ok=seen.num_documents_without_target == seen.num_rows_without_target == 0 < seen.num_rows,
            advice=f"they cost time and teach nothing ('loss 0.0'), mostly answers cut off by data.seq_len or a "
            f"template without an answer part; see them with `dure shards inspect` (stage {limits.stage})",
        ),
    ]


def _check_eos(seen: Seen, limits: Limits) -> Check:
    advice = (
        f"a model that never sees EOS (id {limits.ids.eos}) as a label never stops; let each answer of the template "
        "end with it, and build the shards again"
    )
    if limits.stage == "sft":
        ended = seen.num_documents - seen.num_documents_not_ended
        value = f"{ended:,} of {seen.num_documents:,} documents end in it"
        is_ok = ended == seen.num_documents > 0
        return Check(name="EOS is a target", value=value, limit="all", is_ok=is_ok, advice=advice)
    expected = seen.num_targets * limits.eos_share
    return Check(
        name="EOS is a target",
        value=f"{seen.num_eos_targets:,} of {seen.num_targets:,} targets",
        limit=f"some (about {expected:,.0f})",
        is_ok=seen.num_eos_targets > 0 or expected < MIN_EXPECTED_EOS,
        advice=advice,
    )


def _check_share(seen: Seen, limits: Limits) -> Check:
    share = seen.num_targets / max(1, seen.num_inputs - seen.num_padding)
    if limits.stage == "sft":
        low, high = limits.gate.min_target_share, limits.gate.max_target_share
    else:
        low = high = 1.0
    if share > high:
        advice = (
            "questions are targets too: the template marks no answer part, or loss_spans are missing; build the "
            "shards again, or raise gate.max_target_share if the answers are that long"
        )
    else:
        advice = (
            "hardly anything is learnt: look at the targets with `dure shards inspect`; lower gate.min_target_share "
            "if the answers are that short"
        )
    return Check(
        name="share of targets",
        value=f"{100 * share:.1f} % of {seen.num_inputs - seen.num_padding:,} tokens",
        limit=f"{100 * low:g} to {100 * high:g} %" if low < high else f"{100 * low:g} %",
        is_ok=low <= share <= high,
        advice=advice,
    )


@dataclass(frozen=True)
class ModelRows:
    """How many ids a model can read (rows of its embedding) and say (rows of its head, where it has one)."""

    embedding: int
    head: int


def model_rows(model: Any) -> ModelRows:
    """By the modules' logical sizes: a 4-bit or ZeRO-3 weight has another shape."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    num_read = int(embedding.num_embeddings)
    return ModelRows(embedding=num_read, head=num_read if head is None else int(head.out_features))


def check_vocabulary(seen: Seen, rows: ModelRows, *, size: int, ids: SpecialIds) -> list[Check]:
    """Every id of the tokenizer, EOS before all, has a row in the model's embedding and head; padding in the former."""
    fewest = min(rows.embedding, rows.head)
    have = f"embedding {rows.embedding:,} and head {rows.head:,} rows"
    return [
        Check(
            name="EOS has a row",
            value=f"id {ids.eos:,}; {have}",
            limit="a row of its own",
            is_ok=0 <= ids.eos < fewest,
            advice="the model can't say it, and never stops; build the shards with the model's own tokenizer",
        ),
        Check(
            name="pad has a row",
            value=_pad_row(rows, size=size, ids=ids),
            limit="never a target",
            is_ok=0 <= ids.pad < rows.embedding,
            advice="build the shards with the model's own tokenizer",
        ),
        Check(
            name="vocabulary fits the model",
            value=f"{size:,} tokens (highest id seen {seen.highest_id:,}); {have}",
            limit="rows for all",
            is_ok=max(size, seen.highest_id + 1) <= fewest,
            advice="build the shards with the model's own tokenizer; ids beyond the embedding crash a GPU in step 1",
        ),
    ]


def _pad_row(rows: ModelRows, *, size: int, ids: SpecialIds) -> str:
    """Which row of the embedding pads, and why it is that one."""
    have = f"{size:,} tokens, {rows.embedding:,} rows"
    if ids.pad == ids.eos:
        return f"EOS (id {ids.pad:,}): no pad token, no free row ({have})"
    if ids.pad >= size:
        return f"id {ids.pad:,}: no pad token, so a free row ({have})"
    return f"id {ids.pad:,}: the tokenizer's own"


def check_fingerprints(fingerprints: dict[str, str | None], *, shards: str) -> Check:
    """One tokenizer throughout. `fingerprints`: by place; None where a place brings no tokenizer.json."""
    known = {place: found for place, found in fingerprints.items() if found is not None}
    silent = [f"{place} brings none" for place in fingerprints if place not in known]
    return Check(
        name="one tokenizer",
        value=", ".join([f"{place} {found[:8]}" for place, found in known.items()] + silent),
        limit="all equal",
        is_ok=len(set(known.values())) == 1,
        advice=f"the ids of {shards} mean other words to this model (다른 토크나이저의 샤드); build the shards with "
        "the model's tokenizer",
    )


def check_first_loss(loss: float, *, vocab_size: int, is_new: bool, gate: GateConfig) -> Check:
    """The mean nats a target of the first micro-batches, before any update."""
    limit = NEW_MODEL_FACTOR * math.log(vocab_size)
    if not is_new:
        limit = min(limit, gate.max_first_loss)
    advice = "its weights are damaged, of another tokenizer or not initialised, or the precision is too small for them"
    if not is_new and gate.max_first_loss <= loss < math.inf:
        advice = (
            f"guessing has {math.log(vocab_size):.1f}, a base that knows the language 2 to 4: wrong or random weights, "
            "another tokenizer, or rows in a language that it never saw (then raise gate.max_first_loss)"
        )
    elif loss == 0:
        advice = "nothing is left to learn: no target, or inputs that already show their label"
    return Check(
        name="first loss is sane",
        value=f"{loss:.3f} nats a target",
        limit=f"above 0, below {limit:.2f}",
        is_ok=math.isfinite(loss) and 0 < loss < limit,
        advice=advice,
    )
