"""The silent-failure gate: what a run would learn, looked at on its real first batches before step 1.

Each check is a fault that trains without a word and shows weeks later: a model that never stops, a loss of 0.0, answers
that read the neighbour's document. Counting is NumPy's; the model makes one forward pass over the first micro-batch of
each rank, and the two tiny ones of the leak probe. Neither weights nor the stream nor randomness are changed.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from data_pipeline.config import Config
from trainer.errors import RunError
from trainer.gate_rows import Seen, SpecialIds, look_at

if TYPE_CHECKING:
    from data_pipeline.stream.batch import Batch
    from trainer.config import TrainConfig
    from trainer.ranks import Ranks
    from trainer.setup import Run

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
    """How many ids a model can read (rows of its embedding) and say (rows of its head)."""

    embedding: int
    head: int


def model_rows(model: Any) -> ModelRows:
    """By the modules' logical sizes: a 4-bit or ZeRO-3 weight has another shape."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return ModelRows(embedding=int(embedding.num_embeddings), head=int(head.out_features))


def check_vocabulary(seen: Seen, rows: ModelRows, *, size: int, ids: SpecialIds) -> list[Check]:
    """Every id of the tokenizer, EOS before all, has a row in the model's embedding and head."""
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
            name="vocabulary fits the model",
            value=f"{size:,} tokens (highest id seen {seen.highest_id:,}); {have}",
            limit="rows for all",
            is_ok=max(size, seen.highest_id + 1) <= fewest,
            advice="build the shards with the model's own tokenizer; ids beyond the embedding crash a GPU in step 1",
        ),
    ]


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


def check_first_batches(run: Run) -> list[Check]:
    """Every check of the gate, equal on all ranks; all ranks call it together.

    The model is left untried where ids lie beyond its embedding: a GPU would not survive that.
    """
    return _inspect(run)[1]


def run_gate(run: Run, ranks: Ranks) -> None:
    """Look at the first batches and print the table; refuse the run, with every line that failed, before step 1.

    Raises:
        RunError: a line for each check that failed.
    """
    started = time.perf_counter()
    seen, checks = _inspect(run)
    if ranks.is_main:
        print(table(checks, title=_title(run, seen, seconds=time.perf_counter() - started)), flush=True)
    faults = [
        f"gate: {check.name}: {check.value}, but it must be {check.limit}; {check.advice}"
        for check in checks
        if not check.is_ok
    ]
    if faults:
        raise RunError("\n".join(faults), told_by_main=not ranks.is_main)


def table(checks: Sequence[Check], *, title: str) -> str:
    """A line a check, and under each that failed what to do."""
    names, values = (max(len(getattr(check, key)) for check in checks) for key in ("name", "value"))
    lines = [title]
    for check in checks:
        mark = "ok  " if check.is_ok else "FAIL"
        lines.append(f"  {mark}  {check.name:<{names}}  {check.value:<{values}}  ({check.limit})")
        if not check.is_ok:
            lines.append(f"        → {check.advice}")
    return "\n".join(lines)


def _title(run: Run, seen: Seen, *, seconds: float) -> str:
    padding = 100 * seen.num_padding / max(1, seen.num_inputs)
    documents = "instructions" if run.config.stage == "sft" else "documents"
    return (
        f"gate: the first {run.config.gate.num_steps} steps: {seen.num_rows:,} rows of {run.config.data.seq_len:,} "
        f"with {seen.num_documents:,} {documents}, {padding:.1f} % padding; {seconds:.1f} s"
    )


