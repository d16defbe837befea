"""One rank of a run, from its config to its exit record."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data_pipeline.config import load
from data_pipeline.stage import StageError
from trainer import checkpoint
from trainer.base import pin_base
from trainer.beats import clear_beats, group_name
from trainer.config import TrainConfig, unread_keys
from trainer.errors import RunError, TrainingStopped
from trainer.gate import refuse_bad_answers, run_gate
from trainer.journal import Journal
from trainer.launch_environment import check_launch, wants_gpu
from trainer.ledger import rewind_ledger
from trainer.loop import train
from trainer.metrics import memory_gib
from trainer.ops import ensure_ops_built
from trainer.programs import add_scripts_to_path
from trainer.quantize import held_bytes
from trainer.quiet import quieten_libraries
from trainer.ranks import PATIENCE, Ranks, start_ranks, stop_ranks
from trainer.resilience import DONE, FAILED, REFUSED, STOPPED, ExitRecord, StopFlag
from trainer.run_folder import EVALUATIONS_NAME, METRICS_NAME, RunFolder, read_lines
from trainer.setup import Run, badness, probe_kernel, restore, set_up
from trainer.sources import sampled, with_steps
from trainer.stages import STAGES
from trainer.watchdog import Seat, Watchdog

Watcher = Callable[[str], None]


def run_rank(path: str, overrides: Sequence[str], *, stop: StopFlag) -> int:
    """Start or resume the run that the config at `path` describes; returns this rank's exit code.

    Raises:
        ConfigError, StageError, RunError: refused, or ended by itself; no finished step is lost.
    """
    config = with_shards(load(path, overrides, TrainConfig))
    use_gpu = wants_gpu(num_devices=torch.cuda.device_count() if torch.cuda.is_available() else 0)
    check_launch(config)
    quieten_libraries(use_gpu=use_gpu)
    # The watchdog is the one judge of what takes too long: it knows a slow save from a rank that is gone.
    timeout = PATIENCE if config.watchdog.timeout_seconds else None
    with Watchdog(config.watchdog, run_folder=_run_folder(config), seat=Seat.of()) as watchdog:
        ranks = start_ranks(use_gpu=use_gpu, timeout=timeout)
        code = run_watched(config, ranks, stop=stop, watchdog=watchdog)
        stop_ranks()
    return code


def run_in_group(config: TrainConfig, ranks: Ranks, *, stop: StopFlag, on_phase: Watcher = lambda phase: None) -> int:
    """One attempt of a run on ranks that stand already.

    `on_phase` hears "load", "warm-up" (the first step), "step", "evaluate" and "save".
    """
    seat = Seat(rank=ranks.rank, world_size=ranks.world_size, local_rank=ranks.local_rank)
    with Watchdog(config.watchdog, run_folder=_run_folder(config), seat=seat) as watchdog:
        return run_watched(config, ranks, stop=stop, watchdog=watchdog, on_phase=on_phase)


def _run_folder(config: TrainConfig) -> Path:
    return Path(config.run.folder) / config.run.name


def run_watched(
    config: TrainConfig, ranks: Ranks, *, stop: StopFlag, watchdog: Watchdog, on_phase: Watcher = lambda phase: None
) -> int:
    """One attempt of a run under a watchdog that runs already."""
    config = ranks.together(lambda: with_steps(config))
    folder = RunFolder(_run_folder(config), rank=ranks.rank)
    begun = _Begun(watchdog, on_phase)
    with ExitStack() as stack:
        watchdog.board(ranks.on_main(lambda: _hold(stack, folder, config, ranks)))
        try:
            record = _attempt(config, ranks, folder, stop=stop, on_phase=begun)
        except Exception as error:
            watchdog.end_if_hung()
            _tell_failure(folder, ranks, error, was_training=begun.training)
            if begun.training and isinstance(error, RunError):
                raise TrainingStopped(str(error), told_by_main=error.told_by_main) from error
            raise
        if ranks.is_main:
            folder.write_exit(record)
        # No rank leaves before the record stands: a launcher may end the job when the first one does.
        ranks.barrier()
    return record.code


def with_shards(config: TrainConfig) -> TrainConfig:
    """`config` with the shards that the files of `data.raw` were made into.

    Raises:
        StageError: they were not made yet.
        RunError: `data.shards` names others.
    """
    raw, named = config.data.raw, config.data.shards
    if raw is None:
        return config
    from data_pipeline.raw import find_shards

    found = str(find_shards(raw))
    if named and named != found:
        raise RunError(f"data.shards: {named}, but data.raw makes {found}; give one of the two")
    return config.model_copy(update={"data": config.data.model_copy(update={"shards": found})})


class _Begun:
    """Passes phases on, and remembers whether a step was begun: from there on an error is no refusal."""

    def __init__(self, watchdog: Watchdog, on_phase: Watcher) -> None:
        self.watchdog = watchdog
        self._on_phase = on_phase
        self.training = False

    def __call__(self, phase: str) -> None:
        self.training = self.training or phase != "load"
        self.watchdog.phase(phase)
        self._on_phase(phase)


def _hold(stack: ExitStack, folder: RunFolder, config: TrainConfig, ranks: Ranks) -> int:
    """Hold the folder until `stack` ends; returns the number of the attempt."""
    stack.enter_context(folder.hold(config, ranks=ranks.world_size))
    clear_beats(folder.path, group=group_name())
    return folder.attempt


def _tell_failure(folder: RunFolder, ranks: Ranks, error: Exception, *, was_training: bool) -> None:
    """Rank 0 writes down why the attempt ended; no rank waits for another, which may be gone."""
    reason = str(error) if isinstance(error, (RunError, StageError)) else f"{type(error).__name__}: {error}"
    step = max((line["step"] for line in read_lines(folder.path / METRICS_NAME)), default=-1)
    with contextlib.suppress(OSError):  # on a full disk the message on the console must do
        if was_training:
            folder.append_event(kind="failure", step=step, detail=reason, action="ended")
        if ranks.is_main:
            folder.write_exit(ExitRecord(code=FAILED if was_training else REFUSED, reason=reason, step=step))


def _attempt(config: TrainConfig, ranks: Ranks, folder: RunFolder, *, stop: StopFlag, on_phase: _Begun) -> ExitRecord:
    """Choose the checkpoint, set up, restore, train."""
    on_phase("load")
    chosen = checkpoint.choose(folder.checkpoints, ranks)
    if ranks.is_main:
        for line in chosen.damaged:
            folder.append_event(kind="damaged_checkpoint", step=-1, detail=line, action="set aside, an older one taken")
            print(f"damaged checkpoint set aside: {line}", flush=True)
    at_step = checkpoint.step_of(chosen.path) if chosen.path is not None else 0
    evaluation = ranks.on_main(lambda: _last_evaluation(folder, step=at_step))
    if at_step >= config.train.last_step and evaluation:
        _say(ranks, f"{folder.path}: already at step {at_step:,} of {config.train.last_step:,}; nothing left to do")
        return ExitRecord(code=DONE, reason="already done", step=at_step)
    if ranks.any(stop.requested):
        return ExitRecord(code=STOPPED, reason=_reason(ranks, stop), step=at_step)
    if config.engine.kind == "deepspeed" and ranks.device.type == "cpu":
        # Another launcher than `dure train` has not compiled it; one rank a machine does, the others wait here.
        add_scripts_to_path()
        ranks.together(lambda: ensure_ops_built() if ranks.local_rank == 0 else None)
    run = set_up(pin_base(config, folder.path, ranks), ranks)
    run.on_phase, run.on_mark = on_phase, on_phase.watchdog.mark
    on_phase.watchdog.follow(lambda: run.progress.step)
    ranks.on_main(lambda: folder.bring_companions(Path(config.data.shards), facts=run.objective.facts()))
    if chosen.path is None:
        refuse_bad_answers(run, ranks)  # before what takes long
    if not know_beginning(run, folder.path, stop_requested=lambda: stop.requested):
        return ExitRecord(code=STOPPED, reason=_reason(ranks, stop), step=at_step)
    if chosen.path is None:
        run_gate(run, ranks)
    else:
        probe_kernel(run)
        restore(run, chosen.path)
        # A save before the evaluation of its step does not know of it.
        if evaluation and run.progress.evaluated_step != at_step:
            run.progress.note_evaluation(loss=badness(config, evaluation))
    _introduce(run, folder, chosen.path)
    ranks.on_main(lambda: _begin(folder, run, chosen.path))
    journal = ranks.together(lambda: _open_journal(run, folder, resumed=chosen.path is not None))
    try:
        finished = train(run, journal, checkpoints=folder.checkpoints, stop_requested=lambda: stop.requested)
    finally:
        journal.close()
    if finished:
        _say(ranks, f"{folder.path}: done at step {run.progress.step:,}")
        return ExitRecord(code=DONE, reason="done", step=run.progress.step)
    reason = _reason(ranks, stop)
    _say(ranks, f"{folder.path}: stopped by {reason} after step {run.progress.step:,}; the same command goes on")
    return ExitRecord(code=STOPPED, reason=reason, step=run.progress.step)


def know_beginning(run: Run, folder: Path, *, stop_requested: Callable[[], bool]) -> bool:
    """Let the objective see the model as it begins; False where a rank was asked to stop meanwhile."""
    size = run.config.evaluation.micro_batch_sequences
    assert size is not None, "the config resolves it"
    return run.objective.before_training(
        run.engine.module,
        folder,
        micro_batch_sequences=size,
        stop_requested=stop_requested,
        on_batch=run.on_mark,
    )


def _begin(folder: RunFolder, run: Run, resumed: Path | None) -> None:
    """Write down where the attempt starts, and forget what was logged after that step."""
    step = run.progress.step
    folder.rewind(step=step if resumed is not None else -1)
    detail = {"reason": str(resumed or "a new run"), **asdict(run.parameters)}
    if lost := run.stream.rows.counts.num_documents_too_long:
        detail["num_rows_left_out"] = lost
    if run.reshaped:
        folder.append_event(kind="reshaped", step=step, detail=run.reshaped, action="each rank reads its own part")
    folder.append_event(kind="started", step=step, detail=detail, action="trains on from here")


def _open_journal(run: Run, folder: RunFolder, *, resumed: bool) -> Journal:
    """The journal of this attempt; the ledger goes back to where it starts."""
    step = run.progress.step if resumed else -1
    rewind_ledger(folder.path, step=step, rank=run.ranks.rank, world_size=run.ranks.world_size)
    return Journal(run, folder)


def _last_evaluation(folder: RunFolder, *, step: int) -> dict[str, Any]:
    """What an earlier attempt wrote down of an evaluation of `step`; {} if it was never finished."""
    lines = read_lines(folder.path / EVALUATIONS_NAME)
    return next((line for line in lines if line["step"] == step), {})


def _reason(ranks: Ranks, stop: StopFlag) -> str:
    """The signal that any rank got first."""
    return next((name for name in ranks.gather_objects(stop.signal_name) if name), "no signal")


def _introduce(run: Run, folder: RunFolder, resumed: Path | None) -> None:
    """What is about to be trained, on what, with which kernel and why: a person reads this first."""
    config, rows = run.config, run.stream.rows
    steps, sequences = config.train.last_step, config.train.global_batch_sequences
    apart, size, form = "packed documents are apart (checked)", "", "examples"
    if STAGES[config.stage].rows == "examples":
        apart = "examples are padded"  # what the gate looks at, at a fresh start
    else:
        size = f" x {config.data.seq_len:,} = {steps * sequences * config.data.seq_len:,} tokens"
        form = f"rows ({config.data.packing})"
    epochs = steps * sequences / rows.num_rows
    engine = config.engine.kind if config.engine.kind == "none" else f"deepspeed ZeRO-{config.engine.zero_stage}"
    lines = [
        f"{folder.path}: {config.stage}, {run.parameters.total:,} parameters, {run.ranks.world_size} x "
        f"{_device_name(run.ranks)}, engine {engine}, {config.train.precision}",
        *_tuning(run),
        f"  attention {run.kernel.kernel}: {run.kernel.reason}; {apart}",
        f"  {steps:,} steps of {sequences:,}{size}: {epochs:.2f} epochs of {rows.num_rows:,} {form}",
        *_left_out(run),
        *(f"  {line}" for line in sampled(config)),
        f"  from step {run.progress.step:,}: {resumed}" if resumed is not None else "  a new run",
        *([f"  {run.reshaped}: each rank reads its own part"] if run.reshaped else []),
        *(f"  {line}" for line in unread_keys(config)),
    ]
    _say(run.ranks, "\n".join(lines))


def _left_out(run: Run) -> list[str]:
    """Instruction rows that `data.too_long: drop` loses, of either split; nothing where there is none."""
    counts, heldout = run.stream.rows.counts, run.heldout
    splits = (
        ("training", counts.num_documents_too_long, counts.num_documents),
        ("held-out", heldout.num_documents_too_long, heldout.num_documents + heldout.num_documents_too_long),
    )
    return [
        f"  LEFT OUT: {lost:,} of {of_all:,} {split} rows ({lost / of_all:.1%}) are longer than data.seq_len "
        f"{run.config.data.seq_len:,} (너무 긴 행); raise it to keep them"
        for split, lost, of_all in splits
        if lost
    ]


def _tuning(run: Run) -> list[str]:
    """What is trained of a base that stays frozen, and how that is held."""
    config, adapter = run.config, run.config.adapter
    if adapter is None:
        return []
    targets = adapter.targets if isinstance(adapter.targets, str) else ", ".join(adapter.targets)
    kind = "DoRA" if adapter.weight_decomposed else "rsLoRA" if adapter.rank_stabilized else "LoRA"
    lines = [
        f"  {kind} rank {adapter.rank} on {targets}: {run.parameters.trainable:,} of them trained "
        f"({run.parameters.trainable_percent:.4f} %); the base {config.model.source} is frozen"
    ]
    if (quantization := config.model.quantization) is not None:
        held = held_bytes(run.engine.model)
        double = ", double quantisation" if quantization.double_quantization else ""
        lines.append(
            f"  base in {quantization.kind}{double}, computes in {quantization.compute_dtype}: this rank holds "
            f"{held.here / 2**20:,.1f} of {held.whole / 2**20:,.1f} MiB, and {held.scales / 2**20:,.1f} MiB of scales; "
            f"at most {memory_gib(run.ranks.device):.1f} GiB while it was loaded"
        )
    return lines


def _device_name(ranks: Ranks) -> str:
    return torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "CPU"


def _say(ranks: Ranks, text: str) -> None:
    if ranks.is_main:
        print(text, flush=True)
