"""`dure shards build`: the same bytes from any runner, nothing lost by a kill, nothing reused of another tokenizer."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import disk
from data_pipeline.config import ConfigError, load
from data_pipeline.shards.build import ShardsBuild, ShardsConfig
from data_pipeline.shards.format import read_shards
from data_pipeline.shards.part import is_heldout
from data_pipeline.shards.reader import open_shard
from data_pipeline.shards.verify import verify
from data_pipeline.stage import Manifest, StageError, Task, fingerprint, write_manifest
from data_pipeline.tokenizer.encode import Encoder
from tests.data_pipeline.shards.folders import TEXTS, write_corpus, write_tokenizer, write_tokenizer_with_unknowns

PARTS = [TEXTS[:2], ["", *TEXTS[2:4]], [TEXTS[4]], TEXTS[::-1]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_corpus(folder / "corpus", PARTS)
    write_tokenizer(folder / "tokenizer")
    return folder


def stage_of(inputs: Path, output: Path, **changes: Any) -> ShardsBuild:
    tree = {"corpus": inputs / "corpus", "tokenizer": inputs / "tokenizer", "output": output, "heldout_fraction": 0.4}
    return ShardsBuild(ShardsConfig.model_validate(tree | changes))


def build(stage: ShardsBuild) -> Manifest:
    for task in stage.plan():
        stage.run(task)
    return stage.finish()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(folder: Path, split: str) -> list[dict[str, Any]]:
    return [
        row
        for file in read_shards(folder, split=split).files
        for batch in open_shard(file)
        for row in batch.to_pylist()
    ]


def test_documents_are_their_ids_and_eos_in_corpus_order(inputs: Path, tmp_path: Path) -> None:
    build(stage_of(inputs, tmp_path / "s"))

    encoder = Encoder(inputs / "tokenizer")
    texts = [text for part in PARTS for text in part]
    for split, held in (("train", False), ("heldout", True)):
        numbers = [n for n in range(len(texts)) if is_heldout(f"문서-{n}", 0.4) is held]
        assert numbers
        ids, offsets = encoder.encode_batch([texts[n] for n in numbers])
        assert rows_of(tmp_path / "s", split) == [
            {
                "input_ids": [*ids[offsets[place] : offsets[place + 1]].tolist(), encoder.eos_id],
                "record_id": f"문서-{number}",
                "num_bytes": len(texts[number].encode()),
                "source": "시험",
            }
            for place, number in enumerate(numbers)
        ]


def test_the_manifest_counts_what_the_shards_hold(inputs: Path, tmp_path: Path) -> None:
    manifest = build(stage_of(inputs, tmp_path / "s"))

    for split in ("train", "heldout"):
        rows = rows_of(tmp_path / "s", split)
        assert manifest["splits"][split] == {
            "num_documents": len(rows),
            "num_tokens": sum(len(row["input_ids"]) for row in rows),
            "num_bytes": sum(row["num_bytes"] for row in rows),
            "num_unk": 0,
            "num_empty": sum(len(row["input_ids"]) == 1 for row in rows),
        }
        assert manifest["sources"][split] == {"시험": len(rows)}
    encoder = Encoder(inputs / "tokenizer")
    assert sum(counts["num_empty"] for counts in manifest["splits"].values()) == 1
    assert manifest["tokenizer_fingerprint"] == encoder.fingerprint
    assert manifest["tokenizer"] == {"vocab_size": 400, "eos_id": 0, "pad_id": 1, "unk_id": None}
    assert manifest["dtype"] == "uint16"
    corpus = json.loads((inputs / "corpus" / "manifest.json").read_text())
    assert manifest["corpus_files_sha256"] == fingerprint(corpus["files"])
    assert verify(tmp_path / "s") == []


def test_a_corpus_part_is_a_task_and_a_stage_can_be_sent(inputs: Path, tmp_path: Path) -> None:
    stage = pickle.loads(pickle.dumps(stage_of(inputs, tmp_path / "s")))

    tasks = stage.plan()

    assert [(task.name, task.wave) for task in tasks] == [(f"part-{number:05d}", 0) for number in range(4)]
    sizes = [(inputs / "corpus" / "data" / f"{task.name}.parquet").stat().st_size for task in tasks]
    assert [task.num_bytes for task in tasks] == sizes
    assert all(json.loads(json.dumps(task.spec)) == task.spec for task in tasks)


def test_the_result_depends_neither_on_the_order_of_tasks_nor_on_where_folders_lie(
    inputs: Path, tmp_path: Path
) -> None:
    build(stage_of(inputs, tmp_path / "forward"))
    moved = shutil.copytree(inputs, tmp_path / "moved inputs")
    stage = stage_of(moved, tmp_path / "else where" / "backward")
    for task in reversed(stage.plan()):
        stage.run(task)
    stage.finish()

    assert contents(stage.output) == contents(tmp_path / "forward")


@pytest.mark.stages
@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_result_does_not_depend_on_the_number_of_workers(inputs: Path, tmp_path: Path, num_workers: int) -> None:
    build(stage_of(inputs, tmp_path / "here"))
    stage = stage_of(inputs, tmp_path / "pool")
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        pool.map(stage.run, stage.plan())
    stage.finish()

    assert contents(tmp_path / "pool") == contents(tmp_path / "here")


def run_until(stage: ShardsBuild, operation_number: int) -> int:
    """Build in a forked child that is killed at that disk operation; its exit status, negative if it was killed."""
    child = os.fork()
    if child == 0:
        seen = {"count": 0}

        def probe(operation: str, moment: str, path: Path) -> None:
            if seen["count"] == operation_number:
                os.kill(os.getpid(), signal.SIGKILL)
            seen["count"] += 1

        disk.set_probe(probe)
        try:
            build(stage)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.stages
def test_law_9_a_build_killed_at_any_disk_operation_goes_on_to_the_same_bytes(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # a forked child has no threads of the parent
    build(stage_of(inputs, tmp_path / "whole"))
    expected = contents(tmp_path / "whole")
    num_kills, status = 0, -signal.SIGKILL
    while status != 0:
        stage = stage_of(inputs, tmp_path / "killed")
        status = run_until(stage, num_kills)
        assert status in (0, -signal.SIGKILL)
        build(stage)
        found = {name: data for name, data in contents(stage.output).items() if not name.startswith(".")}
        assert found == expected
        assert not (stage.output / ".tasks").exists()
        shutil.rmtree(stage.output)
        num_kills += 1

    # Open, write, fsync, rename and fsync of the folder, before and after each, for every shard, record and manifest.
    assert num_kills > 10 * (len(expected) + len(PARTS))


def test_a_killed_task_leaves_the_others_as_they_are(inputs: Path, tmp_path: Path) -> None:
    stage = stage_of(inputs, tmp_path / "s")
    first, *others = stage.plan()
    stage.run(first)
    times = {path: path.stat().st_mtime_ns for path in stage.output.rglob("*.arrow")}

    for task in [first, *others]:
        stage.run(task)

    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_shard_that_went_missing_before_the_manifest_is_made_again(inputs: Path, tmp_path: Path) -> None:
    build(stage_of(inputs, tmp_path / "whole"))
    stage = stage_of(inputs, tmp_path / "s")
    for task in stage.plan():
        stage.run(task)
    next(stage.output.rglob("*.arrow")).unlink()

    with pytest.raises(StageError, match=r"1 of 4 tasks are not done, the first is part-0000\d; start the build again"):
        stage.finish()
    build(stage)

    assert contents(stage.output) == contents(tmp_path / "whole")


def test_an_unfinished_build_of_other_inputs_leaves_nothing_behind(inputs: Path, tmp_path: Path) -> None:
    build(stage_of(inputs, tmp_path / "whole"))
    other = stage_of(inputs, tmp_path / "s", heldout_fraction=0.0, max_shard_bytes=16_384)
    for task in other.plan():
        other.run(task)
    (tmp_path / "s" / "train" / "part-00000-0007.arrow.partial").write_bytes(b"of a killed build")

    build(stage_of(inputs, tmp_path / "s"))

    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_equal_inputs_are_done_once(inputs: Path, tmp_path: Path) -> None:
    stage = stage_of(inputs, tmp_path / "s")
    assert not stage.is_done()
    manifest = build(stage)
    before = {path: path.stat().st_mtime_ns for path in stage.output.rglob("*")}

    assert stage_of(inputs, tmp_path / "s").is_done()
    assert build(stage_of(inputs, tmp_path / "s")) == manifest
    assert {path: path.stat().st_mtime_ns for path in stage.output.rglob("*")} == before


def test_shards_of_another_tokenizer_are_refused_with_both_fingerprints(inputs: Path, tmp_path: Path) -> None:
    build(stage_of(inputs, tmp_path / "s"))
    before = contents(tmp_path / "s")
    write_tokenizer(tmp_path / "other", vocab_size=350)
    ours, theirs = (Encoder(folder).fingerprint[:16] for folder in (tmp_path / "other", inputs / "tokenizer"))
    stage = stage_of(inputs, tmp_path / "s", tokenizer=tmp_path / "other")
    task = Task("part-00000", 0, {})

    for refused in (stage.is_done, stage.plan, lambda: stage.run(task), stage.finish):
        with pytest.raises(StageError, match=rf"holds shards of tokenizer {theirs}…, but .*other is {ours}…"):
            refused()
    assert contents(tmp_path / "s") == before


def test_finished_shards_of_other_inputs_are_never_overwritten(inputs: Path, tmp_path: Path) -> None:
    build(stage_of(inputs, tmp_path / "s"))
    other = stage_of(inputs, tmp_path / "s", heldout_fraction=0.2)

    with pytest.raises(StageError, match=r"holds shards of other inputs: heldout_fraction 0.4, now 0.2; give another"):
        other.plan()


def test_a_tokenizer_that_changes_between_plan_and_run_is_refused(inputs: Path, tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer")
    stage = stage_of(inputs, tmp_path / "s", tokenizer=folder)
    task = stage.plan()[0]
    planned = Encoder(folder).fingerprint[:16]
    shutil.rmtree(folder)
    write_tokenizer(folder, vocab_size=350)
    changed = Encoder(folder).fingerprint[:16]

    with pytest.raises(StageError, match=rf"the tokenizer is {changed}…, but the build was planned with {planned}…"):
        stage.run(task)

    assert not list(tmp_path.rglob("*.arrow"))


def test_hinted_records_are_held_out_unless_the_config_says_otherwise(inputs: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", PARTS, heldout=TEXTS[1:2])

    with_hint = build(stage_of(inputs, tmp_path / "one", corpus=corpus, heldout_fraction=0))
    without = build(stage_of(inputs, tmp_path / "two", corpus=corpus, heldout_fraction=0, use_split_hint=False))

    assert with_hint["splits"]["heldout"]["num_documents"] == 2  # the text stands in two parts
    assert without["splits"]["heldout"]["num_documents"] == 0


def test_the_split_follows_the_id_alone_and_holds_the_fraction() -> None:
    held = [is_heldout(f"문서-{number}", 0.1) for number in range(20_000)]

    # Pinned: another process, or a later version, must hold out the same records.
    assert [number for number in range(60) if held[number]] == [0, 1, 8, 10, 18, 20, 34, 40, 43, 55]
    assert abs(sum(held) - 2000) < 5 * (20_000 * 0.1 * 0.9) ** 0.5
    assert all(is_heldout(f"문서-{number}", 0.2) for number in range(20_000) if held[number])
    assert not any(is_heldout(f"문서-{number}", 0.0) for number in range(1000))


def test_shards_stay_within_their_bound(inputs: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [TEXTS * 80])

    manifest = build(stage_of(inputs, tmp_path / "s", corpus=corpus, max_shard_bytes=16_384))

    assert len(manifest["files"]) > 3
    assert all(entry["num_bytes"] <= 16_384 for entry in manifest["files"])
    assert verify(tmp_path / "s") == []


def test_an_empty_corpus_is_refused(inputs: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [])

    with pytest.raises(StageError, match=r"corpus: the corpus holds 0 documents \(빈 말뭉치\), so there is nothing to"):
        stage_of(inputs, tmp_path / "s", corpus=corpus).plan()


def test_a_corpus_that_is_not_finished_is_refused(inputs: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", PARTS)
    (corpus / "manifest.json").unlink()

    with pytest.raises(StageError, match=r"an unfinished folder \(no manifest.json\), but a finished corpus is needed"):
        stage_of(inputs, tmp_path / "s", corpus=corpus).plan()


def test_a_corpus_of_other_records_is_refused(inputs: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", PARTS)
    manifest = json.loads((corpus / "manifest.json").read_text())
    write_manifest(corpus, manifest | {"record": "picture"})

    with pytest.raises(
        StageError, match=r"holds 'picture' records, but shards are made of document, instruction, preference, .*pair"
    ):
        stage_of(inputs, tmp_path / "s", corpus=corpus).plan()


def test_a_damaged_part_is_named(inputs: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", PARTS)
    path = corpus / "data" / "part-00001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    stage = stage_of(inputs, tmp_path / "s", corpus=corpus)

    with pytest.raises(StageError, match=r"part-00001.parquet: cannot be read: .*; restore it, or build the corpus"):
        stage.run(stage.plan()[1])


def test_texts_that_encode_to_nothing_are_refused(inputs: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [["", ""]])
    stage = stage_of(inputs, tmp_path / "s", corpus=corpus, heldout_fraction=0)

    with pytest.raises(StageError, match=r"the 2 documents of train encode to no token beside EOS \(0 documents are"):
        build(stage)

    assert not (tmp_path / "s" / "manifest.json").exists()


def test_more_unknown_tokens_than_allowed_are_refused_and_counted(inputs: Path, tmp_path: Path) -> None:
    tokenizer = write_tokenizer_with_unknowns(tmp_path / "tokenizer")
    corpus = write_corpus(tmp_path / "corpus", [[TEXTS[0], "강릉은 모르는 도시다."]])  # 5 and 3 words, 1 unknown
    refused = stage_of(inputs, tmp_path / "s", corpus=corpus, tokenizer=tokenizer, heldout_fraction=0)

    with pytest.raises(StageError, match=r"1 of 8 tokens are unknown .*\(12.500%\), max_unk_rate is 1.000%; use a"):
        build(refused)
    times = {path: path.stat().st_mtime_ns for path in refused.output.rglob("*.arrow")}
    allowed = stage_of(
        inputs, tmp_path / "s", corpus=corpus, tokenizer=tokenizer, heldout_fraction=0, max_unk_rate=0.125
    )

    assert build(allowed)["splits"]["train"]["num_unk"] == 1
    assert {path: path.stat().st_mtime_ns for path in times} == times  # nothing is encoded a second time


def test_a_text_that_spells_eos_does_not_end_itself(inputs: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [["앞 <|endoftext|> 뒤"]])
    build(stage_of(inputs, tmp_path / "s", corpus=corpus, heldout_fraction=0))

    (row,) = rows_of(tmp_path / "s", "train")

    assert row["input_ids"].count(0) == 1
    assert row["input_ids"][-1] == 0


def test_faults_of_the_config_are_named() -> None:
    overrides = ["corpus=c", "tokenizer=t", "output=o", "heldout_fraction=1", "max_shard_bytes=5", "max_unk_rte=1"]

    with pytest.raises(ConfigError) as caught:
        load(None, overrides, ShardsConfig)

    assert len(str(caught.value).splitlines()) == 3
    assert "max_unk_rte: unknown key; did you mean 'max_unk_rate'?" in str(caught.value)
