"""DeepSpeed's ZeRO behind the engine's verbs; the only module that knows DeepSpeed's internals.

Its gradient norm is computed inside `step()`, it skips only non-finite updates and only after the fact, and
accelerate's wrapper steps inside `backward`: so the norm and the discarding are done here, by what DeepSpeed 0.19 has.
tests/trainer/test_equal_training.py pins what is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from data_pipeline import disk
from data_pipeline.disk import FileRecord
from trainer.config import TrainConfig
from trainer.engine import DEEPSPEED_TAG
from trainer.programs import add_scripts_to_path
from trainer.quantize import check_sharded, held_bytes, is_packed
from trainer.ranks import Ranks
from trainer.schedule import make_optimizer, set_learning_rate


class _Gradients(Protocol):
    """The summed gradient that one of DeepSpeed's optimizers holds."""

    def norm(self) -> Any: ...

    def discard(self) -> None: ...


class _Stage12:
    """DeepSpeedZeroOptimizer: stages 1 and 2. Discards as its own step does after an overflow."""

    def __init__(self, zero: Any) -> None:
        self._zero = zero

    def norm(self) -> Any:
        return self._zero.scaled_global_norm()

    def discard(self) -> None:
        from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID

        zero = self._zero
        zero.micro_step_id = INITIAL_MICRO_STEP_ID
        zero.zero_grad(set_to_none=True)
        zero._release_preflattened_grad_buffers()
        if zero.cpu_offload:
            zero._wait_for_offload_copies()
            zero._offload_accumulated_param_ids = set()
            zero.reset_cpu_buffers()
            return
        for group in zero.averaged_gradients:
            zero.averaged_gradients[group] = None
            zero.all_grad_tensors[group] = None


class _Stage3:
    """DeepSpeedZeroOptimizer_Stage3. Its own step first drops gathered parameters, then cleans up an overflow."""

    def __init__(self, zero: Any) -> None:
        self._zero = zero

    def norm(self) -> Any:
        from deepspeed.runtime.utils import combine_grad_norm_groups

        return combine_grad_norm_groups(self._zero._get_norm_groups())

    def discard(self) -> None:
        self._zero._pre_step()
        self._zero._partition_all_parameters()
        self._zero._overflow_clean_up(1.0)


class _Bf16Stage1:
    """BF16_Optimizer, which DeepSpeed takes for stage 1 under bf16: whole float32 gradients, a sharded optimizer."""

    def __init__(self, zero: Any) -> None:
        self._zero = zero

    def norm(self) -> Any:
        from deepspeed.runtime.utils import get_global_norm_of_tensors

        gradients, _ = self._zero.get_grads_for_norm()
        return get_global_norm_of_tensors(gradients)

    def discard(self) -> None:
        self._zero.zero_grad(set_to_none=True)


def _gradients_of(zero: Any) -> _Gradients:
    kinds: dict[str, Callable[[Any], _Gradients]] = {
        "DeepSpeedZeroOptimizer": _Stage12,
        "DeepSpeedZeroOptimizer_Stage3": _Stage3,
        "BF16_Optimizer": _Bf16Stage1,
    }
    return kinds[type(zero).__name__](zero)


class DeepSpeedEngine:
    """ZeRO 1-3 by a plugin that is built here, from the run's config alone."""

    def __init__(self, config: TrainConfig, *, model: nn.Module, ranks: Ranks) -> None:
        from accelerate import Accelerator
        from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs

        add_scripts_to_path()
        plugin = DeepSpeedPlugin(hf_ds_config=deepspeed_config(config), zero3_init_flag=False)
        # Without a named backend accelerate sees one process on a CPU, and cpu=True would turn DeepSpeed off.
        backend = "nccl" if ranks.device.type == "cuda" else "gloo"
        accelerator = Accelerator(deepspeed_plugin=plugin, kwargs_handlers=[InitProcessGroupKwargs(backend=backend)])
        optimizer = make_optimizer(model, config.train.optimizer, device=ranks.device)
        wrapped, _ = accelerator.prepare(model, optimizer)
        self.module = wrapped
        self.model = wrapped.module
        self._engine = wrapped
        self._zero = wrapped.optimizer
        self._gradients = _gradients_of(self._zero)
        self._has_frozen = any(not parameter.requires_grad for parameter in self.model.parameters())
        if config.model.quantization is not None and config.engine.zero_stage == 3:
            _shard_packed(self._zero, self.model, ranks)

    def begin_micro_batch(self, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)

    def backward(self, loss: torch.Tensor) -> None:
        self._engine.backward(loss, scale_wrt_gas=False)

    def grad_norm(self) -> float:
        norm = float(self._gradients.norm())
        # DeepSpeed marks a norm that is not finite by a negative number.
        return math.inf if norm < 0 else norm

    def apply(self, *, lr: float) -> None:
        set_learning_rate(self._zero.param_groups, lr)
        self._engine.step()

    def discard(self) -> None:
        self._gradients.discard()

    def save(self, folder: Path) -> list[FileRecord]:
        with _durable_checkpoint_engine(self._engine, folder) as written, _without_frozen(self._engine):
            self._engine.save_checkpoint(
                str(folder), tag=DEEPSPEED_TAG, save_latest=False, exclude_frozen_parameters=self._has_frozen
            )
        if written.error is not None:
            raise written.error
        return written.records

    def load(self, folder: Path) -> None:
        path, _ = self._engine.load_checkpoint(
            str(folder),
            tag=DEEPSPEED_TAG,
            load_module_strict=not self._has_frozen,
            load_lr_scheduler_states=False,
        )
        assert path is not None, "the checkpoint was verified before"


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
def _without_frozen(engine: Any) -> Iterator[None]:
    """Let a checkpoint hold no frozen weight, nor the scales of packed ones, which DeepSpeed takes for buffers."""
    original, named = engine.module_state_dict, dict(engine.module.named_parameters())
    has_frozen = not all(parameter.requires_grad for parameter in named.values())

    def is_kept(name: str) -> bool:
        return not has_frozen or (name in named and named[name].requires_grad)

    def module_state_dict(**options: Any) -> dict[str, Any]:
        return {name: tensor for name, tensor in original(**options).items() if is_kept(name)}

    engine.module_state_dict = module_state_dict
    try:
        yield
    finally:
        del engine.module_state_dict


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


class _Written:
    def __init__(self) -> None:
        self.records: list[FileRecord] = []
        self.error: BaseException | None = None


@contextmanager
def _durable_checkpoint_engine(engine: Any, folder: Path) -> Iterator[_Written]:
    """Send DeepSpeed's writes through `disk`, and hold an error back until every rank is through its barriers."""
    written = _Written()
    original, copy_script = engine.checkpoint_engine, engine._copy_recovery_script

    def save(state_dict: Any, path: str) -> None:
        target = Path(path)
        try:
            with disk.durable_file(target) as file:
                torch.save(state_dict, file)
            written.records.append(file.record(str(target.relative_to(folder))))
        except OSError as error:
            written.error = written.error or error

    class DurableWriter(type(original)):  # type: ignore[misc]
        def save(self, state_dict: Any, path: str) -> None:
            save(state_dict, path)

    engine.checkpoint_engine = DurableWriter()
    engine._copy_recovery_script = lambda save_path: None  # a script is no part of a checkpoint
    try:
        yield written
    finally:
        engine.checkpoint_engine, engine._copy_recovery_script = original, copy_script
