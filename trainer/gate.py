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
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.stream.batch import Batch
from data_pipeline.stream.examples import ExampleBatch
from trainer.errors import RunError
from trainer.gate_checks import (
    Check,
    Limits,
    check_fingerprints,
    check_first_loss,
    check_rows,
    check_vocabulary,
    model_rows,
)
from trainer.gate_rows import Seen, SpecialIds, look_at
from trainer.heads import NEW_HEAD
from trainer.stages import STAGES

if TYPE_CHECKING:
    from data_pipeline.stream.stream import AnyBatch
    from trainer.config import TrainConfig
    from trainer.ranks import Ranks
    from trainer.setup import Run


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
    rows, checks = _inspect(run)
    if ranks.is_main:
        print(table(checks, title=_title(run, rows, seconds=time.perf_counter() - started)), flush=True)
    _refuse(checks, ranks)


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


def _title(run: Run, rows: str, *, seconds: float) -> str:
    return f"gate: the first {run.config.gate.num_steps} steps: {rows}; {seconds:.1f} s"


def _inspect(run: Run) -> tuple[str, list[Check]]:
    """What the title tells of the rows, and the checks."""
    if STAGES[run.config.stage].record == "prompt":
        return _inspect_prompts(run)
    if STAGES[run.config.stage].record in ("preference", "feedback"):
        return _inspect_answers(run)
    if STAGES[run.config.stage].rows != "packed":
        return _inspect_encoder(run)
    config, ranks, shards = run.config, run.ranks, run.stream.rows.shards
    fingerprints, bos = ranks.on_main(lambda: _tokenizers(config, shards.tokenizer_fingerprint))
    ids = SpecialIds(eos=shards.eos_id, pad=run.vocabulary.pad_id, bos=frozenset(bos))
    batches = ranks.together(lambda: _look_ahead(run))
    first = batches[0]
    ours = reduce(Seen.__add__, (look_at(batch, ids) for batch in batches if isinstance(batch, Batch)), Seen())
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
        checks += _check_old_tokens(run)
    padding = 100 * seen.num_padding / max(1, seen.num_inputs)
    documents = "instructions" if config.stage == "sft" else "documents"
    told = f"{seen.num_rows:,} rows of {config.data.seq_len:,} with {seen.num_documents:,} {documents}"
    return f"{told}, {padding:.1f} % padding", checks


def _inspect_encoder(run: Run) -> tuple[str, list[Check]]:
    """The same for rows that no document's next token is asked of: masked ones, and examples."""
    from trainer import gate_encoders

    config, ranks, shards = run.config, run.ranks, run.stream.rows.shards
    fingerprints, _ = ranks.on_main(lambda: _tokenizers(config, shards.tokenizer_fingerprint))
    batches = run.objective.prepare(ranks.together(lambda: _look_ahead(run)), is_training=True)
    seen = reduce(
        gate_encoders.Seen.__add__, ranks.gather_objects(gate_encoders.look_at(batches, shards, run.vocabulary))
    )
    rows = model_rows(run.engine.model)
    fitting = gate_encoders.check_rows(seen, config, shards, highest_row=rows.embedding)
    checks = [*fitting, check_fingerprints(fingerprints, shards=config.data.shards)]
    if all(check.is_ok for check in fitting):
        # Examples may look at each other within a step; rows of documents cost too much for all of one.
        num_seen = len(batches) // config.gate.num_steps if isinstance(batches[0], ExampleBatch) else 1
        loss = first_loss(run, *batches[:num_seen])
        has_new_head = bool(getattr(run.engine.model, NEW_HEAD, False))
        checks.append(gate_encoders.check_loss(loss, config, shards, has_new_head=has_new_head))
        if isinstance(batches[0], ExampleBatch):
            checks.append(gate_encoders.check_padding(run, batches[0]))
        elif math.isfinite(loss):
            checks.append(_check_apart(run, vocab_size=shards.vocab_size))
        checks += _check_old_tokens(run)
    return seen.told, checks


def refuse_bad_answers(run: Run, ranks: Ranks) -> None:
    """Refuse what the rows of the first steps alone show, before anything is computed of all rows.

    Raises:
        RunError: a line for each check that failed.
    """
    if STAGES[run.config.stage].record in ("preference", "feedback"):
        _refuse(_answers_seen(run)[1], ranks)


def _refuse(checks: Sequence[Check], ranks: Ranks) -> None:
    faults = [
        f"gate: {check.name}: {check.value}, but it must be {check.limit}; {check.advice}"
        for check in checks
        if not check.is_ok
    ]
    if faults:
        raise RunError("\n".join(faults), told_by_main=not ranks.is_main)


def _answers_seen(run: Run) -> tuple[str, list[Check]]:
    """What the title tells of the first steps' rows, and the checks that need no pass through the model."""
    from trainer import gate_answers

    shards = run.stream.rows.shards
    _, bos = run.ranks.on_main(lambda: _tokenizers(run.config, shards.tokenizer_fingerprint))
    batches = run.ranks.together(lambda: _look_ahead(run))
    ours = gate_answers.look_at(batches, eos_id=shards.eos_id, bos=bos)
    seen = reduce(gate_answers.SeenAnswers.__add__, run.ranks.gather_objects(ours))
    rows = model_rows(run.engine.model)
    return seen.told, gate_answers.check_answers(seen, run.config, shards, highest_row=rows.embedding)


