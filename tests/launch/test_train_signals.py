"""Law 12 on `dure train` as a process, from argv on: no signal to it or to a rank loses a finished step."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.faults.signal_tries import PHASES, SECTIONS, Try
from tests.trainer.tiny_run import REPO, environment, make_shards, tiny_config, write_config

pytestmark = pytest.mark.stages

# All of law 12's fifty: DURE_SIGNAL_TRIES=50 pytest -m stages tests/launch/test_train_signals.py
NUM_TRIES = int(os.environ.get("DURE_SIGNAL_TRIES", str(len(PHASES))))
# Before it holds signals back (the first 0.1 s) it dies of them, with nothing begun.
BEFORE_ANYTHING = {"TERM": -signal.SIGTERM, "USR1": -signal.SIGUSR1}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards") / "shards")


def a_receiver(launcher: subprocess.Popen[str], seed: int) -> int:
    """`dure train` itself, or one of its ranks where there are any."""
    ranks = [child.pid for child in psutil.Process(launcher.pid).children() if "trainer" in child.cmdline()]
    return random.Random(seed).choice([launcher.pid, *ranks])


@pytest.mark.parametrize("seed", range(NUM_TRIES))
def test_law_12_no_signal_in_any_phase_of_dure_train_loses_a_finished_step(
    tmp_path: Path, shards: Path, seed: int
) -> None:
    chosen, run = Try.of(seed), tmp_path / "run"
    config = write_config(tmp_path / "config.yaml", tiny_config(tmp_path, shards, **SECTIONS))
    command = [sys.executable, "-m", "launch.cli", "train", str(config), "--cpu-ranks", "2"]
    process = subprocess.Popen(
        command, cwd=REPO, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        phases = chosen.wait(run, has_ended=lambda: process.poll() is not None)
        os.kill(a_receiver(process, seed), getattr(signal, f"SIG{chosen.name}"))
        output, _ = process.communicate(timeout=300)
    finally:
        process.kill()

    print(f"{chosen}: the ranks were in {phases or 'nothing yet'}, exit code {process.returncode}")
    if process.returncode == BEFORE_ANYTHING[chosen.name]:
        assert chosen.phase == "argv" and not (run / "attempts.jsonl").exists()
    else:
        assert process.returncode == 85, output
    assert chosen.lost(run) == "", output
