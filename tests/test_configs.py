"""Every file under configs/ resolves to its golden text: a default that moves shows here, not in somebody's run."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.config import Config, load, read_tree, to_yaml
from launch.verb_config import class_of, kind_of

REPO = Path(__file__).parents[1]
GOLDEN = REPO / "tests/golden/configs"
CONFIGS = sorted((REPO / "configs").rglob("*.yaml"))
# Files under base/ are shared parents: what a run must say itself is said for them here.
A_RUN = ("run.name=a-run", "data.shards=shards", "data.seq_len=2048", "train.max_steps=1000")
A_RUN += ("train.global_batch_sequences=8", "train.micro_batch_sequences=8")


def overrides_for(path: Path) -> tuple[str, ...]:
    return A_RUN if path.parent.name == "base" else ()


def load_by_kind(path: Path) -> Config:
    """As `dure config show` loads it."""
    overrides = overrides_for(path)
    return load(path, overrides, class_of(kind_of(read_tree(path, overrides), where=path.name)))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(REPO / "configs")))
def test_a_config_resolves_to_its_golden_text(path: Path, rewrite_golden: bool) -> None:
    resolved = to_yaml(load_by_kind(path))
    golden = GOLDEN / path.relative_to(REPO / "configs")
    if rewrite_golden:
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(resolved, encoding="utf-8")

    assert golden.is_file(), f"{golden} is missing; look at the resolved text and run with --rewrite-golden"
    assert resolved == golden.read_text(encoding="utf-8")


def test_no_golden_text_is_left_of_a_config_that_is_gone() -> None:
    golden = {path.relative_to(GOLDEN) for path in GOLDEN.rglob("*.yaml")}

    assert golden == {path.relative_to(REPO / "configs") for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_resolved_config_loads_as_itself(path: Path, tmp_path: Path) -> None:
    config = load_by_kind(path)
    (tmp_path / "resolved.yaml").write_text(to_yaml(config), encoding="utf-8")

    assert load_by_kind(tmp_path / "resolved.yaml") == config


@pytest.mark.parametrize("path", (REPO / "configs/base").glob("*.yaml"), ids=lambda path: path.name)
def test_every_shared_parent_is_extended_by_some_config(path: Path) -> None:
    assert any(f"base/{path.name}" in config.read_text(encoding="utf-8") for config in CONFIGS)
