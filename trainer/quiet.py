"""Keeps the libraries from burying what the run says; their errors stay. DURE_TRACEBACK=1 brings all of it back."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator

_TALKATIVE = ("DeepSpeed", "accelerate", "transformers", "torch.distributed", "bitsandbytes")


def quieten_libraries(*, use_gpu: bool) -> None:
    """Call it before DeepSpeed and transformers are imported. Also tells DeepSpeed the device, which it would guess."""
    if not use_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if os.environ.get("DURE_TRACEBACK"):
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)


def bars_on_terminals_only() -> None:
    """Let transformers draw its bars only where somebody watches: in a log or a pipe they are noise."""
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()


@contextlib.contextmanager
def quiet_prints() -> Iterator[None]:
    """Swallow what a library prints in the block, progress bars too, unless DURE_TRACEBACK=1."""
    if os.environ.get("DURE_TRACEBACK"):
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
