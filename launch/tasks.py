"""Runs a data stage on this machine: its tasks in a process pool, wave after wave, then `finish`.

A stage's tasks commit their own parts, so whatever ends a run early (a failure, Ctrl-C, a kill) leaves finished tasks
finished, and the same command goes on from them. What a task does is not known here.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import groupby

from tqdm import tqdm

from data_pipeline.disk import DiskError
from data_pipeline.stage import Manifest, Stage, StageError, Task

IN_FLIGHT_A_WORKER = 2  # one that runs and one that waits: no worker is idle, and a failure cancels nearly all


class TaskError(StageError):
    """A task that failed, by name. Tasks that were finished stay finished.

    `is_input`: what was given can't be used, as every other StageError says; else the machine failed, or dure did.
    """

    def __init__(self, message: str, *, is_input: bool = False) -> None:
        super().__init__(message)
        self.exit_code = 2 if is_input else 1


@dataclass(frozen=True)
class _Outcome:
    """How a task ended in its process. Plain text, since not every exception can be sent between processes."""

    message: str = ""
    is_explained: bool = True
    is_input: bool = False
    trace: str = ""


def run_stage(stage: Stage, num_workers: int, *, label: str) -> Manifest:
    """Run every task of `stage`, on `num_workers` processes (1: in this one), and return its manifest.

    Raises:
        TaskError: a task failed or its process was killed; tasks that had not begun were left out.
    """
    tasks = sorted(stage.plan(), key=lambda task: task.wave)
    waves = [list(wave) for _, wave in groupby(tasks, key=lambda task: task.wave)]
    num_workers = min(num_workers, max((len(wave) for wave in waves), default=1))
    with _Progress(tasks, label) as progress:
        if num_workers <= 1:
            for task in tasks:
                _check(task, _run(stage, task), label)
                progress.advance(task)
        else:
            with _pool(stage, num_workers) as pool:
                for wave in waves:
                    _run_wave(
                        pool, wave, label=label, max_in_flight=num_workers * IN_FLIGHT_A_WORKER, progress=progress
                    )
    return stage.finish()


def run_task(stage: Stage, task: Task, *, label: str) -> None:
    """Run one task in this process; raises TaskError where it fails."""
    _check(task, _run(stage, task), label)


def num_cores() -> int:
    """Cores that this process may use: a container or a scheduler may allow fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_wave(
    pool: ProcessPoolExecutor, wave: Sequence[Task], *, label: str, max_in_flight: int, progress: _Progress
) -> None:
    """All tasks of a wave; at the first failure no more are begun, and those that run are waited for."""
    waiting = iter(wave)
    running: dict[Future[_Outcome], Task] = {}
    try:
        while True:
            while len(running) < max_in_flight and (task := next(waiting, None)) is not None:
                running[pool.submit(_run_in_worker, task)] = task
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                outcome = future.result()
                task = running.pop(future)
                _check(task, outcome, label)
                progress.advance(task)
    except BrokenProcessPool:
        names = ", ".join(task.name for task in running.values())
        raise TaskError(
            f"{label}: a worker process was killed during one of the tasks {names} (out of memory? 메모리 부족); "
            "finished tasks stay: start again, with fewer --workers"
        ) from None


def _run(stage: Stage, task: Task) -> _Outcome:
    try:
        stage.run(task)
    except (StageError, DiskError) as error:
        text = error.strerror if isinstance(error, DiskError) else None
        return _Outcome(text or str(error), is_input=isinstance(error, StageError), trace=traceback.format_exc())
    except Exception as error:
        return _Outcome(f"{type(error).__name__}: {error}", is_explained=False, trace=traceback.format_exc())
    return _Outcome()


def _check(task: Task, outcome: _Outcome, label: str) -> None:
    if not outcome.message:
        return
    hint = "" if outcome.is_explained else "; a fault of dure's own: please report it with what stands below\n"
    shown = outcome.trace if not outcome.is_explained or os.environ.get("DURE_TRACEBACK") == "1" else ""
    if outcome.is_explained and shown:
        shown = f"\n{shown}"
    raise TaskError(f"{label}: task {task.name}: {outcome.message}{hint}{shown}".rstrip(), is_input=outcome.is_input)


@contextlib.contextmanager
def _pool(stage: Stage, num_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Spawned processes (no thread or lock of this one is copied) that end with this one, however it ends."""
    with _threads_shared_out(num_workers):
        pool = ProcessPoolExecutor(
            num_workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(stage,),
        )
        try:
            yield pool
        except Exception:
            pool.shutdown(cancel_futures=True)  # what runs commits its part
            raise
        except BaseException:
            _kill(pool)  # Ctrl-C: the person waits
            raise
        pool.shutdown()


def _kill(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _threads_shared_out(num_workers: int) -> Iterator[None]:
    """Each worker's native threads (Arrow, tokenizers, numba) get an equal share of the cores."""
    share = str(max(1, num_cores() // num_workers))
    names = [name for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "NUMBA_NUM_THREADS") if name not in os.environ]
    os.environ.update(dict.fromkeys(names, share))
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]


_stage: Stage | None = None


def _start_worker(stage: Stage) -> None:
    global _stage
    _stage = stage
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _ignore_interrupts()


def _ignore_interrupts() -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever: it holds both ends of the queue."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_in_worker(task: Task) -> _Outcome:
    assert _stage is not None
    return _run(_stage, task)


class _Progress:
    """A bar in bytes of input, or in tasks where no task has any; on stderr, and only on a terminal."""

    def __init__(self, tasks: Sequence[Task], label: str) -> None:
        num_bytes = sum(task.num_bytes for task in tasks)
        self._in_bytes = num_bytes > 0
        total, unit = (num_bytes, "B") if self._in_bytes else (len(tasks), "task")
        self._bar = tqdm(total=total, desc=label, unit=unit, unit_scale=self._in_bytes, disable=None)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, task: Task) -> None:
        self._bar.update(task.num_bytes if self._in_bytes else 1)
