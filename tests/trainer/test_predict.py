"""`dure predict` and `dure evaluate` of a classifier: rows in their order, bad ones among them, equal figures."""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from data_pipeline.shards.format import Frame, read_shards
from data_pipeline.shards.reader import open_shard
from data_pipeline.tokenizer.encode import Encoder
from launch.verb_evaluate import confusion_lines, evaluate_saved
from launch.verb_predict import predict as predict_verb
from tests.data_pipeline.shards.example_folders import build, stage_of, write_examples
from tests.data_pipeline.shards.folders import write_tokenizer
from tests.trainer.small_world import NLI, TINY_BERT, SmallWorld, small_world
from tests.trainer.tiny_run import lines_of
from trainer.errors import RunError
from trainer.export import ExportOptions, export
from trainer.model import Vocabulary, make_model
from trainer.model_config import ModelConfig
from trainer.predict import Predictor, open_predictor, predict
from trainer.saved import OpenModel, find_saved
from trainer.saved_head import SavedHead

LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "max_positions": 64,
    "initializer_range": 0.2,
}
ROWS = [("강릉은 바다와 커피로 이름난 도시다.",), ("짧다",), ("어디에 사느냐고", "강릉이라고 답했다."), ("두레 " * 40,)]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "it")
    encoder = Encoder(folder)
    vocabulary = Vocabulary(size=encoder.vocab_size, eos_id=0, pad_id=1)
    config = ModelConfig.model_validate(LLAMA)
    options: dict[str, Any] = {"kernel": "sdpa", "dtype": torch.float32, "head": "classifier", "labels": NLI}
    model = make_model(config, vocabulary=vocabulary, seed=1, **options).eval()
    told = SavedHead("classifier", NLI, Frame("plain"), 1, 32)
    opened = OpenModel(model, "sdpa", torch.device("cpu"))
    return Predictor(opened, encoder, told, pad_id=1, eos_id=0, seq_len=32)


def test_predictions_stand_in_the_order_of_the_rows_whatever_shares_a_batch(predictor: Predictor) -> None:
    rows = ROWS * 5
    alone = list(predict(predictor, rows, batch_sequences=1))
    together = list(predict(predictor, rows, batch_sequences=3))

    assert [each.place for each in together] == list(range(20))
    assert np.abs(np.stack([a.scores - b.scores for a, b in zip(alone, together, strict=True)])).max() < 1e-6
    assert np.allclose([each.scores.sum() for each in together], 1)
    assert np.abs(together[0].scores - together[1].scores).max() > 1e-3


def test_a_row_that_is_too_long_is_cut_to_the_models_sequence_and_counted(predictor: Predictor) -> None:
    sequences = predictor.sequences(ROWS)
    whole = len(predictor.encoder.encode_batch([ROWS[3][0]])[0])

    assert [each.num_cut for each in sequences] == [0, 0, 0, whole - 31]
    assert len(sequences[3].ids) == 32 and sequences[3].ids[-1] == 0
    assert list(sequences[2].ids).count(0) == 2  # a EOS b EOS


def test_a_confusion_matrix_is_a_table_under_korean_names() -> None:
    lines = list(confusion_lines(["부정", "긍정"], [[12, 3], [4, 1_005]]))

    assert lines[1:] == ["             부정     긍정", "    부정       12        3", "    긍정        4    1,005"]


@pytest.fixture(scope="module")
def world() -> SmallWorld:
    return small_world()


@pytest.fixture(scope="module")
def run(world: SmallWorld) -> Path:
    model = TINY_BERT | {"initializer_range": 0.2}
    steps = {"max_steps": 12, "schedule": {"warmup_steps": 1, "peak_lr": 1e-2}}
    evaluation = {"every_steps": 12, "max_documents": 1_000}
    sections: dict[str, Any] = {"model": model, "data": {"seq_len": 96}, "train": steps, "evaluation": evaluation}
    weights = {"class_weights": "balanced"}
    return world.train("to-predict", world.premise_shards, stage="classify", classify=weights, **sections)


