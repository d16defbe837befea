"""What a saved model that writes no text tells beside its weights, and what is refused by it before one is loaded."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.corpus.sources import InputConfig
from data_pipeline.disk import read_object
from data_pipeline.shards.format import Frame, read_shards, read_shards_manifest
from data_pipeline.stage import StageError
from launch.verb_predict import _look
from tests.data_pipeline.shards.example_folders import (
    RELATIONS,
    REVIEWS,
    SCORED,
    TRIPLETS,
    Row,
    build,
    stage_of,
    write_examples,
    write_plain,
)
from trainer.errors import RunError
from trainer.model import read_vocabulary
from trainer.run_folder import EXAMPLES_NAME, RunFolder, num_texts_of
from trainer.saved_head import SavedHead


def shards_of(folder: Path, record: Any, rows: Sequence[Row], *, heldout: Sequence[int] = (), **keys: Any) -> Path:
    corpus = write_examples(folder / "c", record, [rows], heldout=heldout)
    build(stage_of(corpus, write_plain(folder / "t"), folder / "s", **keys))
    return folder / "s"


MIXED = [*REVIEWS, *({**row, "label": "1"} for row in RELATIONS)]


@pytest.mark.parametrize(
    ("record", "rows", "expected"),
    [
        ("label", REVIEWS, 1),
        ("label", RELATIONS, 2),
        ("label", MIXED, 0),
        ("pair", SCORED, 2),
        ("pair", TRIPLETS, 3),
    ],
    ids=["texts", "pairs-of-texts", "mixed", "scored", "triplets"],
)
def test_a_run_remembers_how_many_texts_a_row_had(tmp_path: Path, record: str, rows: list[Row], expected: int) -> None:
    shards = shards_of(tmp_path, record, rows)
    folder = RunFolder(tmp_path / "run", rank=0)
    folder.path.mkdir()

    folder.bring_companions(shards, facts={"class_weights": [1.0, 2.0]})

    told = read_object(folder.path / EXAMPLES_NAME)
    assert (told["num_texts"], told["class_weights"]) == (expected, [1.0, 2.0])


def test_older_shards_do_not_tell_how_many_texts_a_row_had(tmp_path: Path) -> None:
    manifest = read_shards_manifest(shards_of(tmp_path, "label", REVIEWS))
    del manifest["splits"]["train"]["num_two_texts"]

    assert num_texts_of(manifest) == 0


def test_an_export_tells_all_of_it() -> None:
    told = SavedHead("classifier", ("a", "b"), Frame("plain"), 1, 32, num_texts=2, class_weights=(1.0, 2.5)).as_dict()

    assert (told["num_texts"], told["class_weights"], told["seq_len"]) == (2, [1.0, 2.5], 32)


def looked_at(path: Path, names: Sequence[str], *, num_texts: int, columns: dict[str, str] | None = None) -> int:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([names, *(("가", "나") for _ in range(3))])
    tree: dict[str, Any] = {"path": str(path)} | ({"columns": columns} if columns else {})
    return _look(InputConfig.model_validate(tree), num_texts=num_texts).num_rows


def test_rows_of_another_number_of_texts_than_were_learnt_from_are_refused(tmp_path: Path) -> None:
    path, names = tmp_path / "rows.csv", ("sentence1", "sentence2")
    with pytest.raises(
        RunError, match=r"learnt from rows of 1 text, but 3 of 3 rows have 2 texts .*row 0; .*--text-a$"
    ):
        looked_at(path, names, num_texts=1)
    with pytest.raises(RunError, match=r"learnt from rows of 2 texts, but 3 of 3 rows have 1 text \(.*--text-b$"):
        looked_at(path, ("text", "other"), num_texts=2)

    assert looked_at(path, names, num_texts=2) == looked_at(path, names, num_texts=0) == 3
    assert looked_at(path, names, num_texts=1, columns={"text_a": "sentence1"}) == 3


def test_a_test_file_by_itself_becomes_shards_to_evaluate_and_not_to_train_on(tmp_path: Path) -> None:
    rows = [{**row, "label": "1"} for row in REVIEWS]  # of one of the model's two classes
    shards = shards_of(tmp_path, "label", rows, heldout=range(len(rows)), labels=["0", "1"])

    assert read_shards(shards, split="heldout").num_documents == len(rows)
    assert read_shards(shards, split="heldout").labels == ("0", "1")
    assert read_vocabulary(shards).size > 256
    with pytest.raises(StageError, match="split 'train' holds 0 documents"):
        read_shards(shards, split="train")


def test_a_corpus_of_which_all_rows_are_faulty_is_no_test_file(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no label row is left for train"):
        shards_of(tmp_path, "label", REVIEWS, labels=["2", "3"], drop_faulty_rows=True)
