"""Files that `dure train` has to make into shards first: a stop signal ends that at once, and nothing is made twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.stages

# `dure train` as far as the preparation goes; argv is the config and its overrides.
CALLER = """
import sys
from launch.local import hold_signals
held = hold_signals()
from data_pipeline.config import load
from launch.raw_stages import prepare
from trainer.config import TrainConfig
print("held", flush=True)
sys.exit(prepare(load(sys.argv[1], sys.argv[2:], TrainConfig).data.raw, sys.argv[1:], held=held))
"""


def call(folder: Path, cache: str) -> subprocess.Popen[str]:
    raw = {"inputs": [str(folder / "rows.jsonl")], "cache": str(folder / cache), "vocab_size": 300}
    words = ["configs/debug.yaml", 'data.shards=""', f"data.raw={json.dumps(raw)}"]
    return subprocess.Popen(
        [sys.executable, "-c", CALLER, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("raw")
    lines = (json.dumps({"text": f"두레 {number}호 논에 물을 대고 벼를 심는다. " * 60}) for number in range(8_000))
    (made / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return made


def wait_for_begin(process: subprocess.Popen[str], cache: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(cache.glob("corpus-*")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 85), (signal.SIGUSR1, 85), (signal.SIGINT, 130)])
def test_a_stop_signal_ends_the_preparation_at_once(folder: Path, number: signal.Signals, code: int) -> None:
    cache = f"stopped-by-{number.name}"
    process = call(folder, cache)
    wait_for_begin(process, folder / cache)

    process.send_signal(number)
    told = process.communicate(timeout=120)[0]

    assert process.returncode == code, told
    assert "the same command goes on" in told
    assert not list((folder / cache).glob("shards-*/manifest.json"))


def test_the_same_command_goes_on_and_ends_with_the_same_shards(folder: Path) -> None:
    stopped = call(folder, "resumed")
    wait_for_begin(stopped, folder / "resumed")
    stopped.send_signal(signal.SIGTERM)
    stopped.communicate(timeout=120)

    for cache in ("resumed", "undisturbed"):
        process = call(folder, cache)
        told = process.communicate(timeout=300)[0]
        assert process.returncode == 0, told

    resumed, undisturbed = (
        json.loads(next((folder / cache).glob("shards-*/manifest.json")).read_text())["splits"]
        for cache in ("resumed", "undisturbed")
    )
    assert resumed == undisturbed


def test_a_killed_caller_leaves_no_preparation_behind(folder: Path) -> None:
    process = call(folder, "orphaned")
    wait_for_begin(process, folder / "orphaned")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children

    process.kill()
    process.wait()

    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "the preparation outlived its caller"
        time.sleep(0.05)
