"""A Chromium without a window, for tests of pages: what it drew, said and asked for.

`python -m tests.browser` installs one where root allows.
A machine of a person may lack it: tests skip and say so. Under CI=true they fail instead.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PACKAGE = "chromium"
TIMEOUT_SECONDS = 120
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--enable-logging=stderr",
    "--virtual-time-budget=5000",
)


@dataclass(frozen=True)
class Seen:
    """One visit: the DOM at its end, the console's lines, and the addresses that the page asked for."""

    dom: str
    console: tuple[str, ...]
    requests: tuple[str, ...]


def find_browser() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def missing_browser() -> str:
    """What to do where there is none."""
    return (
        f"browser: none of {', '.join(NAMES)} is on PATH (브라우저 없음); pages are not tested without one: "
        f"install it (`apt-get install {PACKAGE}`, or run `python -m tests.browser` as root)"
    )


def require_browser() -> str:
    """The browser's path; without one the test is skipped, under CI=true it fails."""
    path = find_browser()
    if path is not None:
        return path
    if os.environ.get("CI") == "true":
        pytest.fail(missing_browser())
    pytest.skip(missing_browser())


def visit(page: Path, *, width: int = 1280, is_dark: bool = False, screenshot: Path | None = None) -> Seen:
    """Open a file of this disk; with `screenshot` also as a picture."""
    with tempfile.TemporaryDirectory(prefix="browser-") as scratch:
        log = Path(scratch) / "net.json"
        options = [
            *OPTIONS,
            f"--user-data-dir={scratch}/profile",
            f"--log-net-log={log}",
            f"--window-size={width},1000",
        ]
        options += ["--force-dark-mode"] * is_dark
        options += [f"--screenshot={screenshot}"] if screenshot else ["--dump-dom"]
        command = [require_browser(), *options, f"file://{quote(str(page.resolve()))}"]
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_SECONDS, check=True)
        requests = _requests(log)
    said = re.findall(r"INFO:CONSOLE[^\]]*\] (.*)", done.stderr.decode("utf-8", "replace"))
    return Seen(done.stdout.decode("utf-8", "replace"), tuple(said), requests)


def _requests(log: Path) -> tuple[str, ...]:
    """Addresses on a network that a page asked for; the browser's own errands have "not an origin" as initiator."""
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    asked = [event.get("params", {}) for event in events]
    urls = [its["url"] for its in asked if "url" in its and its.get("initiator", "not an origin") != "not an origin"]
    return tuple(dict.fromkeys(url for url in urls if not url.startswith(("file:", "data:", "about:", "chrome"))))


def main() -> int:
    """Install a browser where root allows; without one, fail only under CI=true."""
    if find_browser() is None:
        from launch.toolchain import install

        if reason := install([PACKAGE]):
            print(f"{missing_browser()}; {reason}", file=sys.stderr)
    return 1 if find_browser() is None and os.environ.get("CI") == "true" else 0


if __name__ == "__main__":
    sys.exit(main())
