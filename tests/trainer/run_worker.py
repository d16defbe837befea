"""Carries out attempts of runs, one after the other, on ranks that are started once: an import costs seconds.

`python run_worker.py PLAN.json`, under torchrun for several ranks. PLAN: a list of {config: FILE, signal?: {rank, name,
phase, count, delay_seconds}, expect: exit code}. A signal is a real one: it is sent to the rank's own process
`delay_seconds` after the phase of that name began for the `count`-th time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from data_pipeline.config import load
from trainer import checkpoint
from trainer.config import TrainConfig
from trainer.ranks import Ranks, start_ranks, stop_ranks
from trainer.resilience import StopFlag
from trainer.run import run_in_group
from trainer.run_folder import read_lines


class SignalAt:
    """Sends this process a signal some time after a phase began."""

    def __init__(self, plan: dict[str, Any] | None, rank: int) -> None:
        self._plan = plan if plan is not None and plan["rank"] == rank else None
        self._begun = 0
        self._timer: threading.Timer | None = None

    def __call__(self, phase: str) -> None:
        if self._plan is None or phase != self._plan["phase"]:
            return
        self._begun += 1
        if self._begun == self._plan["count"]:
            number = getattr(signal, self._plan["name"])
            self._timer = threading.Timer(self._plan["delay_seconds"], os.kill, (os.getpid(), number))
            self._timer.start()

    def join(self) -> None:
        """No signal of this attempt may reach the next one."""
        if self._timer is not None:
            self._timer.join()


def attempt(step: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Carry one out; what it left: its exit code, its last finished, recorded and saved step, and where it began."""
    from accelerate.state import AcceleratorState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    AcceleratorState._reset_state(reset_partial_state=True)
    unset_hf_deepspeed_config()  # a model of the attempt before must not make this one load in slices
    config = load(step["config"], step.get("overrides", []), TrainConfig)
    stop = StopFlag()
    stop.install()
    sender = SignalAt(step.get("signal"), ranks.rank)
    code = run_in_group(config, ranks, stop=stop, on_phase=sender)
    sender.join()
    return {"code": code} | (traces(Path(config.run.folder) / config.run.name) if ranks.is_main else {})


def traces(run: Path) -> dict[str, Any]:
    complete = checkpoint.find_complete(run / "checkpoints")
    logged = [line["step"] for line in read_lines(run / "metrics.jsonl")]
    began = [event["step"] for event in read_lines(run / "events.jsonl") if event["kind"] == "started"]
    return {
        "recorded": json.loads((run / "exit.json").read_text())["step"],
        "saved": checkpoint.step_of(complete[0]) if complete else 0,
        "logged": logged[-1] if logged else 0,
        "began": began,
    }


def main(path: str) -> None:
    ranks = start_ranks(use_gpu=False)
    outcomes = [attempt(step, ranks) for step in json.loads(Path(path).read_text())]
    if ranks.is_main:
        Path(path).with_suffix(".outcomes.json").write_text(json.dumps(outcomes))
    ranks.barrier()
    stop_ranks()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
    os._exit(0)
