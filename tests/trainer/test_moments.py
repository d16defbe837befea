"""An optimizer's moments through a checkpoint: the same cut to the bit, any other as near as their bits allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.moments import packed_blocks, restore_as_saved, restore_flat, saved_state
from trainer.pieces import BLOCK, Flat, Pieces, write_flats
from trainer.reshape import dealt, rewrite
from trainer.schedule import OptimizerConfig, make_optimizer

pytestmark = pytest.mark.stages

NUM_ELEMENTS = 5000  # more than bitsandbytes keeps in 32 bits, and a last block that is not full
GROUPS, SHAPES = [["a", "b"]], {"a": (7, 500), "b": (1500,)}
KINDS = ["adamw", "adamw_8bit", "paged_adamw_8bit"]
[LAYOUT] = dealt(GROUPS, SHAPES, rank=0, num_ranks=1, zero_stage=2)


def optimizer_of(weights: torch.Tensor, kind: str) -> Any:
    holder = torch.nn.Module()
    holder.weights = torch.nn.Parameter(weights)
    return make_optimizer(holder, OptimizerConfig.model_validate({"kind": kind}), device=torch.device("cpu"))


def flat_of(optimizer: Any) -> torch.Tensor:
    found: torch.Tensor = optimizer.param_groups[0]["params"][0]
    return found


def update(optimizer: Any, *, step: int) -> None:
    """One update by a gradient whose largest values are of either sign from block to block."""
    weights = flat_of(optimizer)
    optimizer.param_groups[0]["lr"] = 1e-2
    weights.grad = torch.sin(torch.arange(NUM_ELEMENTS) * (1.7 + step)) * torch.linspace(1e-4, 1, NUM_ELEMENTS)
    optimizer.step()


@pytest.fixture(params=KINDS)
def trained(request: pytest.FixtureRequest) -> tuple[str, Any]:
    optimizer = optimizer_of(torch.linspace(-1, 1, NUM_ELEMENTS), request.param)
    for step in range(3):
        update(optimizer, step=step)
    return request.param, optimizer


def save(optimizer: Any, folder: Path) -> Pieces:
    state, step = saved_state(optimizer, flat_of(optimizer))
    write_flats(folder, [Flat(LAYOUT, flat_of(optimizer), state, step)], rank=0, num_ranks=1)
    return Pieces(folder)


def fresh(kind: str) -> Any:
    return optimizer_of(torch.zeros(NUM_ELEMENTS), kind)


def spread(one: Any, other: Any) -> float:
    """The largest difference of two optimizers' weights after one update more of each."""
    for optimizer in (one, other):
        update(optimizer, step=3)
    return float((flat_of(one) - flat_of(other)).detach().abs().max())


def test_the_same_cut_comes_back_to_the_bit(trained: tuple[str, Any], tmp_path: Path) -> None:
    kind, optimizer = trained
    source, other = save(optimizer, tmp_path), fresh(kind)

    group = other.param_groups[0]
    assert restore_as_saved(other, flat_of(other), group=group, source=source, rank=0, flat=0)

    assert saved_state(other, flat_of(other))[1] == 3
    assert spread(optimizer, other) == 0.0


def test_what_was_packed_in_the_same_blocks_gets_its_old_numbers(trained: tuple[str, Any], tmp_path: Path) -> None:
    kind, optimizer = trained
    (tmp_path / "new").mkdir()
    rewrite(save(optimizer, tmp_path), tmp_path / "new", rank=0, num_ranks=1, zero_stage=2)
    source, other = Pieces(tmp_path / "new"), fresh(kind)

    restore_flat(other, flat_of(other), group=other.param_groups[0], layout=LAYOUT, source=source)

    old, new = (saved_state(each, flat_of(each))[0] for each in (optimizer, other))
    assert set(old) == set(new)
    for name in ("exp_avg", "exp_avg_sq") if kind == "adamw" else ("state1", "state2"):
        assert torch.equal(old[name], new[name])
    assert spread(optimizer, other) < 1e-7


def test_moments_in_another_number_of_bits_are_not_taken_as_they_are(trained: tuple[str, Any], tmp_path: Path) -> None:
    kind, optimizer = trained
    source, other = save(optimizer, tmp_path), fresh("adamw_8bit" if kind == "adamw" else "adamw")

    group = other.param_groups[0]
    assert not restore_as_saved(other, flat_of(other), group=group, source=source, rank=0, flat=0)


def test_an_optimizer_without_an_update_comes_back_without_one(tmp_path: Path) -> None:
    source, other = save(fresh("adamw"), tmp_path), fresh("adamw")
    update(other, step=0)

    restore_flat(other, flat_of(other), group=other.param_groups[0], layout=LAYOUT, source=source)

    assert saved_state(other, flat_of(other)) == ({}, None)
    assert torch.count_nonzero(flat_of(other)) == 0


def test_packing_errs_no_more_than_bitsandbytes_own() -> None:
    from bitsandbytes.functional import create_dynamic_map, dequantize_blockwise, quantize_blockwise

    values = torch.sin(torch.arange(10.0 * BLOCK) ** 1.3) * torch.logspace(-6, 0, 10 * BLOCK)
    codes = create_dynamic_map(signed=True)

    numbers, scales = packed_blocks(values, codes=codes)
    theirs = dequantize_blockwise(*quantize_blockwise(values, code=codes, blocksize=BLOCK))

    ours = codes[numbers.long()] * scales.repeat_interleave(BLOCK)
    assert (ours - values).norm() <= 1.001 * (theirs - values).norm()
