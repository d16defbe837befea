"""The figures that a step reports."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.metrics import Board, Throughput, console_line, peak_tflops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA H200 NVL", 835.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
    ],
)
def test_the_peak_is_the_dense_bf16_figure_of_the_data_sheet(name: str, peak: float) -> None:
    assert peak_tflops(name) == peak


@pytest.mark.parametrize("name", ["NVIDIA RTX A4000", "NVIDIA RTX A3000 Laptop GPU", "NVIDIA L400", "NVIDIA A1000"])
def test_a_card_whose_name_only_begins_like_another_has_no_peak(name: str) -> None:
    assert peak_tflops(name) is None


def test_an_unknown_card_has_no_peak_and_no_mfu() -> None:
    clock = iter([0.0, 1.0, 1.0]).__next__
    throughput = Throughput(flops_per_token=1.0, peak_tflops=peak_tflops("NVIDIA GT 710"), num_devices=1, clock=clock)
    throughput.count(num_tokens=10)

    assert "mfu" not in throughput.take(steps_left=1)


def test_mfu_is_the_share_of_all_devices_peak() -> None:
    # 1e12 FLOPs a token at 312 tokens/s on two cards of 312 TFLOP/s: one half.
    clock = iter([0.0, 2.0, 2.0]).__next__
    throughput = Throughput(flops_per_token=1e12, peak_tflops=312.0, num_devices=2, clock=clock)
    throughput.count(num_tokens=624)

    figures = throughput.take(steps_left=3)

    assert figures["mfu"] == pytest.approx(0.5)
    assert figures["tokens_per_second"] == pytest.approx(312.0)
    assert figures["eta_seconds"] == pytest.approx(6.0)


def test_time_for_an_evaluation_is_no_training_time() -> None:
    clock = iter([0.0, 10.0, 10.0]).__next__
    throughput = Throughput(flops_per_token=1.0, peak_tflops=None, num_devices=1, clock=clock)
    throughput.count(num_tokens=50)
    throughput.pause(5.0)

    assert throughput.take(steps_left=0)["tokens_per_second"] == pytest.approx(10.0)


def test_the_console_line_says_what_a_person_looks_for() -> None:
    line = {"step": 1200, "loss": 3.25, "grad_norm": 0.5, "lr": 3e-4, "memory_gib": 12.0}
    line |= {"tokens_per_second": 20513.0, "mfu": 0.599, "eta_seconds": 3725.0}

    assert console_line(line, max_steps=4800) == (
        "step 1,200/4,800  loss 3.2500  grad 0.500  lr 3.00e-04  20,513 tok/s  MFU 59.9%  12.0 GiB  ETA 1:02:05"
    )


@pytest.mark.stages
def test_the_board_shows_the_curves_and_not_the_counts(tmp_path: Path) -> None:
    board = Board(tmp_path, first_step=0)
    board.add({"step": 10, "loss": 2.5, "num_targets": 7, "is_best": True}, group="heldout")
    board.close()

    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == ["heldout/loss"]
    assert [(event.step, event.value) for event in events.Scalars("heldout/loss")] == [(10, 2.5)]
