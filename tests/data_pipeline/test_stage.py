"""A manifest is written last, is trusted only as it was written, and names each file that differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import disk
from data_pipeline.stage import (
    StageError,
    file_entries,
    fingerprint,
    is_done,
    read_manifest,
    verify_files,
    write_manifest,
)

plain_trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=8,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished folder of two files."""
    records = [disk.write_bytes(tmp_path / name, name.encode() * 100) for name in ("part-0", "part-1")]
    write_manifest(tmp_path, {"kind": "corpus", "inputs_sha256": "abc", "files": file_entries(records)})
    return tmp_path


def altered(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_was_written_is_read(folder: Path) -> None:
    written = write_manifest(folder, {"kind": "corpus", "이름": ["a", 1, 0.1, None]})

    assert read_manifest(folder, kind="corpus") == written
    assert written["이름"] == ["a", 1, 0.1, None]


@settings(deadline=None)  # each example syncs the disk
@given(tree=plain_trees)
def test_a_manifest_of_any_plain_values_is_read_back(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("stage")

    write_manifest(folder, {"kind": "k", "tree": tree})

    assert read_manifest(folder, kind="k")["tree"] == tree


def test_integers_as_keys_do_not_make_a_manifest_look_altered(folder: Path) -> None:
    written = write_manifest(folder, {"kind": "corpus", "histogram": {2: 1, 10: 3}})

    assert read_manifest(folder, kind="corpus") == written
    assert written["histogram"] == {"2": 1, "10": 3}


def test_equal_trees_have_equal_fingerprints_whatever_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [1, {"c": 2, "d": 3}]}) == fingerprint({"b": [1, {"d": 3, "c": 2}], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint([1, 2]) != fingerprint([2, 1])


def test_the_fingerprint_is_the_same_on_every_machine() -> None:
    """Pinned: another value would call every finished folder unfinished."""
    assert fingerprint({"이름": "두레", "n": [1, 0.5, None, True]}) == (
        "af3112c8468d51432b84003efba0a1ad6eb1436c27a2d6c3a485a0864456a7ce"
    )


def test_an_unfinished_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"an unfinished folder \(no manifest.json\), but a finished corpus is needed"):
        read_manifest(tmp_path, kind="corpus")
    with pytest.raises(StageError, match="no such folder, but a finished folder of shards is needed; run the stage"):
        read_manifest(tmp_path / "none", kind="shards")


def test_a_folder_of_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(StageError, match="kind is 'corpus', but 'shards' is needed; give another folder"):
        read_manifest(folder, kind="shards")


def test_a_manifest_altered_by_hand_is_refused(folder: Path) -> None:
    altered(folder, inputs_sha256="abd")

    with pytest.raises(StageError, match=r"hashes to [0-9a-f]{12}…, but it says [0-9a-f]{12}…; it was altered"):
        read_manifest(folder, kind="corpus")


def test_a_manifest_whose_hash_was_taken_out_is_refused(folder: Path) -> None:
    altered(folder, manifest_sha256=None)

    with pytest.raises(StageError, match="it was altered"):
        read_manifest(folder, kind="corpus")


@pytest.mark.parametrize(
    ("content", "fault"),
    [(b'{"kind": "corp', "not valid JSON"), (b"[1]", "holds a list, not an object"), (b"\xff\xfe", "not valid JSON")],
)
def test_a_manifest_that_is_no_object_is_refused(folder: Path, content: bytes, fault: str) -> None:
    (folder / "manifest.json").write_bytes(content)

    with pytest.raises(StageError, match=f"{fault}.*; remove that file and run the stage again"):
        read_manifest(folder, kind="corpus")


def test_done_means_a_manifest_of_equal_inputs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert is_done(folder, kind="corpus", inputs_sha256="abc")
    assert not is_done(folder, kind="corpus", inputs_sha256="abd")
    assert not is_done(tmp_path_factory.mktemp("empty"), kind="corpus", inputs_sha256="abc")


def test_sound_files_have_no_faults(folder: Path) -> None:
    assert verify_files(folder, read_manifest(folder, kind="corpus")) == []


def test_each_file_that_differs_is_named_with_both_values(folder: Path) -> None:
    manifest = read_manifest(folder, kind="corpus")
    flipped = bytearray((folder / "part-0").read_bytes())
    flipped[50] ^= 1
    (folder / "part-0").write_bytes(flipped)
    (folder / "part-1").write_bytes(b"short")

    hash_fault, size_fault = verify_files(folder, manifest)

    assert hash_fault.startswith(f"{folder / 'part-0'}: sha256 is {disk.sha256_of(folder / 'part-0')[:12]}…, ")
    assert f"manifest.json says {manifest['files'][0]['sha256'][:12]}…" in hash_fault
    assert size_fault == f"{folder / 'part-1'}: 5 bytes, manifest.json says 600; build again"

    (folder / "part-1").unlink()
    assert verify_files(folder, manifest)[1] == f"{folder / 'part-1'}: missing; restore it, or build again"
