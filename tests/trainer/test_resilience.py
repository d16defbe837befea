"""Law 8's verdict, law 12's flag: what a process does with signals, bad figures and a reader that is gone."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.config import ConfigError, validate
from trainer.errors import TrainingStopped
from trainer.resilience import StepPolicy, StepPolicyConfig, Verdict
from trainer.stop_flag import STOP_SIGNALS, LastingStream

# Prints "ready", then waits to be asked to stop; says what it was asked by.
LOOP = """
import time
from trainer.stop_flag import StopFlag
flag = StopFlag()
flag.install()
print("ready", flush=True)
while not flag.requested:
    time.sleep(0.01)
time.sleep(LINGER)
print(flag.signal_name, flag.time > 0, flush=True)
"""


def start(code: str = LOOP, *, linger: float = 0, **options: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code.replace("LINGER", str(linger))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    return process


def wait_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_signal_sets_the_flag_and_names_itself(number: signal.Signals) -> None:
    process = start()
    wait_ready(process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert output == f"{number.name} True\n"


def test_the_first_signal_is_the_one_remembered() -> None:
    process = start(linger=1)
    wait_ready(process)
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=20)
    assert output == "SIGUSR1 True\n"
    assert errors == "SIGUSR1: stopping after this step, with a checkpoint\n"


def test_signals_held_back_since_the_start_are_taken_once_installed() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        process = start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    process.send_signal(signal.SIGTERM)  # Python itself has hardly begun
    output, _ = process.communicate(timeout=20)
    assert output == "ready\nSIGTERM True\n"


def test_a_second_interrupt_ends_at_once_and_says_that_nothing_was_saved() -> None:
    process = start(linger=30)
    wait_ready(process)
    process.send_signal(signal.SIGINT)
    time.sleep(1.2)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (130, "")
    assert "once more within 10 s: at once, without" in errors
    assert "stopped at once, nothing saved; the last complete checkpoint stands" in errors


def test_one_press_that_arrives_twice_is_one_press() -> None:
    process = start(linger=1)
    wait_ready(process)
    process.send_signal(signal.SIGINT)  # from the terminal
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)  # and again from torchrun's agent
    output, _ = process.communicate(timeout=20)
    assert output == "SIGINT True\n"


def test_only_rank_0_speaks() -> None:
    process = start(env={**os.environ, "RANK": "1"})
    wait_ready(process)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20) == ("SIGTERM True\n", "")


def test_the_flag_is_there_before_anything_heavy_is_loaded() -> None:
    code = "import sys; from trainer.stop_flag import StopFlag; print(sorted(m for m in sys.modules if m in HEAVY))"
    code = code.replace("HEAVY", "('torch', 'numpy', 'pydantic', 'ruamel')")
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
    code = "import sys, trainer.resilience, trainer.run_folder, trainer.checkpoint; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


ORPHAN = """
import os, subprocess, sys
from trainer.stop_flag import LAUNCHER_PID
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env={**os.environ, VARIABLE: str(os.getpid())})
import time; time.sleep(60)
"""
LOOP_OF_A_RANK = LOOP.replace(
    "flag.install()", "flag.install()\nfrom trainer.stop_flag import die_with_parent\ndie_with_parent()"
)


def orphan_output(variable: str) -> str:
    code = ORPHAN.replace("VARIABLE", variable)
    rank = LOOP_OF_A_RANK.replace("LINGER", "0").replace(
        "while not", "end = time.time() + 1\nwhile time.time() < end and not"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, rank], stdout=subprocess.PIPE, text=True)
    wait_ready(parent)
    parent.kill()
    assert parent.stdout is not None
    return parent.stdout.read()


@pytest.mark.parametrize("variable", ["LAUNCHER_PID", "'TORCHELASTIC_RUN_ID'"])
def test_a_rank_stops_when_its_launcher_is_killed(variable: str) -> None:
    assert orphan_output(variable) == "SIGTERM True\n"


def test_a_process_that_a_person_started_outlives_its_shell() -> None:
    assert orphan_output("'HARMLESS'") == " False\n"


def test_a_launcher_that_died_before_the_rank_looked_stops_it_too() -> None:
    process = start(LOOP_OF_A_RANK, env={**os.environ, "DURE_LAUNCHER_PID": "1"})
    output, _ = process.communicate(timeout=20)
    assert output == "ready\nSIGTERM True\n"


def test_a_reader_that_went_away_ends_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom trainer.resilience import outlive_terminal\noutlive_terminal()\n"
        "print('ready', flush=True)\ntime.sleep(1)\nprint('x' * 100000, flush=True)\nprint('y', file=sys.stderr)\n"
        f"open({str(tmp_path / 'done')!r}, 'w').close()\n"
    )
    process = start(code)
    wait_ready(process)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    process.wait(timeout=20)
    assert (tmp_path / "done").exists()


def test_a_lasting_stream_is_the_stream_in_all_else(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file:
        stream = LastingStream(file)
        stream.writelines(["a", "b"])
        stream.flush()
        assert (stream.encoding, stream.fileno(), stream.isatty()) == (file.encoding, file.fileno(), False)
    assert stream.write("closed by now") == 13
    assert (tmp_path / "out").read_text() == "ab"


def policy(**config: object) -> StepPolicy:
    return StepPolicy(validate(config, StepPolicyConfig, where="test"))


@pytest.mark.parametrize(
    ("loss", "grad_norm"), [(math.nan, 1), (1, math.nan), (math.inf, 1), (1, math.inf), (1, -math.inf)]
)
def test_a_figure_that_is_not_finite_is_always_refused(loss: float, grad_norm: float) -> None:
    verdict = policy().accepts(loss, grad_norm)
    assert not verdict.accepted
    assert verdict.reason == f"not finite: loss {loss:g}, grad_norm {grad_norm:g}"


def test_without_the_rule_no_finite_figure_is_a_spike() -> None:
    judge = policy()
    assert [judge.accepts(1, 1).accepted for _ in range(600)] == [True] * 600
    assert judge.accepts(1e30, 1e30) == Verdict(accepted=True)


SPIKES = {"refuse_spikes": True, "spike_window": 4, "spike_warmup_steps": 6}


def test_a_spike_is_refused_after_the_warm_up_only() -> None:
    judge = policy(**SPIKES)
    assert [judge.accepts(2.0, grad_norm).accepted for grad_norm in (1, 1, 1, 1, 99, 1, 1, 1)] == [True] * 8
    # The window is 1, 1, 1 and one 99: its median is 1.
    assert judge.accepts(2.0, 10.0).accepted
    assert judge.accepts(2.0, 10.1).reason == "spike: grad_norm 10.1 is more than 10 x its median 1"
    assert judge.accepts(4.1, 1.0).reason == "spike: loss 4.1 is more than 2 x its median 2"


def test_a_refused_step_leaves_no_trace_in_the_medians() -> None:
    judge = policy(**SPIKES)
    for _ in range(8):
        judge.accepts(2.0, 1.0)
    before = judge.state_dict()
    assert not judge.accepts(2.0, 50.0).accepted
    after = judge.state_dict()
    assert (after["grad_norms"], after["num_accepted"]) == (before["grad_norms"], before["num_accepted"])


def test_more_refusals_in_a_row_than_allowed_stop_the_run() -> None:
    judge = policy(max_consecutive_skips=2)
    for loss in (math.nan, math.nan, 1.0, math.nan, math.nan):
        judge.accepts(loss, 1.0)
        judge.check_consecutive()
    judge.accepts(math.nan, 1.0)
    with pytest.raises(
        TrainingStopped, match=r"max_consecutive_skips: 3 updates in a row were refused, the limit is 2"
    ):
        judge.check_consecutive()


def test_two_resumes_in_a_row_give_the_verdicts_of_one_run() -> None:
    figures = [(2 + 0.1 * (i % 3), (1 + i % 5) * (40 if i % 7 == 6 else 1) / 3) for i in range(40)]
    straight = policy(**SPIKES)
    expected = [straight.accepts(*figure) for figure in figures]
    assert {verdict.accepted for verdict in expected} == {True, False}

    judge, seen = policy(**SPIKES), []
    for part in (figures[:9], figures[9:21], figures[21:]):
        seen += [judge.accepts(*figure) for figure in part]
        resumed = policy(**SPIKES)
        resumed.load_state_dict(json.loads(json.dumps(judge.state_dict())))
        judge = resumed

    assert seen == expected
    assert judge.state_dict() == straight.state_dict()


def test_a_factor_that_refuses_everything_is_no_config() -> None:
    with pytest.raises(ConfigError, match="spike_loss_factor: input should be greater than 1, got 1"):
        policy(spike_loss_factor=1)
