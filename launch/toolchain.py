"""The compiler that DeepSpeed needs for ranks on a CPU: found, installed where root allows, or named in one message.

`make` calls `python -m launch.toolchain` when it sets up `.venv`; `dure train` calls `prepare_cpu_ranks` before it
starts ranks. How the op itself is compiled is known to `trainer.ops`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from trainer.errors import RunError
from trainer.ops import TOOLS, ensure_ops_built
from trainer.programs import add_scripts_to_path

APT_TIMEOUT_SECONDS = 300


def prepare_cpu_ranks() -> None:
    """What ranks on a CPU compile with is there and compiled; raises RunError that names what is missing."""
    prepare_tools()
    ensure_ops_built()


def prepare_tools() -> None:
    """g++ and ninja stand on PATH, also for child processes; raises RunError if one is missing and can't be installed.

    torch looks for both at each start of the ranks, not only when it compiles.
    """
    add_scripts_to_path()
    if missing := missing_packages():
        reason = install(missing)
        if missing := missing_packages():
            raise RunError(_message(missing, reason))


def missing_packages() -> list[str]:
    """Debian's names of the packages whose program is not on PATH."""
    return [package for program, package in TOOLS.items() if shutil.which(program) is None]


def install(packages: Sequence[str]) -> str:
    """Install by apt; returns why that was not possible, "" if apt ended well."""
    apt = shutil.which("apt-get")
    if apt is None:
        return "there is no apt-get here"
    if os.geteuid() != 0:
        return "only root may install packages"
    print(f"installing {' '.join(packages)} (apt-get) …", file=sys.stderr, flush=True)
    install = [apt, "install", "-y", "--no-install-recommends", *packages]
    for command in (install, [apt, "update"], install):  # a fresh image has no package lists yet
        reason = _run(command)
        if not reason and command is install:
            return ""
    return reason


def _run(command: Sequence[str]) -> str:
    """Run to the end, silently; returns the last line of a failure, "" for success."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=APT_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"{command[0]} {command[1]} took more than {APT_TIMEOUT_SECONDS} s"
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return f"{command[0]} {command[1]}: {lines[-1]}" if done.returncode else ""


def _message(missing: Sequence[str], reason: str) -> str:
    packages = " ".join(missing)
    return (
        f"toolchain: {packages} is missing (컴파일러 없음), and {reason}; DeepSpeed compiles an op for several ranks "
        f"on a CPU: have an administrator run `apt-get install {packages}`, or train with engine.kind=none"
    )


def main() -> int:
    """Prepare the tools for `make`; with `--build` compile the op too. Missing tools fail only there or under CI=true.

    Everything but several DeepSpeed ranks on a CPU works without them.
    """
    build = "--build" in sys.argv[1:]
    try:
        prepare_cpu_ranks() if build else prepare_tools()
    except RunError as error:
        print(error, file=sys.stderr)
        return 1 if build or os.environ.get("CI") == "true" else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