def heldout_rows(world: SmallWorld) -> list[dict[str, Any]]:
    """The records of the premises that the run did not learn from."""
    heldout = {
        record_id
        for file in read_shards(world.premise_shards, split="heldout").files
        for batch in open_shard(file)
        for record_id in batch.column("record_id").to_pylist()
    }
    return [record for record in pq.read_table(world.premises / "data").to_pylist() if record["id"] in heldout]


def ask(run: Path, source: Path, output: Path | None = None, **flags: Any) -> int:
    plain = {"text_a": None, "text_b": None, "format": None, "batch": 4, "quantize": None, "checkpoint": None}
    tree = plain | {"path": str(run), "input": str(source), "output": str(output) if output else None} | flags
    return predict_verb(argparse.Namespace(**tree))


def write_csv(path: Path, rows: Sequence[Sequence[str]], names: Sequence[str] = ("premise", "hypothesis")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return path


@pytest.mark.stages
def test_predictions_of_the_held_out_rows_are_the_evaluations_confusion_matrix(
    world: SmallWorld, run: Path, tmp_path: Path
) -> None:
    rows = heldout_rows(world)
    file = write_csv(tmp_path / "rows.csv", [(row["text_a"], row["text_b"]) for row in rows])

    assert ask(run, file, tmp_path / "told.jsonl") == 0

    told = lines_of(tmp_path / "told.jsonl")
    confusion = [[0] * 3 for _ in NLI]
    for row, line in zip(rows, told, strict=True):
        assert (line["text_a"], line["text_b"]) == (row["text_a"], row["text_b"])
        assert line["probability"] == max(line["probabilities"].values())
        confusion[NLI.index(row["label"])][NLI.index(line["label"])] += 1
    last = lines_of(run / "evaluations.jsonl")[-1]
    assert confusion == last["confusion"] and sum(map(sum, confusion)) == len(rows)
    again = evaluate_saved(str(run))
    assert {key: again[key] for key in ("confusion", "labels", "accuracy", "macro_f1")} == {
        key: last[key] for key in ("confusion", "labels", "accuracy", "macro_f1")
    }
    assert again["loss"] == pytest.approx(last["loss"], rel=1e-5)


@pytest.mark.stages
def test_bad_rows_are_counted_named_and_stand_in_their_place(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("여우는 산에 산다.", "산에 있다."), ("", "가"), ("사슴은 들에 산다.", "들에 있다."), ("나", " ")]
    file = write_csv(tmp_path / "rows.csv", rows)

    assert ask(run, file, tmp_path / "told.csv") == 0

    printed = capsys.readouterr().out
    assert "2 of 4 rows predicted" in printed and "row 1" in printed and "row 3" in printed
    with (tmp_path / "told.csv").open(encoding="utf-8-sig", newline="") as opened:
        told = list(csv.DictReader(opened))
    assert [row["row"] for row in told] == ["0", "1", "2", "3"]
    assert [bool(row["error"]) for row in told] == [False, True, False, True]
    assert [bool(row["label"]) for row in told] == [True, False, True, False]
    shares = [sum(float(row[f"p({label})"]) for label in NLI) for row in told if row["label"]]
    assert shares == pytest.approx([1, 1], abs=1e-5)
    assert json.loads((tmp_path / "told.csv.made_with.json").read_text())["rejected"] == dict(
        Counter({"empty_pair": 2})
    )


@pytest.mark.stages
def test_an_export_predicts_as_its_run_does_and_evaluates_too(world: SmallWorld, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    export(find_saved(run), folder, ExportOptions())
    rows = [("여우는 산에 산다.", "산에 여우가 있다."), ("사슴은 들에 산다." * 30, "들에 있다.")]

    scores = [
        np.stack([each.scores for each in predict(open_predictor(find_saved(place)), rows, batch_sequences=2)])
        for place in (run, folder)
    ]

    assert np.array_equal(scores[0], scores[1])
    ours, theirs = (evaluate_saved(str(place), shards=str(world.premise_shards)) for place in (run, folder))
    assert ours["confusion"] == theirs["confusion"]


@pytest.mark.stages
def test_an_encoder_gives_a_vector_a_row_and_none_for_a_bad_one(world: SmallWorld, tmp_path: Path) -> None:
    steps = {"max_steps": 4, "schedule": {"warmup_steps": 1, "peak_lr": 1e-3}}
    sections: dict[str, Any] = {"model": {"from": str(world.bert)}, "data": {"seq_len": 96}, "train": steps}
    run = world.train("to-embed", world.pair_shards, stage="embed", **sections)
    file = write_csv(tmp_path / "rows.csv", [(" ",), ("여우는 산에 산다.",), ("사슴은 들에 산다. 그렇다.",)], ("text",))

    assert ask(run, file, tmp_path / "told.npy") == ask(run, file, tmp_path / "told.parquet") == 0

    vectors = np.load(tmp_path / "told.npy")
    table = pq.read_table(tmp_path / "told.parquet").to_pylist()
    assert vectors.shape == (3, 32) and np.isnan(vectors[0]).all()
    assert np.linalg.norm(vectors[1:], axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert [row["vector"] is None for row in table] == [True, False, False] and "empty_text" in table[0]["error"]
    assert np.allclose([row["vector"] for row in table[1:]], vectors[1:])
    assert np.abs(vectors[1] - vectors[2]).max() > 1e-4
    with pytest.raises(RunError, match="a vector is of one; name its column by --text-a"):
        ask(run, write_csv(tmp_path / "two.csv", [("가", "나")]), tmp_path / "two.npy")
    assert not (tmp_path / "two.npy").exists()


@pytest.mark.stages
def test_what_can_not_be_predicted_is_refused_before_a_model_is_loaded(
    world: SmallWorld, run: Path, tmp_path: Path
) -> None:
    good = write_csv(tmp_path / "good.csv", [("가", "나")])
    empty = write_csv(tmp_path / "empty.csv", [("", ""), ("", "나")])
    (tmp_path / "there.jsonl").write_text("")

    with pytest.raises(RunError, match="none of its 2 rows can be predicted"):
        ask(run, empty, tmp_path / "told.jsonl")
    with pytest.raises(RunError, match="exists already"):
        ask(run, good, tmp_path / "there.jsonl")
    with pytest.raises(RunError, match=r"classes are written as .jsonl, .csv"):
        ask(run, good, tmp_path / "told.npy")
    with pytest.raises(RunError, match="--text-b: 'b' is the second of two texts"):
        ask(run, good, tmp_path / "told.jsonl", text_b="b")
    with pytest.raises(RunError, match="no file given"):
        ask(run, good, input="")
    with pytest.raises(RunError, match="has no classes and no vectors"):
        open_predictor(find_saved(world.untrained("plain-llama", head="causal_lm", **LLAMA)))
    assert not (tmp_path / "told.jsonl").exists()


@pytest.mark.stages
def test_a_test_file_by_itself_is_scored_as_the_held_out_rows_of_a_run_are(
    world: SmallWorld, run: Path, tmp_path: Path
) -> None:
    rows = heldout_rows(world)
    corpus = write_examples(tmp_path / "corpus", "label", [rows], heldout=range(len(rows)))
    build(stage_of(corpus, world.tokenizer, tmp_path / "shards", labels=list(NLI)))

    found = evaluate_saved(str(run), shards=str(tmp_path / "shards"))

    last = lines_of(run / "evaluations.jsonl")[-1]
    assert found["confusion"] == last["confusion"] and found["labels"] == list(NLI)
    weights = json.loads((run / "examples.json").read_text())["class_weights"]
    assert len(set(weights)) > 1, "so that a loss by other weights would be another"
    assert found["loss"] == pytest.approx(last["loss"], rel=1e-5)


@pytest.mark.stages
def test_shards_of_other_classes_are_not_scored(world: SmallWorld, run: Path) -> None:
    with pytest.raises(
        RunError, match="has the classes 부정, 긍정, but the model contradiction, entailment, .*labels='"
    ):
        evaluate_saved(str(run), shards=str(world.review_shards))
