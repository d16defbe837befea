"""A base model held in 4 bits (QLoRA): how it is loaded, how large it really is, what each rank holds of it.

bitsandbytes packs two weights into a byte; a packed parameter's own shape says nothing about the model's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from data_pipeline.config import Config
from trainer.errors import RunError

if TYPE_CHECKING:
    import torch
    from torch import nn


class QuantizationConfig(Config):
    """4-bit NormalFloat (Dettmers et al. 2023, "QLoRA", section 3): all linear layers but the head.

    `double_quantization` packs the blocks' scales too (0.4 bits a weight less); products are computed in
    `compute_dtype`.
    """

    kind: Literal["nf4"] = "nf4"
    double_quantization: bool = True
    compute_dtype: Literal["bf16", "fp32"] = "bf16"


# A classifier's head is trained whole, so that it is never packed; nor is the pooler beneath it, which is part of it.
CLASSIFIER_PARTS = ("score", "classifier", "pooler.dense")


def loading_options(
    quantization: QuantizationConfig | None,
    *,
    device: torch.device,
    storage: torch.dtype,
    unpacked: Sequence[str] = (),
) -> dict[str, Any]:
    """What `from_pretrained` needs so that each weight is packed as it is read: no unpacked copy of the base.

    `storage` is the type that packed bytes call themselves; DeepSpeed gathers and casts by it, so that it must be the
    type of the other weights there. `unpacked`: what stays as it is, in place of the output embedding.
    """
    if quantization is None:
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    packing = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.kind,
        bnb_4bit_use_double_quant=quantization.double_quantization,
        bnb_4bit_compute_dtype=torch.bfloat16 if quantization.compute_dtype == "bf16" else torch.float32,
        bnb_4bit_quant_storage=storage,
        llm_int8_skip_modules=list(unpacked) or None,
    )
    return {"quantization_config": packing, "device_map": {"": device}}


def keep_layout(model: nn.Module) -> None:
    """Keep bitsandbytes from laying packed weights out anew at the first forward pass in evaluation mode.

    It does so on a CPU with AVX512-BF16 and never turns back; that layout's product computes in bf16 and has no
    backward pass, so that whatever is trained after an evaluation would get wrong gradients in silence.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def is_packed(parameter: torch.Tensor) -> bool:
    """Whether a parameter holds packed 4-bit weights."""
    return getattr(parameter, "quant_state", None) is not None


def logical_numel(parameter: torch.Tensor) -> int:
    """How many weights a parameter stands for, packed (4-bit) or sliced (ZeRO-3) as it may be."""
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        return math.prod(state.shape)
    return int(getattr(parameter, "ds_numel", parameter.numel()))


class Held(NamedTuple):
    """Bytes of packed weights: of the whole base, and in this process's memory; and their scales, never sharded."""

    whole: int
    here: int
    scales: int


def held_bytes(model: nn.Module) -> Held:
    """What this process really holds of the packed weights of `model`, by the memory behind its tensors."""
    packed = [parameter for parameter in model.parameters() if is_packed(parameter)]
    weights: list[torch.Tensor] = []
    for parameter in packed:
        own_slice = getattr(parameter, "ds_tensor", None)  # ZeRO-3's; the parameter itself is empty then
        weights += [parameter.data] if own_slice is None else [parameter.data, own_slice]
    scales = [tensor for parameter in packed for tensor in _scales(parameter.quant_state)]  # type: ignore[attr-defined]
    return Held(whole=sum(map(_whole_bytes, packed)), here=_memory(weights), scales=_memory(scales))


def _whole_bytes(parameter: torch.Tensor) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel())) * parameter.element_size()


def _scales(state: Any) -> list[torch.Tensor]:
    tensors = [state.absmax, state.code, state.offset, *(_scales(state.state2) if state.nested else [])]
    return [tensor for tensor in tensors if tensor is not None]


def _memory(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes behind the tensors; memory that some share counts once."""
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storages.values())


def check_sharded(held: Held, *, num_packed: int, rank: int, world_size: int) -> None:
    """Refuse to train where ZeRO-3 left this rank more than its share of the packed base.

    Raises:
        RunError: more than 1/`world_size`, but for the padding of each weight to a multiple of the ranks.
    """
    share = held.whole // world_size + num_packed * world_size * 4
    if held.here > share:
        raise RunError(
            f"engine.zero_stage: rank {rank} holds {held.here:,} of the 4-bit base's {held.whole:,} bytes after "
            f"sharding over {world_size} ranks, at most {share:,} are its share; this is a fault of the engine's "
            "version: use zero_stage: 2, which says that it replicates the base"
        )
