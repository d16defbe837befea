"""What a run leaves on disk, attempt after attempt, and what a resume may change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import disk
from data_pipeline.config import load, read_yaml, validate
from data_pipeline.disk import DiskError
from trainer.config import TrainConfig
from trainer.errors import RunError
from trainer.resilience import ExitRecord
from trainer.run_folder import RunFolder, check_config, read_exit, read_lines, repair_lines

TREE: dict[str, Any] = {
    "run": {"name": "시험 1"},
    "model": {"hidden_size": 32, "num_heads": 2},
    "data": {"shards": "shards", "seq_len": 64},
    "train": {
        "max_steps": 100,
        "global_batch_sequences": 8,
        "micro_batch_sequences": 2,
        "schedule": {"warmup_steps": 5},
    },
}


def config(**overrides: Any) -> TrainConfig:
    tree = json.loads(json.dumps(TREE))
    for dotted, value in overrides.items():
        part, key = dotted.split("__")
        tree.setdefault(part, {})[key] = value
    return validate(tree, TrainConfig, where="test")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "시험 1", rank=0)


def test_a_first_attempt_leaves_config_environment_and_its_line(folder: RunFolder) -> None:
    with folder.hold(config(), ranks=2):
        assert (folder.path / "lock").exists()

    assert load(folder.path / "config.yaml", [], TrainConfig) == config()
    environment = json.loads((folder.path / "environment.json").read_text())
    assert environment["packages"]["torch"] is not None
    assert environment["num_cores"] >= 1
    (attempt,) = lines(folder.path / "attempts.jsonl")
    assert (attempt["attempt"], attempt["ranks"], attempt["changes"]) == (1, 2, {})
    assert not (folder.path / "lock").exists()
    assert folder.checkpoints.is_dir()


def test_a_resume_notes_what_changed(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with folder.hold(config(), ranks=2):
        pass
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with folder.hold(config(train__max_steps=200, logging__every_steps=1), ranks=4):
        assert folder.attempt == 2

    attempt = lines(folder.path / "attempts.jsonl")[1]
    assert attempt["changes"] == {"train.max_steps": [100, 200], "logging.every_steps": [10, 1]}
    assert (attempt["ranks"], attempt["job"]) == (4, "4711")
    assert read_yaml(folder.path / "config.yaml")["train"]["max_steps"] == 200


@pytest.mark.parametrize(
    "change",
    [
        {"train__max_steps": 7},
        {"train__micro_batch_sequences": 4},
        {"checkpoint__every_steps": 7},
        {"checkpoint__keep_last": 1},
        {"evaluation__every_steps": 7},
        {"logging__tensorboard": False},
        {"run__name": "moved"},
        {"run__expected_ranks": 2},
        {"data__shards": "elsewhere/shards"},
    ],
    ids=str,
)
def test_cadence_ranks_and_paths_may_differ(change: dict[str, Any]) -> None:
    changed = check_config(config().model_dump(), config(**change).model_dump(), where="runs/x")
    assert next(iter(change)).replace("__", ".") in changed


def test_every_other_change_is_refused_at_once_and_changes_nothing(folder: RunFolder) -> None:
    with folder.hold(config(), ranks=1):
        folder.append_metrics({"step": 100})
        folder.write_exit(ExitRecord(code=0, reason="done", step=100))
    before = {path: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}

    other = config(data__seq_len=128, model__dropout=0.1, train__max_steps=50, run__name="b")
    with pytest.raises(RunError) as caught, folder.hold(other.model_copy(update={"seed": 2}), ranks=1):
        pass

    faults = str(caught.value).splitlines()
    assert [fault.split(": ")[1] for fault in faults] == ["seed", "model.dropout", "data.seq_len"]
    assert "data.seq_len: this run began with 64, the config now says 128; set the old value again" in faults[2]
    assert {path: path.read_bytes() for path in folder.path.iterdir() if path.is_file()} == before


def test_a_run_that_was_refused_before_its_first_step_takes_another_config(folder: RunFolder) -> None:
    with folder.hold(config(data__seq_len=32), ranks=1):
        folder.write_exit(ExitRecord(code=2, reason="rows are longer", step=-1))
    with folder.hold(config(data__seq_len=128), ranks=1):
        folder.append_metrics({"step": 1})

    attempts = lines(folder.path / "attempts.jsonl")
    assert attempts[1]["changes"] == {"data.seq_len": [32, 128]}
    assert load(folder.path / "config.yaml", [], TrainConfig).data.seq_len == 128


def test_a_key_that_only_one_side_has_is_a_difference() -> None:
    with pytest.raises(RunError, match=r"policy.old: this run began with 1, the config now says None"):
        check_config({"policy": {"old": 1}}, {"policy": {}}, where="runs/x")
    with pytest.raises(RunError, match=r"seed: this run began with None, the config now says 1"):
        check_config({}, {"seed": 1}, where="runs/x")


def test_a_second_process_on_a_live_folder_is_refused(folder: RunFolder) -> None:
    with folder.hold(config(), ranks=1):
        second = RunFolder(folder.path, rank=0).hold(config(), ranks=1)
        with pytest.raises(RunError, match="another process works in this run folder"), second:
            pass
        assert folder.attempt == 1


def test_steps_are_unique_after_a_resume(folder: RunFolder) -> None:
    with folder.hold(config(), ranks=1):
        for step in (10, 20, 30, 40):
            folder.append_metrics({"step": step, "loss": 1 / step})
            folder.append_evaluation({"step": step, "loss": 2 / step})
    with folder.hold(config(), ranks=1):
        folder.rewind(step=20)
        folder.append_metrics({"step": 30, "loss": 0.5})

    assert [line["step"] for line in lines(folder.path / "metrics.jsonl")] == [10, 20, 30]
    assert [line["loss"] for line in lines(folder.path / "metrics.jsonl")] == [0.1, 0.05, 0.5]
    assert [line["step"] for line in lines(folder.path / "evaluations.jsonl")] == [10, 20]


def test_rewinding_to_the_last_step_writes_nothing(folder: RunFolder) -> None:
    with folder.hold(config(), ranks=1):
        folder.append_metrics({"step": 10})
        before = (folder.path / "metrics.jsonl").stat()
        folder.rewind(step=10)
        assert (folder.path / "metrics.jsonl").stat() == before


def test_a_fresh_start_forgets_the_steps_of_an_attempt_that_saved_nothing(folder: RunFolder) -> None:
    with folder.hold(config(), ranks=1):
        folder.append_metrics({"step": 10})
        folder.rewind(step=0)
    assert (folder.path / "metrics.jsonl").read_bytes() == b""


@pytest.mark.parametrize("size", [1, 40, 65_535, 65_536, 65_537, 200_000])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, size: int) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + b"x" * size)
    repair_lines(path)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    repair_lines(path)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 70_000])
def test_a_file_of_one_torn_line_becomes_empty(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    repair_lines(path)
    assert path.read_bytes() == b""


def test_a_new_attempt_repairs_what_a_kill_tore(folder: RunFolder) -> None:
    with folder.hold(config(), ranks=1):
        folder.append_metrics({"step": 10})
    for name in ("metrics.jsonl", "attempts.jsonl", "events.jsonl"):
        with (folder.path / name).open("ab") as file:
            file.write(b'{"step": 2')
    with folder.hold(config(), ranks=1):
        folder.append_metrics({"step": 20})
        folder.append_event(kind="nan", step=20, detail={"loss": "nan"}, action="refused")

    assert [line["step"] for line in lines(folder.path / "metrics.jsonl")] == [10, 20]
    assert [line["attempt"] for line in lines(folder.path / "attempts.jsonl")] == [1, 2]
    assert [line["attempt"] for line in lines(folder.path / "events.jsonl")] == [2]


def test_a_torn_line_between_others_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st{"step": 2}\n{"step": 3}\n')
    assert [line["step"] for line in read_lines(path)] == [1, 3]


def test_events_of_any_rank_say_when_who_and_what(folder: RunFolder) -> None:
    with folder.hold(config(), ranks=2):
        RunFolder(folder.path, rank=1).append_event(kind="slow", step=7, detail="디스크", action="noted")

    (event,) = lines(folder.path / "events.jsonl")
    assert event.pop("time") > 0
    assert event == {"attempt": 1, "rank": 1, "step": 7, "kind": "slow", "detail": "디스크", "action": "noted"}


def test_the_exit_record_is_that_of_the_last_attempt_or_none(folder: RunFolder) -> None:
    with folder.hold(config(), ranks=1):
        folder.write_exit(ExitRecord(code=85, reason="SIGTERM", step=12))
    record = folder.read_exit()
    assert record is not None
    assert (record.code, record.reason, record.step, record.attempt) == (85, "SIGTERM", 12, 1)

    with folder.hold(config(), ranks=1):
        assert folder.read_exit() is None  # whatever kills this attempt, it is not taken for a stop with all saved
    (folder.path / "exit.json").write_text("{}")
    assert read_exit(folder.path) is None


def test_a_checkpoint_carries_config_and_environment(folder: RunFolder) -> None:
    with folder.hold(config(), ranks=1):
        files = folder.checkpoint_files()
    assert files == {name: (folder.path / name).read_bytes() for name in ("config.yaml", "environment.json")}


def test_a_line_that_the_disk_refuses_is_an_error_with_advice(folder: RunFolder) -> None:
    def refuse(operation: disk.Operation, moment: disk.Moment, path: Path) -> None:
        raise OSError(28, "No space left on device")

    with folder.hold(config(), ranks=1):
        disk.set_probe(refuse)
        try:
            with pytest.raises(DiskError, match=r"metrics.jsonl: write failed: No space left.*free space or a quota"):
                folder.append_metrics({"step": 10})
        finally:
            disk.set_probe(None)
