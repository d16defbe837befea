"""Files instead of shards: the stages of the verbs run into a cache, each of them once for equal inputs."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.config import ConfigError, load, to_tree, validate
from data_pipeline.raw import find_shards, prepare_shards
from data_pipeline.raw_config import RawDataConfig
from data_pipeline.shards.build import ShardsBuild, ShardsConfig
from data_pipeline.shards.format import read_shards
from data_pipeline.stage import Stage, StageError, read_manifest
from launch.tasks import run_stage
from tests.data_pipeline.shards.example_folders import write_plain

TEXTS = [f"{number}번째 글입니다. 강릉에 사는 사람이 {number * 7}명 있습니다." for number in range(120)]


def raw_data(folder: Path, texts: list[str] = TEXTS, **keys: Any) -> RawDataConfig:
    path = folder / f"texts-{len(texts)}.jsonl"
    if not path.is_file():  # one that is written again is another: the corpus stage's inputs hold a file's time
        lines = [json.dumps({"id": str(place), "text": text}, ensure_ascii=False) for place, text in enumerate(texts)]
        path.write_text("\n".join(lines), encoding="utf-8")
    tree = {"inputs": [str(path)], "vocab_size": 320, "heldout_fraction": 0.1}
    return validate({**tree, "cache": str(folder / "cache"), **keys}, RawDataConfig, where="test")


def prepare(raw: RawDataConfig) -> tuple[Path, list[str]]:
    """The shards, and the stages that had to run for them."""
    ran = []

    def run(stage: Stage, kind: str) -> None:
        ran.append(kind)
        run_stage(stage, 1, label=kind)

    return prepare_shards(raw, run=run), ran


def test_files_become_shards_once_and_are_found_again(tmp_path: Path) -> None:
    raw = raw_data(tmp_path)

    shards, ran = prepare(raw)

    assert ran == ["corpus", "tokenizer", "shards"]
    assert read_shards(shards, split="train").num_documents > 90
    assert prepare(raw) == (shards, [])
    assert find_shards(raw) == shards


def test_other_files_and_other_keys_make_other_shards_and_keep_the_first(tmp_path: Path) -> None:
    first, _ = prepare(raw_data(tmp_path))

    other_split, ran_for_split = prepare(raw_data(tmp_path, heldout_fraction=0.2))
    other_text, ran_for_text = prepare(raw_data(tmp_path, [*TEXTS, "하나 더 있습니다."]))

    assert ran_for_split == ["shards"]
    assert ran_for_text == ["corpus", "tokenizer", "shards"]
    assert len({first, other_split, other_text}) == 3
    assert read_manifest(first, kind="shards")["kind"] == "shards"


def test_the_cache_holds_what_the_verbs_would_write(tmp_path: Path) -> None:
    raw = raw_data(tmp_path)
    shards, _ = prepare(raw)
    manifest = read_manifest(shards, kind="shards")
    (corpus,) = (tmp_path / "cache").glob("corpus-*")
    (tokenizer,) = (tmp_path / "cache").glob("tokenizer-*")
    overrides = [f"corpus={corpus}", f"tokenizer={tokenizer}", f"output={tmp_path / 'by-hand'}", "heldout_fraction=0.1"]

    by_hand = run_stage(ShardsBuild(load(None, overrides, ShardsConfig)), 1, label="shards")

    assert by_hand["manifest_sha256"] == manifest["manifest_sha256"]


def test_shards_that_were_never_made_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"the corpus is not built yet.*dure train CONFIG"):
        find_shards(raw_data(tmp_path))


def test_a_config_with_raw_files_resolves_to_itself(tmp_path: Path) -> None:
    raw = raw_data(tmp_path)

    assert validate(to_tree(raw), RawDataConfig, where="test") == raw


def test_two_preparations_at_once_run_each_stage_once(tmp_path: Path) -> None:
    raw = raw_data(tmp_path)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(prepare, [raw, raw]))

    assert sorted(kind for _, ran in results for kind in ran) == ["corpus", "shards", "tokenizer"]
    assert results[0][0] == results[1][0]


def test_instructions_without_template_or_tokenizer_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="record is 'instruction', but there is no template and tokenizer"):
        raw_data(tmp_path, record="instruction")
    with pytest.raises(ConfigError, match="there is no tokenizer; name"):
        raw_data(tmp_path, record="instruction", template="koalpaca")


def test_labelled_rows_become_examples_by_the_tokenizer_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "ratings.tsv").write_text(
        "document\tlabel\n" + "".join(f"{text}\t{n % 2}\n" for n, text in enumerate(TEXTS))
    )
    keys = {"inputs": [str(tmp_path / "ratings.tsv")], "record": "label", "cache": str(tmp_path / "cache")}
    keys |= {"labels": [1, 0], "max_tokens": 24, "too_long": "cut", "tokenizer": str(write_plain(tmp_path / "plain"))}

    shards, ran = prepare(validate(keys, RawDataConfig, where="test"))

    found = read_shards(shards, split="train")
    assert ran == ["corpus", "shards"]
    assert (found.labels, found.record) == (("1", "0"), "label")
    assert read_manifest(shards, kind="shards")["splits"]["train"]["num_cut"] == found.num_documents


@pytest.mark.parametrize(("record", "num_sequences"), [("preference", 2), ("feedback", 1), ("prompt", 2)])
def test_compared_answers_become_shards_of_the_record_that_the_stage_needs(
    tmp_path: Path, record: str, num_sequences: int
) -> None:
    rows = [{"prompt": f"{n}째 질문", "chosen": text, "rejected": "몰라"} for n, text in enumerate(TEXTS)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    keys = {"inputs": [str(path)], "record": record, "cache": str(tmp_path / "cache"), "heldout_fraction": 0}
    keys |= {"template": "koalpaca", "max_tokens": 400, "tokenizer": str(write_plain(tmp_path / "plain"))}

    shards, ran = prepare(validate(keys, RawDataConfig, where="test"))

    found = read_shards(shards, split="train")
    assert ran == ["corpus", "shards"]
    assert (found.record, found.num_sequences) == (record, num_sequences)
    with pytest.raises(ConfigError, match=f"record is '{record}', but there is no template"):
        validate({**keys, "template": None}, RawDataConfig, where="test")


@pytest.mark.parametrize("record", ["label", "pair"])
def test_examples_without_a_tokenizer_are_refused(record: str) -> None:
    with pytest.raises(ConfigError, match=f"record is '{record}', but there is no tokenizer; name that of the model"):
        validate({"inputs": ["x"], "record": record}, RawDataConfig, where="test")
