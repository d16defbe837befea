"""What a run continues from: pinned at its first start, told apart by a cheap hash, refused where it is another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.stage import read_manifest, write_manifest
from tests.trainer.small_world import SmallWorld
from tests.trainer.tiny_run import lines_of, losses_of, tiny_config
from tests.trainer.tiny_sft import MODEL, make_base, sft_config
from trainer.base import BaseIdentity, check_base, identify, pin_base, pinned_source, restore_base
from trainer.checkpoint_marker import marker_text
from trainer.errors import RunError
from trainer.model import Vocabulary, make_model
from trainer.model_config import ModelConfig
from trainer.ranks import Ranks
from trainer.resilience import StopFlag
from trainer.run import run_in_group
from trainer.saved import find_saved, open_model

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

    events = lines_of(tmp_path / "runs/parts/events.jsonl")
    assert [event["step"] for event in events if event["kind"] == "started"] == [0, 4]
    assert losses_of(tmp_path / "runs/parts") == losses_of(tmp_path / "runs/whole")
    assert [path.name for path in (base / "export").glob("step-*")] == ["step-00000012"]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.stages
def test_an_export_of_the_base_that_was_removed_is_made_again_of_the_step_that_was_pinned(tmp_path: Path) -> None:
    world = SmallWorld(tmp_path)
    base = make_base(world)
    config = sft_config(tmp_path / "runs", world, base, "lora", train={"max_steps": 4})
    assert run_in_group(config, ALONE, stop=StopFlag()) == 0
    (made,) = (base / "export").glob("step-*")
    before = {name: data for name, data in files_of(made).items() if not name.startswith("manifest")}
    # The base trains on meanwhile; its checkpoint of step 12 is kept.
    world.train("base", world.shards, model=MODEL, train={"max_steps": 16})
    shutil.rmtree(base / "export")

    longer = sft_config(tmp_path / "runs", world, base, "lora", train={"max_steps": 8})
    assert run_in_group(longer, ALONE, stop=StopFlag()) == 0

    assert [path.name for path in (base / "export").glob("step-*")] == ["step-00000012"]
    assert {name: files_of(made)[name] for name in before} == before
    shutil.rmtree(base / "export")
    assert open_model(find_saved(tmp_path / "runs/run")).model is not None, "chat and the others need it too"

    # A run that is new takes no export for its base's that is of another checkpoint.
    manifest = read_manifest(made, kind="export")
    body = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    write_manifest(made, body | {"origin": manifest["origin"] | {"sha256": "f" * 64}})
    new = tiny_config(tmp_path, tmp_path, model={"from": str(base / "checkpoints" / "step-00000012")})
    with pytest.raises(RunError, match=r"step-00000012: holds base step 12 \(ffffffffffff…\), but base step 12 .* is"):
        pin_base(new, tmp_path / "runs/new", ALONE)


def write_pin(folder: Path, checkpoint: Path, **told: str) -> Path:
    """The base.json of a run whose base was a checkpoint; the base's export is not there."""
    folder.mkdir()
    path = checkpoint.parents[1] / "export" / checkpoint.name
    (folder / "base.json").write_text(json.dumps({"from": "base", "path": str(path), **told}))
    return folder


def write_marker(checkpoint: Path, **told: Any) -> str:
    checkpoint.mkdir(parents=True, exist_ok=True)
    text = marker_text({"format_version": 1, "step": 12, "files": [], **told})
    (checkpoint / "COMPLETE").write_text(text)
    return str(json.loads(text)["sha256"])


def test_a_removed_export_is_not_made_of_another_checkpoint_than_was_pinned(tmp_path: Path) -> None:
    checkpoint = tmp_path / "base" / "checkpoints" / "step-00000012"
    old, new = write_marker(checkpoint), write_marker(checkpoint, trained="again")
    pinned = write_pin(tmp_path / "run", checkpoint, checkpoint_sha256=old)

    with pytest.raises(
        RunError, match=f"is another one now: this run pinned {old[:12]}…, its COMPLETE says {new[:12]}"
    ):
        restore_base(pinned)

    assert not (tmp_path / "base" / "export").exists()


def test_a_removed_export_whose_checkpoint_is_gone_is_told_with_what_to_do(tmp_path: Path) -> None:
    checkpoint = tmp_path / "base" / "checkpoints" / "step-00000012"
    gone = write_pin(tmp_path / "run", checkpoint)  # as it was written before checkpoints were named in it

    with pytest.raises(RunError, match=r"was removed, and can't be made again: .*step-00000012/COMPLETE: cannot be re"):
        restore_base(gone)


def test_what_was_pinned_to_a_folder_or_a_hub_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "base.json").write_text(json.dumps({"from": "a/b", "path": "a/b"}))

    restore_base(tmp_path)
    restore_base(tmp_path / "a run without a base")


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
