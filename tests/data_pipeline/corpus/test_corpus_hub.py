"""`hf:NAME@REVISION` is read from the hub's cache as a folder, at a commit that the manifest names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aihub_packages import build, rows, stage_of, texts
from huggingface_hub import constants

from data_pipeline.corpus.hub import dataset_of
from data_pipeline.corpus.inspect import inspect_path
from data_pipeline.stage import StageError

NAME, COMMIT = "lab/koalpaca-like", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A snapshot as the hub's client lays it out: files by their hashes, links to them by commit and name."""
    repository = tmp_path / "hub" / f"datasets--{NAME.replace('/', '--')}"
    table = pa.table({"instruction": ["수도는?", "인구는?"], "output": ["서울", "천만"], "url": ["x", None]})
    for split in ("train", "validation"):
        file = blob(repository, f"data/{split}-00000-of-00001.parquet")
        pq.write_table(table.slice(0 if split == "train" else 1, 1), file)
    blob(repository, "README.md").write_text("---\nlicense: mit\n---\n")
    blob(repository, ".gitattributes").write_text("*.parquet lfs")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    return repository


def blob(repository: Path, name: str) -> Path:
    """The file behind a name of the snapshot, which is a link to it."""
    link, file = repository / "snapshots" / COMMIT / name, repository / "blobs" / name.replace("/", "-")
    for path in (link, file):
        path.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(file, link.parent))
    return file


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_a_dataset_of_the_hub_is_a_folder_at_a_commit(tmp_path: Path, cached: Path, revision: str) -> None:
    manifest = build(tmp_path / "out", f"hf:{NAME}@{revision}", record="instruction")

    found = rows(tmp_path / "out")
    assert [(row["id"], row["source"], row["split_hint"]) for row in found] == [
        ("koalpaca-like/data/train-00000-of-00001.parquet#1", "koalpaca-like", ""),
        ("koalpaca-like/data/validation-00000-of-00001.parquet#1", "koalpaca-like", "heldout"),
    ]
    assert [row["messages"][1]["content"] for row in found] == ["서울", "천만"]
    assert manifest["hub"] == [{"input": 0, "name": NAME, "revision": revision, "commit": COMMIT}]
    assert manifest["counts"]["passed_over"] == {"no_reader": 1, "text_beside_data": 1}
    assert str(tmp_path / "hub") not in json.dumps(manifest)


def test_the_commit_and_not_the_time_of_the_download_makes_a_corpus_another(tmp_path: Path, cached: Path) -> None:
    build(tmp_path / "out", f"hf:{NAME}@main", record="instruction")
    again = stage_of(tmp_path / "out", f"hf:{NAME}@main", record="instruction", min_text_share=0.001)
    for path in (cached / "blobs").iterdir():
        os.utime(path, (1, 1))
    assert again.is_done()

    moved = COMMIT[::-1]
    (cached / "snapshots" / COMMIT).rename(cached / "snapshots" / moved)
    (cached / "refs/main").write_text(moved)

    assert not stage_of(tmp_path / "out", f"hf:{NAME}@main", record="instruction", min_text_share=0.001).is_done()


def test_files_of_a_dataset_can_be_chosen_and_read_as_documents(tmp_path: Path, cached: Path) -> None:
    source = {"path": f"hf:{NAME}@main", "files": ["data/train-*"], "text_column": "output", "source": "우리 글"}

    manifest = build(tmp_path / "out", source)

    assert texts(tmp_path / "out") == ["서울"]
    assert manifest["sources"] == {"우리 글": {"num_records": 1, "num_text_bytes": 6}}
    assert manifest["counts"]["passed_over"] == {"not_chosen": 3}


def test_labels_come_from_the_hub_too(tmp_path: Path, cached: Path) -> None:
    source = {"path": f"hf:{NAME}@main", "columns": {"text_a": "instruction", "label": "output"}}

    build(tmp_path / "out", source, record="label")

    found = [(row["text_a"], row["label"], row["split_hint"]) for row in rows(tmp_path / "out")]
    assert found == [("수도는?", "서울", ""), ("인구는?", "천만", "heldout")]


def test_inspect_reads_the_hub_too(cached: Path) -> None:
    assert inspect_path(Path(f"hf:{NAME}@main")).tally["forms"] == {"alpaca": 2}


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("hf:lab/x", r"inputs\.0\.path: hf:lab/x has no revision, .*; write hf:lab/x@COMMIT .* or hf:lab/x@main"),
        ("hf:", r"inputs\.0\.path: hf: names no dataset; write hf:OWNER/NAME@REVISION"),
        ("hf://datasets/lab/x@main", "names no dataset; write hf:OWNER/NAME@REVISION"),
        (f"hf:{NAME}@no-such", "the hub can't be reached .*허브.*the cache does not hold it; fetch it where"),
        ("hf:lab/never-seen@main", r"inputs\.0\.path: hf:lab/never-seen@main: .* can't be reached"),
        ("hf:lab/x..y--z@main", "HFValidationError"),
    ],
)
def test_a_dataset_that_is_not_there_is_named_with_what_to_do(
    tmp_path: Path, cached: Path, path: str, says: str
) -> None:
    with pytest.raises(StageError, match=says):
        build(tmp_path / "out", path, record="instruction")

    assert not (tmp_path / "out").exists()


def test_a_part_of_a_dataset_in_the_cache_is_not_taken_for_all_of_it(tmp_path: Path, cached: Path) -> None:
    files = {"data/train-00000-of-00001.parquet": {"size": 1, "blob_id": "a"}}
    files["data/test-00000-of-00001.parquet"] = {"size": 1, "blob_id": "b"}
    (cached / "trees").mkdir()
    (cached / f"trees/{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": files}))

    with pytest.raises(StageError, match="IncompleteSnapshotError: only a part of it is in the cache"):
        build(tmp_path / "out", f"hf:{NAME}@main", record="instruction")


def test_a_path_of_this_machine_is_no_dataset() -> None:
    assert dataset_of(Path("data/hf:x"), where="test") is None
