"""The same program under dure, `accelerate launch` and torchrun: 2 ranks, the same losses; and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.tiny_run import (
    REPO,
    VOCAB_SIZE,
    environment,
    lines_of,
    losses_of,
    make_shards,
    start,
    tiny_config,
    write_config,
)
from trainer.model import Vocabulary, make_model
from trainer.model_config import ModelConfig

pytestmark = pytest.mark.stages

BIN = Path(sys.executable).parent


def run(command: list[str], **extra: str) -> subprocess.CompletedProcess[str]:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    env = environment(PATH=path, **extra)
    return subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("launchers") / "shards")


def config_at(folder: Path, shards: Path, **sections: Any) -> Path:
    sections = {"train": {"max_steps": 4}} | sections
    return write_config(folder / "config.yaml", tiny_config(folder, shards, **sections))


def readme_line() -> tuple[dict[str, str], list[str]]:
    """The environment and the words of the README's line for `accelerate launch` on a CPU."""
    found = re.findall(r"^((?:\w+=\S* )*accelerate launch .*)$", (REPO / "README.md").read_text(), flags=re.MULTILINE)
    assert found, "the README has lost its line"
    words = shlex.split(found[0])
    variables = [word for word in words if re.fullmatch(r"[A-Z_]+=.*", word)]
    return dict(word.split("=", 1) for word in variables), words[len(variables) :]


def test_every_launcher_starts_the_same_program_on_two_ranks(shards: Path, tmp_path: Path) -> None:
    expected = {"run": {"expected_ranks": 2}}
    ours, accelerate, torchrun = (tmp_path / name for name in ("ours", "accelerate", "torchrun"))
    for folder in (ours, accelerate, torchrun):
        folder.mkdir()
    variables, words = readme_line()
    assert words[-2:] == ["configs/debug.yaml", "run.expected_ranks=2"]
    words[-2] = str(config_at(accelerate, shards, **expected))

    results = [
        start(config_at(ours, shards, **expected), ranks=2),
        run(words, **variables),
        run(["torchrun", "--standalone", "--nproc_per_node=2", "-m", "trainer", str(config_at(torchrun, shards))]),
    ]

    for folder, result in zip((ours, accelerate, torchrun), results, strict=True):
        assert result.returncode == 0, result.stdout + result.stderr
        assert lines_of(folder / "run/attempts.jsonl")[0]["ranks"] == 2
        assert json.loads((folder / "run/exit.json").read_text())["reason"] == "done"
    assert losses_of(ours / "run") == losses_of(accelerate / "run") == losses_of(torchrun / "run")


def test_accelerate_launch_carries_zero_on_a_cpu_too(shards: Path, tmp_path: Path) -> None:
    # ACCELERATE_USE_CPU would turn DeepSpeed off in accelerate; the README's line sets it.
    variables, words = readme_line()
    words[-2] = str(config_at(tmp_path, shards, engine={"kind": "deepspeed", "zero_stage": 2}))

    result = run(words, **variables)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 x CPU, engine deepspeed ZeRO-2" in result.stdout


def test_gpus_that_are_not_there_are_refused_before_a_rank_starts(shards: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launch.cli", "train", str(config_at(tmp_path, shards)), "--gpus", "8"]

    result = run(command)

    assert result.returncode == 2
    assert "--gpus: 8 asked for, but torch finds 0 CUDA devices here" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_a_model_that_is_continued_trains_alike_under_every_engine(
    shards: Path, tmp_path: Path, architecture: str
) -> None:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_positions": 64, "pad_vocab_to_multiple": 1}
    described = ModelConfig(architecture=architecture, **sizes)  # type: ignore[arg-type]
    vocabulary = Vocabulary(size=VOCAB_SIZE, eos_id=0, pad_id=1)
    model = make_model(described, vocabulary=vocabulary, kernel="sdpa", dtype=torch.float32, seed=9)
    model.save_pretrained(tmp_path / "model")
    losses = {}
    for name, engine in (("none", {"kind": "none"}), ("zero-3", {"kind": "deepspeed", "zero_stage": 3})):
        folder = tmp_path / name
        folder.mkdir()
        config = config_at(folder, shards, engine=engine, model={"from": str(tmp_path / "model")})
        result = start(config, ranks=2)
        assert result.returncode == 0, result.stderr
        assert "brings no tokenizer.json" in result.stdout
        losses[name] = losses_of(folder / "run")

    assert losses["zero-3"] == pytest.approx(losses["none"], rel=1e-5)


def test_one_process_where_two_are_expected_is_refused_before_anything_is_made(shards: Path, tmp_path: Path) -> None:
    # What `accelerate launch --cpu --num_processes 2` does: one process, exit code 0, not a word.
    config = config_at(tmp_path, shards, run={"expected_ranks": 2})

    result = run(["accelerate", "launch", "--cpu", "--num_processes", "2", "-m", "trainer", str(config)])

    assert result.returncode != 0
    assert "run.expected_ranks: the config expects 2 ranks, but WORLD_SIZE is 1" in result.stderr
    assert not (tmp_path / "run").exists()


def test_flags_of_accelerate_launch_that_contradict_the_config_are_refused(shards: Path, tmp_path: Path) -> None:
    variables, words = readme_line()
    flags = ["--use_deepspeed", "--zero_stage", "3", "--mixed_precision", "fp16"]
    words[2:2] = [*flags]
    words.remove("--multi_gpu")
    words[-2:] = [str(config_at(tmp_path, shards))]

    result = run(words, **variables)

    assert result.returncode != 0
    assert result.stderr.count("engine.kind: the config says 'none', the launcher --use_deepspeed") == 1
    assert "train.precision: the config says 'fp32', the launcher --mixed_precision fp16" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"model": {"from": "/no/such/model"}},
            "model.from: '/no/such/model': no such folder",
        ),
        ({"data": {"shards": "/no/such/shards"}}, "/no/such/shards: no such folder"),
        ({"train": {"max_steps": 4, "global_batch_sequences": 1, "micro_batch_sequences": 1}}, "cannot feed 2 ranks"),
    ],
    ids=["model path", "shards path", "batch too small"],
)
def test_bad_input_is_told_once_and_clearly(
    shards: Path, tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    result = start(config_at(tmp_path, shards, **sections), ranks=2)

    assert result.returncode == 2, result.stderr
    assert (result.stdout + result.stderr).count(message) == 1
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("run/checkpoints/*"))


@pytest.mark.parametrize("engine", [{"kind": "none"}, {"kind": "deepspeed", "zero_stage": 2}])
def test_a_run_goes_on_with_another_number_of_ranks_on_the_same_rows(
    shards: Path, tmp_path: Path, engine: dict[str, Any]
) -> None:
    # A constant rate, so that max_steps may grow; no dropout, whose masks are drawn by rank.
    train = {"max_steps": 4, "schedule": {"kind": "wsd", "warmup_steps": 0, "peak_lr": 1e-3}}
    sections: dict[str, Any] = {"model": {"dropout": 0.0}, "train": train, "engine": engine}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    config = config_at(parts, shards, **sections)

    assert start(config_at(whole, shards, **sections), ranks=1).returncode == 0
    assert start(config, "train.max_steps=2", ranks=2).returncode == 0
    assert start(config, ranks=1).returncode == 0

    assert [attempt["ranks"] for attempt in lines_of(parts / "run/attempts.jsonl")] == [2, 1]
    assert losses_of(parts / "run") == pytest.approx(losses_of(whole / "run"), rel=1e-5)
