"""`python -m trainer.debug [--profile] CONFIG [key.sub=value ...]`: what `dure train CONFIG --debug` starts.

The story of a try, top to bottom: what was changed, the first batch, the gate, a few steps with everything watched, an
evaluation and a save, a batch learnt by heart, a trace where asked for, and a table of what was found.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.debug_config import RESULT_NAME, as_debug, debug_folder
from trainer.errors import RunError
from trainer.stop_flag import StopFlag, die_with_parent, outlive_terminal

if TYPE_CHECKING:
    from data_pipeline.stream.stream import AnyBatch
    from trainer.config import TrainConfig
    from trainer.debug_checks import LookingPolicy
    from trainer.gate_checks import Check
    from trainer.ranks import Ranks
    from trainer.run_folder import RunFolder
    from trainer.setup import Run

COLOUR_VARIABLE = "DURE_COLOUR"  # "1": a person watches, whatever stands between this process and the terminal
TRACE_NAME = "trace.json"
_TOLD_TOGETHER = ("checkpoint.", "evaluation.", "logging.", "policy.", "gate.")
RED, GREEN, BOLD, RESET = "\x1b[31m", "\x1b[32m", "\x1b[1m", "\x1b[0m"


def main(argv: list[str]) -> int:
    """Carry the try out; 0 all is well, 85 stopped by a signal, else 2: exit.json tells a fault (1) from a refusal."""
    stop = StopFlag()
    stop.install()
    die_with_parent()
    outlive_terminal()
    profile = argv[:1] == ["--profile"]
    words = argv[1:] if profile else argv
    from data_pipeline.config import ConfigError
    from data_pipeline.disk import DiskError
    from data_pipeline.stage import StageError
    from trainer.resilience import REFUSED

    try:
        return _start(words[0], words[1:], stop=stop, profile=profile)
    except (ConfigError, StageError, RunError, DiskError) as error:
        _tell(error)
        return REFUSED  # the one code that the launcher adds no words of its own to


def _tell(error: Exception) -> None:
    if os.environ.get("DURE_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    print(_paint(f"error: {getattr(error, 'short', error)}", RED), file=sys.stderr, flush=True)


def _start(path: str, overrides: Sequence[str], *, stop: StopFlag, profile: bool) -> int:
    import torch

    from data_pipeline.config import load
    from trainer.config import TrainConfig
    from trainer.launch_environment import wants_gpu
    from trainer.quiet import quieten_libraries
    from trainer.ranks import Ranks
    from trainer.run import with_shards

    config = with_shards(load(path, overrides, TrainConfig))
    use_gpu = wants_gpu(num_devices=torch.cuda.device_count() if torch.cuda.is_available() else 0)
    quieten_libraries(use_gpu=use_gpu)
    device = torch.device("cuda", 0) if use_gpu else torch.device("cpu")
    # One process needs no group.
    ranks = Ranks(rank=0, world_size=1, local_rank=0, device=device)
    return debug_run(config, ranks, stop=stop, profile=profile)


def debug_run(config: TrainConfig, ranks: Ranks, *, stop: StopFlag, profile: bool = False) -> int:
    """Try the run that `config` describes, made small by `as_debug`, in its own folder; returns 0 or 85.

    Raises:
        DebugFault: every check that failed, or the first value that was not finite.
        RunError, ConfigError, StageError: the try could not begin.
    """
    from trainer.debug_checks import DebugFault
    from trainer.resilience import FAILED, REFUSED, ExitRecord
    from trainer.run_folder import RunFolder

    small = as_debug(config, on_cpu=ranks.device.type == "cpu")
    folder = RunFolder(debug_folder(config), rank=0)
    _introduce(config, small, folder.path)
    result: dict[str, Any] = {"status": "failed"}
    with ExitStack() as stack:
        stack.enter_context(folder.hold(small, ranks=1))
        try:
            record = _try(small, ranks, folder, stop=stop, profile=profile, result=result)
        except Exception as error:
            result["fault"] = str(error)
            code = FAILED if isinstance(error, DebugFault) else REFUSED
            folder.write_exit(ExitRecord(code=code, reason=str(error), step=-1))
            raise
        finally:
            _write_result(folder.path, result)
        folder.write_exit(record)
    return record.code


def _write_result(folder: Path, result: dict[str, Any]) -> None:
    from data_pipeline import disk

    disk.write_json(folder / RESULT_NAME, result)


def _introduce(config: TrainConfig, small: TrainConfig, folder: Path) -> None:
    """What this try does otherwise than the run."""
    from data_pipeline.config import to_tree
    from trainer.run_folder import changed_keys

    changed = changed_keys(to_tree(config), to_tree(small))
    real = Path(config.run.folder) / config.run.name
    width = max((len(key) for key in changed if not key.startswith(_TOLD_TOGETHER)), default=0)
    lines = [_paint(f"debug: {folder}; the run {real} is not touched", BOLD), "  other than in the run:"]
    told = {key: values for key, values in changed.items() if not key.startswith(_TOLD_TOGETHER)}
    lines += [f"    {key:<{width}}  {_short(old)} → {_short(new)}" for key, (old, new) in told.items()]
    if config.debug.shrink and config.model.source is not None:
        lines.append(f"    {'model.from':<{width}}  {config.model.source} → a small one of its kind, new weights")
    lines.append("    one evaluation and one checkpoint, at the end")
    lines.append("  as in the run: the rows and their template, the optimizer, the adapter (데이터는 그대로)")
    print("\n".join(lines), flush=True)


def _short(value: object) -> str:
    return str(value) if value is not None else "-"


def _try(
    config: TrainConfig, ranks: Ranks, folder: RunFolder, *, stop: StopFlag, profile: bool, result: dict[str, Any]
) -> Any:
    from trainer.debug_checks import FiniteWatch, anomalies_named, check_repeatable, check_weights, first_batches
    from trainer.gate import run_gate
    from trainer.policy_config import ONLINE
    from trainer.resilience import STOPPED, ExitRecord

    with anomalies_named() as not_deterministic:
        run = _set_up(config, ranks, folder)
        folder.bring_companions(Path(config.data.shards), facts=run.objective.facts())
        batches = first_batches(run)
        _show(run, batches[0])
        watch = FiniteWatch(run.engine.model)
        try:
            check_weights(run.engine.model)
            _gate(lambda: run_gate(run, ranks))
            checks = [check_repeatable(run, _learnt_from(run, batches))]
            finished, policy, more = _steps(run, folder, stop=stop)
            # Of answers that are all rewarded alike, as a small new model's are, nothing is learnt.
            is_online = config.stage in ONLINE
            checks += [] if is_online else more
            result["losses"] = policy.losses
            if not finished:
                return ExitRecord(code=STOPPED, reason=stop.signal_name, step=run.progress.step)
            checks += [] if is_online else [_learn_one_batch(run, batches, result)]
        finally:
            watch.close()
    if profile:
        _profile(run, folder.path)
    _conclude(checks, not_deterministic, folder=folder.path, result=result)
    return ExitRecord(code=0, reason="done", step=run.progress.step)


def _learnt_from(run: Run, batches: Sequence[AnyBatch]) -> AnyBatch:
    """The first batch, of prompts with the answers to them; the objective's own state stays as it is."""
    state = run.objective.state_dict()
    collected = run.objective.collect(run.engine.module, batches, step=0)
    run.objective.load_state_dict(state)
    return collected[0]


