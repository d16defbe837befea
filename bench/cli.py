"""Seconds of `dure --help`, whole process, beside a Python that does nothing; under 0.3 s is the target.

.venv/bin/python bench/cli.py [--rounds 20]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
TARGET_SECONDS = 0.3


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=REPO, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(commands: dict[str, list[str]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of each command in each round; the rounds are interleaved, so that a busy machine slows all of them."""
    found: dict[str, list[float]] = {name: [] for name in commands}
    for command in commands.values():
        seconds(command)  # writes the bytecode cache
    for _ in range(rounds):
        for name, command in commands.items():
            found[name].append(seconds(command))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    script = Path(sys.executable).with_name("dure")
    dure = [str(script)] if script.is_file() else [sys.executable, "-m", "launch.cli"]
    commands = {"python -c pass": [sys.executable, "-c", "pass"], "dure --help": [*dure, "--help"]}
    found = measure(commands, rounds=rounds)
    print(f"{'seconds':16} {'median':>8} {'best':>8} {'worst':>8}")
    for name, values in found.items():
        print(f"{name:16} {statistics.median(values):8.3f} {min(values):8.3f} {max(values):8.3f}")
    out = REPO / "bench" / "out"
    out.mkdir(parents=True, exist_ok=True)
    report = {"machine": platform.platform(), "python": platform.python_version(), "seconds": found}
    (out / "cli.json").write_text(json.dumps(report, indent=1) + "\n")
    is_fast = statistics.median(found["dure --help"]) < TARGET_SECONDS
    print(f"dure --help is {'within' if is_fast else 'OVER'} the target of {TARGET_SECONDS} s")
    return 0 if is_fast else 1


if __name__ == "__main__":
    sys.exit(main())
