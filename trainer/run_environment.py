"""What a run was made with: commit, package versions, devices. Asks without importing what it asks about."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = (
    "dure",
    "torch",
    "transformers",
    "accelerate",
    "deepspeed",
    "datasets",
    "peft",
    "bitsandbytes",
    "flash-attn",
    "liger-kernel",
    "safetensors",
    "tokenizers",
    "pyarrow",
    "numpy",
    "numba",
    "pydantic",
)


def describe_environment() -> dict[str, Any]:
    """environment.json: plain values, null for what this machine lacks."""
    return {
        "commit": _commit(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": _cpu_name(),
        "num_cores": len(os.sched_getaffinity(0)),
        "gpus": _gpus(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, with "+changes" where files differ from it."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return None
    commit = _output("git", "-C", str(checkout), "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _output("git", "-C", str(checkout), "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if changes else commit


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _gpus() -> list[str]:
    names = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return names.splitlines() if names else []
