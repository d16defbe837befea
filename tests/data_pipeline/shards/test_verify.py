"""`dure shards verify` names every fault; a sound folder has none."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import disk
from data_pipeline.shards.format import check_tokenizer, read_shards
from data_pipeline.shards.verify import verify
from data_pipeline.stage import StageError, write_manifest
from data_pipeline.stream.rows import open_rows
from tests.data_pipeline.stream.shard_folder import write_shards

PARTS = [[[5, 6, 7], [8, 9]], [[10, 11, 12, 13], []]]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "s", PARTS, vocab_size=50)


def forge(folder: Path, change: dict[str, Any] | None = None) -> None:
    """Write the manifest anew over the files as they are, so that only their structure can be at fault."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["files"]:
        path = folder / entry["name"]
        entry |= {"num_bytes": path.stat().st_size, "sha256": disk.sha256_of(path)}
    write_manifest(folder, manifest | (change or {}))


def replace_ids(folder: Path, old: list[int], new: list[int]) -> None:
    path = read_shards(folder, split="train").files[0].path
    before, after = (np.array(ids, np.uint16).tobytes() for ids in (old, new))
    data = path.read_bytes()
    assert data.count(before) == 1
    path.write_bytes(data.replace(before, after))


def test_a_sound_folder_has_no_fault(shards: Path) -> None:
    open_rows(shards, split="train", seq_len=4, packing="best_fit")

    assert verify(shards) == []


def test_a_flipped_byte_is_named(shards: Path) -> None:
    replace_ids(shards, [5, 6, 7, 0], [5, 6, 3, 0])

    (fault,) = verify(shards)

    assert "train/part-00000-0000.arrow: sha256 is " in fault
    assert "manifest.json says" in fault


def test_a_missing_and_a_truncated_shard_are_named(shards: Path) -> None:
    first, second = (file.path for file in read_shards(shards, split="train").files)
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])

    faults = verify(shards)

    assert any(f"{first}: missing" in fault for fault in faults)
    assert any(f"{second}: " in fault and "manifest.json says" in fault for fault in faults)


def test_a_document_that_does_not_end_in_eos_is_named(shards: Path) -> None:
    replace_ids(shards, [8, 9, 0], [8, 9, 9])
    forge(shards)

    (fault,) = verify(shards)

    assert fault.endswith("record batch 0: document '0-1' ends in id 9, not in EOS 0; build again")


def test_an_id_outside_the_vocabulary_is_named(shards: Path) -> None:
    replace_ids(shards, [5, 6, 7, 0], [5, 50, 7, 0])
    forge(shards)

    (fault,) = verify(shards)

    assert fault.endswith("record batch 0: id 50 is not below vocab_size 50; build again")


def test_offsets_that_do_not_ascend_are_named(shards: Path) -> None:
    path = read_shards(shards, split="train").files[0].path
    data = path.read_bytes()
    before, after = (np.array(offsets, np.int64).tobytes() for offsets in ([0, 4, 7], [0, 9, 7]))
    assert data.count(before) == 1
    path.write_bytes(data.replace(before, after))
    forge(shards)

    (fault,) = verify(shards)

    assert fault.endswith("record batch 0: the offsets of its documents are not ascending from 0 to 7; build again")


@pytest.mark.parametrize(("key", "found"), [("num_documents", 4), ("num_tokens", 13), ("num_bytes", 27)])
def test_a_count_that_the_shards_contradict_is_named(shards: Path, key: str, found: int) -> None:
    splits = json.loads((shards / "manifest.json").read_text())["splits"]
    splits["train"][key] += 1
    forge(shards, {"splits": splits})

    (fault,) = verify(shards)

    assert fault == f"{shards}: split 'train' has {key} {found}, manifest.json says {found + 1}; build again"


def test_a_flipped_byte_in_a_row_table_is_named(shards: Path) -> None:
    open_rows(shards, split="train", seq_len=4, packing="best_fit")
    path = shards / "rows" / "train-best_fit-4" / "starts.i64"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])

    (fault,) = verify(shards)

    assert fault.startswith(f"{path}: sha256 is ")
    assert fault.endswith(f"remove {path.parent}")


def test_a_row_table_of_other_shards_is_no_fault(shards: Path) -> None:
    open_rows(shards, split="train", seq_len=4, packing="best_fit")
    forge(shards, {"note": "another manifest"})
    (shards / "rows" / "train-best_fit-4" / "starts.i64").write_bytes(b"")

    assert verify(shards) == []


def test_an_unfinished_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()

    with pytest.raises(
        StageError, match=r"an unfinished folder \(no manifest.json\), but a finished folder of shards is needed"
    ):
        verify(tmp_path / "s")


def test_a_folder_of_another_format_is_refused(shards: Path) -> None:
    forge(shards, {"format_version": 99})

    with pytest.raises(StageError, match=r"format_version is 99, this program reads 2; run `dure shards build` again"):
        verify(shards)


def test_shards_of_another_tokenizer_are_refused_with_both_fingerprints(shards: Path) -> None:
    check_tokenizer(shards, "f" * 64)

    with pytest.raises(StageError, match=rf"made with tokenizer {'f' * 16}…, but this run uses {'a' * 16}…"):
        check_tokenizer(shards, "a" * 64)


def test_a_shard_set_tells_the_manifest(shards: Path) -> None:
    found = read_shards(shards, split="train")

    assert (found.num_documents, found.num_tokens, found.num_pairs, found.num_bytes) == (4, 13, 9, 27)
    assert [dataclasses.astuple(file)[2:] for file in found.files] == [((2,), (7,)), ((2,), (6,))]