def _set_up(config: TrainConfig, ranks: Ranks, folder: RunFolder) -> Run:
    from data_pipeline.stream.examples import ExampleSet
    from trainer.base import pin_base
    from trainer.debug_base import with_small_base
    from trainer.reference import Reference
    from trainer.run import know_beginning
    from trainer.setup import set_up
    from trainer.sources import check_stage

    check_stage(config.stage, Path(config.data.shards))
    if config.debug.shrink and config.model.source is not None:
        config = with_small_base(config, folder.path)
    else:
        config = pin_base(config, folder.path, ranks)
    run = set_up(config, ranks)
    reference = getattr(run.objective, "reference", None)
    if isinstance(reference, Reference):
        assert isinstance(run.heldout, ExampleSet), "its rows are examples"
        reference.only_heldout(run.heldout.row_numbers)  # all of them would take longer than the try
        know_beginning(run, folder.path, stop_requested=lambda: False)
    counts = run.parameters
    adapter = f", {counts.trainable:,} trained" if counts.trainable != counts.total else ""
    print(
        f"  {config.stage}: {type(run.engine.model).__name__}, {counts.total:,} parameters{adapter}, on "
        f"{ranks.device}, {config.train.precision}, attention {run.kernel.kernel} ({run.kernel.reason})\n",
        flush=True,
    )
    return run


