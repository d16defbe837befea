"""What is used of DeepSpeed's three ZeRO optimizers, behind four verbs: norm, discard, flats, refresh.

Each computes its gradient norm inside `step()` and skips only non-finite updates, after the fact; so the norm and the
discarding are done here, by what DeepSpeed 0.19 has. tests/trainer/test_equal_training.py and test_reshape.py pin it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch

from trainer.pieces import Layout, Piece


class HeldFlat(NamedTuple):
    """A flat of this rank: its float32 masters (E,), whose they are, and the optimizer's options for them."""

    weights: torch.Tensor
    layout: Layout
    group: dict[str, Any]


class ZeroOptimizer(Protocol):
    """One of DeepSpeed's optimizers: its summed gradient, and what this rank holds of weights and moments."""

    def norm(self) -> Any: ...

    def discard(self) -> None: ...

    def flats(self) -> Iterator[HeldFlat]: ...

    def refresh(self) -> None:
        """Give the model the weights that the flats hold; every rank calls it."""


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

    def flats(self) -> Iterator[HeldFlat]:
        yield from _row_flats(self._zero, self._zero.bit16_groups, self._zero.single_partition_of_fp32_groups)

    def refresh(self) -> None:
        self._zero.update_lp_params()


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

    def flats(self) -> Iterator[HeldFlat]:
        zero = self._zero
        for number, parameters in enumerate(zero.fp16_groups):
            weights = zero.fp32_partitioned_groups_flat[number]
            pieces, offset = [], 0
            for parameter in parameters:
                share = parameter.partition_numel()
                start = min(zero._get_param_partition_rank(parameter) * share, parameter.ds_numel)
                length = min(share, parameter.ds_numel - start)
                shape = tuple(parameter.ds_shape)
                pieces.append(Piece(zero.param_names[parameter], shape, start, length, offset))
                offset += share
            layout = Layout(weights.numel(), tuple(piece for piece in pieces if piece.length))
            yield HeldFlat(weights, layout, zero.optimizer.param_groups[zero.sub_group_to_group_id[number]])

    def refresh(self) -> None:
        # As its own loading of a checkpoint does: slices first, then those parameters that every rank holds whole.
        zero = self._zero
        zero.checkpoint_event_prologue()
        for number in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(number)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].partition(zero.persistent_parameters)
        zero.checkpoint_event_epilogue()


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

    def flats(self) -> Iterator[HeldFlat]:
        yield from _row_flats(self._zero, self._zero.bf16_groups, self._zero.fp32_groups_flat_partition)

    def refresh(self) -> None:
        self._zero.update_lp_params()


def _row_flats(zero: Any, groups: Any, flats: Any) -> Iterator[HeldFlat]:
    """Stages 1 and 2: a rank holds a part of the row of all parameters of a group."""
    for parameters, weights, options in zip(groups, flats, zero.optimizer.param_groups, strict=True):
        pieces = []
        for parameter in parameters:
            if (mapping := parameter._hp_mapping) is not None:
                held, place = mapping.lp_fragment_address, mapping.hp_fragment_address
                name, shape = zero.param_names[parameter], tuple(parameter.shape)
                pieces.append(Piece(name, shape, held.start, held.numel, place.start))
        yield HeldFlat(weights, Layout(weights.numel(), tuple(pieces)), options)


def zero_optimizer(zero: Any) -> ZeroOptimizer:
    """The verbs of a DeepSpeed optimizer."""
    kinds: dict[str, Callable[[Any], ZeroOptimizer]] = {
        "DeepSpeedZeroOptimizer": _Stage12,
        "DeepSpeedZeroOptimizer_Stage3": _Stage3,
        "BF16_Optimizer": _Bf16Stage1,
    }
    return kinds[type(zero).__name__](zero)
