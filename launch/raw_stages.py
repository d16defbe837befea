"""The shards of a config's `data.raw`, made in a process of their own before the ranks start.

Hours may pass there, while the caller holds stop signals back for its ranks: they reach this process at once. Finished
parts stay, and the same command goes on from them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from launch.rank_watch import PASSED_ON, tell
from launch.signals import wait_for
from trainer.resilience import DONE, STOPPED
from trainer.stop_flag import EXIT_INTERRUPTED, LAUNCHER_PID, die_with_parent

if TYPE_CHECKING:
    from data_pipeline.raw_config import RawDataConfig
    from data_pipeline.stage import Stage

PROGRESS = "--progress"
PROGRESS_SECONDS = 60.0


def prepare(raw: RawDataConfig | None, words: Sequence[str], *, held: Collection[signal.Signals]) -> int:
    """Make what is missing of the shards of `raw`, which `words` (CONFIG and overrides) name; returns an exit code.

    0: they stand. 85: one of the signals `held` by the caller stopped it. Else it failed, and has said why.
    """
    if raw is None or _stand(raw):
        return DONE
    command = [sys.executable, "-m", "launch.raw_stages", *words]
    # A process group of its own: Ctrl-C reaches it from here only, once.
    process = subprocess.Popen(command, env={**os.environ, LAUNCHER_PID: str(os.getpid())}, process_group=0)
    stopped_by = ""
    try:
        while process.poll() is None:
            if (received := wait_for(held, seconds=0.2)) is not None:
                stopped_by = stopped_by or received.name
                process.send_signal(PASSED_ON[received])
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if stopped_by and process.returncode not in (DONE, EXIT_INTERRUPTED):
        tell(f"{stopped_by}: stopped while the data was prepared; finished parts stay, the same command goes on")
        return STOPPED
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _stand(raw: RawDataConfig) -> bool:
    from data_pipeline.raw import find_shards
    from data_pipeline.stage import StageError

    with contextlib.suppress(StageError):  # not made yet, or refused: the stages tell
        find_shards(raw)
        return True
    return False


def progress(raw: RawDataConfig | None, words: Sequence[str]) -> str:
    """How far `prepare` has come, "corpus: 3 of 9 tasks"; "" without raw files, or where it is not told in time.

    In a process of its own: another run that makes the same data holds its lock.
    """
    if raw is None or _stand(raw):
        return ""
    command = [sys.executable, "-m", "launch.raw_stages", PROGRESS, *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROGRESS_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == DONE else ""


def main(argv: Sequence[str]) -> int:
    """Run the stages, or tell how far they are; the exit codes are those of `dure`."""
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    die_with_parent()
    from launch.cli import exit_code_of, message_of

    try:
        _tell_progress(argv[1:]) if argv[0] == PROGRESS else _run(argv)
    except KeyboardInterrupt:
        print("\ninterrupted (중단됨); what is finished stays, and the same command goes on from it", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        code = exit_code_of(error)
        if code is None:
            raise
        print(message_of(error), file=sys.stderr)
        return code
    return DONE


def _run(argv: Sequence[str]) -> None:
    from data_pipeline.raw import prepare_shards
    from launch.tasks import num_cores, run_stage

    prepare_shards(_raw_of(argv), run=lambda stage, kind: run_stage(stage, num_cores(), label=kind))


class _Counted(Exception):  # noqa: N818 - not an error: the count ends at the first unfinished stage
    """How far that stage is."""


def _tell_progress(argv: Sequence[str]) -> None:
    from data_pipeline.raw import prepare_shards

    try:
        prepare_shards(_raw_of(argv), run=_count)
    except _Counted as counted:
        print(counted)


def _count(stage: Stage, kind: str) -> None:
    tasks = stage.plan()
    raise _Counted(f"{kind}: {sum(map(stage.is_task_done, tasks)):,} of {len(tasks):,} tasks")


def _raw_of(argv: Sequence[str]) -> RawDataConfig:
    from data_pipeline.config import load
    from trainer.config import TrainConfig

    raw = load(argv[0], argv[1:], TrainConfig).data.raw
    assert raw is not None, "the caller has looked"
    return raw


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
