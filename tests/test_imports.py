"""Each package imports with the packages that it may not know blocked, module by module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
TRAINING = ("torch", "transformers", "accelerate", "deepspeed", "peft", "datasets", "bitsandbytes")

# Imports all modules after the first argument, with those of the first (by commas) impossible to import.
PROGRAM = """
import importlib, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} is blocked")

blocked = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Block())
for name in sys.argv[2:]:
    importlib.import_module(name)
"""


def modules_of(package: str) -> list[str]:
    """Every module of a package by its dotted name, but for `__main__`, which runs when it is imported."""
    paths = sorted((REPO / package).rglob("*.py"))
    names = [path.relative_to(REPO).with_suffix("").as_posix().replace("/", ".") for path in paths]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def import_without(blocked: tuple[str, ...], modules: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, ",".join(blocked), *modules]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("package", "blocked"),
    [
        ("data_pipeline", ("trainer", "launch", *TRAINING)),
        ("trainer", ("launch",)),
        ("launch", ("torch", "transformers", "accelerate", "deepspeed", "datasets")),
    ],
)
def test_a_package_imports_without_those_it_may_not_know(package: str, blocked: tuple[str, ...]) -> None:
    modules = modules_of(package)

    done = import_without(blocked, modules)

    assert len(modules) > 5
    assert done.returncode == 0, done.stderr


def test_config_needs_pydantic_and_ruamel_only() -> None:
    blocked = ("numpy", "pyarrow", "numba", "tokenizers", "tqdm", *TRAINING)

    assert import_without(blocked, ["data_pipeline.config", "data_pipeline.stage"]).returncode == 0


def test_a_blocked_package_can_not_be_imported() -> None:
    """The negative control of this file."""
    done = import_without(("numpy",), ["data_pipeline.shards.reader"])

    assert "numpy is blocked" in done.stderr
    assert done.returncode == 1
