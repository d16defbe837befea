"""A pipeline of stages on the real SLURM: arrays of tasks, killed coordinators, a link that fails, and what a second
call does."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch import slurm
from tests.slurm.lab import NODES, Lab
from tests.slurm.test_submit import dure
from tests.trainer.tiny_run import losses_of, tiny_config, write_config

pytestmark = pytest.mark.slurm

PROFILE = "nodes: 2\ntime_limit: '30:00'\npreflight: {enabled: false}\nmax_array_size: 2\nmax_running_tasks: 1\n"
PIPELINE = """\
name: all
poll_seconds: 0.5
links:
  - {name: corpus, verb: corpus build, args: --input text --output "my corpus" task_bytes=20000}
  - {name: tokenizer, verb: tokenizer train, args: --corpus "my corpus" --output tokenizer vocab_size=400}
  - name: shards
    verb: shards build
    args: --corpus "my corpus" --tokenizer tokenizer --output shards heldout_fraction=0.2
  - {name: run, verb: train, args: config.yaml}
  - {name: scores, verb: evaluate, args: runs/gone}
  - {name: page, verb: report, args: runs/run}
"""
NAMES = ["corpus", "tokenizer", "shards", "run", "scores", "page"]
STATE = Path("runs/pipelines/all")


WORDS = ("두레", "마을", "사람", "함께", "일", "논", "밭", "모내기", "가을", "겨울", "벼", "물", "하늘", "바람", "노래")
WORDS += ("장단", "소", "쟁기", "새참", "품앗이", "잔치", "아침", "저녁")


def made_text(seed: int) -> str:
    """Forty words in an order of its own."""
    return " ".join(WORDS[(seed * 7 + place * place * 3 + place) % len(WORDS)] for place in range(40)) + f" {seed}."


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A project: texts of three tasks, a run of four steps, a profile and a pipeline whose fifth link will fail."""
    folder = tmp_path / "두레 project"
    (folder / "text").mkdir(parents=True)
    for number in range(3):
        rows = [{"text": made_text(number * 100 + row)} for row in range(60)]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"text/{number}.jsonl").write_text(lines)
    sections: dict[str, Any] = {"train": {"max_steps": 4}, "checkpoint": {"every_steps": 4}}
    config = tiny_config(Path("runs"), Path("shards"), evaluation={"every_steps": 4, "max_documents": 10}, **sections)
    write_config(folder / "config.yaml", config)
    (folder / "cluster.yaml").write_text(PROFILE)
    (folder / "pipeline.yaml").write_text(PIPELINE)
    return folder


def submit(lab: Lab, home: Path) -> tuple[dict[str, str], str]:
    """Submit the pipeline; returns the job of each link, and what was said."""
    done = dure(lab, "submit", "--pipeline", "pipeline.yaml", "--cluster", "cluster.yaml", cwd=home)
    assert done.returncode == 0, done.stderr
    links = json.loads((home / STATE / "pipeline.json").read_text())["links"]
    return {name: link["job"] for name, link in links.items()}, done.stdout


def log_of(home: Path, name: str, job: str) -> str:
    folder = home / "runs/run" if name == "run" else home / STATE / name
    path = folder / f"logs/slurm-{job}.out"
    return path.read_text(errors="replace") if path.exists() else ""


def process_of(lab: Lab, *words: str) -> psutil.Process | None:
    """The process on a node whose command has these words in a row."""
    for process in (process for name in NODES for process in lab.processes_of(name)):
        with contextlib.suppress(psutil.NoSuchProcess):
            command = process.cmdline()
            if any(tuple(command[at : at + len(words)]) == words for at in range(len(command))):
                return process
    return None


def hold_an_element(lab: Lab, home: Path, name: str, job: str) -> psutil.Process:
    """Stand still an element of the link's newest array, and with it the array."""

    def held() -> psutil.Process | None:
        assert not lab.job(job).has_ended, log_of(home, name, job)
        array = max((home / STATE / name / "arrays").glob("*"), default=home)
        if not (array / "job").exists() or (found := process_of(lab, "launch.array_work", "run", str(array))) is None:
            return None
        with contextlib.suppress(psutil.NoSuchProcess):
            found.send_signal(signal.SIGSTOP)
            return found
        return None

    return lab.wait_for(f"an element of {name}", held)


