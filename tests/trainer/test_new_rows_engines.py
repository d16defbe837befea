"""New rows on two ranks under every engine: law 11 at the start, phases that move only what they name, laws 6 and 7."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.trainer.extended_world import PHASES, STEPS, TIED_PHASES, ExtendedWorld
from tests.trainer.small_world import NO_ANSWERS, small_world
from tests.trainer.test_resume import DONE, STOPPED, began, signal_at, work
from tests.trainer.tiny_run import losses_of, tiny_config, write_config
from tests.trainer.tiny_sft import MODEL
from trainer import checkpoint
from trainer.export import export_full
from trainer.pieces import Pieces, has_pieces

pytestmark = pytest.mark.stages

LORA: dict[str, Any] = {"adapter": {"rank": 4}}
QLORA: dict[str, Any] = LORA | {"model": {"quantization": {"compute_dtype": "fp32"}}}


def zero(stage: int, **keys: Any) -> dict[str, Any]:
    return {"engine": {"kind": "deepspeed", "zero_stage": stage, **keys}}


CASES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp-bf16": {"train": {"precision": "bf16"}},
    "zero-1": zero(1),
    "zero-2": zero(2),
    "zero-3": zero(3),
    "zero-1-bf16": zero(1) | {"train": {"precision": "bf16"}},
    "zero-3-bf16": zero(3) | {"train": {"precision": "bf16"}},
    "zero-2-offload": zero(2, offload_optimizer=True),
    "lora-ddp": LORA,
    "lora-zero-3": LORA | zero(3),
    "qlora-ddp": QLORA,
    "qlora-zero-2": QLORA | zero(2) | {"train": {"optimizer": {"kind": "adamw_8bit"}}},
    "qlora-zero-3": QLORA | zero(3),
    "qlora-zero-3-bf16": QLORA | zero(3) | {"train": {"precision": "bf16"}},
}
TIED = {"tied-ddp": {}, "tied-zero-2": zero(2), "tied-zero-3": zero(3), "tied-lora-zero-3": LORA | zero(3)}
FP32 = [name for name in CASES if "bf16" not in name]
# One of them is what the others are held against; 8-bit moments are others.
REFERENCES = ("ddp", "lora-ddp", "qlora-ddp", "qlora-zero-2")
EQUAL = [name for name in FP32 if name not in REFERENCES] + ["tied-zero-2", "tied-zero-3"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each case `whole-…` at once, and `parts-…` stopped inside the second phase and at the end of the third."""
    folder, world = tmp_path_factory.mktemp("new-rows"), small_world()
    extended = ExtendedWorld(world)
    pretrained = world.train("rows-base", world.shards, model=MODEL, train={"max_steps": 8}, evaluation=NO_ANSWERS)
    export_full(pretrained, folder / "base")
    model = MODEL | {"tie_embeddings": True}
    pretrained = world.train("tied-rows-base", world.shards, model=model, train={"max_steps": 8}, evaluation=NO_ANSWERS)
    export_full(pretrained, folder / "tied")
    cases = list((CASES | TIED).items())
    for start in range(0, len(cases), 6):  # a worker has 15 minutes
        carry_out(folder, extended.shards, dict(cases[start : start + 6]))
    return folder


def carry_out(folder: Path, shards: Path, cases: dict[str, dict[str, Any]]) -> None:
    plan: list[dict[str, Any]] = []
    for name, sections in cases.items():
        for kind in ("whole", "parts"):
            tree: dict[str, Any] = {
                "run": {"name": f"{kind}-{name}"},
                "model": {"from": str(folder / ("tied" if name in TIED else "base"))},
                "new_rows": {"phases": TIED_PHASES if name in TIED else PHASES},
                "data": {"seq_len": 64},
                "train": STEPS | {"max_grad_norm": 0.5},
                "evaluation": NO_ANSWERS,
                "checkpoint": {"every_steps": 1, "keep_last": 20},
                "gate": {"max_first_loss": 20.0},
            }
            for section, keys in sections.items():
                tree[section] = tree.get(section, {}) | keys
            path = str(write_config(folder / f"{kind}-{name}.yaml", tiny_config(folder, shards, **tree)))
            # Steps 3 and 6 are the last finished ones; the first of each attempt is its warm-up.
            stops = [signal_at("step", 2, rank=1), signal_at("step", 2)] if kind == "parts" else []
            plan += [{"config": path, "signal": stop} for stop in stops]
            plan.append({"config": path})
    outcomes = work(folder, plan, ranks=2)
    assert [outcome["code"] for outcome in outcomes] == [STOPPED if "signal" in step else DONE for step in plan]


def weights_at(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / f"checkpoints/step-{step:08}"
    if has_pieces(folder):
        pieces = Pieces(folder)
        return {name: pieces.read(name) for name in pieces.shapes}
    return safetensors.torch.load_file(folder / "model.safetensors")


def moved(run: Path, first: int, last: int) -> set[str]:
    one, two = weights_at(run, first), weights_at(run, last)
    kinds = {"embed_tokens.rows": "input", "lm_head.rows": "output"}
    names = [name for name in one if not torch.equal(one[name], two[name])]
    return {next((kind for part, kind in kinds.items() if part in name), "model") for name in names}


@pytest.mark.parametrize("name", CASES)
def test_each_phase_moves_what_it_names_to_the_bit(runs: Path, name: str) -> None:
    run = runs / f"whole-{name}"

    seen = [moved(run, step, step + 1) for step in range(1, 8)]

    everything, both = {"input", "output", "model"}, {"input", "output"}
    assert seen == [{"input"}, {"output"}, {"output"}, both, both, everything, everything]


@pytest.mark.parametrize("name", TIED)
def test_tied_rows_are_one_and_move_together(runs: Path, name: str) -> None:
    run = runs / f"whole-{name}"

    seen = [moved(run, step, step + 1) for step in range(1, 8)]

    assert seen == [{"input"}] * 3 + [{"input", "model"}] * 4
    names = [key for key in weights_at(run, 8) if key.endswith(".rows")]
    assert names == ["model.embed_tokens.rows"]


@pytest.mark.parametrize("name", [*CASES, *TIED])
def test_law_7_a_stop_inside_a_phase_is_invisible(runs: Path, name: str) -> None:
    whole, parts = runs / f"whole-{name}", runs / f"parts-{name}"

    assert began(parts) == [0, 3, 6]
    assert losses_of(parts) == losses_of(whole)
    states = [checkpoint.read_state(run / "checkpoints/step-00000008") for run in (whole, parts)]
    assert states[0]["new_rows"] == states[1]["new_rows"]
    ours, theirs = weights_at(whole, 8), weights_at(parts, 8)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", EQUAL)
def test_law_6_every_engine_learns_the_same(runs: Path, name: str) -> None:
    kind = name.split("-zero")[0] if "lora" in name or "tied" in name else ""
    plain = losses_of(runs / ("whole-" + (f"{kind}-ddp" if kind else "ddp")))

    ours = losses_of(runs / f"whole-{name}")

    assert list(ours.values()) == pytest.approx(list(plain.values()), rel=1e-5)
    assert len(set(ours.values())) == 8
