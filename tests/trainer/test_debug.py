"""`dure train --debug`: every stage is tried beside its run, twice alike, and a planted fault is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from data_pipeline.stage import StageError
from tests.trainer.small_world import SmallWorld, small_world
from tests.trainer.test_gate_sft import spoilt
from tests.trainer.tiny_run import REPO, environment, lines_of, tiny_config, write_config
from tests.trainer.tiny_sft import sft_config
from trainer.config import TrainConfig
from trainer.debug import debug_run
from trainer.debug_base import BASE_FOLDER, with_small_base
from trainer.debug_checks import DebugFault
from trainer.debug_config import begin_anew, debug_folder
from trainer.errors import RunError
from trainer.ranks import Ranks
from trainer.resilience import StopFlag
from trainer.run_folder import read_exit

pytestmark = pytest.mark.stages

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
QUICK = {"max_steps": 4}


@pytest.fixture(scope="module")
def world() -> SmallWorld:
    return small_world()


def pretraining(folder: Path, world: SmallWorld, **sections: Any) -> TrainConfig:
    """What a cluster would train: ZeRO-3 on 8 ranks."""
    whole: dict[str, Any] = {
        "run": {"name": "run", "folder": str(folder), "expected_ranks": 8},
        "engine": {"kind": "deepspeed", "zero_stage": 3},
        "model": {"hidden_size": 256, "num_layers": 6, "num_heads": 8, "max_positions": 128},
        "train": {"global_batch_sequences": 64, "precision": "bf16", "schedule": {"peak_lr": 1e-3, "warmup_steps": 4}},
        "debug": QUICK,
    }
    for section, keys in sections.items():
        whole[section] = whole.get(section, {}) | keys
    return tiny_config(folder, world.shards, **whole)


def tuning(folder: Path, world: SmallWorld, kind: str, **sections: Any) -> TrainConfig:
    return sft_config(folder, world, world.base, kind, **{"debug": QUICK, **sections})


def tried(config: TrainConfig) -> dict[str, Any]:
    """debug.json of a try that went well."""
    begin_anew(debug_folder(config))
    assert debug_run(config, ALONE, stop=StopFlag()) == 0
    return result_of(config)


def result_of(config: TrainConfig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((debug_folder(config) / "debug.json").read_text())
    return found


def fault(config: TrainConfig) -> str:
    """What a try says that found something; the record says the same."""
    begin_anew(debug_folder(config))
    with pytest.raises(DebugFault) as caught:
        debug_run(config, ALONE, stop=StopFlag())
    record = read_exit(debug_folder(config))
    assert record is not None and record.code == 1 and record.reason == str(caught.value)
    assert result_of(config)["status"] == "failed"
    return str(caught.value)


def test_a_pretraining_is_tried_beside_its_run_and_twice_alike(
    tmp_path: Path, world: SmallWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    config = pretraining(tmp_path, world)

    first, second = tried(config), tried(config)

    assert first == second
    assert len(first["losses"]) == 4
    assert [check["is_ok"] for check in first["checks"]] == [True] * 4
    assert not (tmp_path / "run").exists()
    said = capsys.readouterr().out
    assert "engine.kind" in said and "deepspeed → none" in said
    assert "에 산다." in said
    assert len(lines_of(tmp_path / "run-debug" / "metrics.jsonl")) == 4
    assert len(lines_of(tmp_path / "run-debug" / "evaluations.jsonl")) == 1
    assert [path.name for path in (tmp_path / "run-debug" / "checkpoints").iterdir()] == ["step-00000004"]


@pytest.mark.parametrize("kind", ["full", "lora", "qlora"])
def test_a_tuning_is_tried_on_a_small_base_of_its_kind(
    tmp_path: Path, world: SmallWorld, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tuning(tmp_path, world, kind)

    result = tried(config)

    assert result["status"] == "ok"
    assert result["overfit"]["losses"][-1] < result["overfit"]["limit"]
    said = capsys.readouterr().out
    assert "⟦" in said and "<|endoftext|>⟧" in said
    assert (debug_folder(config) / BASE_FOLDER / "config.json").is_file()


def test_the_real_base_is_tried_where_the_config_says_so(tmp_path: Path, world: SmallWorld) -> None:
    config = tuning(tmp_path, world, "full", debug=QUICK | {"shrink": False})

    assert tried(config)["status"] == "ok"
    assert not (debug_folder(config) / BASE_FOLDER).exists()


def test_labels_that_are_masked_are_named_and_shown(
    tmp_path: Path, world: SmallWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    def mask(ids: list[int], spans: list[tuple[int, int]]) -> tuple[list[int], list[tuple[int, int]]]:
        return (ids, []) if sum(ids) % 16 else (ids, spans)

    shards = spoilt(world.instruction_shards, tmp_path / "spoilt", mask)
    config = tuning(tmp_path, world, "lora", data={"shards": str(shards)})

    told = fault(config)

    assert "gate: no emptied rows:" in told
    assert "NOTHING IN THIS ROW IS LEARNT" in capsys.readouterr().out


def test_shards_without_any_target_are_refused(tmp_path: Path, world: SmallWorld) -> None:
    shards = spoilt(world.instruction_shards, tmp_path / "spoilt", lambda ids, spans: (ids, []))
    config = tuning(tmp_path, world, "lora", data={"shards": str(shards)})
    begin_anew(debug_folder(config))

    with pytest.raises(StageError, match="nothing to learn"):
        debug_run(config, ALONE, stop=StopFlag())


def planted(config: TrainConfig, folder: Path, **weights: float) -> TrainConfig:
    """`config` over a base of its kind in which all (or, of NaN, one) of each named weight is that number."""
    base = with_small_base(config, folder)
    file = folder / BASE_FOLDER / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    for name, value in weights.items():
        tensor = tensors[name.replace("__", ".")]
        tensor.view(-1)[: 1 if value != value else None] = value
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    debug = config.debug.model_copy(update={"shrink": False})
    return base.model_copy(update={"debug": debug})


def test_a_nan_in_the_base_is_named_by_its_tensor(tmp_path: Path, world: SmallWorld) -> None:
    config = planted(tuning(tmp_path, world, "full"), tmp_path, model__layers__1__mlp__up_proj__weight=float("nan"))

    assert "weights: model.layers.1.mlp.up_proj.weight holds 1 NaN" in fault(config)


def test_an_overflow_is_named_by_its_module(tmp_path: Path, world: SmallWorld) -> None:
    huge = dict.fromkeys(("model__layers__1__mlp__up_proj__weight", "model__layers__1__mlp__gate_proj__weight"), 1e30)
    config = planted(tuning(tmp_path, world, "full"), tmp_path, **huge)

    assert "forward: model.layers.1.mlp.down_proj (Linear) gives" in fault(config)


def test_an_adapter_that_the_loss_does_not_reach_is_named(tmp_path: Path, world: SmallWorld) -> None:
    behind_zeros = dict.fromkeys((f"model__layers__{layer}__mlp__up_proj__weight" for layer in (0, 1)), 0.0)
    config = tuning(
        tmp_path, world, "lora", adapter={"rank": 8, "targets": ("gate_proj",)}, debug=QUICK | {"overfit_steps": 10}
    )
    config = planted(config, tmp_path, **behind_zeros)

    told = fault(config)

    assert "debug: gradients reach the weights: 0 of 4 trained tensors" in told
    assert "gate_proj.lora_A.default.weight" in told
    assert "debug: one batch can be learnt: loss" in told and "stays where it was" in told


def test_a_learning_rate_that_moves_nothing_is_named(tmp_path: Path, world: SmallWorld) -> None:
    config = pretraining(tmp_path, world, train={"schedule": {"peak_lr": 1e-12, "warmup_steps": 0}})

    assert "debug: the optimizer moves them:" in fault(config)


def test_a_learning_rate_that_explodes_is_named(tmp_path: Path, world: SmallWorld) -> None:
    config = pretraining(tmp_path, world, train={"schedule": {"peak_lr": 1e30, "warmup_steps": 0}})

    told = fault(config)

    # Which of the two comes first is the kernels' affair.
    assert told.startswith(("forward: model", "backward: ")), told
    assert "NaN" in told


def test_a_base_that_cannot_be_read_is_refused_with_the_way_on(tmp_path: Path, world: SmallWorld) -> None:
    config = tuning(tmp_path, world, "lora", model={"from": "nobody/no-such-model"})
    begin_anew(debug_folder(config))

    with pytest.raises(RunError, match=r"config.json of 'nobody/no-such-model' can't be read: .*debug.shrink=false"):
        debug_run(config, ALONE, stop=StopFlag())


def test_the_command_ends_with_0_or_1_and_profiles_on_request(tmp_path: Path, world: SmallWorld) -> None:
    path = write_config(tmp_path / "run.yaml", pretraining(tmp_path, world))

    well = dure_debug(path, "--profile")
    trace = json.loads((tmp_path / "run-debug" / "trace.json").read_text())
    ill = dure_debug(path, "train.schedule.peak_lr=1e-12", "train.schedule.warmup_steps=0")

    assert well.returncode == 0, well.stderr
    assert "profile: 3 steps of" in well.stdout
    assert {"forward", "backward", "optimizer"} <= {event.get("name") for event in trace["traceEvents"]}
    assert ill.returncode == 1
    assert "error: debug: 1 failed: the optimizer moves them; the table above says why" in ill.stderr
    assert "checkpoint stands" not in ill.stderr


def dure_debug(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.cli", "train", str(config), "--debug", *words]
    return subprocess.run(command, cwd=REPO, env=environment(), capture_output=True, text=True, timeout=600)