def _show(run: Run, batch: AnyBatch) -> None:
    from trainer.debug_batch import open_tokenizer, show_batch
    from trainer.stages import STAGES

    shards = run.stream.rows.shards
    (prepared,) = run.objective.prepare([batch], is_training=True)
    text = show_batch(
        prepared,
        open_tokenizer(shards.folder),
        num_rows=run.config.debug.num_shown,
        labels=shards.labels,
        is_masked=STAGES[run.config.stage].rows == "framed",
        eos_id=shards.eos_id,
        pad_id=run.vocabulary.pad_id,
        colour=_has_colour(),
    )
    print(f"{text}\n", flush=True)


def _gate(run_gate: Any) -> None:
    """The gate's findings are faults of the try, not a refusal to begin it."""
    from trainer.debug_checks import DebugFault

    try:
        run_gate()
    except DebugFault:
        raise
    except RunError as error:
        names = [line.split(": ")[1] for line in str(error).splitlines() if line.startswith("gate: ")]
        raise DebugFault(str(error), short=_summary("gate", names)) from None
    print(flush=True)


def _steps(run: Run, folder: RunFolder, *, stop: StopFlag) -> tuple[bool, LookingPolicy, list[Check]]:
    """The steps of the real loop with its evaluation and save, and what they did to the weights."""
    from trainer.debug_checks import LookingPolicy, Moves, check_gradients
    from trainer.journal import Journal
    from trainer.loop import train

    model = run.engine.model
    policy, moves = LookingPolicy(run.config.policy, model), Moves(model)
    run.policy = policy
    journal = Journal(run, folder)
    print("steps, with anomaly detection and deterministic kernels:", flush=True)
    try:
        finished = train(run, journal, checkpoints=folder.checkpoints, stop_requested=lambda: stop.requested)
    finally:
        journal.close()
    print(flush=True)
    return (
        finished,
        policy,
        [
            check_gradients(policy, num_trained=moves.num_trained),
            moves.check(model, peak_lr=run.config.train.schedule.peak_lr),
        ],
    )


def _learn_one_batch(run: Run, batches: Sequence[AnyBatch], result: dict[str, Any]) -> Check:
    from trainer.debug_checks import check_overfit, one_batch, overfit

    print("a part of the first batch, again and again …\n", flush=True)
    learnt = overfit(run, one_batch(batches[0], max_tokens=run.config.debug.overfit_tokens))
    result["overfit"] = {"losses": learnt.losses, "limit": learnt.limit, "entropy": learnt.entropy}
    return check_overfit(learnt)


def _profile(run: Run, folder: Path) -> None:
    from trainer.debug_profile import profile_steps

    print(f"{profile_steps(run, folder / TRACE_NAME)}\n", flush=True)


def _conclude(
    checks: Sequence[Check], not_deterministic: Sequence[str], *, folder: Path, result: dict[str, Any]
) -> None:
    """Print the table and raise what failed.

    Raises:
        DebugFault: a line for each check that failed.
    """
    from trainer.debug_checks import DebugFault
    from trainer.gate import table

    faults = [check for check in checks if not check.is_ok]
    result |= {"status": "failed" if faults else "ok", "checks": [asdict(check) for check in checks]}
    result["not_deterministic"] = list(not_deterministic)
    lines = table(checks, title="debug: what the steps showed").splitlines()
    print("\n".join(_marked(line) for line in lines), flush=True)
    if not_deterministic:
        print(f"  note  no deterministic kernel for {', '.join(not_deterministic)}", flush=True)
    if faults:
        names = [check.name for check in faults]
        raise DebugFault("\n".join(_told(check) for check in faults), short=_summary("debug", names))
    print(_paint(f"debug: all is well; {folder} holds what it wrote. The same command without --debug trains.", GREEN))


def _summary(table: str, names: Sequence[str]) -> str:
    return f"{table}: {len(names)} failed: {', '.join(names)}; the table above says why and what to do"


def _told(check: Check) -> str:
    return f"debug: {check.name}: {check.value}, but it must be {check.limit}; {check.advice}"


def _marked(line: str) -> str:
    """A line of the table with its mark in colour."""
    for mark, colour in (("  ok  ", GREEN), ("  FAIL", RED)):
        if line.startswith(mark):
            return _paint(mark, colour) + line[len(mark) :]
    return line


def _has_colour() -> bool:
    return os.environ.get(COLOUR_VARIABLE) == "1"


def _paint(text: str, colour: str) -> str:
    return f"{colour}{text}{RESET}" if _has_colour() else text


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
