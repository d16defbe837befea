"""Programs that torch starts by name: those that pip installed beside this Python are found too."""

from __future__ import annotations

import os
import sysconfig


def add_scripts_to_path() -> None:
    """Let this environment's own programs be found (pip's ninja): `.venv/bin/python` is run without activation too.

    torch looks for ninja at each start of ranks on a CPU, also where the op is compiled already.
    """
    os.environ["PATH"] = path_with_scripts()


def path_with_scripts() -> str:
    """PATH with this environment's own programs first: so every start finds one ninja, for another version compiles all
    ops anew."""
    scripts, folders = sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(folders if folders[0] == scripts else [scripts, *folders])
