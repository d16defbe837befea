"""What a step says: one object, written to metrics.jsonl, TensorBoard, the progress bar and the console alike."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from data_pipeline.config import Config

if TYPE_CHECKING:
    import torch

# Dense bf16 peak in TFLOP/s by a part of the device's name, from NVIDIA's data sheets; the first match counts, so
# that a longer name stands before a shorter one. Sparse figures are twice these and must never be used here.
PEAK_TFLOPS: tuple[tuple[str, float], ...] = (
    ("H200 NVL", 835.0),
    ("H200", 989.0),
    ("H100 NVL", 835.0),
    ("H100 PCIe", 756.0),
    ("H100", 989.0),
    ("H800", 989.0),
    ("GH200", 989.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("A40", 149.7),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("A30", 165.0),
    ("A6000", 154.8),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
)


class LoggingConfig(Config):
    """How often a step is logged, and where beside metrics.jsonl."""

    every_steps: int = Field(default=10, ge=1)
    tensorboard: bool = True
    progress_bar: bool = True
    ledger: bool = False
    """Also which rows each rank trained on in each step, in `ledger/`."""


def peak_tflops(device_name: str) -> float | None:
    """The dense bf16 peak of a card in TFLOP/s, or None for one that the table lacks (then no MFU is reported)."""
    return next((peak for part, peak in PEAK_TFLOPS if re.search(rf"\b{part}\b", device_name)), None)


def memory_gib(device: torch.device) -> float:
    """The most memory this process has held: of the GPU since the start, else resident in the host's RAM."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@dataclass
class Throughput:
    """Tokens a second and MFU between two logged steps, and the time that is left."""

    flops_per_token: float
    peak_tflops: float | None
    num_devices: int
    clock: Any = time.perf_counter
    _since: float = field(init=False)
    _tokens: int = field(default=0, init=False)
    _steps: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._since = self.clock()

    def count(self, *, num_tokens: int) -> None:
        """One more step over `num_tokens` inputs of all ranks."""
        self._tokens += num_tokens
        self._steps += 1

    def pause(self, seconds: float) -> None:
        """Leave out time that was no training: an evaluation, a save."""
        self._since += seconds

    def take(self, *, steps_left: int) -> dict[str, float]:
        """The figures since the last call, and start anew."""
        seconds = max(1e-9, self.clock() - self._since)
        rate = self._tokens / seconds
        figures = {
            "tokens_per_second": round(rate, 1),
            "seconds_per_step": round(seconds / max(1, self._steps), 4),
            "eta_seconds": round(steps_left * seconds / max(1, self._steps), 1),
        }
        if self.peak_tflops is not None:
            figures["mfu"] = round(rate * self.flops_per_token / (self.peak_tflops * 1e12 * self.num_devices), 4)
        self._since, self._tokens, self._steps = self.clock(), 0, 0
        return figures


class Board:
    """TensorBoard, made from the objects of metrics.jsonl; a resumed run writes over what came after its step.

    Counts (`num_*`) are left out: they are constants or the data's, and hide the curves that a person looks for.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=first_step)

    def add(self, line: dict[str, Any], *, group: str) -> None:
        for name, value in line.items():
            is_figure = isinstance(value, (int, float)) and not isinstance(value, bool)
            if is_figure and name != "step" and not name.startswith("num_"):
                self._writer.add_scalar(f"{group}/{name}", value, line["step"])

    def close(self) -> None:
        self._writer.close()


def console_line(line: dict[str, Any], *, max_steps: int) -> str:
    """A logged step as a person reads it."""
    parts = [f"step {line['step']:,}/{max_steps:,}", f"loss {line['loss']:.4f}", f"grad {line['grad_norm']:.3f}"]
    if "reward" in line:
        parts.append(f"reward {line['reward']:.3f}" + (f"  KL {line['kl']:.2f}" if "kl" in line else ""))
    parts.append(f"lr {line['lr']:.2e}")
    if "tokens_per_second" in line:
        parts.append(f"{line['tokens_per_second']:,.0f} tok/s")
    if "mfu" in line:
        parts.append(f"MFU {100 * line['mfu']:.1f}%")
    parts += [f"{line['memory_gib']:.1f} GiB", f"ETA {_clock(line.get('eta_seconds', 0))}"]
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
