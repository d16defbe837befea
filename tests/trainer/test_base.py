"""What a run continues from: pinned at its first start, told apart by a cheap hash, refused where it is another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.small_world import SmallWorld
from tests.trainer.tiny_run import lines_of, losses_of, tiny_config
from tests.trainer.tiny_sft import MODEL, make_base, sft_config
from trainer.base import BaseIdentity, check_base, identify, pin_base, pinned_source
from trainer.errors import RunError
from trainer.model import Vocabulary, make_model
from trainer.model_config import ModelConfig
from trainer.ranks import Ranks
from trainer.resilience import StopFlag
from trainer.run import run_in_group

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))


def save_model(folder: Path, *, seed: int = 3) -> Path:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_positions": 64, "pad_vocab_to_multiple": 8}
    model: Any = make_model(
        ModelConfig.model_validate(sizes),
        vocabulary=Vocabulary(97, 0, 1),
        kernel="sdpa",
        dtype=torch.float32,
        seed=seed,
    )
    model.save_pretrained(folder)
    return folder


def identity_of(folder: Path) -> BaseIdentity:
    return identify(ModelConfig.model_validate({"from": str(folder)}))


def test_the_same_weights_elsewhere_are_the_same_base(tmp_path: Path) -> None:
    one, other = (identity_of(save_model(tmp_path / name)) for name in ("one", "other"))

    assert (one.sha256, one.num_bytes) == (other.sha256, other.num_bytes)
    assert one.source != other.source


def test_other_weights_another_size_and_another_config_are_other_bases(tmp_path: Path) -> None:
    first = identity_of(save_model(tmp_path / "first"))
    reseeded = identity_of(save_model(tmp_path / "reseeded", seed=4))
    config = json.loads((save_model(tmp_path / "rope") / "config.json").read_text())
    (tmp_path / "rope/config.json").write_text(json.dumps(config | {"rope_theta": 5000.0}))
    with (save_model(tmp_path / "longer") / "model.safetensors").open("ab") as file:
        file.write(b"\0")

    found = {first.sha256, reseeded.sha256, identity_of(tmp_path / "rope").sha256}
    found.add(identity_of(tmp_path / "longer").sha256)

    assert len(found) == 4


def test_an_adapter_over_another_base_is_refused_with_both(tmp_path: Path) -> None:
    saved, ours = BaseIdentity("old", "a" * 64, 1000), BaseIdentity("new", "b" * 64, 2000)
    check_base(saved.as_dict(), saved, folder=tmp_path)
    check_base(None, ours, folder=tmp_path)

    with pytest.raises(RunError, match=r"trained on a base aaaaaaaaaaaa… \(1,000 bytes, old\), but new is now bbbbbb"):
        check_base(saved.as_dict(), ours, folder=tmp_path)


def test_a_folder_is_its_own_base_and_a_new_model_has_none(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    config = tiny_config(tmp_path, tmp_path, model={"from": str(folder)})

    assert pin_base(config, tmp_path, ALONE).model.source == str(folder)
    assert pinned_source(config, tmp_path) == str(folder)
    assert pinned_source(tiny_config(tmp_path, tmp_path), tmp_path) is None


def test_a_run_that_has_no_checkpoint_yet_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.yaml").write_text("run: {name: base}\n")
    config = tiny_config(tmp_path, tmp_path, model={"from": str(tmp_path / "base")})

    with pytest.raises(RunError, match=r"model.from: .*base is a run without a complete checkpoint yet; train it"):
        pin_base(config, tmp_path, ALONE)


@pytest.mark.stages
def test_a_base_that_trains_on_does_not_move_under_the_run_that_tunes_it(tmp_path: Path) -> None:
    world = SmallWorld(tmp_path)
    base = make_base(world)
    steps = {"max_steps": 4, "schedule": {"kind": "wsd", "warmup_steps": 0, "peak_lr": 1e-3}}
    for name in ("whole", "parts"):
        begun = sft_config(tmp_path / "runs", world, base, "lora", train=steps, run={"name": name})
        assert run_in_group(begun, ALONE, stop=StopFlag()) == 0

    longer = steps | {"max_steps": 8}
    run_in_group(
        sft_config(tmp_path / "runs", world, base, "lora", train=longer, run={"name": "whole"}), ALONE, stop=StopFlag()
    )
    world.train("base", world.shards, model=MODEL, train={"max_steps": 16})
    again = sft_config(tmp_path / "runs", world, base, "lora", train=longer, run={"name": "parts"})
    assert run_in_group(again, ALONE, stop=StopFlag()) == 0

    assert [event["step"] for event in lines_of(tmp_path / "runs/parts/events.jsonl")] == [0, 4]
    assert losses_of(tmp_path / "runs/parts") == losses_of(tmp_path / "runs/whole")
    assert [path.name for path in (base / "export").glob("step-*")] == ["step-00000012"]


@pytest.mark.stages
def test_a_resume_over_a_base_that_was_written_over_is_refused(tmp_path: Path) -> None:
    world = SmallWorld(tmp_path)
    config = sft_config(tmp_path / "runs", world, make_base(world), "lora", train={"max_steps": 4})
    assert run_in_group(config, ALONE, stop=StopFlag()) == 0
    weights = next((tmp_path / "base/export").glob("*/model.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-4] ^= 1  # the least bit of the last weight
    weights.write_bytes(data)

    longer = sft_config(tmp_path / "runs", world, tmp_path / "base", "lora", train={"max_steps": 8})
    with pytest.raises(RunError, match="this adapter was trained on a base .* put the old base back"):
        run_in_group(longer, ALONE, stop=StopFlag())
