"""DeepSpeed's compiled ops are built once, in one process, before the ranks start.

On a CPU, DeepSpeed 0.19 builds `deepspeed_shm_comm` when its communication backend is made (TorchBackend), in every
rank at once; torch lets one build and the others wait for a file `lock`, for ever if its builder was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from data_pipeline import disk
from trainer.errors import RunError
from trainer.programs import path_with_scripts

OP_NAME = "deepspeed_shm_comm"
BUILT_NAME = "dure-built.json"
# Debian's and Ubuntu's packages by the program that they bring.
TOOLS = {"g++": "g++", "ninja": "ninja-build"}

_BUILD = """
import signal, sys
signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP))
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
print("built:" + ShareMemCommBuilder().load(verbose=False).__file__)
"""


def ensure_ops_built() -> None:
    """DeepSpeed's op for ranks on a CPU stands compiled in torch's cache; returns at once where it does already.

    A stop signal that `launch.local.hold_signals` holds ends the build and stays pending for `start_ranks`.

    Raises:
        RunError: a compiler is missing, or the build failed.
    """
    check_tools()
    root = extensions_root()
    root.mkdir(parents=True, exist_ok=True)
    with _one_builder(root):
        remove_stale_locks(root)
        if is_built(root):
            return
        print("DeepSpeed's shared-memory op is compiled, once on this machine (1-2 minutes) …", file=sys.stderr)
        if (library := _build(root)) is not None:
            disk.write_json(root / BUILT_NAME, {**_versions(), "library": library})


def extensions_root() -> Path:
    """Where torch keeps compiled extensions; by the same variables as torch.utils.cpp_extension."""
    if given := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "torch_extensions"


def check_tools() -> None:
    """Refuse, naming every missing program at once; torch asks for them also to load what is compiled."""
    missing = [package for program, package in TOOLS.items() if shutil.which(program) is None]
    if missing:
        packages = " ".join(missing)
        raise RunError(
            f"DeepSpeed on a CPU compiles and loads an op, but this machine lacks {packages}; "
            f"install it (apt-get install {packages}), or set engine.kind=none"
        )


def _versions() -> dict[str, str]:
    names = ("torch", "deepspeed")
    # The one that ranks will find, whoever asks: a person's shell may have another.
    ninja = subprocess.run(
        ["ninja", "--version"], capture_output=True, text=True, env={**os.environ, "PATH": path_with_scripts()}
    )
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": sys.version.split()[0], "ninja": ninja.stdout.strip(), **found}


def is_built(root: Path) -> bool:
    """Whether the op stands compiled under `root` by the versions that are installed now; needs ninja on PATH."""
    try:
        stamp = json.loads((root / BUILT_NAME).read_text())
    except (OSError, ValueError):
        return False
    library = stamp.pop("library", "")
    return stamp == _versions() and Path(library).is_file()


@contextlib.contextmanager
def _one_builder(root: Path) -> Iterator[None]:
    """Other starts wait here; the kernel gives the lock back when its holder dies."""
    with (root / ".dure-build").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove_stale_locks(root: Path) -> list[Path]:
    """Remove the `lock` files of killed builds of the op; waits for a build that some process still runs."""
    removed = []
    for lock in sorted({*root.glob(f"{OP_NAME}/lock"), *root.glob(f"*/{OP_NAME}/lock")}):
        while lock.exists() and is_open_somewhere(lock):
            time.sleep(0.5)
        with contextlib.suppress(FileNotFoundError):
            lock.unlink()
            removed.append(lock)
            print(f"{lock}: left by a build that was killed; removed", file=sys.stderr)
    return removed


def is_open_somewhere(path: Path) -> bool:
    """Whether a process of this machine has the file open: torch's builder keeps its lock open while it builds."""
    status = path.stat() if path.exists() else None
    if status is None:
        return False
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.path.samestat(link.stat(), status):
                return True
    return False


def _build(root: Path) -> str | None:
    """The path of the compiled library; None where a held stop signal ended the build."""
    process = subprocess.Popen(
        [sys.executable, "-c", _BUILD],
        env={**os.environ, "PATH": path_with_scripts(), "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        while True:
            try:
                output, errors = process.communicate(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                if signal.sigpending() & {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP}:
                    return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            remove_stale_locks(root)
    library = next((line[6:] for line in output.splitlines() if line.startswith("built:")), None)
    if process.returncode != 0 or library is None:
        tail = "\n".join((output + errors).splitlines()[-15:])
        raise RunError(f"DeepSpeed's {OP_NAME} did not compile; install g++ and ninja-build, or see below:\n{tail}")
    return library
