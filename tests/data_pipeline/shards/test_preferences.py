"""`dure shards build` of preference, feedback and prompt records: a template's writing, and law 10 of both answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import disk
from data_pipeline.corpus.records import RecordName, iterate_records
from data_pipeline.shards.build import ShardsBuild
from data_pipeline.shards.format import read_shards, shard_schema
from data_pipeline.shards.inspect import describe
from data_pipeline.shards.preferences import AnsweredShape, preferences_recipe
from data_pipeline.shards.verify import verify
from data_pipeline.shards.verify_answers import faults_of_answers
from data_pipeline.stage import StageError
from data_pipeline.stream.examples import ExampleRows
from data_pipeline.templates import encode_prompt, encode_row, load_template
from data_pipeline.templates.template import Message, Piece, Template, TemplateError
from data_pipeline.tokenizer.encode import Encoder
from tests.data_pipeline.shards.answered_folders import FEEDBACK, PREFERENCES, PROMPTS, ROWS, Row, write_answered
from tests.data_pipeline.shards.example_folders import build, rows_of
from tests.data_pipeline.shards.example_folders import stage_of as plain_stage
from tests.data_pipeline.shards.folders import turns, write_tokenizer, write_tokenizer_with_unknowns

TEMPLATES = ("koalpaca", "alpaca_ko", "chatml")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for record, rows in ROWS.items():
        write_answered(folder / record, record, [rows[:2], rows[2:]])
    write_tokenizer(folder / "tokenizer")
    return folder


def stage_of(inputs: Path, record: str, output: Path, **changes: Any) -> ShardsBuild:
    return plain_stage(inputs / record, inputs / "tokenizer", output, **{"template": "chatml", **changes})


def build_rows(tmp_path: Path, inputs: Path, record: RecordName, rows: Sequence[Row], **changes: Any) -> dict[str, Any]:
    heldout = changes.pop("heldout", ())
    write_answered(tmp_path / "corpus", record, [rows], heldout=heldout)
    tree = {"template": "chatml", **changes}
    return build(plain_stage(tmp_path / "corpus", inputs / "tokenizer", tmp_path / "s", **tree))


def with_answer(prompt: list[dict[str, str]], answer: str) -> list[dict[str, str]]:
    return [*prompt, {"role": "assistant", "content": answer, "input": ""}]


def expected_sequences(inputs: Path, record: str, row: Row, template: str) -> list[tuple[list[int], tuple[int, int]]]:
    """Ids of each sequence and its answer, as an instruction row would have them."""
    encoder, loaded = Encoder(inputs / "tokenizer"), load_template(template, tokenizer=inputs / "tokenizer")
    names = {"preference": ("chosen", "rejected"), "feedback": ("answer",)}[record]
    found = []
    for name in names:
        ids, spans = encode_row(with_answer(row["prompt"], row[name]), loaded, encoder)
        assert ids[: spans[-1][0]] == encode_prompt(row["prompt"], loaded, encoder)
        found.append((ids, spans[-1]))
    return found


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("record", ["preference", "feedback"])
def test_answers_are_written_as_an_instruction_rows_are_and_reach_the_stream(
    inputs: Path, tmp_path: Path, record: RecordName, template: str
) -> None:
    manifest = build(stage_of(inputs, record, tmp_path / "s", template=template))

    expected = [expected_sequences(inputs, record, row, template) for row in ROWS[record]]
    rows = ExampleRows(read_shards(tmp_path / "s", split="train"), seq_len=512)
    batch = rows.gather(np.arange(rows.num_rows))
    sequences = [sequence for row in expected for sequence in row]
    assert [ids[:n].tolist() for ids, n in zip(batch.input_ids, batch.lengths, strict=True)] == [
        s[0] for s in sequences
    ]
    assert batch.answers is not None
    assert batch.answers.tolist() == [list(span) for _, span in sequences]
    assert batch.num_sequences == len(expected[0]) == manifest["num_sequences"]
    verdicts = [float(row["is_desirable"]) for row in FEEDBACK] if record == "feedback" else [np.nan] * len(PREFERENCES)
    np.testing.assert_array_equal(batch.values, verdicts)
    assert manifest["splits"]["train"]["num_targets"] == sum(end - start for _, (start, end) in sequences)
    assert manifest["splits"]["train"].get("num_desirable", 4) == 4
    assert manifest["template"]["name"] == template
    assert verify(tmp_path / "s") == []


@pytest.mark.parametrize("references", [True, False])
def test_prompts_end_where_the_answer_begins_and_carry_the_reference_as_it_is(
    inputs: Path, tmp_path: Path, references: bool
) -> None:
    build(stage_of(inputs, "prompt", tmp_path / "s", references=references))

    encoder, template = Encoder(inputs / "tokenizer"), load_template("chatml", tokenizer=inputs / "tokenizer")
    rows = ExampleRows(read_shards(tmp_path / "s", split="train"), seq_len=512)
    batch = rows.gather(np.arange(rows.num_rows))
    assert batch.num_sequences == 1 + references
    found = [ids[:n].tolist() for ids, n in zip(batch.input_ids, batch.lengths, strict=True)]
    assert found[:: 1 + references] == [encode_prompt(row["prompt"], template, encoder) for row in PROMPTS]
    if references:
        assert [encoder.tokenizer.decode(ids) for ids in found[1::2]] == [row["answer"] for row in PROMPTS]
    assert batch.answers is None
    assert verify(tmp_path / "s") == []


LONG = "긴 " * 90
FAULTY: list[tuple[RecordName, Row, str]] = [
    ("preference", {"prompt": turns("?"), "chosen": "같다", "rejected": "같다"}, "num_equal"),
    ("preference", {"prompt": turns(LONG), "chosen": "하나", "rejected": "둘"}, "num_prompt_too_long"),
    ("preference", {"prompt": turns("?"), "chosen": "하나", "rejected": LONG}, "num_too_long"),
    ("feedback", {"prompt": turns(LONG), "answer": "하나", "is_desirable": True}, "num_prompt_too_long"),
    ("feedback", {"prompt": turns("?"), "answer": LONG, "is_desirable": True}, "num_too_long"),
    ("prompt", {"prompt": turns(LONG), "answer": "하나"}, "num_prompt_too_long"),
    ("prompt", {"prompt": turns("?"), "answer": LONG}, "num_too_long"),
    ("prompt", {"prompt": turns("?"), "answer": None}, "num_mixed"),
]


@pytest.mark.parametrize(("record", "row", "fault"), FAULTY)
def test_a_faulty_row_is_counted_named_and_refused(
    inputs: Path, tmp_path: Path, record: RecordName, row: Row, fault: str
) -> None:
    rows, limits = [ROWS[record][0], row], {"max_tokens": 110}
    shape = AnsweredShape(record=record, num_sequences=1)

    with pytest.raises(StageError, match=re.escape(f"1 {shape.faults[fault]} (the first is '행-1')")):
        build_rows(tmp_path, inputs, record, rows, **limits)

    stage = plain_stage(
        tmp_path / "corpus", inputs / "tokenizer", tmp_path / "s", template="chatml", drop_faulty_rows=True, **limits
    )
    manifest = build(stage)
    counts = manifest["splits"]["train"]
    assert {key: count for key, count in counts.items() if key in shape.faults and count} == {fault: 1}
    assert [row["record_id"] for row in rows_of(tmp_path / "s")] == ["행-0"]


@pytest.mark.parametrize(("record", "row", "fault"), [case for case in FAULTY if case[2].endswith("too_long")])
def test_rows_that_are_too_long_are_left_out_by_their_own_key(
    inputs: Path, tmp_path: Path, record: RecordName, row: Row, fault: str
) -> None:
    manifest = build_rows(tmp_path, inputs, record, [ROWS[record][0], row], max_tokens=110, too_long="drop")

    assert manifest["splits"]["train"][fault] == 1
    assert manifest["splits"]["train"]["num_documents"] == 1
    assert re.search(r"^split .* long prompt +too long$", describe(tmp_path / "s"), re.MULTILINE)


@pytest.mark.parametrize("name", ["prompt", "chosen", "rejected"])
def test_a_text_of_which_the_tokenizer_leaves_nothing_is_refused(tmp_path: Path, name: str) -> None:
    write_tokenizer_with_unknowns(tmp_path / "tokenizer")
    known = {"prompt": turns("강릉은"), "chosen": "바다와", "rejected": "커피로"}
    write_answered(
        tmp_path / "corpus", "preference", [[known, known | {name: turns(" ") if name == "prompt" else " "}]]
    )
    template = tmp_path / "plain.yaml"
    template.write_text("name: plain\nuser: '이름난 {content} '\nanswer_prefix: '도시다. '\nanswer: '{content}'\n")

    with pytest.raises(StageError, match="1 have an answer or a question of which the tokenizer leaves nothing"):
        build(plain_stage(tmp_path / "corpus", tmp_path / "tokenizer", tmp_path / "s", template=str(template)))


@pytest.mark.parametrize("record", list(ROWS))
def test_an_emptied_set_is_refused(inputs: Path, tmp_path: Path, record: RecordName) -> None:
    with pytest.raises(StageError, match=f"no {record} row is left for train"):
        build_rows(tmp_path, inputs, record, ROWS[record], max_tokens=2, drop_faulty_rows=True)


@settings(max_examples=25, deadline=None)
@given(
    asked=st.lists(st.integers(0, 9), min_size=4, max_size=30),
    heldout=st.sets(st.integers(0, 29), max_size=4),
    fraction=st.floats(0, 0.9),
)
def test_no_prompt_is_both_trained_on_and_held_out(
    inputs: Path, tmp_path_factory: pytest.TempPathFactory, asked: list[int], heldout: set[int], fraction: float
) -> None:
    rows = [
        {"prompt": turns(f"{number}?"), "chosen": "가", "rejected": f"나 {place}"} for place, number in enumerate(asked)
    ]
    folder = tmp_path_factory.mktemp("split")
    try:
        build_rows(folder, inputs, "preference", rows, heldout=sorted(heldout), heldout_fraction=fraction)
    except StageError as error:
        assert "is left for train" in str(error)
        return
    splits: dict[str, set[int]] = {"train": set(), "heldout": set()}
    numbers = {f"행-{place}": number for place, number in enumerate(asked)}
    for path in (folder / "s").glob("*/*.arrow"):
        with pa.ipc.open_file(pa.memory_map(str(path))) as file:
            names = file.read_all().column("record_id").to_pylist()
        splits[path.parent.name] |= {numbers[name] for name in names}

    assert splits["train"].isdisjoint(splits["heldout"])
    assert {numbers[f"행-{place}"] for place in heldout if place < len(asked)} <= splits["heldout"]


def test_every_kind_of_record_holds_out_the_same_prompts(inputs: Path, tmp_path: Path) -> None:
    questions = [turns(f"{number}째 질문은?") for number in range(60)]
    rows: dict[RecordName, list[Row]] = {
        "preference": [{"prompt": asked, "chosen": "가", "rejected": "나"} for asked in questions],
        "feedback": [{"prompt": asked, "answer": "다", "is_desirable": False} for asked in questions],
        "prompt": [{"prompt": asked, "answer": None} for asked in reversed(questions)],
    }
    held = []
    for record, of_record in rows.items():
        build_rows(tmp_path / record, inputs, record, of_record, heldout_fraction=0.3)
        asked = {f"행-{place}": row["prompt"][0]["content"] for place, row in enumerate(of_record)}
        held.append({asked[row["record_id"]] for row in rows_of(tmp_path / record / "s", "heldout")})

    assert 5 < len(held[0]) < 35
    assert held[0] == held[1] == held[2]
    assert "held out by a hash of the prompt" in describe(tmp_path / "prompt" / "s")


class Wavering(Template):
    """Writes the prompt in another way once an answer follows."""

    name, sha256, eos_token = "wavering", "0", "<|endoftext|>"

    def render(self, messages: Sequence[Message]) -> list[Piece]:
        return [Piece("답하라 ", own=((0, 4),)), Piece(messages[-1]["content"], is_answer=True, ends=True)]

    def prompt_pieces(self, messages: Sequence[Message]) -> list[Piece]:
        return [Piece("물음 ", own=((0, 3),))]

    def chat_template(self) -> str:
        return ""

    def answer_text(self, decoded: str) -> str:
        return decoded

    def to_yaml(self) -> str:
        return ""


def test_a_template_that_writes_the_prompt_in_two_ways_is_refused(inputs: Path) -> None:
    recipe = preferences_recipe(AnsweredShape("preference", 2), Wavering())
    batch = next(iter(iterate_records(inputs / "preference", columns=recipe.columns)))

    with pytest.raises(TemplateError, match="record '행-0': template 'wavering' writes the prompt in another way"):
        recipe.encode(batch, Encoder(inputs / "tokenizer"))


def test_a_template_without_a_place_for_the_prompts_turns_names_the_record(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="record '행-1': template 'koalpaca': no place for a system turn"):
        (tmp_path / "bare.yaml").write_text(
            "name: koalpaca\nuser: '{content}'\nanswer_prefix: ': '\nanswer: '{content}'\n"
        )
        build(stage_of(inputs, "prompt", tmp_path / "s", template=str(tmp_path / "bare.yaml")))


@pytest.mark.parametrize(
    ("record", "changes", "message"),
    [
        ("preference", {"template": None}, "holds preference records, but template is not set"),
        ("feedback", {"too_long": "cut"}, "too_long is 'cut', and an answer without its end is another one"),
        ("preference", {"frame": "bert"}, "holds preference records, but frame is 'bert'"),
        ("preference", {"references": False}, "holds preference records, but references is False"),
    ],
)
def test_keys_that_do_not_fit_are_refused(
    inputs: Path, tmp_path: Path, record: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(StageError, match=re.escape(message)):
        stage_of(inputs, record, tmp_path / "s", **changes).plan()


def test_built_again_nothing_is_done_and_another_limit_is_refused(inputs: Path, tmp_path: Path) -> None:
    build(stage_of(inputs, "preference", tmp_path / "s"))

    assert stage_of(inputs, "preference", tmp_path / "s").is_done()
    with pytest.raises(StageError, match="holds shards of other inputs: max_tokens None, now 99"):
        stage_of(inputs, "preference", tmp_path / "s", max_tokens=99).is_done()


@pytest.mark.parametrize(
    ("record", "column", "change", "message"),
    [
        ("preference", "ends", lambda cell: [cell[0] + 1, *cell[1:]], "has its answer at"),
        ("preference", "ends", lambda cell: [*cell, cell[-1]], "the offsets of its ends are not"),
        ("preference", "loss_spans", lambda cell: cell[:1], "its loss_spans are not one of each sequence"),
        (
            "preference",
            "loss_spans",
            lambda cell: [{"start": 0, "end": cell[0]["end"]}, cell[1]],
            "must follow a prompt",
        ),
        ("preference", "input_ids", lambda cell: [cell[0] + 1, *cell[1:]], "differ before its two answers"),
        ("feedback", "input_ids", lambda cell: [*cell[:-1], cell[-1] + 1], "not in EOS"),
        ("feedback", "value", lambda cell: 0.5, "must be 1 (desirable) or 0"),
        ("prompt", "ends", lambda cell: [cell[0], cell[1] - 1], "they must rise to its length"),
    ],
)
def test_a_damaged_row_is_found(
    inputs: Path, tmp_path: Path, record: RecordName, column: str, change: Any, message: str
) -> None:
    build(stage_of(inputs, record, tmp_path / "s"))
    shards = read_shards(tmp_path / "s", split="train")
    rows = rows_of(tmp_path / "s")
    rows[1][column] = change(rows[1][column])
    damaged = pa.RecordBatch.from_pylist(rows, schema=shard_schema(shards.dtype, record=record))

    (fault,) = faults_of_answers(damaged, shards, where="배치")

    assert message in fault
    assert fault.startswith("배치: ")


def test_a_changed_verdict_is_found_by_verify(inputs: Path, tmp_path: Path) -> None:
    build(stage_of(inputs, "feedback", tmp_path / "s"))
    path = next((tmp_path / "s" / "train").glob("*.arrow"))
    rows, schema = pa.ipc.open_file(path).read_all().to_pylist(), shard_schema(np.dtype(np.uint16), record="feedback")
    rows[0]["value"] = 0.0
    with disk.durable_file(path) as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))

    faults = "\n".join(verify(tmp_path / "s"))

    assert re.search(r"sha256 is .*num_desirable 3, manifest.json says 4", faults, re.DOTALL)


def test_inspect_shows_both_sequences_with_their_answers_marked(inputs: Path, tmp_path: Path) -> None:
    build(stage_of(inputs, "preference", tmp_path / "s"))

    plain, coloured = describe(tmp_path / "s"), describe(tmp_path / "s", colour=True)

    assert "chosen: " in plain and "rejected: " in plain
    assert "⟦서울입니다.<|im_end|><|endoftext|>⟧" in plain
    assert "⟦모릅니다<|im_end|><|endoftext|>⟧" in plain
    assert "\x1b[32m서울입니다." in coloured
    with pytest.raises(StageError, match="never packed, but packing is 'best_fit'"):
        describe(tmp_path / "s", packing="best_fit")


def test_inspect_says_what_was_judged_and_shows_references(inputs: Path, tmp_path: Path) -> None:
    build(stage_of(inputs, "feedback", tmp_path / "f"))
    build(stage_of(inputs, "prompt", tmp_path / "p"))

    assert re.search(r"행-0  desirable .*행-1  undesirable", describe(tmp_path / "f"), re.DOTALL)
    assert re.search(r"\] prompt\n.*수도는\?.*\] reference\n    서울입니다\.\n", describe(tmp_path / "p"), re.DOTALL)
