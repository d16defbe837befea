"""Pieces of a checkpoint: cut for any ranks and stages, read back to the bit, and never more in memory than a part."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.small_pieces import MOMENTS, save, two_groups, values_of
from trainer import reshape as form
from trainer.checkpoint_marker import CheckpointError
from trainer.pieces import BLOCK, WEIGHTS, Flat, Pieces, check_shapes, file_name, write_flats
from trainer.reshape import dealt, rewrite

shapes_of_a_group = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=2).map(tuple), min_size=1, max_size=5)
cuts = st.tuples(st.integers(1, 7), st.sampled_from([1, 2, 3]))  # ranks, stage


@settings(max_examples=20, deadline=None)
@given(first=shapes_of_a_group, second=shapes_of_a_group, cut=cuts, then=cuts)
def test_a_checkpoint_cut_for_any_ranks_and_stages_reads_the_same_to_the_bit(
    first: list[tuple[int, ...]], second: list[tuple[int, ...]], cut: tuple[int, int], then: tuple[int, int]
) -> None:
    groups, shapes = two_groups(first, second)
    with tempfile.TemporaryDirectory() as root:
        old, new = Path(root, "old"), Path(root, "new")
        old.mkdir(), new.mkdir()
        save(old, groups, shapes, ranks=cut[0], stage=cut[1])
        source = Pieces(old)
        for rank in range(then[0]):
            rewrite(source, new, rank=rank, num_ranks=then[0], zero_stage=then[1])
        found = Pieces(new)

        assert (found.num_ranks, found.step, found.moments, found.shapes) == (then[0], 12, [*MOMENTS], shapes)
        assert found.groups() == groups
        for name in shapes:
            for kind in (WEIGHTS, *MOMENTS):
                assert torch.equal(found.read(name, kind), values_of(name, kind, shapes))
        for rank in range(then[0]):
            expected = dealt(groups, shapes, rank=rank, num_ranks=then[0], zero_stage=then[1])
            assert found.layouts(rank) == expected


@given(first=shapes_of_a_group, cut=cuts)
def test_each_element_belongs_to_one_rank(first: list[tuple[int, ...]], cut: tuple[int, int]) -> None:
    groups, shapes = two_groups(first, [(1,)])

    owned = [
        (piece.name, element)
        for rank in range(cut[0])
        for layout in dealt(groups, shapes, rank=rank, num_ranks=cut[0], zero_stage=cut[1])
        for piece in layout.pieces
        for element in range(piece.start, piece.start + piece.length)
    ]

    assert sorted(owned) == sorted((name, number) for name in shapes for number in range(math.prod(shapes[name])))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(tmp_path, *two_groups([(7, 3), (5,)], [(4,)]), ranks=2, stage=2)
    return tmp_path


def test_any_part_of_a_parameter_is_read_across_the_ranks_files(saved: Path) -> None:
    source, shapes = Pieces(saved), Pieces(saved).shapes

    for start in range(21):
        for end in range(start + 1, 22):
            part = source.read("a0", "exp_avg", start=start, length=end - start)
            assert torch.equal(part, values_of("a0", "exp_avg", shapes)[start:end])


def test_other_tools_read_the_files_as_safetensors(saved: Path) -> None:
    import safetensors.torch

    tensors = safetensors.torch.load_file(saved / file_name(0, 2))

    assert set(tensors) == {f"{flat}.{kind}" for flat in (0, 1) for kind in (WEIGHTS, *MOMENTS)}
    assert torch.equal(tensors["0.weights"][:14], values_of("a0", WEIGHTS, Pieces(saved).shapes)[:14])


@pytest.mark.parametrize("missing", [0, 1])
def test_a_ranks_missing_file_is_refused_before_anything_is_read(saved: Path, missing: int) -> None:
    (saved / file_name(missing, 2)).unlink()

    with pytest.raises(CheckpointError, match=rf"rank-0000{1 - missing}-of-00002.*not one file of each rank of one"):
        Pieces(saved)


def test_files_of_two_saves_are_never_mixed(saved: Path) -> None:
    save(saved, *two_groups([(7, 3), (5,)], [(4,)]), ranks=3, stage=2)

    with pytest.raises(CheckpointError, match="not one file of each rank of one save"):
        Pieces(saved)


def test_a_folder_without_pieces_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="pieces: no file: not one file of each rank"):
        Pieces(tmp_path)


def test_another_models_checkpoint_is_refused_with_both_shapes(saved: Path) -> None:
    other = [*two_groups([(7, 4), (5,), (2,)], [(4,)])]
    [layout, _] = dealt(*other, rank=0, num_ranks=1, zero_stage=3)

    with pytest.raises(CheckpointError) as refusal:
        check_shapes(Pieces(saved), layout.pieces)

    assert "a0: (7, 3) in the checkpoint, (7, 4) in the model" in str(refusal.value)
    assert "a2: absent in the checkpoint, (2,) in the model" in str(refusal.value)
    assert "a1" not in str(refusal.value)
    with pytest.raises(CheckpointError, match="no file holds element 21 of 28 of a0"):
        Pieces(saved).read("a0", length=28)
    with pytest.raises(CheckpointError, match="no file holds element 0 of 1 of a9"):
        Pieces(saved).read("a9")


def test_cutting_anew_holds_one_part_at_a_time(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The parts are smaller than any parameter here, as 64 MiB are beside a large model's.
    monkeypatch.setattr(form, "CHUNK", 2)
    source, sizes = Pieces(saved), []
    read = source.read

    def watched(*names: str, start: int, length: int) -> torch.Tensor:
        sizes.append(length)
        return read(*names, start=start, length=length)

    monkeypatch.setattr(source, "read", watched)
    target = tmp_path / "new"
    target.mkdir()
    rewrite(source, target, rank=0, num_ranks=1, zero_stage=3)

    assert max(sizes) == 2
    assert sum(sizes) == 3 * (21 + 5 + 4)
    assert torch.equal(Pieces(target).read("a0"), values_of("a0", WEIGHTS, source.shapes))


@pytest.fixture
def packed(tmp_path: Path) -> Iterator[tuple[Path, dict[str, torch.Tensor]]]:
    """One rank's flat of 8-bit moments with a last block that is not full, and the values that bitsandbytes says."""
    from bitsandbytes.functional import create_dynamic_map, dequantize_blockwise, quantize_blockwise

    values = torch.sin(torch.arange(700.0)) * torch.linspace(1e-6, 1e-2, 700)
    code = create_dynamic_map(signed=True)
    numbers, told = quantize_blockwise(values, code=code, blocksize=BLOCK)
    state = {"state1": numbers, "qmap1": code, "absmax1": told.absmax}
    [layout] = dealt([["a"]], {"a": (7, 100)}, rank=0, num_ranks=1, zero_stage=3)
    write_flats(tmp_path, [Flat(layout, values, state, step=3)], rank=0, num_ranks=1)
    yield tmp_path, {"state1": dequantize_blockwise(numbers, told)}


@pytest.mark.stages
def test_moments_of_8_bits_are_read_as_bitsandbytes_reads_them(packed: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, expected = packed
    source = Pieces(folder)

    assert source.moments == ["state1"]
    for start, length in ((0, 700), (255, 2), (256, 256), (511, 189), (699, 1)):
        part = source.read("a", "state1", start=start, length=length)
        assert torch.equal(part, expected["state1"][start : start + length])
