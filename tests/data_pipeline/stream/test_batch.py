"""Batches as tensors, and what the stream may not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from data_pipeline.stream.batch import Batch, padding_batch

REPO = Path(__file__).parents[3]


def batch() -> Batch:
    return Batch(
        input_ids=np.array([[5, 6], [7, 1]]),
        labels=np.array([[6, 0], [0, -100]]),
        position_ids=np.array([[0, 1], [0, 0]]),
        row_ids=np.array([3, 9]),
        num_targets=3,
    )


def test_tensors_are_copies_of_the_arrays() -> None:
    source = batch()

    found = source.to_torch("cpu")
    source.input_ids[:] = 0

    assert found.input_ids.tolist() == [[5, 6], [7, 1]]
    assert found.labels.tolist() == [[6, 0], [0, -100]]
    assert found.position_ids.tolist() == [[0, 1], [0, 0]]
    assert {found.input_ids.dtype, found.labels.dtype, found.position_ids.dtype} == {torch.int64}
    assert found.row_ids.tolist() == [3, 9]
    assert found.num_targets == 3


def test_a_padding_batch_has_a_row_and_no_target() -> None:
    filler = padding_batch(seq_len=3, pad_id=7)

    assert filler.input_ids.tolist() == [[7, 7, 7]]
    assert filler.labels.tolist() == [[-100, -100, -100]]
    assert filler.position_ids.tolist() == [[0, 1, 2]]
    assert filler.num_targets == 0


def test_the_stream_loads_neither_torch_nor_trainer_nor_launch() -> None:
    code = (
        "import sys; import data_pipeline.stream.stream, data_pipeline.stream.evaluation; "
        "print([name for name in ('torch', 'transformers', 'trainer', 'launch') if name in sys.modules])"
    )

    output = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True).stdout

    assert output.strip() == "[]"