def tasks_done(home: Path, name: str) -> Counter[str]:
    """How often each task says that it was done, over all arrays."""
    logs = (path.read_text() for path in (home / STATE / name / "logs").glob("tasks-*.out"))
    return Counter(task for log in logs for task in re.findall(r"^task (\S+): done in", log, flags=re.MULTILINE))


def end_of(lab: Lab, home: Path, name: str, job: str) -> str:
    state = lab.wait_for_end(job).state
    print(f"--- {name}: job {job} {state}\n{log_of(home, name, job)}")
    return state


def test_a_pipeline_goes_on_after_killed_coordinators_and_a_failed_link(
    lab: Lab, home: Path, calm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", lab.env["SLURM_CONF"])

    # The job that spreads the corpus is killed with -9: all behind it is cancelled, its array runs on.
    first, _ = submit(lab, home)
    element = hold_an_element(lab, home, "corpus", first["corpus"])
    coordinator = process_of(lab, "launch.array", "spread", str(home / STATE / "corpus"))
    assert coordinator is not None
    coordinator.kill()
    assert [end_of(lab, home, name, first[name]) for name in NAMES] == ["FAILED", *["CANCELLED"] * 5]

    # The same call again: the new job waits for that array before it submits what is left.
    second, _ = submit(lab, home)
    assert not set(first.values()) & set(second.values())
    said = "of a job before this one still runs: waiting for it"
    lab.wait_for("adoption", lambda: said in log_of(home, "corpus", second["corpus"]))
    element.send_signal(signal.SIGCONT)
    assert end_of(lab, home, "corpus", second["corpus"]) == "COMPLETED"
    assert end_of(lab, home, "tokenizer", second["tokenizer"]) == "COMPLETED"
    parts = range(3)
    wanted = [f"{kind}-{part:05d}" for kind in ("read", "write") for part in parts] + ["repeats-00000"]
    assert tasks_done(home, "corpus") == Counter(wanted)
    elements = (home / STATE / "corpus/arrays/0001/elements.jsonl").read_text().splitlines()
    assert [len(json.loads(line)) for line in elements] == [2, 1]

    # The one that spreads the shards is cancelled: its array is too, and the task that was under way is not done.
    element = hold_an_element(lab, home, "shards", second["shards"])
    array = json.loads((home / STATE / "shards/arrays/0001/job").read_text())["job"]
    lab.run("scancel", second["shards"])
    assert end_of(lab, home, "shards", second["shards"]) == "CANCELLED"
    lab.wait_for("the array's end", lambda: slurm.job_states([array])[array].is_over)
    assert not element.is_running()
    assert end_of(lab, home, "page", second["page"]) == "CANCELLED"

    # The one after it is requeued by SLURM: what waits for it goes on waiting.
    third, told = submit(lab, home)
    assert [name for name in NAMES if f"{name}: done (이미 완료), skipped" in told] == NAMES[:2]
    hold_an_element(lab, home, "shards", third["shards"])
    lab.run("scontrol", "requeue", third["shards"])
    assert end_of(lab, home, "shards", third["shards"]) == "COMPLETED"
    assert lab.job(third["shards"]).restarts == 1
    assert tasks_done(home, "shards") == Counter(f"part-{part:05d}" for part in parts)
    assert end_of(lab, home, "run", third["run"]) == "COMPLETED"
    assert sorted(losses_of(home / "runs/run")) == [1, 2, 3, 4]

    # A link that fails ends those behind it.
    assert end_of(lab, home, "scores", third["scores"]) == "FAILED"
    assert "runs/gone: not a run folder" in log_of(home, "scores", third["scores"])
    assert end_of(lab, home, "page", third["page"]) == "CANCELLED"

    # Corrected: what is done is skipped, the rest is done, and then nothing is left.
    (home / "pipeline.yaml").write_text(PIPELINE.replace("runs/gone", "runs/run"))
    fourth, told = submit(lab, home)
    assert [name for name in NAMES if f"{name}: done (이미 완료), skipped" in told] == NAMES[:4]
    assert [fourth[name] == third[name] for name in NAMES] == [True] * 4 + [False] * 2
    assert end_of(lab, home, "scores", fourth["scores"]) == "COMPLETED"
    assert end_of(lab, home, "page", fourth["page"]) == "COMPLETED"
    assert (home / "runs/run/report.html").is_file()
    fifth, told = submit(lab, home)
    assert fifth == fourth
    assert told == "".join(f"{name}: done (이미 완료), skipped\n" for name in NAMES)
