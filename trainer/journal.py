"""What a run tells: the same objects go to metrics.jsonl, TensorBoard, the progress bar and the console.

Rank 0 speaks for all; the other ranks' journals are silent but for events that they alone have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from data_pipeline.stream.stream import AnyBatch, Stream
from trainer.config import TrainConfig
from trainer.evaluate import Evaluation
from trainer.ledger import Ledger
from trainer.metrics import Board, Throughput, console_line, memory_gib, peak_tflops
from trainer.ranks import Ranks
from trainer.run_folder import RunFolder
from trainer.setup import Progress, Run
from trainer.stages import STAGES, Stage
from trainer.step import StepMetrics


class Journal:
    """Writes down the steps of one attempt."""

    def __init__(self, run: Run, folder: RunFolder) -> None:
        self._config: TrainConfig = run.config
        self._ranks: Ranks = run.ranks
        self._folder = folder
        self._throughput = Throughput(
            flops_per_token=run.flops_per_token,
            peak_tflops=_device_peak(run.ranks),
            num_devices=run.ranks.world_size,
        )
        self._board: Board | None = None
        self._bar: Any = None
        self._ledger: Ledger | None = None
        if run.config.logging.ledger:
            self._ledger = Ledger(
                folder.path,
                rank=run.ranks.rank,
                world_size=run.ranks.world_size,
                micro_batch_sequences=run.config.train.micro_batch_sequences,
            )
        if self._ranks.is_main:
            self._open(first_step=run.progress.step)

    def _open(self, *, first_step: int) -> None:
        if self._config.logging.tensorboard:
            self._board = Board(self._folder.path / "tensorboard", first_step=first_step)
        self._bar = tqdm(
            total=self._config.train.last_step,
            initial=first_step,
            desc=self._config.run.name,
            unit="step",
            dynamic_ncols=True,
            disable=None if self._config.logging.progress_bar else True,
        )

    def say(self, text: str) -> None:
        """A line for the person at the console, above the progress bar."""
        if self._ranks.is_main:
            tqdm.write(text)

    def step(self, metrics: StepMetrics, *, progress: Progress, lr: float, epoch: int) -> None:
        """A finished step; written down at each `logging.every_steps` and at the last one."""
        self._throughput.count(num_tokens=metrics.num_inputs)
        if not self._ranks.is_main:
            return
        self._bar.update(1)
        max_steps = self._config.train.last_step
        if progress.step % self._config.logging.every_steps and progress.step != max_steps:
            return
        line = {
            "step": progress.step,
            "loss": metrics.loss,
            "grad_norm": metrics.grad_norm,
            "lr": lr,
            "num_targets": metrics.num_targets,
            "tokens": progress.tokens,
            "epoch": epoch,
            "skipped": metrics.skipped,
            **metrics.figures,
            **self._throughput.take(steps_left=max_steps - progress.step),
            "memory_gib": round(memory_gib(self._ranks.device), 3),
        }
        self._folder.append_metrics(line)
        if self._board is not None:
            self._board.add(line, group="train")
        self.say(console_line(line, max_steps=max_steps))

    def rows(self, micro_batches: Sequence[AnyBatch], *, stream: Stream, step: int) -> None:
        """The rows that this rank's share of `step` was, for the ledger where there is one."""
        if self._ledger is not None:
            self._ledger.add(micro_batches, stream=stream, step=step)

    def skipped(self, metrics: StepMetrics, *, step: int, row_ids: Any) -> None:
        """Law 8: an update that was refused, with the rows that it had read."""
        if self._ranks.is_main:
            rows = [int(row) for row in row_ids]
            detail = {"reason": metrics.reason, "loss": metrics.loss, "grad_norm": metrics.grad_norm, "row_ids": rows}
            self._folder.append_event(kind="skipped_step", step=step, detail=detail, action="update refused")
            self.say(f"step {step}: update refused: {metrics.reason}; weights are as before, the stream goes on")

    def event(self, *, kind: str, step: int, detail: object, action: str) -> None:
        """Something that a person may want to know later."""
        self._folder.append_event(kind=kind, step=step, detail=detail, action=action)
        self.say(f"step {step:,}: {kind}: {detail}; {action}")

    def evaluation(
        self, result: Evaluation, answered: Mapping[str, Any], *, step: int, is_best: bool, seconds: float
    ) -> None:
        """The figures of an evaluation, and those of the model's answers where it gave any."""
        self._throughput.pause(seconds)
        if not self._ranks.is_main:
            return
        line = {"step": step, **result.as_dict(), **answered, "is_best": is_best, "seconds": round(seconds, 3)}
        self._folder.append_evaluation(line)
        if self._board is not None:
            self._board.add(line, group="heldout")
        self.say(
            f"step {step:,}: held-out loss {result.loss:.4f}{_figures(result)} over {result.num_documents:,} "
            f"{_rows_of(self._config.stage)}{_told(answered)}{' (best so far)' if is_best else ''}"
        )

    def saved(self, *, step: int, seconds: float) -> None:
        """A complete checkpoint; how long it took is what a launcher goes by when it has to stop the run in time."""
        self._throughput.pause(seconds)
        if self._ranks.is_main:
            detail = {"seconds": round(seconds, 3)}
            self._folder.append_event(kind="saved", step=step, detail=detail, action="the checkpoint is complete")
        self.say(f"step {step:,}: checkpoint complete ({seconds:.1f} s)")

    def checkpoint_files(self) -> Mapping[str, bytes]:
        """What lies beside the weights so that a checkpoint can be read without its run folder."""
        return self._folder.checkpoint_files() if self._ranks.is_main else {}

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._board is not None:
            self._board.close()


def _rows_of(stage: Stage) -> str:
    return "examples" if STAGES[stage].rows == "examples" else "documents"


def _figures(result: Evaluation) -> str:
    """The stage's figures for the console, such as bits per byte or accuracy."""
    told = {name: value for name, value in result.figures.items() if isinstance(value, float)}
    return "".join(f", {value:.4f} {name.replace('_', ' ')}" for name, value in told.items())


def _told(answered: Mapping[str, Any]) -> str:
    """The answers' figures for the console."""
    if "exact_match" not in answered:
        return ""
    return f", exact match {100 * answered['exact_match']:.1f} %, ended {100 * answered['ended_share']:.1f} %"


def _device_peak(ranks: Ranks) -> float | None:
    if ranks.device.type != "cuda":
        return None
    import torch

    return peak_tflops(torch.cuda.get_device_name(ranks.device))
