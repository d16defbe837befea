"""DeepSpeed's op is built once, before the ranks; a killed build is no obstacle, a missing compiler is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from trainer import ops
from trainer.errors import RunError

ENSURE = """
import signal
from launch.local import hold_signals
from trainer.ops import ensure_ops_built
hold_signals()
ensure_ops_built()
print("pending", [number.name for number in signal.sigpending() - {signal.SIGCHLD}])
"""


def test_missing_programs_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    with pytest.raises(
        RunError, match=r"this machine lacks g\+\+ ninja-build; install it \(apt-get install g\+\+ ninja"
    ):
        ops.ensure_ops_built()


def test_the_cache_is_where_torch_keeps_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "a"))
    assert ops.extensions_root() == tmp_path / "a"
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    from torch.utils.cpp_extension import get_default_build_root

    assert str(ops.extensions_root()) == get_default_build_root()
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert str(ops.extensions_root()) == get_default_build_root()


@pytest.mark.parametrize("inside", ["deepspeed_shm_comm", "py311_cpu/deepspeed_shm_comm"])
def test_a_lock_that_a_killed_build_left_is_removed_and_told(
    tmp_path: Path, inside: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / inside / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert ops.remove_stale_locks(tmp_path) == [lock]
    assert not lock.exists()
    assert capsys.readouterr().err == f"{lock}: left by a build that was killed; removed\n"


def test_the_lock_of_a_living_build_is_waited_for(tmp_path: Path) -> None:
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    code = (
        f"import os, time\nd = os.open({str(lock)!r}, os.O_CREAT | os.O_EXCL)\nprint('x', flush=True)\ntime.sleep(1)\n"
    )
    builder = subprocess.Popen([sys.executable, "-c", code + f"os.remove({str(lock)!r})"], stdout=subprocess.PIPE)
    assert builder.stdout is not None
    builder.stdout.readline()
    assert ops.remove_stale_locks(tmp_path) == []
    assert not lock.exists()
    builder.communicate(timeout=20)


@pytest.mark.stages
def test_what_is_built_is_not_built_again() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", ENSURE], check=True, env=environment, capture_output=True, timeout=600)
    stamp = ops.extensions_root() / ops.BUILT_NAME
    before = stamp.stat().st_mtime_ns
    done = subprocess.run([sys.executable, "-c", ENSURE], check=True, env=environment, capture_output=True, text=True)
    # A build announces itself, and writes its stamp anew.
    assert (done.stdout, done.stderr) == ("pending []\n", "")
    assert stamp.stat().st_mtime_ns == before


@pytest.mark.parametrize("has_scripts", [False, True])
def test_every_start_asks_the_ninja_that_ranks_find(monkeypatch: pytest.MonkeyPatch, has_scripts: bool) -> None:
    """Started from a shell with another ninja, or with none, the op is the same one, and is not compiled anew."""
    scripts = sysconfig.get_path("scripts")
    monkeypatch.setenv("PATH", os.pathsep.join([scripts] * has_scripts + ["/usr/bin", "/bin"]))

    own = subprocess.run([f"{scripts}/ninja", "--version"], capture_output=True, text=True, check=True)

    assert ops._versions()["ninja"] == own.stdout.strip()


@pytest.mark.stages
def test_a_stop_signal_ends_the_build_and_leaves_no_lock(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENSURE],
        env={**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    deadline = time.monotonic() + 120
    while not lock.exists():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=20)

    assert output == "pending ['SIGTERM']\n", errors
    assert "left by a build that was killed; removed" in errors
    assert not lock.exists()
    assert not (tmp_path / ops.BUILT_NAME).exists()
