"""DeepSpeed's ZeRO behind the engine's verbs; with zero_optimizers.py all that knows DeepSpeed's internals.

accelerate's wrapper steps inside `backward`, so its engine is driven directly. Checkpoints are not DeepSpeed's own:
what each rank holds is written as pieces, from which any number of ranks can go on; docs/checkpoints.md says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_pipeline.disk import FileRecord
from trainer.config import TrainConfig
from trainer.engine import check_accelerator
from trainer.moments import restore_as_saved, restore_flat, saved_state
from trainer.pieces import Flat, Pieces, check_shapes, write_flats
from trainer.programs import add_scripts_to_path
from trainer.quantize import check_sharded, held_bytes, is_packed
from trainer.ranks import Ranks
from trainer.schedule import make_optimizer, set_learning_rate
from trainer.zero_optimizers import zero_optimizer


class DeepSpeedEngine:
    """ZeRO 1-3 by a plugin that is built here, from the run's config alone."""

    def __init__(self, config: TrainConfig, *, model: nn.Module, ranks: Ranks) -> None:
        import deepspeed
        from accelerate import Accelerator
        from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs

        add_scripts_to_path()
        plugin = DeepSpeedPlugin(hf_ds_config=deepspeed_config(config), zero3_init_flag=False)
        # Without a named backend accelerate sees one process on a CPU, and cpu=True would turn DeepSpeed off.
        backend = "nccl" if ranks.device.type == "cuda" else "gloo"
        accelerator = Accelerator(deepspeed_plugin=plugin, kwargs_handlers=[InitProcessGroupKwargs(backend=backend)])
        optimizer = make_optimizer(model, config.train.optimizer, device=ranks.device)
        wrapped, _ = accelerator.prepare(model, optimizer)
        check_accelerator(isinstance(wrapped, deepspeed.DeepSpeedEngine), accelerator, ranks)
        self.module = wrapped
        self.model = wrapped.module
        self._engine = wrapped
        self._zero = wrapped.optimizer
        self._verbs = zero_optimizer(self._zero)
        self._ranks = ranks
        if config.model.quantization is not None and config.engine.zero_stage == 3:
            _shard_packed(self._zero, self.model, ranks)

    @property
    def optimizer(self) -> Any:
        return self._zero.optimizer

    def begin_micro_batch(self, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)

    def backward(self, loss: torch.Tensor) -> None:
        self._engine.backward(loss, scale_wrt_gas=False)

    def grad_norm(self) -> float:
        norm = float(self._verbs.norm())
        # DeepSpeed marks a norm that is not finite by a negative number.
        return math.inf if norm < 0 else norm

    def apply(self, *, lr: float) -> None:
        set_learning_rate(self._zero.param_groups, lr)
        self._engine.step()

    def discard(self) -> None:
        self._verbs.discard()

    def save(self, folder: Path) -> list[FileRecord]:
        flats = []
        for held in self._verbs.flats():
            state, step = saved_state(self._zero.optimizer, held.weights)
            flats.append(Flat(held.layout, held.weights, state, step))
        return [write_flats(folder, flats, rank=self._ranks.rank, num_ranks=self._ranks.world_size)]

    def load(self, folder: Path) -> None:
        self._ranks.together(lambda: self._load_flats(Pieces(folder)))
        self._verbs.refresh()

    def _load_flats(self, source: Pieces) -> None:
        """Of what any ranks saved, each reads its own part: its own file where that is cut as this rank's flats are."""
        optimizer, rank, flats = self._zero.optimizer, self._ranks.rank, list(self._verbs.flats())
        check_shapes(source, [piece for flat in flats for piece in flat.layout.pieces])
        is_ours = source.num_ranks == self._ranks.world_size
        is_ours = is_ours and source.layouts(rank) == [flat.layout for flat in flats]
        for number, (weights, layout, group) in enumerate(flats):
            is_done = is_ours and restore_as_saved(
                optimizer, weights, group=group, source=source, rank=rank, flat=number
            )
            if not is_done:
                restore_flat(optimizer, weights, group=group, layout=layout, source=source)


def _shard_packed(zero: Any, model: nn.Module, ranks: Ranks) -> None:
    """Leave each rank its slice of the packed base alone, and check by the memory behind the tensors that it is so.

    DeepSpeed would keep weights of fewer than 100,000 elements whole on every rank.
    """
    packed = [parameter for parameter in model.parameters() if is_packed(parameter)]
    for parameter in packed:
        parameter.ds_persist = False  # type: ignore[attr-defined]
    kept = [parameter for parameter in zero.persistent_parameters if not is_packed(parameter)]
    zero.persistent_parameters[:] = kept
    held = held_bytes(model)
    ranks.together(lambda: check_sharded(held, num_packed=len(packed), rank=ranks.rank, world_size=ranks.world_size))


@contextmanager
def loading_in_slices(config: TrainConfig) -> Iterator[None]:
    """Under ZeRO-3 a model that is made or loaded in this block stands in slices; no rank ever holds all weights.

    A quantised base is packed whole on every rank first, and sharded by the engine: transformers can't do both at
    once.
    """
    is_sliced = config.engine.kind == "deepspeed" and config.engine.zero_stage == 3
    if config.model.quantization is not None or not is_sliced:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    told = HfDeepSpeedConfig(deepspeed_config(config))  # transformers keeps a weak reference to it
    yield
    del told


@contextmanager
def loading_whole() -> Iterator[None]:
    """A model that is loaded in this block stands whole on every rank, whatever engine carries another one."""
    from transformers.integrations import deepspeed

    told = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = told


def deepspeed_config(config: TrainConfig) -> dict[str, Any]:
    """DeepSpeed's own config of a run; every key that a launcher could bring is set here."""
    bucket = config.engine.bucket_mb * 1024 * 1024 // 2
    zero: dict[str, Any] = {
        "stage": config.engine.zero_stage,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if config.engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": config.train.precision == "bf16"},
        "gradient_clipping": config.train.max_grad_norm,
        # Accumulation is the loop's: each backward says by itself whether it is the last of its step.
        "gradient_accumulation_steps": 1,
        "train_micro_batch_size_per_gpu": config.train.micro_batch_sequences,
        # Sums over micro-batches and ranks in float32, as law 6 wants them.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        # torch's AdamW as it is; else accelerate swaps in an op that must be compiled first.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**62,
        "wall_clock_breakdown": False,
    }
