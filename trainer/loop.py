"""The story of a run, top to bottom: evaluate, save, stop, step, log. Knows no stage, no engine and no launcher."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.stream.stream import Stream
from trainer import checkpoint
from trainer.answers import write_samples
from trainer.config import EvaluationConfig
from trainer.evaluate import evaluate
from trainer.journal import Journal
from trainer.schedule import learning_rate
from trainer.setup import Run
from trainer.step import Updater

Asked = Callable[[], bool]


def train(run: Run, journal: Journal, *, checkpoints: Path, stop_requested: Asked) -> bool:
    """Train until max_steps; False where a signal ended it before. The last finished step stands saved either way."""
    updater = _updater(run, stop_requested)
    stopping = run.ranks.any(stop_requested())
    phase = "warm-up"  # of the first step, in which kernels are compiled and memory is taken
    while not stopping:
        if _evaluation_due(run):
            stopping = not _evaluate(run, journal, checkpoints.parent, stop_requested)
        if not stopping and _save_due(run):
            _save(run, journal, checkpoints)
        if stopping or _is_finished(run):
            break
        run.on_phase(phase)
        stopping, phase = _step(run, updater, journal), "step"
        if run.policy.is_exhausted:
            break
    if run.progress.step not in (0, run.progress.saved_step):
        _save(run, journal, checkpoints)
    run.policy.check_consecutive()
    return _is_finished(run) and not stopping


def train_steps(run: Run, journal: Journal, *, count: int) -> None:
    """`count` steps and nothing else: no evaluation, no checkpoint; what a benchmark times."""
    updater = _updater(run, lambda: False)
    for _ in range(count):
        _step(run, updater, journal)


def _updater(run: Run, stop_requested: Asked) -> Updater:
    return Updater(
        engine=run.engine,
        objective=run.objective,
        policy=run.policy,
        ranks=run.ranks,
        seed=run.config.seed,
        stop_requested=stop_requested,
        on_mark=run.on_mark,
    )


def _is_finished(run: Run) -> bool:
    return run.progress.step >= run.config.train.last_step


def _evaluation_due(run: Run) -> bool:
    step = run.progress.step
    is_due = evaluation_due(run.config.evaluation, run.stream, step=step)
    return (is_due or _is_finished(run)) and run.progress.evaluated_step != step


def evaluation_due(config: EvaluationConfig, stream: Stream, *, step: int) -> bool:
    """Whether the held-out rows are scored after `step` steps, with `stream` at the next one."""
    if step == 0:
        return config.at_start
    return (config.every_epoch and stream.has_ended_epoch) or (
        config.every_steps > 0 and step % config.every_steps == 0
    )


def _save_due(run: Run) -> bool:
    step, config = run.progress.step, run.config.checkpoint
    on_schedule = step > 0 and step % config.every_steps == 0
    is_best = config.keep_best and run.progress.best_step == step > 0
    return (on_schedule or is_best or _is_finished(run)) and run.progress.saved_step != step


def _step(run: Run, updater: Updater, journal: Journal) -> bool:
    """One update over the stream's current rows; whether some rank was asked to stop."""
    config, progress = run.config, run.progress
    lr = _rate(run, journal)
    micro_batches = run.stream.batches(
        dp_rank=run.ranks.rank,
        dp_world_size=run.ranks.world_size,
        micro_batch_sequences=config.train.micro_batch_sequences,
    )
    metrics = updater.step(micro_batches, number=progress.step, lr=lr)
    if metrics.skipped:
        journal.skipped(metrics, step=progress.step, row_ids=run.stream.step_row_ids())
        progress.num_skipped += 1
    else:
        progress.tokens += metrics.num_targets
        if metrics.reason and run.ranks.is_main:
            action = "the step ends, its updates before stand"
            journal.event(kind="skipped_update", step=progress.step, detail=metrics.reason, action=action)
    journal.rows(micro_batches, stream=run.stream, step=progress.step + 1)
    run.stream.advance()
    progress.step += 1
    journal.step(metrics, progress=progress, lr=lr, epoch=run.stream.epoch)
    return metrics.stop_requested


def _rate(run: Run, journal: Journal) -> float:
    """The learning rate of the next update; where a phase of new rows begins, it is told."""
    config, number = run.config, run.progress.num_updates
    if run.phases is None:
        return learning_rate(config.train.schedule, step=number, max_steps=config.train.last_step)
    place = run.phases.begin_update(number)
    if place.step == 0:
        run.policy.begin_phase()
    if place.step == 0 and run.ranks.is_main:
        detail = run.phases.describe(place)
        journal.event(kind="phase", step=run.progress.step, detail=detail, action="moments begin anew")
    return place.lr


def _evaluate(run: Run, journal: Journal, run_folder: Path, stop_requested: Asked) -> bool:
    """Score the held-out documents and note the best step; False where a signal interrupted it."""
    run.on_phase("evaluate")
    started = time.perf_counter()
    micro_batch_sequences = run.config.evaluation.micro_batch_sequences
    assert micro_batch_sequences is not None, "the config resolves it"
    result = evaluate(
        run.engine.module,
        run.heldout,
        objective=run.objective,
        ranks=run.ranks,
        micro_batch_sequences=micro_batch_sequences,
        stop_requested=stop_requested,
        on_batch=run.on_mark,
        on_mark=run.on_mark,
    )
    answered = _answer(run, run_folder, stop_requested) if result is not None else None
    if result is None or answered is None:
        return False
    is_best = run.note_evaluation(result)
    seconds = time.perf_counter() - started
    journal.evaluation(result, answered, step=run.progress.step, is_best=is_best, seconds=seconds)
    return True


def _answer(run: Run, run_folder: Path, stop_requested: Asked) -> dict[str, Any] | None:
    """Figures of the model's answers to held-out instructions, for the evaluation's line; None where interrupted.

    What an online stage's evaluation let the model say goes to the same folder.
    """
    if (samples := run.objective.samples()) and run.ranks.is_main:
        step = run.progress.step
        write_samples(run_folder, [{"step": step, **line} for line in samples], step=step)
    if run.config.stage != "sft" or run.config.evaluation.answers.num_rows == 0:
        return {}
    from trainer.answers import answer_heldout

    def asked() -> bool:
        run.on_mark()  # it is asked after each token
        return stop_requested()

    figures = answer_heldout(run, folder=run_folder, stop_requested=asked)
    return None if figures is None else figures.as_dict()


def _save(run: Run, journal: Journal, checkpoints: Path) -> None:
    """A complete checkpoint of the current step, then the old ones that nobody needs are removed."""
    run.on_phase("save")
    started = time.perf_counter()
    progress, config = run.progress, run.config.checkpoint
    previous, progress.saved_step = progress.saved_step, progress.step
    try:
        checkpoint.save(
            checkpoints,
            step=progress.step,
            state=run.state_dict(),
            write_engine=run.engine.save,
            extra_files=journal.checkpoint_files(),
            ranks=run.ranks,
        )
    except BaseException:
        progress.saved_step = previous
        raise
    best = progress.best_step if config.keep_best and progress.best_step >= 0 else None
    if run.ranks.is_main:
        for line in checkpoint.prune(checkpoints, keep_last=config.keep_last, best=best):
            journal.event(kind="not_pruned", step=progress.step, detail=line, action="left in place")
    journal.saved(step=progress.step, seconds=time.perf_counter() - started)
