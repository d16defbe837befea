"""The tiny instruction-tuning config runs here, and the memory sums in the heads of the others add up."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.config import load
from tests.trainer.small_world import SmallWorld
from tests.trainer.tiny_run import REPO, environment, lines_of
from trainer.config import TrainConfig

CONFIGS = REPO / "configs/sft"
# Section 3 of QLoRA: 4 bits, and 0.127 for the scales of blocks of 64 that are quantised themselves.
NF4_BYTES = 4.127 / 8


@pytest.mark.stages
def test_the_tiny_config_tunes_a_run_on_two_ranks(tmp_path: Path) -> None:
    world = SmallWorld(tmp_path)
    base = world.train("base", world.shards, model={"max_positions": 256})
    overrides = [
        f"model.from={base}",
        f"data.shards={world.instruction_shards}",
        f"run.folder={tmp_path}",
        "train.max_steps=3",
        "train.schedule.warmup_steps=1",
        "evaluation.every_steps=3",
        "evaluation.answers.num_rows=4",
    ]
    command = [sys.executable, "-m", "launch.cli", "train", "configs/sft/tiny.yaml", "--cpu-ranks", "2", *overrides]
    done = subprocess.run(command, cwd=REPO, env=environment(), capture_output=True, text=True, timeout=500)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("  ok    ") == 11 and "FAIL" not in done.stdout
    assert [line["num_answers"] for line in lines_of(tmp_path / "sft-tiny/evaluations.jsonl")] == [4]
    assert len(lines_of(tmp_path / "sft-tiny/answers/step-00000003.jsonl")) == 4


@pytest.mark.parametrize(
    ("name", "linear", "embeddings", "matrices", "layers"),
    [
        # (inputs, outputs) of the matrices of a layer, from the models' config.json.
        (
            "polyglot-ko-12.8b-qlora",
            "12.58 B",
            2 * 30_080 * 5_120,
            [(5120, 15360), (5120, 5120), (5120, 20480), (20480, 5120)],
            40,
        ),
        (
            "llama-8b-qlora-24gb",
            "6.98 B",
            2 * 128_256 * 4_096,
            [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), (4096, 14336), (4096, 14336), (14336, 4096)],
            32,
        ),
    ],
)
def test_the_memory_sums_of_a_config_add_up(
    name: str, linear: str, embeddings: int, matrices: list[tuple[int, int]], layers: int
) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    config = load(CONFIGS / f"{name}.yaml", [], TrainConfig)
    assert config.adapter is not None and config.model.quantization is not None
    weights = layers * sum(inputs * outputs for inputs, outputs in matrices)
    trained = layers * config.adapter.rank * sum(inputs + outputs for inputs, outputs in matrices)
    hidden, vocabulary = matrices[0][0], embeddings // 2 // matrices[0][0]
    a_row = config.data.seq_len * (hidden * 2 * layers + 2 * (34 if layers == 40 else 40) * hidden + 16 * vocabulary)
    fixed = NF4_BYTES * weights + 2 * embeddings + 10 * trained + 2e9

    told = re.search(r"Together ([\d.]+) \+ ([\d.]+) a row", text)
    assert told is not None
    assert f"{weights / 1e9:.2f} B" == linear and linear in text
    assert f"{trained / 1e6:.1f} M" in text
    assert (float(told[1]), float(told[2])) == pytest.approx((fixed / 1e9, a_row / 1e9), abs=0.06)
