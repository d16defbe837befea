"""The stage: one result whatever runs it, kills included; what it refuses; what its manifest claims."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from aihub_packages import book, build, rejects, rows, run, stage_of, texts, tree, write_zip
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import disk
from data_pipeline.config import to_tree, validate
from data_pipeline.corpus import listing, records
from data_pipeline.corpus.build import CorpusConfig
from data_pipeline.corpus.duplicates import ALSO_HELD_OUT, DUPLICATE, HELD_OUT_AGAIN, Digests, find_repeats
from data_pipeline.stage import StageError, read_manifest, verify_files

REPO = Path(__file__).resolve().parents[3]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Several formats, repeats over files, and faults, in many small tasks."""
    folder = tmp_path / "in"
    write_zip(folder / "1.Training/TL_1.zip", [(f"{n}.json", book(f"{n % 7}째 글이다.", by=n)) for n in range(12)])
    write_zip(folder / "2.Validation/VL_1.zip", [(f"{n}.json", book(f"{n % 9}째 글이다.", by=n)) for n in range(12)])
    lines = [json.dumps({"text": f"{n % 30}째 줄"}, ensure_ascii=False) for n in range(90)]
    (folder / "a.jsonl").write_text("\n".join([*lines, "broken", *lines[:3]]))
    (folder / "b.csv").write_text("text\n" + "\n".join(f"{n % 5}째 줄" for n in range(20)))
    return folder


SMALL = {"task_bytes": 700}


def test_the_result_does_not_depend_on_the_order_in_which_tasks_run(tmp_path: Path, inputs: Path) -> None:
    for seed in (None, 1, 2):
        run(stage_of(tmp_path / "out", inputs, min_text_share=0.001, **SMALL), shuffle=seed)
        shutil.move(tmp_path / "out", tmp_path / f"out-{seed}")

    first = tree(tmp_path / "out-None")
    assert len([name for name in first if name.startswith("data/")]) > 4
    assert tree(tmp_path / "out-1") == first
    assert tree(tmp_path / "out-2") == first


def test_records_do_not_depend_on_where_the_data_lies(tmp_path: Path, inputs: Path) -> None:
    build(tmp_path / "out", inputs)
    shutil.copytree(inputs, tmp_path / "elsewhere/deep/in")

    build(tmp_path / "moved", tmp_path / "elsewhere/deep/in")

    assert rows(tmp_path / "moved") == rows(tmp_path / "out")


def test_records_do_not_depend_on_how_the_input_is_cut_into_tasks(tmp_path: Path, inputs: Path) -> None:
    build(tmp_path / "one", inputs)
    build(tmp_path / "many", inputs, **SMALL)

    assert rows(tmp_path / "many") == rows(tmp_path / "one")


def test_every_record_found_is_kept_dropped_or_rejected(tmp_path: Path, inputs: Path) -> None:
    manifest = build(tmp_path / "out", inputs, **SMALL)

    found = manifest["accounting"]["records"]
    assert found["found"] == 12 + 12 + 94 + 20
    assert found["found"] == found["kept"] + found["dropped"] + found["rejected"]
    counts = manifest["counts"]
    assert counts["kept"] == manifest["num_records"] == len(rows(tmp_path / "out")) == 12 + 30
    assert sum(counts["dropped"].values()) == found["dropped"]
    assert sum(counts["rejected"].values()) == len(rejects(tmp_path / "out")) == 1
    assert manifest["accounting"]["items"] == {"found": 26, "read": 26}


