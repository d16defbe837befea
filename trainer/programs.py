"""Programs that torch starts by name: those that pip installed beside this Python are found too."""

from __future__ import annotations

import os
import sysconfig


def add_scripts_to_path() -> None:
    """Let this environment's own programs be found (pip's ninja): `.venv/bin/python` is run without activation too.

    torch looks for ninja at each start of ranks on a CPU, also where the op is compiled already.
    """
    scripts, folders = sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath).split(os.pathsep)
    if folders[0] != scripts:
        # First, so that every start finds the same ninja: another version compiles all ops anew.
        os.environ["PATH"] = os.pathsep.join([scripts, *folders])
