"""A wait for signals tells what came, and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

WAITS = """
import signal, sys
from launch.signals import wait_for
held = {signal.SIGTERM, signal.SIGUSR1}
signal.pthread_sigmask(signal.SIG_BLOCK, {*held, signal.SIGCHLD})
print("ready", flush=True)
while (came := wait_for(held, seconds=0.1)) is None:
    pass
print(came.name)
"""


def test_a_process_that_was_suspended_hears_no_signal_that_was_not_sent() -> None:
    process = subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    for _ in range(3):
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.15)  # longer than the wait: it is past its time when it goes on
        process.send_signal(signal.SIGCONT)
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)

    assert process.communicate(timeout=60)[0] == "SIGUSR1\n"
    assert process.returncode == 0
