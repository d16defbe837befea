"""Whether a SLURM of two nodes can be started on this machine, and in which way.

`python -m tests.slurm.installed` installs SLURM where root allows. A machine of a person may lack it: tests skip and
say so. Under CI=true they fail instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Literal, cast

import pytest

Mode = Literal["netns", "multi"]

MODE_VARIABLE = "DURE_SLURM_LAB"  # to try the other mode by hand
PROGRAMS = ("slurmctld", "slurmd", "srun", "sbatch", "munged", "ip", "nsenter", "unshare", "setpriv")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "iproute2", "util-linux")
_APART = ("--uts", "--pid", "--mount", "--fork", "--mount-proc")
# Namespaces of a user's own, where a user may have them.
AS_USER = ("--user", "--map-current-user", "--keep-caps")


def missing_programs() -> list[str]:
    """What is not there; programs of the administrator are found too."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join(dict.fromkeys([*folders, "/usr/sbin", "/sbin"]))
    return [program for program in PROGRAMS if shutil.which(program) is None]


def missing_slurm() -> str:
    """What to do where there is none; "" where there is one."""
    if not (missing := missing_programs()):
        return ""
    return (
        f"slurm: no {', '.join(missing)} on PATH (SLURM 없음); nothing is tested on a cluster without it: install it "
        f"(`apt-get install {' '.join(PACKAGES)}`, or run `python -m tests.slurm.installed` as root)"
    )


def find_mode() -> Mode | None:
    """How two nodes can be made here: with networks of their own, or on addresses of the loopback device."""
    if (asked := os.environ.get(MODE_VARIABLE)) in ("netns", "multi"):
        return cast("Mode", asked)
    probe = f"dl{os.getpid()}"
    if _can("ip", "netns", "add", probe):
        _can("ip", "netns", "del", probe)
        return "netns"
    user = () if os.geteuid() == 0 else AS_USER
    return "multi" if _can("unshare", *user, *_APART, "true") else None


def require_mode() -> Mode:
    """The way; without SLURM the test is skipped with the reason, under CI=true it fails.

    A sandbox that allows no namespaces at all can't have two nodes, whatever is installed: skipped everywhere.
    """
    if reason := missing_slurm():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    if (mode := find_mode()) is None:
        pytest.skip("slurm: neither network nor mount namespaces are allowed here; run the tests as root")
    return mode


def _can(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def main() -> int:
    """Install SLURM where root allows; without one, fail only under CI=true."""
    if missing_programs():
        from launch.toolchain import install

        if reason := install(PACKAGES):
            print(f"{missing_slurm()}; {reason}", file=sys.stderr)
    return 1 if missing_programs() and os.environ.get("CI") == "true" else 0


if __name__ == "__main__":
    sys.exit(main())
