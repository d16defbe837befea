"""What a model was made of, told without reading its data and without naming this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.stage import read_manifest, write_manifest
from tests.trainer.test_locate import make_run
from tests.trainer.tiny_run import make_shards, tiny_config, write_config
from trainer.lineage import BaseFacts, base_of, base_path_of, data_of
from trainer.saved import Saved


def saved_over(folder: Path, **sections: object) -> Saved:
    return Saved(folder, tiny_config(folder, folder / "shards", **sections), None, folder)


def test_sources_are_those_that_the_manifest_counts(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards", num_documents=20, num_heldout=2)
    manifest = read_manifest(shards, kind="shards")
    assert data_of(saved_over(tmp_path))[0].sources == {"test": 20}, "of a manifest that is older, from the column"

    # No shard is opened: there is none any more.
    counts = {"train": {"나": 7, "가": 13}, "heldout": {"가": 2}}
    write_manifest(shards, manifest | {"sources": counts})
    for path in (shards / "train").iterdir():
        path.unlink()

    (facts,) = data_of(saved_over(tmp_path))
    assert list(facts.sources.items()) == [("가", 13), ("나", 7)]
    assert facts.is_known


def test_other_peoples_manifests_are_not_taken_for_ours(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    (base / "manifest.json").write_text('{"data": [{"rows": 3}], "origin": "a town"}')
    saved = saved_over(tmp_path, model={"from": str(base)})

    assert [facts.shards for facts in data_of(saved)] == ["shards"]
    assert base_of(saved).name == "base"  # type: ignore[union-attr]


def test_a_hub_name_that_is_the_runs_own_name_too_ends_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(Path("runs/gpt2"), steps=(4,))
    config = tiny_config(tmp_path, tmp_path / "shards", model={"from": "gpt2"})
    write_config(run / "config.yaml", config)

    assert len(data_of(Saved(run, config, None, run))) == 1


def make_base(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}weights")
    return folder


def test_a_base_of_this_machine_is_told_by_its_last_part_and_its_hash(tmp_path: Path) -> None:
    base = make_base(tmp_path / "home" / "me" / "my-base")
    saved = saved_over(tmp_path, model={"from": str(base)})

    facts = base_of(saved)

    assert facts is not None
    assert (facts.name, facts.step, facts.revision, facts.is_loadable) == ("my-base", None, None, False)
    assert len(facts.sha256) == 64 and str(tmp_path) not in json.dumps(facts.__dict__)
    assert base_path_of(saved) == (str(base), None)
    (base / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}weight!")
    assert base_of(saved).sha256 != facts.sha256  # type: ignore[union-attr]


def test_a_base_that_a_run_exported_has_the_name_and_the_step_of_the_run(tmp_path: Path) -> None:
    base = make_base(tmp_path / "runs" / "korean" / "export" / "step-00000012")
    write_manifest(base, {"kind": "export", "origin": {"name": "korean", "step": 12, "sha256": "a"}, "data": []})

    facts = base_of(saved_over(tmp_path, model={"from": str(base)}))

    assert facts is not None
    assert (facts.name, facts.step) == ("korean", 12)


def test_a_hub_name_and_a_name_that_is_given_are_told_as_they_are(tmp_path: Path) -> None:
    hub = saved_over(tmp_path, model={"from": "EleutherAI/polyglot-ko-12.8b", "revision": "abc"})
    base = make_base(tmp_path / "base")

    expected = BaseFacts("EleutherAI/polyglot-ko-12.8b", "abc", None, "", "", is_loadable=True)
    assert base_of(hub) == expected
    assert base_of(hub, name="EleutherAI/polyglot-ko-12.8b") == expected
    renamed = base_of(saved_over(tmp_path, model={"from": str(base)}), name="me/base")
    assert renamed is not None and (renamed.name, renamed.is_loadable) == ("me/base", True)
    gone = base_of(saved_over(tmp_path, model={"from": str(tmp_path / "gone")}))
    assert gone is not None and (gone.name, gone.sha256, gone.is_loadable) == ("gone", "", False)
    assert base_of(saved_over(tmp_path)) is None
