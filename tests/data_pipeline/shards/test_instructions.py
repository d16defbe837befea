"""`dure shards build` of instruction records: law 10, and what is kept beside the shards."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline import disk
from data_pipeline.corpus.records import SCHEMAS
from data_pipeline.shards.build import ShardsBuild, ShardsConfig
from data_pipeline.shards.format import read_shards, shard_schema, template_of, tokenizer_folder
from data_pipeline.shards.instructions import instructions_recipe
from data_pipeline.shards.reader import iterate_instructions
from data_pipeline.shards.verify import verify
from data_pipeline.stage import Manifest, StageError, write_manifest
from data_pipeline.stream.rows import open_rows
from data_pipeline.templates import encode_prompt, encode_row, load_template
from data_pipeline.tokenizer.encode import Encoder
from tests.data_pipeline.shards.folders import (
    turns,
    write_corpus,
    write_instruction_corpus,
    write_tokenizer,
    write_tokenizer_with_unknowns,
)

CONVERSATIONS = [
    turns("수도는?", "서울"),
    turns("더하면?", "셋", "빼면?", "하나 🙂", system="짧게 답한다.", given="1 2"),
    turns("<|endoftext|> ### 답변:", "<|endoftext|>"),
    turns("끝", "네 <|im_end|>"),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_instruction_corpus(folder / "corpus", [CONVERSATIONS[:2], CONVERSATIONS[2:]], heldout=[3])
    write_tokenizer(folder / "tokenizer")
    return folder


def stage_of(inputs: Path, output: Path, **changes: Any) -> ShardsBuild:
    tree = {
        "corpus": inputs / "corpus",
        "tokenizer": inputs / "tokenizer",
        "output": output,
        "heldout_fraction": 0,
        "template": "koalpaca",
    }
    return ShardsBuild(ShardsConfig.model_validate(tree | changes))


def build(stage: ShardsBuild) -> Manifest:
    for task in stage.plan():
        stage.run(task)
    return stage.finish()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("template", ["koalpaca", "alpaca_ko", "alpaca", "chatml"])
def test_rows_are_what_the_template_encodes(inputs: Path, tmp_path: Path, template: str) -> None:
    manifest = build(stage_of(inputs, tmp_path / "s", template=template))

    encoder, loaded = Encoder(inputs / "tokenizer"), load_template(template, tokenizer=inputs / "tokenizer")
    for split, numbers in (("train", [0, 1, 2]), ("heldout", [3])):
        expected = [encode_row(CONVERSATIONS[number], loaded, encoder) for number in numbers]
        found = list(iterate_instructions(read_shards(tmp_path / "s", split=split)))
        assert [(row.ids.tolist(), list(row.spans)) for row in found] == expected
        assert [row.record_id for row in found] == [f"행-{number}" for number in numbers]
        answers = [
            message["content"]
            for number in numbers
            for message in CONVERSATIONS[number]
            if message["role"] == "assistant"
        ]
        assert manifest["splits"][split] == {
            "num_documents": len(numbers),
            "num_tokens": sum(len(ids) for ids, _ in expected),
            "num_bytes": sum(len(answer.encode()) for answer in answers),
            "num_unk": 0,
            "num_empty": 0,
            "num_targets": sum(end - start for _, spans in expected for start, end in spans),
            **dict.fromkeys(("num_no_target", "num_no_eos", "num_emptied", "num_too_long"), 0),
        }
    assert (manifest["record"], manifest["format_version"]) == ("instruction", 2)
    assert manifest["template"] == {"name": template, "sha256": loaded.sha256}
    assert verify(tmp_path / "s") == []


def test_the_schema_is_that_of_documents_and_the_spans(inputs: Path, tmp_path: Path) -> None:
    build(stage_of(inputs, tmp_path / "s"))
    path = read_shards(tmp_path / "s", split="train").files[0].path

    with pa.memory_map(str(path)) as source:
        schema = pa.ipc.open_file(source).schema

    span = pa.struct([pa.field("start", pa.int32(), nullable=False), pa.field("end", pa.int32(), nullable=False)])
    assert schema.field("loss_spans").type == pa.list_(pa.field("item", span, nullable=False))
    assert schema.names[:-1] == shard_schema(np.dtype(np.uint16), record="document").names


def test_a_prompt_at_chat_time_is_what_training_saw_before_the_answer(inputs: Path, tmp_path: Path) -> None:
    build(stage_of(inputs, tmp_path / "s"))
    template = template_of(tmp_path / "s")
    assert template is not None
    encoder = Encoder(tokenizer_folder(tmp_path / "s"))

    for row, messages in zip(
        iterate_instructions(read_shards(tmp_path / "s", split="train")), CONVERSATIONS, strict=False
    ):
        assert row.ids[: row.spans[-1][0]].tolist() == encode_prompt(messages[:-1], template, encoder)
        start, end = row.spans[-1]
        spoken = encoder.tokenizer.decode(row.ids[start:end].tolist(), skip_special_tokens=False)
        assert template.answer_text(spoken) == messages[-1]["content"]


def test_documents_carry_their_tokenizer_too_and_no_template(inputs: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [["강릉은 도시다."]])
    (tmp_path / "tokenizer").mkdir()
    tokenizer = shutil.copytree(inputs / "tokenizer", tmp_path / "tokenizer", dirs_exist_ok=True)
    (tokenizer / "chat_template.jinja").write_text("{{ messages }}")
    (tokenizer / "card.json").write_text('{"vocab_size": 400}')
    (tokenizer / "README.md").write_text("not needed")
    manifest = build(stage_of(inputs, tmp_path / "s", corpus=corpus, tokenizer=tokenizer, template=None))

    files = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "card.json")
    names = [f"tokenizer/{name}" for name in files]
    assert [entry["name"] for entry in manifest["companions"]] == names
    for name in names:
        assert (tmp_path / "s" / name).read_bytes() == (tokenizer / Path(name).name).read_bytes()
    assert (manifest["record"], manifest["template"]) == ("document", None)
    assert template_of(tmp_path / "s") is None
    assert tokenizer_folder(tmp_path / "s") == tmp_path / "s" / "tokenizer"


def test_companions_of_an_unfinished_build_of_other_inputs_are_removed(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "s" / "tokenizer").mkdir(parents=True)
    (tmp_path / "s" / "tokenizer" / "special_tokens_map.json").write_text("of another")
    (tmp_path / "s" / "template.yaml.partial").write_text("of a killed one")
    build(stage_of(inputs, tmp_path / "s"))
    build(stage_of(inputs, tmp_path / "clean"))

    assert contents(tmp_path / "s") == contents(tmp_path / "clean")


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "template.yaml"])
def test_verify_names_a_flipped_byte_in_a_companion(inputs: Path, tmp_path: Path, name: str) -> None:
    build(stage_of(inputs, tmp_path / "s"))
    path = tmp_path / "s" / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)

    (fault,) = verify(tmp_path / "s")

    assert fault.startswith(f"{path}: sha256 is ")


def forge_spans(folder: Path, number: int, *, start: int | None = None, end: int | None = None) -> None:
    """Change the first span of a train row in its file, and the manifest's hashes to match."""
    path = read_shards(folder, split="train").files[0].path
    with pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
        column = batch.column("loss_spans")
        starts, ends = (column.values.field(place).to_numpy().copy() for place in range(2))
        place = int(column.offsets[number].as_py())
    data = bytearray(path.read_bytes())
    for array, value in ((starts, start), (ends, end)):
        at = data.index(array.tobytes()) + 4 * place
        data[at : at + 4] = int(array[place] if value is None else value).to_bytes(4, "little", signed=True)
    path.write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["files"]:
        entry["sha256"] = disk.sha256_of(folder / entry["name"])
    write_manifest(folder, manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"end": 9999}, r"document '행-0' has loss span \d+ – 9999, but it must lie in 1 – \d+; build again"),
        ({"start": 0}, r"document '행-0' has loss span 0 – \d+, but it must lie in 1 – "),
        ({"start": 7, "end": 7}, r"document '행-0' has loss span 7 – 7, but it must lie in"),
        ({"start": 3, "end": 5}, r"a loss span of document '행-0' ends in id \d+, not in EOS 0; build again"),
        ({"start": 3}, r"split 'train' has num_targets \d+, manifest.json says \d+; build again"),
    ],
)
def test_verify_names_a_span_that_is_out_of_place(
    inputs: Path, tmp_path: Path, change: dict[str, int], message: str
) -> None:
    build(stage_of(inputs, tmp_path / "s"))
    forge_spans(tmp_path / "s", 0, **change)

    faults = verify(tmp_path / "s")

    assert any(re.search(message, fault) for fault in faults), faults


