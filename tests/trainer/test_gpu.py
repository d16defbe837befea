"""What only a GPU can show: the kernels there keep law 4, bf16 trains, and a resume equals the unbroken run."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.small_world import SmallWorld
from tests.trainer.tiny_run import REPO, environment, lines_of, losses_of, make_shards, tiny_config, write_config
from tests.trainer.tiny_sft import make_base, sft_config
from trainer.model import Vocabulary, check_documents_apart, make_model
from trainer.model_config import ModelConfig
from trainer.stages import Head

pytestmark = [pytest.mark.gpu, pytest.mark.stages]

GPU = torch.device("cuda")
KERNELS = ["sdpa", "flash_attention_2"]
HEADS: dict[str, Head] = {"llama": "causal_lm", "gpt_neox": "causal_lm", "bert": "masked_lm", "roberta": "masked_lm"}
ENGINES: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    **{f"zero-{stage}": {"kind": "deepspeed", "zero_stage": stage} for stage in (1, 2, 3)},
}


def train_on_gpu(config: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.cli", "train", str(config), "--gpus", "1", *overrides]
    env = {key: value for key, value in environment().items() if key != "CUDA_VISIBLE_DEVICES"}
    return subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("architecture", "head"), HEADS.items())
def test_law_4_no_attention_crosses_a_document_on_this_card(architecture: Any, head: Head, kernel: Any) -> None:
    if kernel == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    sizes = {"hidden_size": 128, "num_layers": 2, "num_heads": 2, "max_positions": 64}
    config = ModelConfig(architecture=architecture, **sizes)
    vocabulary = Vocabulary(size=97, eos_id=0, pad_id=1)
    model = make_model(config, vocabulary=vocabulary, kernel=kernel, dtype=torch.bfloat16, seed=3, head=head)

    check_documents_apart(model.to(GPU, torch.bfloat16), kernel=kernel, device=GPU, vocab_size=97)


@pytest.mark.parametrize("engine", list(ENGINES))
def test_law_7_a_stop_and_resume_on_a_gpu_goes_on_with_the_losses_in_bf16(tmp_path: Path, engine: str) -> None:
    shards = make_shards(tmp_path / "shards")
    # A constant rate, so that max_steps may grow; heads of 64, which every kernel has.
    steps = {"precision": "bf16", "max_steps": 8, "schedule": {"kind": "wsd", "warmup_steps": 0, "peak_lr": 1e-3}}
    model = {"hidden_size": 128, "num_heads": 2}
    sections = {"train": steps, "model": model, "engine": ENGINES[engine]}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
        write_config(folder / "config.yaml", tiny_config(folder, shards, **sections))

    results = [train_on_gpu(whole / "config.yaml"), train_on_gpu(parts / "config.yaml", "train.max_steps=4")]
    results.append(train_on_gpu(parts / "config.yaml"))

    assert [result.returncode for result in results] == [0, 0, 0], results[0].stderr
    assert [attempt["ranks"] for attempt in lines_of(parts / "run/attempts.jsonl")] == [1, 1]
    # GPU kernels sum in an order of their own: equal to bf16's rounding, not to the bit.
    assert losses_of(parts / "run") == pytest.approx(losses_of(whole / "run"), rel=1e-3)
    assert losses_of(whole / "run")[8] < losses_of(whole / "run")[1]


@pytest.mark.parametrize("engine", ["none", "zero-2", "zero-3"])
def test_law_7_a_4_bit_tuning_with_paged_moments_goes_on_with_the_losses(tmp_path: Path, engine: str) -> None:
    world = SmallWorld(tmp_path)
    base = make_base(world)
    # More than 100,000 elements an adapter, so that its moments are paged; a constant rate, so that max_steps may grow.
    schedule = {"kind": "wsd", "warmup_steps": 0, "peak_lr": 1e-3}
    train = {"precision": "bf16", "max_steps": 8, "schedule": schedule, "optimizer": {"kind": "paged_adamw_8bit"}}
    quantized = {"from": str(base), "quantization": {}}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
        sections = {"train": train, "model": quantized, "adapter": {"rank": 1600}, "engine": ENGINES[engine]}
        write_config(folder / "config.yaml", sft_config(folder, world, base, "qlora", **sections))

    results = [train_on_gpu(whole / "config.yaml"), train_on_gpu(parts / "config.yaml", "train.max_steps=4")]
    results.append(train_on_gpu(parts / "config.yaml"))

    assert [result.returncode for result in results] == [0, 0, 0], results[0].stderr
    assert losses_of(parts / "run") == pytest.approx(losses_of(whole / "run"), rel=1e-3)
    assert losses_of(whole / "run")[8] < losses_of(whole / "run")[1]
