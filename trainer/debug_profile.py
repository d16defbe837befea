"""Where the time of a step goes: torch's profiler over a few steps, as a trace to open and a table to read."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from data_pipeline.stream.stream import AnyBatch
from trainer.engine import Engine
from trainer.objectives.objective import Objective, Outcome
from trainer.resilience import StepPolicy
from trainer.setup import Run
from trainer.step import Updater

T = TypeVar("T")

NUM_OPS = 12
PHASES = ("data", "rollout", "forward", "backward", "grad_norm", "optimizer")


def profile_steps(run: Run, trace: Path) -> str:
    """Run one step to warm up and `debug.profile_steps` that are recorded; writes `trace` and returns a table.

    Without anomaly detection, so that the figures are those of training; at rate 0, so that the weights stay.
    """
    steps = run.config.debug.profile_steps
    activities = [ProfilerActivity.CPU]
    if run.ranks.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    updater = Updater(
        engine=_Named(run.engine, run.ranks.device),
        objective=_NamedForward(run.objective, run.ranks.device),
        policy=StepPolicy(run.config.policy),
        ranks=run.ranks,
        seed=run.config.seed,
        stop_requested=lambda: False,
    )
    _step(run, updater)
    with profile(activities=activities, profile_memory=True, acc_events=True) as recorded:
        started = time.perf_counter()
        for _ in range(steps):
            _step(run, updater)
        seconds = time.perf_counter() - started
    recorded.export_chrome_trace(str(trace))
    return _table(recorded, run=run, seconds=seconds, trace=trace)


class _NamedForward(Objective):
    """The objective with its forward pass named in the trace."""

    def __init__(self, objective: Objective, device: torch.device) -> None:
        self._objective, self._device = objective, device
        self.sum_names, self.num_passes = objective.sum_names, objective.num_passes

    def collect(
        self,
        module: nn.Module,
        batches: Sequence[AnyBatch],
        *,
        step: int | None,
        on_mark: Callable[[], None] = lambda: None,
    ) -> list[AnyBatch]:
        def roll_out() -> list[AnyBatch]:
            return self._objective.collect(module, batches, step=step, on_mark=on_mark)

        is_online = type(self._objective).collect is not Objective.collect
        return _phase("rollout", self._device, roll_out) if is_online else list(batches)

    def prepare(self, batches: Sequence[AnyBatch], *, is_training: bool) -> list[AnyBatch]:
        return self._objective.prepare(batches, is_training=is_training)

    def weight(self, batch: AnyBatch) -> float:
        return self._objective.weight(batch)

    def begin_step(self, module: nn.Module, batches: Sequence[AnyBatch]) -> None:
        _phase("forward", self._device, lambda: self._objective.begin_step(module, batches))

    def outcome(self, module: nn.Module, batch: AnyBatch) -> Outcome:
        return _phase("forward", self._device, lambda: self._objective.outcome(module, batch))


def _phase(name: str, device: torch.device, action: Callable[[], T]) -> T:
    """Do `action` under a name in the trace; a GPU is waited for, so that the phase's time is its own."""
    with record_function(name):
        done = action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return done


class _Named:
    """An engine whose verbs have names in the trace."""

    def __init__(self, engine: Engine, device: torch.device) -> None:
        self._engine, self._device = engine, device
        self.module, self.model, self.optimizer = engine.module, engine.model, engine.optimizer
        self.begin_micro_batch, self.discard = engine.begin_micro_batch, engine.discard
        self.save, self.load = engine.save, engine.load

    def backward(self, loss: torch.Tensor) -> None:
        _phase("backward", self._device, lambda: self._engine.backward(loss))

    def grad_norm(self) -> torch.Tensor | float:
        return _phase("grad_norm", self._device, self._engine.grad_norm)

    def apply(self, *, lr: float) -> None:
        _phase("optimizer", self._device, lambda: self._engine.apply(lr=lr))


def _step(run: Run, updater: Updater) -> None:
    def read() -> list[AnyBatch]:
        rows = run.config.train.micro_batch_sequences
        return run.stream.batches(dp_rank=0, dp_world_size=1, micro_batch_sequences=rows)

    updater.step(_phase("data", run.ranks.device, read), number=run.progress.step, lr=0.0)
    run.stream.advance()


def _table(recorded: Any, *, run: Run, seconds: float, trace: Path) -> str:
    """The phases of a step, and the ops that take most time of their own, on the device where there is one."""
    on_gpu = run.ranks.device.type == "cuda"
    steps = run.config.debug.profile_steps
    events = {event.key: event for event in recorded.key_averages()}
    tokens = steps * run.config.train.global_batch_sequences * run.config.data.seq_len
    phases = [(name, events[name].cpu_time_total / 1e6 / seconds) for name in PHASES if name in events]
    ops = [event for name, event in events.items() if name not in PHASES]
    own = {event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in ops}
    total = max(1.0, sum(own.values()))
    lines = [
        f"profile: {steps} steps of {seconds / steps * 1e3:,.0f} ms, {tokens / seconds:,.0f} tokens/s while it watches",
        "  " + ", ".join(f"{name} {share:.0%}" for name, share in phases),
        f"  {'ms a step':>10}  {'share':>6}  {'calls':>6}  op ({'GPU' if on_gpu else 'CPU'} time of its own)",
    ]
    for event in sorted(ops, key=lambda event: -own[event.key])[:NUM_OPS]:
        spent = own[event.key]
        lines.append(f"  {spent / 1e3 / steps:10.2f}  {spent / total:6.1%}  {event.count // steps:6,}  {event.key}")
    lines.append(f"  {trace}: open it at https://ui.perfetto.dev or chrome://tracing")
    return "\n".join(lines)
