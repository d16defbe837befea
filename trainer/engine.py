"""What carries a model through an update, behind the verbs backward, grad_norm, apply, discard, save and load.

Here: the verbs, and the plain engine (one process, or DDP on several). ZeRO stands in deepspeed_engine.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from data_pipeline import disk
from data_pipeline.disk import FileRecord
from trainer.config import TrainConfig
from trainer.errors import RunError
from trainer.pieces import Pieces, has_pieces
from trainer.ranks import Ranks
from trainer.schedule import make_optimizer, set_learning_rate

WEIGHTS_NAME = "model.safetensors"
OPTIMIZER_NAME = "optimizer.pt"


class Engine(Protocol):
    """Carries one model and its optimizer through micro-batches to an update.

    `module` is called for the forward pass; `model` is the bare transformers model inside.
    """

    module: nn.Module
    model: nn.Module

    @property
    def optimizer(self) -> Any:
        """The optimizer itself, under whatever shards it."""

    def begin_micro_batch(self, *, last: bool) -> None:
        """Called before each forward pass; gradients are exchanged after the backward pass of the last one."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss`; over the ranks the engine takes the mean."""

    def grad_norm(self) -> torch.Tensor | float:
        """The global L2 norm of the summed gradient before clipping; inf or NaN where a gradient is not finite."""

    def apply(self, *, lr: float) -> None:
        """Clip, update the weights with rate `lr`, and forget the gradient."""

    def discard(self) -> None:
        """Forget the gradient; weights and moments stay as they are, to the bit."""

    def save(self, folder: Path) -> list[FileRecord]:
        """Write this rank's part of model and optimizer into `folder`; every rank calls it."""

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote with the same kind of engine, on any number of ranks; every rank calls it."""


def make_engine(config: TrainConfig, *, model: nn.Module, ranks: Ranks) -> Engine:
    """Wrap `model` for training as `engine.kind` says; moves it to the rank's device."""
    if config.engine.kind == "deepspeed":
        from trainer.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(config, model=model, ranks=ranks)
    return PlainEngine(config, model=model, ranks=ranks)


def check_accelerator(is_ours: bool, accelerator: Any, ranks: Ranks) -> None:
    """Refuse where accelerate did not do as it was told: ranks would train on apart, each a model of its own.

    Raises:
        RunError: an Accelerator of other settings was made in this process before, and its state stays.
    """
    if not is_ours:
        raise RunError(
            f"engine.kind: accelerate sees {accelerator.num_processes} processes and {accelerator.distributed_type}, "
            f"but the run has {ranks.world_size} ranks: another Accelerator was made in this process before; start "
            "the run in a process of its own"
        )


class PlainEngine:
    """One process, or DistributedDataParallel on several. bf16 is autocast over float32 weights."""

    def __init__(self, config: TrainConfig, *, model: nn.Module, ranks: Ranks) -> None:
        self._max_grad_norm = config.train.max_grad_norm
        self._ranks = ranks
        self._autocast = config.train.precision == "bf16"
        self.model = model.to(ranks.device)
        self._optimizer = make_optimizer(self.model, config.train.optimizer, device=ranks.device)
        self.module = _Autocast(self._prepare(self.model), device=ranks.device, enabled=self._autocast)
        self._total_norm: torch.Tensor | None = None

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer

    def _prepare(self, model: nn.Module) -> nn.Module:
        if self._ranks.world_size == 1:
            return model
        from accelerate import Accelerator, DistributedDataParallelKwargs

        handler = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        accelerator = Accelerator(cpu=self._ranks.device.type == "cpu", kwargs_handlers=[handler])
        prepared: nn.Module = accelerator.prepare_model(model)
        check_accelerator(isinstance(prepared, nn.parallel.DistributedDataParallel), accelerator, self._ranks)
        return prepared

    def settle(self, loss: torch.Tensor) -> None:
        """Let DDP lay its buckets out, which it does after its first backward pass, and forget the gradient.

        Else the first step after a resume would sum in another order than the same step of an unbroken run.
        """
        loss.backward()
        self.discard()

    def begin_micro_batch(self, *, last: bool) -> None:
        if isinstance(ddp := self.module.inner, nn.parallel.DistributedDataParallel):
            # What DDP.no_sync does, without a context that forward and backward would have to share.
            ddp.require_backward_grad_sync = last

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def _gradients(self) -> list[torch.Tensor]:
        return [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]

    def grad_norm(self) -> torch.Tensor:
        self._total_norm = nn.utils.get_total_norm(self._gradients())
        return self._total_norm

    def apply(self, *, lr: float) -> None:
        assert self._total_norm is not None, "grad_norm comes before apply"
        nn.utils.clip_grads_with_norm_(self.model.parameters(), self._max_grad_norm, self._total_norm)
        set_learning_rate(self._optimizer.param_groups, lr)
        self._optimizer.step()
        self.discard()

    def discard(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._total_norm = None

    def save(self, folder: Path) -> list[FileRecord]:
        if not self._ranks.is_main:
            return []
        import safetensors.torch

        # named_parameters names tied weights once; buffers are rebuilt from the config, and a frozen base is loaded
        # from where it came.
        tensors = {
            name: tensor.detach().contiguous() for name, tensor in self.model.named_parameters() if tensor.requires_grad
        }
        weights = disk.write_bytes(folder / WEIGHTS_NAME, safetensors.torch.save(tensors))
        with disk.durable_file(folder / OPTIMIZER_NAME) as file:
            torch.save(self._optimizer.state_dict(), file)
        return [weights, file.record(OPTIMIZER_NAME)]

    def load(self, folder: Path) -> None:
        load_weights(self.model, folder)
        state = torch.load(folder / OPTIMIZER_NAME, map_location=self._ranks.device, weights_only=True)
        self._optimizer.load_state_dict(state)


class _Autocast(nn.Module):
    """Runs the inner module under autocast; `inner` keeps the gradient exchange."""

    def __init__(self, inner: nn.Module, *, device: torch.device, enabled: bool) -> None:
        super().__init__()
        self.inner = inner
        self._device_type, self._enabled = device.type, enabled

    def forward(self, **inputs: Any) -> Any:
        with torch.autocast(self._device_type, dtype=torch.bfloat16, enabled=self._enabled):
            return self.inner(**inputs)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Fill what `model` trains from a verified checkpoint of either engine, without optimizer.

    The model must be made as the run made it, its adapter included; a frozen base is in no checkpoint.
    """
    with torch.no_grad():
        trained = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
        if has_pieces(folder):
            pieces = Pieces(folder)
            for name, parameter in trained:
                parameter.copy_(pieces.read(name).view(parameter.shape))
            return
        import safetensors.torch

        tensors = safetensors.torch.load_file(folder / WEIGHTS_NAME)
        for name, parameter in trained:
            parameter.copy_(tensors[name])