def _inspect_answers(run: Run) -> tuple[str, list[Check]]:
    """The same for pairs of answers, and answers with feedback."""
    from trainer import gate_answers, gate_encoders

    config, ranks, shards = run.config, run.ranks, run.stream.rows.shards
    told, checks = _answers_seen(run)
    is_fitting = all(check.is_ok for check in checks)
    fingerprints, _ = ranks.on_main(lambda: _tokenizers(config, shards.tokenizer_fingerprint))
    checks.append(check_fingerprints(fingerprints, shards=config.data.shards))
    if is_fitting:
        batches = ranks.together(lambda: _look_ahead(run))
        prepared = run.objective.prepare(batches[: len(batches) // config.gate.num_steps], is_training=True)
        checks.append(gate_answers.check_first_loss(first_loss(run, *prepared)))
        checks += gate_answers.check_reference(run, prepared)
        first = prepared[0]
        assert isinstance(first, ExampleBatch), "examples are not packed"
        checks.append(gate_encoders.check_padding(run, first))
    return told, checks


def _inspect_prompts(run: Run) -> tuple[str, list[Check]]:
    """The same for prompts that the model is to answer itself, and for what judges its answers."""
    from trainer import gate_prompts

    config, ranks, shards = run.config, run.ranks, run.stream.rows.shards
    fingerprints, _ = ranks.on_main(lambda: _tokenizers(config, shards.tokenizer_fingerprint))
    batches = ranks.together(lambda: _look_ahead(run))
    seen = gate_prompts.joined(ranks.gather_objects(gate_prompts.look_at(batches)))
    fitting = gate_prompts.check_prompts(seen, shards, rows=model_rows(run.engine.model))
    checks = [*fitting, check_fingerprints(fingerprints, shards=config.data.shards)]
    if all(check.is_ok for check in fitting):
        checks += gate_prompts.check_answers(run, batches[: len(batches) // config.gate.num_steps])
    return seen.told, checks


def _look_ahead(run: Run) -> list[AnyBatch]:
    """This rank's micro-batches of the first steps; the run's own stream stays where it is."""
    stream = copy.copy(run.stream)
    found: list[AnyBatch] = []
    for _ in range(run.config.gate.num_steps):
        found += stream.batches(
            dp_rank=run.ranks.rank,
            dp_world_size=run.ranks.world_size,
            micro_batch_sequences=run.config.train.micro_batch_sequences,
        )
        stream.advance()
    return found


def first_loss(run: Run, *batches: AnyBatch) -> float:
    """Mean nats a target over all ranks' prepared batches, in evaluation mode; 0 where there is no target."""
    import torch

    module = run.engine.module
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            run.objective.begin_step(module, batches)
            ours = sum(float(run.objective(module, batch).double()) for batch in batches)
    finally:
        module.train(was_training)
    weight = sum(run.objective.weight(batch) for batch in batches)
    total = run.ranks.all_sum(torch.tensor([ours, weight], dtype=torch.float64)).tolist()
    return total[0] / (total[1] or 1.0)


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


def _check_old_tokens(run: Run) -> list[Check]:
    """Law 11 on the real model and kernel, where it has new rows; every rank runs it."""
    if run.new_rows is None:
        return []
    from trainer.new_rows_setup import prove

    proof = prove(run)
    return [
        Check(
            name="old tokens undisturbed",
            value=str(proof),
            limit="no logit moved by a bit",
            is_ok=all(run.ranks.gather_objects(proof.num_moved == 0)),
            advice="the new rows change what the model says of old texts; this is a fault of its head: report it",
        )
    ]


def _tokenizers(config: TrainConfig, of_shards: str) -> tuple[dict[str, str | None], list[int]]:
    """Fingerprints by place, and the ids that are a BOS; read by rank 0 only."""
    from data_pipeline.shards.format import TOKENIZER_FOLDER
    from data_pipeline.tokenizer.extend_descent import new_tokens
    from data_pipeline.tokenizer.fingerprint import TOKENIZER_FILE, tokenizer_fingerprint
    from trainer.base import model_tokenizer

    companion = Path(config.data.shards) / TOKENIZER_FOLDER
    is_there = (companion / TOKENIZER_FILE).is_file()
    found = {"shards": of_shards, "their tokenizer/": tokenizer_fingerprint(companion) if is_there else None}
    if config.model.source is not None:
        file = model_tokenizer(config.model)
        found["model"] = None if file is None else tokenizer_fingerprint(file)
        if config.new_rows is not None and file is not None and new_tokens(file, companion):
            found["model with its new tokens"] = tokenizer_fingerprint(companion)
            del found["model"]
    return found, sorted(bos_ids(companion)) if is_there else []


def bos_ids(tokenizer: Path) -> set[int]:
    """The id of the BOS that a tokenizer folder names; empty where it has none."""
    from data_pipeline.tokenizer.encode import Encoder, special_tokens

    bos_token = special_tokens(tokenizer).get("bos_token")
    found = None if bos_token is None else Encoder(tokenizer, backend="tokenizers").tokenizer.token_to_id(bos_token)
    return set() if found is None else {found}