def test_the_manifest_counts_what_stands_in_its_files(tmp_path: Path, inputs: Path) -> None:
    manifest = build(tmp_path / "out", inputs, **SMALL)

    assert verify_files(tmp_path / "out", manifest) == []
    assert read_manifest(tmp_path / "out", kind="corpus") == manifest
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["data", "inputs.jsonl", "manifest.json", "rejects"]
    for entry in manifest["files"]:
        held = pq.read_table(tmp_path / "out" / entry["name"]).to_pylist()
        assert entry["num_records"] == len(held) > 0
        assert entry["num_text_bytes"] == sum(len(row["text"].encode()) for row in held)
    listed = (tmp_path / "out" / manifest["input_list"]["name"]).read_text().splitlines()
    assert manifest["input_list"]["sha256"] == disk.sha256_of(tmp_path / "out/inputs.jsonl")
    assert [json.loads(line)[0] for line in listed] == [
        "in/1.Training/TL_1.zip",
        "in/2.Validation/TL_1.zip".replace("TL", "VL"),
        "in/a.jsonl",
        "in/b.csv",
    ]
    for entry in manifest["reject_files"]:
        path = tmp_path / "out" / entry["name"]
        assert entry["sha256"] == disk.sha256_of(path)
        assert entry["num_records"] == len(path.read_text().splitlines())
    assert manifest["num_text_bytes"] == sum(entry["num_text_bytes"] for entry in manifest["files"])
    assert manifest["sources"] == {
        "aihub_653": {"num_records": 12, "num_text_bytes": 12 * len("0째 글이다.".encode())},
        "in": {"num_records": 30, "num_text_bytes": sum(len(f"{n}째 줄".encode()) for n in range(30))},
    }


def test_the_first_of_equal_texts_stays_and_ids_are_unique(tmp_path: Path) -> None:
    lines = [
        {"id": "a", "text": "글"},
        {"id": "a", "text": "다른 글"},
        {"id": "b", "text": "글"},
        {"id": "a", "text": "셋"},
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))

    manifest = build(tmp_path / "out", tmp_path / "x.jsonl")

    assert [(row["id"], row["text"]) for row in rows(tmp_path / "out")] == [
        ("x.jsonl#a", "글"),
        ("x.jsonl#a~0.1", "다른 글"),
        ("x.jsonl#a~0.3", "셋"),
    ]
    assert manifest["counts"]["changed"]["repeated_id"] == 2
    assert manifest["counts"]["dropped"]["duplicate"] == 1


@settings(max_examples=30)
@given(parts=st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=5), num_buckets=st.integers(1, 5))
def test_repeats_are_all_but_the_first_in_any_number_of_buckets(tmp_path_factory, parts, num_buckets) -> None:
    folder = tmp_path_factory.mktemp("digests")
    for number, values in enumerate(parts):
        digests = Digests()
        for item in values:
            digests.add(str(item))
        digests.save(folder / f"{number}.npy")
    paths = [folder / f"{number}.npy" for number in range(len(parts))]

    found = set()
    for bucket in range(num_buckets):
        found |= {tuple(place) for place in find_repeats(paths, bucket=bucket, num_buckets=num_buckets).tolist()}

    places = [(part, row, item) for part, values in enumerate(parts) for row, item in enumerate(values)]
    seen: set[int] = set()
    assert found == {(part, row, DUPLICATE) for part, row, item in places if item in seen or seen.add(item)}


SPLIT_ROWS = st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30)


@settings(max_examples=40)
@given(said=SPLIT_ROWS, cut=st.integers(0, 30))
def test_held_out_rows_stay_and_what_train_shares_with_them_goes(tmp_path_factory, said, cut) -> None:
    folder = tmp_path_factory.mktemp("digests")
    for number, part in enumerate((said[:cut], said[cut:])):
        digests = Digests()
        for item, is_heldout in part:
            digests.add(str(item), is_heldout=is_heldout)
        digests.save(folder / f"{number}.npy")

    paths = [folder / "0.npy", folder / "1.npy"]
    found = [place for bucket in (0, 1) for place in find_repeats(paths, bucket=bucket, num_buckets=2).tolist()]

    fates = {(part * cut) + row: fate for part, row, fate in found}
    dropped = {at for at, fate in fates.items() if fate != HELD_OUT_AGAIN}
    held = {item for item, is_heldout in said if is_heldout}
    assert not any(said[at][1] for at in dropped)
    trained = [item for at, (item, is_heldout) in enumerate(said) if at not in dropped and not is_heldout]
    assert sorted(trained) == sorted({item for item, is_heldout in said if not is_heldout} - held)
    assert {said[at][0] for at, fate in fates.items() if fate == ALSO_HELD_OUT} <= held
    assert sum(fate == HELD_OUT_AGAIN for fate in fates.values()) == sum(held for _, held in said) - len(held)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.stages), 13])