def test_law_10_rows_that_teach_nothing_are_refused_with_a_count_a_reason_and_a_name(
    inputs: Path, tmp_path: Path
) -> None:
    rows = [
        *CONVERSATIONS[:2],
        turns("빈", ""),
        turns("", "물음이 없다"),
        turns("긴 " * 40, "답"),
        turns("긴 " * 40, ""),
    ]
    corpus = write_instruction_corpus(tmp_path / "corpus", [rows])
    stage = stage_of(inputs, tmp_path / "s", corpus=corpus, max_tokens=60)

    with pytest.raises(
        StageError,
        match=r"of the instruction rows, 3 have an answer or a question of which the tokenizer leaves nothing \(the "
        r"first is '행-2'\); 2 have more than max_tokens tokens \(the first is '행-1'\); mend them in the corpus, or",
    ):
        build(stage)
    assert not (tmp_path / "s" / "manifest.json").exists()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*.arrow")}

    dropping = stage_of(inputs, tmp_path / "s", corpus=corpus, max_tokens=60, drop_faulty_rows=True)
    counts = build(dropping)["splits"]["train"]

    assert {key: counts[key] for key in ("num_documents", "num_emptied", "num_too_long", "num_no_target")} == {
        "num_documents": 1,
        "num_emptied": 3,
        "num_too_long": 2,
        "num_no_target": 0,
    }
    assert {path: path.stat().st_mtime_ns for path in times} == times  # nothing is encoded a second time
    (row,) = iterate_instructions(read_shards(tmp_path / "s", split="train"))
    assert row.record_id == "행-0"
    assert verify(tmp_path / "s") == []


