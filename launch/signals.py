"""Waiting for signals that are held back (blocked), for so long and no longer."""

from __future__ import annotations

import signal
from collections.abc import Collection


def wait_for(held: Collection[signal.Signals], *, seconds: float) -> signal.Signals | None:
    """The next of `held` that comes within `seconds`; None where none does, or a child ended (SIGCHLD) meanwhile.

    CPython up to 3.13 gives a number that is no signal where SIGCONT (fg after Ctrl-Z) ends the wait past its time.
    """
    received = signal.sigtimedwait({*held, signal.SIGCHLD}, seconds)
    number = None if received is None else received.si_signo
    return next((each for each in held if each == number), None)