def test_killed_at_any_write_and_run_again_gives_the_same_result(tmp_path: Path, stride: int) -> None:
    write_zip(tmp_path / "in/TL_1.zip", [("a.json", book("글.")), ("b.json", b"{")])
    (tmp_path / "in/b.csv").write_text("text\n글.\n다른 글.")
    build(tmp_path / "out", tmp_path / "in")
    expected = tree(tmp_path / "out")
    assert any(name.startswith("rejects/") for name in expected)

    at = 0
    while killed_build(tmp_path, at):
        build(tmp_path / "out", tmp_path / "in")
        assert {name: data for name, data in tree(tmp_path / "out").items() if ".staging" not in name} == expected, at
        at += stride

    assert at > 100


def killed_build(tmp_path: Path, at: int) -> bool:
    """Start a build from nothing and end it at its `at`-th moment of the disk; whether it came so far."""
    shutil.rmtree(tmp_path / "out")
    moments = iter(range(at))

    def die(*_: object) -> None:
        if next(moments, None) is None:
            raise Killed

    disk.set_probe(die)
    try:
        build(tmp_path / "out", tmp_path / "in")
    except Killed:
        return True
    finally:
        disk.set_probe(None)
    return False


def test_killed_at_the_manifest_and_built_from_other_inputs(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/b.csv").write_text("text\n글.")

    def die(operation: str, moment: str, path: Path) -> None:
        if (operation, moment, path.name) == ("rename", "before", "manifest.json"):
            raise Killed

    disk.set_probe(die)
    with pytest.raises(Killed):
        build(tmp_path / "out", tmp_path / "in")
    disk.set_probe(None)
    (tmp_path / "in/b.csv").write_text("text\n다른 글이다.")

    build(tmp_path / "out", tmp_path / "in")

    assert texts(tmp_path / "out") == ["다른 글이다."]


def test_a_part_of_which_nothing_is_kept_leaves_no_file(tmp_path: Path) -> None:
    lines = '{"text": "글이다"}\n' * 4
    (tmp_path / "a.jsonl").write_text(lines)

    manifest = build(tmp_path / "out", tmp_path / "a.jsonl", task_bytes=len(lines.encode()) // 2)

    assert [path.name for path in (tmp_path / "out/data").iterdir()] == ["part-00000.parquet"]
    assert [entry["name"] for entry in manifest["files"]] == ["data/part-00000.parquet"]


@pytest.mark.stages
@pytest.mark.parametrize("operation", [5, 20, 40, 60, 80, 100])
def test_a_real_kill_is_survived(tmp_path: Path, inputs: Path, operation: int) -> None:
    script = f"""
        import itertools, os, sys
        sys.path[:0] = {[str(REPO), str(Path(__file__).parent)]!r}
        from aihub_packages import run, stage_of
        from pathlib import Path
        from data_pipeline import disk
        calls = itertools.count()
        disk.set_probe(lambda *_: os.kill(os.getpid(), 9) if next(calls) == {operation} else None)
        run(stage_of(Path({str(tmp_path / "out")!r}), {str(inputs)!r}, min_text_share=0.001, task_bytes=3000))
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert result.returncode == -9

    run(stage_of(tmp_path / "out", inputs, min_text_share=0.001, task_bytes=3000))
    shutil.move(tmp_path / "out", tmp_path / "killed")

    run(stage_of(tmp_path / "out", inputs, min_text_share=0.001, task_bytes=3000))
    assert tree(tmp_path / "killed") == tree(tmp_path / "out")


def test_finished_tasks_are_not_run_again(tmp_path: Path, inputs: Path) -> None:
    stage = stage_of(tmp_path / "out", inputs, **SMALL)
    for task in stage.plan()[:3]:
        stage.run(task)
    before = {path: path.stat().st_ino for path in (tmp_path / "out").rglob("*") if path.is_file()}

    again = stage_of(tmp_path / "out", inputs, **SMALL)
    for task in again.plan():
        again.run(task)

    assert len(before) >= 3 * 4
    assert {path: path.stat().st_ino for path in before} == before


def test_equal_inputs_are_done_and_changed_ones_refused_with_both_identities(tmp_path: Path, inputs: Path) -> None:
    build(tmp_path / "out", inputs, **SMALL)
    stage = stage_of(tmp_path / "out", inputs, min_text_share=0.001, **SMALL)
    assert stage.is_done()
    assert pickle.loads(pickle.dumps(stage)).is_done()
    before, ours = tree(tmp_path / "out"), stage.inputs_sha256

    (inputs / "b.csv").write_text("text\n새 줄")
    other = stage_of(tmp_path / "out", inputs, min_text_share=0.01, **SMALL)
    assert not other.is_done()
    with pytest.raises(StageError) as caught:
        other.plan()

    said = str(caught.value)
    assert f"holds a corpus of other inputs ({ours[:12]}…, now {other.inputs_sha256[:12]}…)" in said
    assert "config.min_text_share 0.001, now 0.01; give another output folder, or remove this one" in said
    assert tree(tmp_path / "out") == before


def test_a_finished_stage_that_is_run_again_touches_nothing(tmp_path: Path, inputs: Path) -> None:
    manifest = build(tmp_path / "out", inputs)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}

    assert build(tmp_path / "out", inputs) == manifest
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == times


def test_a_file_is_known_by_its_bytes_and_not_by_its_time(
    tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MAX_WHOLE_BYTES", 100)
    monkeypatch.setattr(listing, "SAMPLE_BYTES", 16)
    build(tmp_path / "out", inputs)
    for path in inputs.rglob("*"):
        os.utime(path, ns=(1, 1))
    shutil.copytree(inputs, tmp_path / "copy/in")
    assert stage_of(tmp_path / "out", inputs, min_text_share=0.001).is_done()
    assert stage_of(tmp_path / "out", tmp_path / "copy/in", min_text_share=0.001).is_done()

    for name, at in (("a.jsonl", 0), ("a.jsonl", -1), ("b.csv", 6)):
        data = (inputs / name).read_bytes()
        (inputs / name).write_bytes(data[:at] + bytes([data[at] ^ 1]) + (data[at + 1 :] if at != -1 else b""))
        assert not stage_of(tmp_path / "out", inputs, min_text_share=0.001).is_done(), (name, at)
        (inputs / name).write_bytes(data)


def test_no_list_of_files_is_sent_to_workers_or_stands_in_the_manifest(tmp_path: Path) -> None:
    sizes = {}
    for count in (20, 400):
        folder = tmp_path / f"in-{count}"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number:04d}.txt").write_text(f"{number}째 글이다.")
        stage = stage_of(tmp_path / f"out-{count}", folder, task_bytes=300)
        tasks = stage.plan()
        spec = max(len(json.dumps(task.spec)) for task in tasks)
        manifest = run(stage)
        manifest["files"], manifest["config"] = [], {}
        sizes[count] = (len(pickle.dumps(stage)), spec, len(json.dumps(manifest)))

    for few, many in zip(sizes[20], sizes[400], strict=True):
        assert many <= few + 20  # a longer number here and there


def test_a_worker_knows_its_slice_alone_and_never_walks_the_inputs(tmp_path: Path, inputs: Path) -> None:
    stage = stage_of(tmp_path / "out", inputs, min_text_share=0.001, **SMALL)
    tasks = stage.plan()
    shutil.copytree(inputs, tmp_path / "kept")
    (inputs / "new.txt").write_text("늦게 온 글.")
    worker = stage_of(tmp_path / "out", inputs, min_text_share=0.001, **SMALL)

    for task in tasks:
        worker.run(task)

    assert "listing" not in vars(worker)
    assert stage.finish()["num_records"] == 42


def test_files_that_change_while_they_are_listed_are_refused(tmp_path: Path, inputs: Path) -> None:
    stage = stage_of(tmp_path / "out", inputs)
    assert not stage.is_done()
    (inputs / "b.csv").write_text("text\n다른 줄")

    with pytest.raises(StageError, match="the files changed while they were listed"):
        stage.plan()


@pytest.mark.parametrize("change", [{"source": "x"}, {"validation_is_heldout": False}, {"text_unit": "paragraph"}])
def test_another_config_is_another_result(tmp_path: Path, inputs: Path, change: dict) -> None:
    build(tmp_path / "out", inputs)

    assert not stage_of(tmp_path / "out", {"path": inputs, **change}, min_text_share=0.001).is_done()


def test_finish_refuses_while_a_task_is_undone(tmp_path: Path, inputs: Path) -> None:
    stage = stage_of(tmp_path / "out", inputs, **SMALL)
    for task in stage.plan()[:-2]:
        stage.run(task)

    with pytest.raises(StageError, match="2 tasks are not done, first write-000"):
        stage.finish()

    assert not (tmp_path / "out/manifest.json").exists()


def test_an_unfinished_corpus_is_not_read(tmp_path: Path, inputs: Path) -> None:
    stage_of(tmp_path / "out", inputs).plan()

    with pytest.raises(StageError, match=r"unfinished folder .* finished corpus is needed"):
        next(records.iterate_documents(tmp_path / "out"))


def test_row_groups_and_batches_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "ROW_GROUP_ROWS", 64)
    monkeypatch.setattr(records, "READ_BATCH_ROWS", 16)
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{n}"}}\n' for n in range(200)))

    build(tmp_path / "out", tmp_path / "a.jsonl")

    (path,) = records.corpus_files(tmp_path / "out")
    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == [64, 64, 64, 8]
    assert metadata.row_group(0).column(1).compression == "ZSTD"
    batches = list(records.iterate_documents(tmp_path / "out", columns=["text"]))
    assert max(batch.num_rows for batch in batches) == 16
    assert [text for batch in batches for text in batch["text"].to_pylist()] == [str(n) for n in range(200)]
    assert batches[0].schema.names == ["text"]


def test_two_inputs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    paths = [tmp_path / f"{split}/TL_1.zip" for split in ("1.Training", "2.Validation")]
    for number, path in enumerate(paths):
        write_zip(path, [("a.json", book(f"{number}째 글."))])

    build(tmp_path / "out", *paths)

    assert [row["id"] for row in rows(tmp_path / "out")] == [
        "1.Training/TL_1.zip!a.json#0",
        "2.Validation/TL_1.zip!a.json#0",
    ]


def test_a_path_that_does_not_exist_is_named(tmp_path: Path, inputs: Path) -> None:
    with pytest.raises(StageError, match=r"inputs\.1\.path: .*/nowhere does not exist; give a file or a folder"):
        stage_of(tmp_path / "out", inputs, tmp_path / "nowhere").is_done()


@pytest.mark.parametrize("content", [{}, {"LICENSE": b"MIT", "a.png": b"x"}])
def test_an_empty_corpus_is_an_error_before_any_work(tmp_path: Path, content: dict[str, bytes]) -> None:
    (tmp_path / "in").mkdir()
    for name, data in content.items():
        (tmp_path / "in" / name).write_bytes(data)

    with pytest.raises(
        StageError, match=rf"no file to read in .*빈 말뭉치.*, {len(content)} files of other kinds; give"
    ):
        build(tmp_path / "out", tmp_path / "in")

    assert not (tmp_path / "out").exists()


def test_a_corpus_of_empty_texts_is_an_error_with_its_counts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": " "}\n{"text": ""}\n')

    with pytest.raises(StageError, match=r"not one document was kept .*'empty': 2"):
        build(tmp_path / "out", tmp_path / "a.jsonl")


def test_an_input_given_twice_is_refused(tmp_path: Path, inputs: Path) -> None:
    told = (
        r"is given twice, by inputs\.0\.path .*in and by inputs\.1\.path .*\.\./in; name it once, or give them `files`"
    )
    with pytest.raises(StageError, match=told):
        build(tmp_path / "out", inputs, inputs / ".." / "in")


def lines(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_one_folder_is_given_twice_for_different_files(tmp_path: Path) -> None:
    for name in ("a-train.jsonl", "a-sum.jsonl", "other.jsonl", "README.md"):
        lines(tmp_path / "in" / name, f"글 {name}")
    both = [
        {"path": tmp_path / "in", "files": ["*-train.jsonl"]},
        {"path": tmp_path / "in", "files": ["*-sum.jsonl"], "split": "heldout"},
    ]

    manifest = build(tmp_path / "out", *both)

    found = [(row["id"].partition("#")[0], row["split_hint"]) for row in rows(tmp_path / "out")]
    assert found == [("in/a-train.jsonl", ""), ("in/a-sum.jsonl", "heldout")]
    # What neither takes is told once.
    assert manifest["accounting"]["items"] == {"found": 4, "passed_over": 2, "read": 2}
    assert manifest["counts"]["passed_over"] == {"not_chosen": 2}


@pytest.mark.parametrize("second", ["in", "in/b", "in/b/x.jsonl"])
def test_a_file_that_two_inputs_take_is_refused(tmp_path: Path, second: str) -> None:
    lines(tmp_path / "in/b/x.jsonl", "글")
    lines(tmp_path / "in/y.jsonl", "글 둘")
    first = {"path": tmp_path / "in", "files": ["*.jsonl"]}

    with pytest.raises(
        StageError, match=r"[xy]\.jsonl is given twice, by inputs\.[01]\.path .* and by inputs\.[01]\.path"
    ):
        build(tmp_path / "out", first, {"path": tmp_path / second, "split": "heldout"})

    manifest = build(tmp_path / "out", first | {"files": ["y*"]}, {"path": tmp_path / "in/b", "split": "heldout"})
    assert manifest["num_records"] == 2


def test_patterns_that_fit_no_file_are_refused(tmp_path: Path) -> None:
    lines(tmp_path / "in/y.jsonl", "글")

    with pytest.raises(StageError, match=r"inputs\.1\.files: z\*, \*\.tsv fits no file of .*in; mend the patterns"):
        both = {"path": tmp_path / "in", "files": ["y*"]}, {"path": tmp_path / "in", "files": ["z*", "*.tsv"]}
        build(tmp_path / "out", *both)


NAMES = {
    "klue-nli-v1.1_dev.jsonl": True,
    "test-00000-of-00001.jsonl": True,
    "ratings_test.jsonl": True,
    "xnli.DEV.ko.jsonl": True,
    "검증.jsonl": True,
    "a/test/0000.jsonl": True,
    "latest.jsonl": False,
    "testing-ground.jsonl": False,
    "train-00000-of-00001.jsonl": False,
    "devices.jsonl": False,
    "1.Training/test_1.jsonl": False,
}


def test_files_that_are_called_dev_or_test_are_held_out_and_counted(tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        lines(tmp_path / "in" / name, f"글 {number}", f"그 뒤 {number}")

    manifest = build(tmp_path / "out", tmp_path / "in")

    held = {row["id"].partition("#")[0].removeprefix("in/"): row["split_hint"] for row in rows(tmp_path / "out")}
    assert held == {name: "heldout" * is_heldout for name, is_heldout in NAMES.items()}
    assert manifest["heldout"] == {"num_records": 12, "reasons": {"name": {"num_files": 6, "num_records": 12}}}


@pytest.mark.parametrize("key", [{"split": "train"}, {"validation_is_heldout": False}])
def test_a_split_that_is_said_wins_over_a_name(tmp_path: Path, key: dict[str, object]) -> None:
    lines(tmp_path / "x_test.jsonl", "글")
    lines(tmp_path / "Validation/x.jsonl", "글 둘")

    given = [{"path": tmp_path / name, **key} for name in ("x_test.jsonl", "Validation")]
    manifest = build(tmp_path / "out", *given)

    assert [row["split_hint"] for row in rows(tmp_path / "out")] == ["", ""]
    assert "heldout" not in manifest


def test_an_output_inside_an_input_is_refused(tmp_path: Path, inputs: Path) -> None:
    with pytest.raises(StageError, match=r"output: .* lies inside inputs\.0\.path"):
        build(inputs / "out", inputs)


def test_a_folder_of_other_files_is_never_written_to(tmp_path: Path, inputs: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("x")

    with pytest.raises(StageError, match=r"home holds thesis\.txt, which no corpus build wrote; give an empty folder"):
        build(tmp_path / "home", inputs)

    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.txt"]


def test_a_folder_of_another_stage_is_never_overwritten(tmp_path: Path, inputs: Path) -> None:
    build(tmp_path / "out", inputs)
    path = tmp_path / "out/manifest.json"
    path.write_text(path.read_text().replace('"kind": "corpus"', '"kind": "shards"'))

    with pytest.raises(StageError, match="kind is 'shards'"):
        stage_of(tmp_path / "out", {"path": inputs, "source": "x"}).plan()

    assert (tmp_path / "out/data/part-00000.parquet").exists()


def test_a_config_survives_its_own_tree(tmp_path: Path) -> None:
    config = CorpusConfig.model_validate({"inputs": "data/x", "output": tmp_path})

    assert config.inputs[0].path == Path("data/x")
    assert validate(to_tree(config), CorpusConfig, where="test") == config


def test_equal_digests_are_equal_texts() -> None:
    digests = Digests()
    digests.add("글")
    assert bytes(digests._bytes) == hashlib.blake2b("글".encode(), digest_size=16).digest()