def test_law_10_every_row_that_is_kept_has_an_eos_target_and_its_padding_is_none(inputs: Path, tmp_path: Path) -> None:
    build(stage_of(inputs, tmp_path / "s", template="chatml"))
    rows = open_rows(tmp_path / "s", split="train", seq_len=300, packing="best_fit")

    batch = rows.gather(np.arange(rows.num_rows))

    num_answers = sum(len(row.spans) for row in iterate_instructions(rows.shards))
    assert int((batch.labels == rows.shards.eos_id).sum()) == num_answers
    assert not (batch.labels == rows.pad_id).any()


def test_an_answer_that_the_tokenizer_drops_is_emptied(tmp_path: Path) -> None:
    """A BPE without unknowns leaves characters out in silence."""
    tokenizer = write_tokenizer(tmp_path / "t")
    tree = json.loads((tokenizer / "tokenizer.json").read_text())
    tree["normalizer"] = {"type": "Replace", "pattern": {"String": "묵"}, "content": ""}
    (tokenizer / "tokenizer.json").write_text(json.dumps(tree))
    corpus = write_instruction_corpus(
        tmp_path / "corpus", [[turns("물음", "묵묵"), turns("물음", "답"), turns("묵", "답")]]
    )
    stage = ShardsBuild(
        ShardsConfig(
            corpus=corpus,
            tokenizer=tokenizer,
            output=tmp_path / "s",
            heldout_fraction=0,
            template="koalpaca",
            drop_faulty_rows=True,
        )
    )

    counts = build(stage)["splits"]["train"]

    assert (counts["num_documents"], counts["num_emptied"]) == (1, 2)


def test_rows_without_a_target_or_an_eos_are_told_apart(inputs: Path) -> None:
    """No template here makes them; the law is checked on the ids all the same."""

    class Broken:
        def render(self, messages: list[dict[str, str]]) -> list[Any]:
            pieces = load_template("koalpaca", tokenizer=inputs / "tokenizer").render(messages)
            change = {"무": {"is_answer": False}, "끝없이": {"ends": False}}.get(messages[0]["content"], {})
            return [*pieces[:-1], type(pieces[-1])(**(vars(pieces[-1]) | change))]

    recipe = instructions_recipe(Broken(), max_tokens=None)  # type: ignore[arg-type]
    rows = [
        {"id": question, "messages": turns(question, "답"), "source": "", "metadata": "", "split_hint": ""}
        for question in ("무", "끝없이", "좋다")
    ]
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMAS["instruction"])

    found = recipe.encode(batch, Encoder(inputs / "tokenizer"))

    assert found.faults["num_no_target"].tolist() == [True, False, False]
    assert found.faults["num_no_eos"].tolist() == [False, True, False]
    assert list(found.documents.record_ids) == ["좋다"]


def test_no_row_left_is_refused(inputs: Path, tmp_path: Path) -> None:
    corpus = write_instruction_corpus(tmp_path / "corpus", [[turns("빈", "")]])
    stage = stage_of(inputs, tmp_path / "s", corpus=corpus, drop_faulty_rows=True)

    with pytest.raises(StageError, match="no instruction row is left for train"):
        build(stage)


def test_a_tokenizer_that_loses_the_templates_own_words_is_refused(tmp_path: Path) -> None:
    tokenizer = write_tokenizer_with_unknowns(tmp_path / "t")
    corpus = write_instruction_corpus(tmp_path / "corpus", [[turns("강릉은", "도시다.")]])
    config = ShardsConfig(
        corpus=corpus, tokenizer=tokenizer, output=tmp_path / "s", heldout_fraction=0, template="koalpaca"
    )

    with pytest.raises(
        StageError, match=r"the tokenizer loses words of the template: '### 질문: \\n\\n### 답변:' comes"
    ):
        build(ShardsBuild(config))


