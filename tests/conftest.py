"""What all tests share: no network, one thread, and a reason for each test that this machine can't run."""

from __future__ import annotations

import os
import signal

import hypothesis
import pytest

# No property is about time: a busy machine, or a kernel's first compilation, must not fail one.
hypothesis.settings.register_profile("dure", deadline=None)
hypothesis.settings.load_profile("dure")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts what stands before `&` with Ctrl-C ignored, and every process that a test starts would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-golden", action="store_true", help="write the golden files anew instead of comparing")


@pytest.fixture(scope="session")
def rewrite_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written; only ever by the explicit flag."""
    return bool(request.config.getoption("--rewrite-golden"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device (GPU 없음)"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
