"""The processes of a run on this machine: rank 0, which holds its folder, and the launcher or agent above it."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass

import psutil

from trainer.run_lock import Holder
from trainer.stop_flag import LAUNCHER_PID

_AGENT_VARIABLE = "TORCHELASTIC_RUN_ID"
_AGENT_NAMES = ("torchrun", "torch.distributed", "accelerate")


@dataclass(frozen=True)
class Launched:
    """Rank 0, and what started it: `dure train` (which passes signals on), an agent (which must not have one before
    the ranks have saved: it kills them after half a minute), or nobody of interest.
    """

    rank_0: psutil.Process
    launcher: psutil.Process | None
    is_agent: bool

    @property
    def pid(self) -> int:
        """Whom a person would signal."""
        return self.rank_0.pid if self.launcher is None or self.is_agent else self.launcher.pid

    @property
    def may_start_again(self) -> bool:
        """Whether an agent lives that starts ranks anew when these have ended."""
        return self.is_agent and self.launcher is not None and _runs(self.launcher)

    def __str__(self) -> str:
        return f"{'rank 0' if self.pid == self.rank_0.pid else 'dure train'} (pid {self.pid})"

    def tell_to_stop(self) -> None:
        """SIGTERM, which ends all ranks after a save (law 12)."""
        _send(self.rank_0 if self.launcher is None or self.is_agent else self.launcher, signal.SIGTERM)

    def end(self) -> None:
        """End an agent whose ranks have saved and left."""
        if self.launcher is not None:
            _send(self.launcher, signal.SIGTERM)

    def kill(self) -> None:
        """End the launcher and all ranks at once; it stands still meanwhile, so that no rank is told to save by it."""
        top = self.launcher or self.rank_0
        _send(top, signal.SIGSTOP)
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            family = top.children(recursive=True)
        for process in (*family, top):
            _send(process, signal.SIGKILL)


def launched_of(holder: Holder) -> Launched | None:
    """The processes of a holder of this machine; None where it has ended."""
    environ: dict[str, str] = {}
    parent = None
    try:
        rank_0 = psutil.Process(holder.pid)
        environ, parent = rank_0.environ(), rank_0.parent()
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:  # another user's: the signal will say so
        pass
    if parent is not None and environ.get(LAUNCHER_PID) == str(parent.pid):
        return Launched(rank_0, parent, is_agent=False)
    is_agent = parent is not None and _AGENT_VARIABLE in environ and _is_agent(parent)
    return Launched(rank_0, parent if is_agent else None, is_agent=is_agent)


def _is_agent(parent: psutil.Process) -> bool:
    """Whether a rank's parent is the agent that started it: of an orphan it is init, which must get no signal."""
    with contextlib.suppress(psutil.Error):
        return parent.pid != 1 and any(name in word for word in parent.cmdline() for name in _AGENT_NAMES)
    return False


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _send(process: psutil.Process, number: signal.Signals) -> None:
    """Signal a process, where it is still the one that was looked at (psutil compares start times)."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