@pytest.mark.parametrize(
    ("corpus", "changes", "message"),
    [
        (
            "corpus",
            {"template": None},
            "holds instruction records, but template is not set; set template to one of alp",
        ),
        ("documents", {}, "holds document records, but template is 'koalpaca'; leave template out"),
        ("documents", {"template": None, "max_tokens": 9}, "holds document records, but max_tokens is 9; leave max_"),
        (
            "corpus",
            {"template": "koalpacca"},
            r"'koalpacca' is neither a template nor a file; .*did you mean 'koalpaca'",
        ),
        ("corpus", {"template": "tokenizer"}, "the tokenizer has no chat template of its own; choose one of"),
    ],
)
def test_records_and_template_must_agree(
    inputs: Path, tmp_path: Path, corpus: str, changes: dict[str, Any], message: str
) -> None:
    write_corpus(tmp_path / "documents", [["글"]])
    folder = {"corpus": inputs / "corpus", "documents": tmp_path / "documents"}[corpus]

    with pytest.raises(StageError, match=message):
        stage_of(inputs, tmp_path / "s", corpus=folder, **changes).plan()


def test_a_row_that_the_template_has_no_place_for_is_named(inputs: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.yaml"
    bare.write_text('name: bare\nuser: "Q {content}\\n"\nanswer: "{content}"\n')
    stage = stage_of(inputs, tmp_path / "s", template=str(bare))

    with pytest.raises(StageError, match="record '행-1': template 'bare': no place for a system turn"):
        build(stage)


def test_shards_of_another_template_are_never_reused(inputs: Path, tmp_path: Path) -> None:
    build(stage_of(inputs, tmp_path / "s"))
    assert stage_of(inputs, tmp_path / "s").is_done()

    with pytest.raises(
        StageError, match=r"holds shards of other inputs: template \{'name': 'koalpaca'.*now .*'alpaca'"
    ):
        stage_of(inputs, tmp_path / "s", template="alpaca").plan()


def test_the_tokenizers_own_template_is_kept_with_the_shards(inputs: Path, tmp_path: Path) -> None:
    tokenizer = shutil.copytree(inputs / "tokenizer", tmp_path / "tokenizer")
    chatml = load_template("chatml", tokenizer=tokenizer).chat_template()
    (tokenizer / "chat_template.jinja").write_text(chatml)
    build(stage_of(inputs, tmp_path / "s", tokenizer=tokenizer, template="tokenizer"))

    template = template_of(tmp_path / "s")

    assert template is not None
    assert (template.name, template.chat_template()) == ("tokenizer", chatml)
    again = build(stage_of(inputs, tmp_path / "t", tokenizer=tokenizer, template="tokenizer"))
    assert again["template"]["sha256"] == template.sha256


def test_a_template_file_that_was_changed_after_the_build_is_refused(inputs: Path, tmp_path: Path) -> None:
    build(stage_of(inputs, tmp_path / "s"))
    path = tmp_path / "s" / "template.yaml"
    path.write_text(path.read_text().replace("질문", "물음"))

    with pytest.raises(StageError, match=r"template.yaml: the template is [0-9a-f]{16}…, manifest.json says"):
        template_of(tmp_path / "s")


@pytest.mark.parametrize("settings", [{}, {"pad_token": "<|endoftext|>"}])
def test_a_tokenizer_without_a_pad_of_its_own_pads_with_eos_and_says_so(
    inputs: Path, tmp_path: Path, settings: dict[str, str]
) -> None:
    tokenizer = shutil.copytree(inputs / "tokenizer", tmp_path / "tokenizer")
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"} | settings))

    manifest = build(stage_of(inputs, tmp_path / "s", tokenizer=tokenizer))
    rows = open_rows(tmp_path / "s", split="train", seq_len=300, packing="best_fit")
    batch = rows.gather(np.arange(rows.num_rows))

    assert manifest["pad_is_eos"] is True and rows.shards.pad_is_eos
    padding = batch.input_ids == rows.shards.eos_id
    assert padding.sum() > 50 and (batch.labels[:, -1] == -100).all()
    assert build(stage_of(inputs, tmp_path / "own"))["pad_is_eos"] is False


def test_a_folder_without_its_tokenizer_is_told(inputs: Path, tmp_path: Path) -> None:
    build(stage_of(inputs, tmp_path / "s"))
    shutil.rmtree(tmp_path / "s" / "tokenizer")

    with pytest.raises(StageError, match="no tokenizer.json there, so these shards can't be decoded; build them again"):
        tokenizer_folder(tmp_path / "s")