def _inspect(run: Run) -> tuple[Seen, list[Check]]:
    config, ranks, shards = run.config, run.ranks, run.stream.rows.shards
    fingerprints, bos = ranks.on_main(lambda: _tokenizers(config, shards.tokenizer_fingerprint))
    ids = SpecialIds(eos=shards.eos_id, pad=shards.pad_id, bos=frozenset(bos))
    first, ours = ranks.together(lambda: _look_ahead(run, ids))
    seen = reduce(Seen.__add__, ranks.gather_objects(ours))
    eos_share = shards.num_documents / max(1, shards.num_pairs)
    limits = Limits(stage=config.stage, gate=config.gate, ids=ids, eos_share=eos_share)
    rows = model_rows(run.engine.model)
    fitting = check_vocabulary(seen, rows, size=shards.vocab_size, ids=ids)
    checks = [*check_rows(seen, limits), *fitting, check_fingerprints(fingerprints, shards=config.data.shards)]
    if all(check.is_ok for check in fitting):
        loss = first_loss(run, first)
        is_new = config.model.source is None
        checks.append(check_first_loss(loss, vocab_size=rows.head, is_new=is_new, gate=config.gate))
        if math.isfinite(loss):  # NaN moves nothing and everything
            checks.append(_check_apart(run, vocab_size=shards.vocab_size))
    return seen, checks


def _look_ahead(run: Run, ids: SpecialIds) -> tuple[Batch, Seen]:
    """This rank's first micro-batch, and what its first steps hold; the run's own stream stays where it is."""
    stream = copy.copy(run.stream)
    first: Batch | None = None
    seen = Seen()
    for _ in range(run.config.gate.num_steps):
        batches = stream.batches(
            dp_rank=run.ranks.rank,
            dp_world_size=run.ranks.world_size,
            micro_batch_sequences=run.config.train.micro_batch_sequences,
        )
        first = batches[0] if first is None else first
        seen = reduce(Seen.__add__, (look_at(batch, ids) for batch in batches), seen)
        stream.advance()
    assert first is not None, "num_steps is at least 1"
    return first, seen


def first_loss(run: Run, batch: Batch) -> float:
    """Mean nats a target over all ranks' batches, in evaluation mode; 0 where there is no target."""
    import torch

    module = run.engine.module
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            ours = float(run.objective(module, batch).double())
    finally:
        module.train(was_training)
    total = run.ranks.all_sum(torch.tensor([ours, float(batch.num_targets)], dtype=torch.float64)).tolist()
    return total[0] / max(1.0, total[1])


def _check_apart(run: Run, *, vocab_size: int) -> Check:
    """The probe of law 4 on the real model and kernel; every rank runs it, one finding is enough."""
    from trainer.model import check_documents_apart

    kernel = run.kernel.kernel
    finding = ""
    try:
        check_documents_apart(run.engine.module, kernel=kernel, device=run.ranks.device, vocab_size=vocab_size)
    except RunError as error:
        finding = str(error)
    findings = [found for found in run.ranks.gather_objects(finding) if found]
    return Check(
        name="documents are apart",
        value=f"{kernel}: {'a document reads its neighbour' if findings else 'none moved'}",
        limit="no logit moved by a neighbour",
        is_ok=not findings,
        advice=findings[0] if findings else "",
    )


def _tokenizers(config: TrainConfig, of_shards: str) -> tuple[dict[str, str | None], list[int]]:
    """Fingerprints by place, and the ids that are a BOS; read by rank 0 only."""
    from data_pipeline.shards.format import TOKENIZER_FOLDER
    from data_pipeline.tokenizer.fingerprint import TOKENIZER_FILE, tokenizer_fingerprint
    from trainer.base import model_tokenizer

    companion = Path(config.data.shards) / TOKENIZER_FOLDER
    is_there = (companion / TOKENIZER_FILE).is_file()
    found = {"shards": of_shards, "their tokenizer/": tokenizer_fingerprint(companion) if is_there else None}
    if config.model.source is not None:
        file = model_tokenizer(config.model)
        found["model"] = None if file is None else tokenizer_fingerprint(file)
    return found, sorted(bos_ids(companion)) if is_there else []


def bos_ids(tokenizer: Path) -> set[int]:
    """The id of the BOS that a tokenizer folder names; empty where it has none."""
    from data_pipeline.tokenizer.encode import Encoder, special_tokens

    bos_token = special_tokens(tokenizer).get("bos_token")
    found = None if bos_token is None else Encoder(tokenizer, backend="tokenizers").tokenizer.token_to_id(bos_token)
    return set() if found is None else {found}
