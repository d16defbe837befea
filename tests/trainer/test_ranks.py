"""What one rank does alone, the others wait for: longer than any collective would, but not for a rank that is gone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from launch.local import environments, reserved_port
from tests.trainer.tiny_run import REPO, environment

pytestmark = pytest.mark.stages

# A rank whose collectives end after 2 seconds; rank 0 needs 5, and then says 42 or is gone.
RANK = """
import datetime, os, sys, time
from trainer import ranks as module
module.COLLECTIVE_TIMEOUT = datetime.timedelta(seconds=2)
ranks = module.start_ranks(use_gpu=False)
def slow():
    time.sleep(5)
    if sys.argv[1] == "dies":
        os._exit(3)
    return 42
try:
    print(ranks.on_main(slow))
except RuntimeError as error:
    print("gone:", str(error).splitlines()[0])
"""


def answers(what: str) -> list[str]:
    with reserved_port() as port:
        processes = [
            subprocess.Popen([sys.executable, "-c", RANK, what], cwd=REPO, env=env, stdout=subprocess.PIPE, text=True)
            for env in environments(2, device="cpu", port=port, env=environment())
        ]
        return [process.communicate(timeout=60)[0].strip() for process in processes]


def test_the_ranks_wait_for_what_rank_0_does_alone_longer_than_a_collective_may_take() -> None:
    assert answers("done") == ["42", "42"]


def test_a_rank_0_that_is_gone_is_waited_for_by_nobody() -> None:
    dead, waiting = answers("dies")

    assert dead == ""
    assert waiting.startswith("gone: ")
