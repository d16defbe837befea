"""One lab for all tests on the real SLURM, and what they train in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.lab import Lab, slurm_lab
from tests.slurm.world import Case, World
from tests.trainer.tiny_run import make_shards


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with slurm_lab() as running:
        yield running


@pytest.fixture(scope="session")
def world(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("slurm")
    return World(lab, folder, make_shards(folder / "shards"))


@pytest.fixture(scope="session")
def undisturbed(world: World) -> Case:
    """The run that every fault drill's losses are compared with: two nodes, a rank each, ZeRO-2."""
    case = world.case("undisturbed")
    case.submit()
    case.finish()
    return case


@pytest.fixture
def calm(lab: Lab) -> Iterator[Path]:
    """A test of its own nodes: they are up and idle before it, and are brought back after it."""
    lab.wait_until_idle()
    yield lab.folder
    lab.restore()
