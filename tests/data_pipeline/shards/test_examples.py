"""Label and pair records -> examples: each in its frame, with its class or score; what can't be learned is refused."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline import disk
from data_pipeline.config import ConfigError, validate
from data_pipeline.shards.build import ShardsConfig
from data_pipeline.shards.examples import MAX_LABELS, ExampleShape, frame_texts, scan_labels
from data_pipeline.shards.format import Frame, read_shards
from data_pipeline.shards.inspect import describe
from data_pipeline.shards.reader import open_shard, sequence_ends, values
from data_pipeline.shards.verify import verify
from data_pipeline.stage import Manifest, StageError, write_manifest
from data_pipeline.tokenizer.encode import Encoder
from launch.verb_shards import _figures
from tests.data_pipeline.shards.example_folders import (
    RELATIONS,
    REVIEWS,
    SCORED,
    TRIPLETS,
    Row,
    build,
    rows_of,
    stage_of,
    write_bert,
    write_examples,
    write_plain,
    write_roberta,
)
from tests.data_pipeline.shards.folders import turns, write_corpus, write_instruction_corpus
from tests.data_pipeline.shards.test_build import run_until

TOKENIZERS = {"plain": write_plain, "bert": write_bert, "roberta": write_roberta}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_examples(folder / "reviews", "label", [REVIEWS[:2], REVIEWS[2:]])
    write_examples(folder / "relations", "label", [RELATIONS])
    write_examples(folder / "triplets", "pair", [TRIPLETS])
    write_examples(folder / "scored", "pair", [SCORED])
    for name, make in TOKENIZERS.items():
        make(folder / name)
    return folder


def make(inputs: Path, output: Path, corpus: str = "reviews", tokenizer: str = "plain", **changes: Any) -> Manifest:
    return build(stage_of(inputs / corpus, inputs / tokenizer, output, **changes))


def ids_of(folder: Path, text: str) -> list[int]:
    ids, _ = Encoder(folder).encode_batch([text])
    return ids.tolist()


def in_frame(folder: Path, kind: str, *texts: str | None) -> list[int]:
    """As the contract spells the frame of one sequence."""
    start, end, between = {"plain": ([], 0, []), "bert": ([2], 3, []), "roberta": ([0], 2, [2])}[kind]
    found = [*start]
    for number, text in enumerate(text for text in texts if text is not None):
        found += [*(between if number else []), *ids_of(folder, text), end]
    return found


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(
    ("corpus", "items"), [("reviews", REVIEWS), ("relations", RELATIONS), ("triplets", TRIPLETS), ("scored", SCORED)]
)
def test_an_example_is_its_framed_sequences(
    inputs: Path, tmp_path: Path, kind: str, corpus: str, items: list[Row]
) -> None:
    manifest = make(inputs, tmp_path / "s", corpus, kind, max_unk_rate=1)

    rows = rows_of(tmp_path / "s")
    is_label = "label" in items[0]
    for row, item in zip(rows, items, strict=True):
        texts = [item[name] for name in ("text_a", "text_b", "text_c") if name in item]
        sequences = [texts] if is_label else [[text] for text in texts]
        parts = [in_frame(inputs / kind, kind, *each) for each in sequences]
        assert row["input_ids"] == [token for part in parts for token in part]
        assert row["ends"] == np.cumsum([len(part) for part in parts]).tolist()
        assert row["num_bytes"] == sum(len(text.encode()) for text in texts)
    assert manifest["num_sequences"] == (1 if is_label else len(items[0]) - ("score" in items[0]))
    assert manifest["frame"]["kind"] == kind
    assert verify(tmp_path / "s") == []


def test_a_class_is_its_number_and_a_score_itself(inputs: Path, tmp_path: Path) -> None:
    labels = make(inputs, tmp_path / "l", "relations")
    scores = make(inputs, tmp_path / "p", "scored")
    make(inputs, tmp_path / "t", "triplets")

    assert labels["labels"] == ["거짓", "중립", "참"]
    assert [labels["labels"][int(row["value"])] for row in rows_of(tmp_path / "l")] == [r["label"] for r in RELATIONS]
    assert labels["classes"]["train"] == {"거짓": 2, "중립": 2, "참": 2}
    assert [row["value"] for row in rows_of(tmp_path / "p")] == [row["score"] for row in SCORED]
    assert scores["splits"]["train"]["num_scored"] == len(SCORED)
    assert all(math.isnan(row["value"]) for row in rows_of(tmp_path / "t"))


def test_a_shard_set_tells_what_an_example_is(inputs: Path, tmp_path: Path) -> None:
    make(inputs, tmp_path / "s", "relations", "bert", max_unk_rate=1)

    shards = read_shards(tmp_path / "s", split="train")

    assert (shards.record, shards.num_sequences, shards.num_targets) == ("label", 1, len(RELATIONS))
    assert shards.labels == ("거짓", "중립", "참")
    assert shards.frame == Frame("bert", 2, 3)


def test_the_reader_gives_ends_and_values_of_a_batch(inputs: Path, tmp_path: Path) -> None:
    make(inputs, tmp_path / "s", "triplets")
    shards = read_shards(tmp_path / "s", split="train")
    [batch] = [batch for file in shards.files for batch in open_shard(file)]

    offsets, ends = sequence_ends(batch)

    assert (offsets.dtype, ends.dtype, values(batch).dtype) == (np.int32, np.int32, np.float64)
    assert offsets.tolist() == [0, 3, 6, 9, 12, 15, 18]
    assert ends.tolist() == [end for row in rows_of(tmp_path / "s") for end in row["ends"]]
    assert len(values(batch)) == len(TRIPLETS)


def test_documents_and_instructions_have_none_of_it(inputs: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [["글", "다른 글"]])
    manifest = build(stage_of(corpus, inputs / "plain", tmp_path / "s"))

    shards = read_shards(tmp_path / "s", split="train")

    assert (shards.num_sequences, shards.labels, shards.frame) == (0, (), None)
    assert not {"frame", "labels", "num_sequences", "classes", "eos_is_sep"} & manifest.keys()
    assert not {"frame", "labels", "too_long", "examples"} & manifest["inputs"].keys()


def test_a_text_that_spells_a_role_does_not_become_it(inputs: Path, tmp_path: Path) -> None:
    make(inputs, tmp_path / "s", tokenizer="roberta")

    spelled = rows_of(tmp_path / "s")[3]["input_ids"]

    assert spelled.count(2) == 1
    assert spelled[-1] == 2


def test_labels_are_in_the_order_that_the_config_gives_them(inputs: Path, tmp_path: Path) -> None:
    manifest = make(inputs, tmp_path / "s", labels=[1, 0])

    assert manifest["labels"] == ["1", "0"]
    assert [row["value"] for row in rows_of(tmp_path / "s")] == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["b", "a", "10"], ("10", "a", "b")),
        (["01", "1", "0"], ("0", "01", "1")),
        (["²", "1"], ("1", "²")),
    ],
)
def test_scanned_labels_are_in_order_of_number_or_text(
    tmp_path: Path, labels: list[str], expected: tuple[str, ...]
) -> None:
    corpus = write_examples(tmp_path / "c", "label", [[{"text_a": "글", "label": label} for label in labels]])

    assert scan_labels(sorted((corpus / "data").iterdir())) == expected


def test_more_labels_than_a_classifier_has_are_asked_about(inputs: Path, tmp_path: Path) -> None:
    items = [{"text_a": "글", "label": f"{number / 7:.4f}"} for number in range(MAX_LABELS + 1)]
    corpus = write_examples(tmp_path / "c", "label", [items])

    with pytest.raises(StageError, match="more than 1,000 distinct labels .* is it a score"):
        build(stage_of(corpus, inputs / "plain", tmp_path / "s"))


def test_law_10_a_label_that_is_none_of_the_labels_is_refused(inputs: Path, tmp_path: Path) -> None:
    stage = stage_of(inputs / "relations", inputs / "plain", tmp_path / "s", labels=["참", "거짓"])

    with pytest.raises(
        StageError, match=r"of the label rows, 2 have a label that is none of labels \(the first is '행-2'\); mend"
    ):
        build(stage)
    assert not (tmp_path / "s/manifest.json").exists()


def test_rows_of_unknown_labels_are_left_out_where_the_config_says_so(inputs: Path, tmp_path: Path) -> None:
    manifest = make(inputs, tmp_path / "s", "relations", labels=["참", "거짓"], drop_faulty_rows=True)

    assert manifest["splits"]["train"]["num_unknown_label"] == 2
    assert [row["record_id"] for row in rows_of(tmp_path / "s")] == ["행-0", "행-1", "행-3", "행-4"]
    assert [row["value"] for row in rows_of(tmp_path / "s")] == [0, 1, 0, 1]
    assert verify(tmp_path / "s") == []


def test_law_10_a_text_that_the_tokenizer_empties_is_refused_and_counted(tmp_path: Path) -> None:
    # WordPiece has no token for it, and the space around it is none.
    tokenizer = write_plain(tmp_path / "t")
    data = json.loads((tokenizer / "tokenizer.json").read_text())
    data["normalizer"] = {"type": "Replace", "pattern": {"String": "\u200b"}, "content": ""}
    (tokenizer / "tokenizer.json").write_text(json.dumps(data))
    items = [{"text_a": "가", "text_b": "나"}, {"text_a": "다", "text_b": "\u200b"}, {"text_a": "라", "text_b": "마"}]
    corpus = write_examples(tmp_path / "c", "pair", [items])

    with pytest.raises(StageError, match=r"pair rows, 1 have a text of which the tokenizer leaves nothing .*'행-1'"):
        build(stage_of(corpus, tokenizer, tmp_path / "s"))
    manifest = build(stage_of(corpus, tokenizer, tmp_path / "s", drop_faulty_rows=True))

    assert manifest["splits"]["train"]["num_emptied"] == 1
    assert len(rows_of(tmp_path / "s")) == 2


def test_an_emptied_set_is_refused(inputs: Path, tmp_path: Path) -> None:
    stage = stage_of(inputs / "reviews", inputs / "plain", tmp_path / "s", labels=["x", "y"], drop_faulty_rows=True)

    with pytest.raises(StageError, match="no label row is left for train .*the others faulty"):
        build(stage)


def test_pairs_beside_triplets_are_refused(inputs: Path, tmp_path: Path) -> None:
    corpus = write_examples(tmp_path / "c", "pair", [[SCORED[0], *TRIPLETS]])

    with pytest.raises(
        StageError, match=r"1 have no third text \(text_c\), where others have one \(the first is '행-0'\)"
    ):
        build(stage_of(corpus, inputs / "plain", tmp_path / "s"))
    manifest = build(stage_of(corpus, inputs / "plain", tmp_path / "s", drop_faulty_rows=True))

    assert (manifest["num_sequences"], manifest["splits"]["train"]["num_mixed"]) == (3, 1)


def test_a_class_without_a_row_of_train_is_refused(tmp_path: Path, inputs: Path) -> None:
    items = [{"text_a": f"글 {number}", "label": "a" if number else "b"} for number in range(4)]
    corpus = write_examples(tmp_path / "c", "label", [items], heldout=[0])

    with pytest.raises(StageError, match=r"1 of 2 labels have no row of train: 'b' \(1 rows of them are held out\)"):
        build(stage_of(corpus, inputs / "plain", tmp_path / "s"))
    with pytest.raises(StageError, match=r"1 of 3 labels have no row of train: 'c' \(0 rows"):
        build(stage_of(corpus, inputs / "plain", tmp_path / "u", labels=["a", "b", "c"], use_split_hint=False))


def test_a_corpus_of_one_class_is_refused(tmp_path: Path, inputs: Path) -> None:
    corpus = write_examples(tmp_path / "c", "label", [[{"text_a": "글", "label": "a"}]])

    with pytest.raises(StageError, match="every row has the label 'a', so there is nothing to tell apart"):
        build(stage_of(corpus, inputs / "plain", tmp_path / "s"))


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("corpus", ["reviews", "relations", "triplets"])
def test_long_sequences_are_refused_dropped_or_cut(inputs: Path, tmp_path: Path, kind: str, corpus: str) -> None:
    keys = {"max_tokens": 14, "max_unk_rate": 1}
    make(inputs, tmp_path / "whole", corpus, kind, max_unk_rate=1)
    whole = rows_of(tmp_path / "whole")
    fits = [max(np.diff(row["ends"], prepend=0)) <= 14 for row in whole]
    assert any(fits) or corpus == "relations"
    assert not all(fits)

    with pytest.raises(StageError, match=f"{fits.count(False)} have .* of more than max_tokens|more than max_tokens"):
        make(inputs, tmp_path / "refused", corpus, kind, **keys)
    cut = make(inputs, tmp_path / "cut", corpus, kind, **keys, too_long="cut")

    found = rows_of(tmp_path / "cut")
    assert cut["splits"]["train"]["num_cut"] == fits.count(False)
    assert cut["splits"]["train"]["num_too_long"] == 0
    for row, before, is_whole in zip(found, whole, fits, strict=True):
        assert max(np.diff(row["ends"], prepend=0)) <= 14
        assert (row["input_ids"] == before["input_ids"]) == is_whole
        assert (row["value"], row["num_bytes"]) == pytest.approx((before["value"], before["num_bytes"]), nan_ok=True)
    assert verify(tmp_path / "cut") == []


def test_long_sequences_are_dropped_and_counted(inputs: Path, tmp_path: Path) -> None:
    manifest = make(inputs, tmp_path / "s", max_tokens=30, too_long="drop", labels=["0", "1"])

    assert manifest["splits"]["train"]["num_too_long"] == 2
    assert [row["record_id"] for row in rows_of(tmp_path / "s")] == [f"행-{number}" for number in (2, 3, 4, 5)]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(("corpus", "items"), [("reviews", REVIEWS), ("relations", RELATIONS), ("triplets", TRIPLETS)])
def test_texts_to_predict_are_framed_as_those_of_a_build(
    inputs: Path, tmp_path: Path, kind: str, corpus: str, items: list[Row]
) -> None:
    keys = {"max_tokens": 14, "too_long": "cut"}
    stage = stage_of(inputs / corpus, inputs / kind, tmp_path / "s", **keys, max_unk_rate=1)
    manifest = build(stage)
    shape = ExampleShape.from_tree(manifest["inputs"]["examples"])

    found = frame_texts(
        [[row[name] for name in ("text_a", "text_b", "text_c") if name in row] for row in items],
        Encoder(inputs / kind),
        shape,
    )

    rows = rows_of(tmp_path / "s")
    assert found.framed.ids.tolist() == [token for row in rows for token in row["input_ids"]]
    assert found.framed.ends.tolist() == [row["ends"] for row in rows]
    assert int(found.are_cut.sum()) == manifest["splits"]["train"]["num_cut"] > 0
    assert not found.are_long.any() and not found.are_emptied.any()


@pytest.mark.parametrize(("kind", "least"), [("plain", 4), ("bert", 5), ("roberta", 6)])
def test_max_tokens_must_leave_a_token_to_each_text(inputs: Path, tmp_path: Path, kind: str, least: int) -> None:
    keys = {"too_long": "cut", "max_unk_rate": 1}

    with pytest.raises(StageError, match=f"max_tokens is {least - 1}, but 2 texts of one token .* are {least}; raise"):
        make(inputs, tmp_path / "s", "relations", kind, max_tokens=least - 1, **keys)
    make(inputs, tmp_path / "s", "relations", kind, max_tokens=least, **keys)

    assert {len(row["input_ids"]) for row in rows_of(tmp_path / "s")} == {least}


def test_a_tokenizer_without_eos_ends_documents_by_its_sep(inputs: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [["강릉은 바다", "도시다."]])

    manifest = build(stage_of(corpus, inputs / "bert", tmp_path / "s"))

    assert manifest["eos_is_sep"] is True
    assert manifest["tokenizer"]["eos_id"] == 3
    assert [row["input_ids"][-1] for row in rows_of(tmp_path / "s")] == [3, 3]
    assert verify(tmp_path / "s") == []
    assert "EOS 3 (its SEP)" in describe(tmp_path / "s")


def test_a_tokenizer_without_eos_makes_no_instruction_rows_and_no_plain_frame(inputs: Path, tmp_path: Path) -> None:
    corpus = write_instruction_corpus(tmp_path / "corpus", [[turns("가", "나")]])

    with pytest.raises(StageError, match="no eos_token in tokenizer_config.json"):
        build(stage_of(corpus, inputs / "bert", tmp_path / "s", template="koalpaca"))
    with pytest.raises(StageError, match="frame is plain, .*names no eos_token"):
        make(inputs, tmp_path / "p", "reviews", "bert", frame="plain")


def test_the_result_depends_neither_on_the_order_of_tasks_nor_on_a_kill(inputs: Path, tmp_path: Path) -> None:
    make(inputs, tmp_path / "forward", heldout_fraction=0.3)
    stage = stage_of(inputs / "reviews", inputs / "plain", tmp_path / "killed", heldout_fraction=0.3)
    tasks = stage.plan()
    stage.run(tasks[1])
    (tmp_path / "killed/train/part-00000-0000.arrow.partial").write_bytes(b"of a killed build")

    build(stage_of(inputs / "reviews", inputs / "plain", tmp_path / "killed", heldout_fraction=0.3))

    assert contents(tmp_path / "killed") == contents(tmp_path / "forward")
    assert json.loads(json.dumps(tasks[0].spec)) == tasks[0].spec


@pytest.mark.stages
def test_law_9_a_build_of_examples_killed_at_any_disk_operation_goes_on_to_the_same_bytes(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # a forked child has no threads of the parent
    make(inputs, tmp_path / "whole", labels=["1", "0"])
    num_kills, status = 0, -signal.SIGKILL
    while status != 0:
        stage = stage_of(inputs / "reviews", inputs / "plain", tmp_path / "killed", labels=["1", "0"])
        status = run_until(stage, num_kills)
        assert status in (0, -signal.SIGKILL)
        build(stage)
        found = {name: data for name, data in contents(stage.output).items() if not name.startswith(".")}
        assert found == contents(tmp_path / "whole")
        shutil.rmtree(stage.output)
        num_kills += 1

    assert num_kills > 40


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_equal_inputs_are_done_once_and_other_labels_are_refused(inputs: Path, tmp_path: Path) -> None:
    make(inputs, tmp_path / "s")

    assert stage_of(inputs / "reviews", inputs / "plain", tmp_path / "s").is_done()
    assert stage_of(inputs / "reviews", inputs / "plain", tmp_path / "s", labels=["0", "1"]).is_done()
    with pytest.raises(StageError, match="holds shards of other inputs: examples .*'labels': .*now"):
        stage_of(inputs / "reviews", inputs / "plain", tmp_path / "s", labels=["1", "0"]).is_done()


@pytest.mark.parametrize(
    ("corpus", "keys", "says"),
    [
        ("reviews", {"template": "koalpaca"}, "holds label records, but template is 'koalpaca'; leave template out"),
        ("triplets", {"labels": ["0", "1"]}, "holds pair records, but labels is .* --record label"),
        (None, {"frame": "bert"}, "holds document records, but frame is 'bert'; .*label or pair records"),
        (None, {"too_long": "cut"}, "holds document records, but too_long is 'cut'"),
        (None, {"max_tokens": 9}, "holds document records, but max_tokens is 9"),
    ],
)
def test_keys_that_do_not_fit_the_corpus_are_refused(
    inputs: Path, tmp_path: Path, corpus: str | None, keys: dict[str, Any], says: str
) -> None:
    path = inputs / corpus if corpus else write_corpus(tmp_path / "corpus", [["글"]])

    with pytest.raises(StageError, match=says):
        stage_of(path, inputs / "plain", tmp_path / "s", **keys).plan()


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"labels": ["a", "b", "a"]}, "'a' is named twice; name each label once"),
        ({"labels": ["a"]}, "labels"),
        ({"too_long": "shorten"}, "too_long"),
        ({"frame": "gpt"}, "frame"),
    ],
)
def test_faults_of_the_config_are_named(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        validate({"corpus": "c", "tokenizer": "t", "output": "o", **keys}, ShardsConfig, where="test")


def forge(folder: Path, change: dict[str, Any]) -> None:
    """Other columns in the only shard, with a manifest that vouches for them."""
    shards = read_shards(folder, split="train")
    path = shards.files[0].path
    table = pa.ipc.open_file(pa.BufferReader(path.read_bytes())).read_all()
    for name, column in change.items():
        field = table.schema.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(column, field.type))
    with path.open("wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_batch(table.combine_chunks().to_batches()[0])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][0] |= {"num_bytes": path.stat().st_size, "sha256": disk.sha256_of(path)}
    write_manifest(folder, manifest)


@pytest.mark.parametrize(
    ("corpus", "change", "says"),
    [
        ("triplets", lambda rows: {"ends": [row["ends"][:2] for row in rows]}, "offsets of its ends are not 3 apart"),
        (
            "triplets",
            lambda rows: {"ends": [row["ends"][::-1] for row in rows]},
            "example '행-0' has ends .* must rise",
        ),
        ("relations", lambda rows: {"ends": [[row["ends"][0] - 1] for row in rows]}, "must rise to its length"),
        (
            "scored",
            lambda rows: {"ends": [[row["ends"][0] + 1, row["ends"][1]] for row in rows]},
            r"sequence [01] of example '행-0' (ends in|begins with) id \d+, its bert frame says [23]",
        ),
        (
            "relations",
            lambda rows: {"value": [3.0] * len(rows)},
            "'행-0' has value 3.0, but it must be the number of one of 3",
        ),
        ("relations", lambda rows: {"value": [0.5] * len(rows)}, "has value 0.5"),
        ("relations", lambda rows: {"value": [math.nan] * len(rows)}, "has value nan"),
        ("relations", lambda rows: {"value": [1.0] * len(rows)}, "has class 0 0, manifest.json says 2"),
        ("scored", lambda rows: {"value": [math.inf] * len(rows)}, "has value inf, but it must be a finite score"),
        ("scored", lambda rows: {"value": [math.nan] * len(rows)}, "has num_scored 0, manifest.json says 6"),
    ],
)
def test_verify_names_what_is_wrong_with_examples(
    inputs: Path, tmp_path: Path, corpus: str, change: Any, says: str
) -> None:
    make(inputs, tmp_path / "s", corpus, "bert", max_unk_rate=1)
    forge(tmp_path / "s", change(rows_of(tmp_path / "s")))

    faults = verify(tmp_path / "s")

    assert any(re.search(says, fault) for fault in faults), faults


def test_inspect_shows_examples_sequence_by_sequence(inputs: Path, tmp_path: Path) -> None:
    make(inputs, tmp_path / "l", "relations", "bert", max_unk_rate=1)
    make(inputs, tmp_path / "p", "scored", "roberta")
    make(inputs, tmp_path / "t", "triplets")

    labels, scores, triplets = (describe(tmp_path / name) for name in "lpt")

    assert "frame bert (CLS 2, SEP 3), 1 sequence an example" in labels
    assert "행-0  class 2: 참\n  [    0 –" in labels
    assert "frame roberta (CLS 0, SEP 2), 2 sequences an example" in scores
    assert "행-1  score 0.5" in scores
    assert "<s>어디에 사느냐고 묻자 강릉이라고 답했다.</s>" in scores
    assert "행-0  no score" in triplets
    assert triplets.count("<eos>") == 6
    assert "\x1b[" in describe(tmp_path / "p", colour=True)
    with pytest.raises(StageError, match="holds pair records, which are never packed, but packing is 'best_fit'"):
        describe(tmp_path / "p", packing="best_fit")


def test_the_verb_prints_examples_by_class(inputs: Path, tmp_path: Path) -> None:
    manifest = make(inputs, tmp_path / "s", max_tokens=30, too_long="cut")

    figures = {figure.name: figure.value for figure in _figures(manifest)}

    assert figures["train examples"] == 6
    assert (figures["train label 0"], figures["train label 1"], figures["train rows cut"]) == (3, 3, 2)
    assert (figures["train rows of an unknown label"], figures["frame"]) == (0, "plain")
