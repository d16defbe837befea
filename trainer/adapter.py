"""LoRA adapters: a few trainable matrices beside a frozen base. peft makes them, the model keeps its class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from data_pipeline.config import Config
from trainer.errors import RunError
from trainer.heads import trained_whole
from trainer.stages import Head

if TYPE_CHECKING:
    import torch
    from torch import nn


class AdapterConfig(Config):
    """LoRA (Hu et al. 2021, section 4.1): a frozen W gets alpha / rank x B A beside it.

    `targets`: every linear layer but the head, the layers that the architecture's LoRA papers tune, or the last parts
    of layers' names. `rank_stabilized` divides by sqrt(rank) (Kalajdzievski 2023); `weight_decomposed` is DoRA (Liu et
    al. 2024).
    """

    kind: Literal["lora"] = "lora"
    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all-linear", "by-architecture"] | tuple[str, ...] = "all-linear"
    rank_stabilized: bool = False
    weight_decomposed: bool = False

    @field_validator("targets")
    @classmethod
    def _some_target(cls, targets: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not targets:
            raise ValueError("the list is empty, so that nothing would be trained; name layers, or set 'all-linear'")
        return targets


# How peft calls what is tuned; it has no word for a masked LM.
_TASKS: dict[Head, str | None] = {
    "causal_lm": "CAUSAL_LM",
    "classifier": "SEQ_CLS",
    "encoder": "FEATURE_EXTRACTION",
    "masked_lm": None,
}


def peft_config(adapter: AdapterConfig, model: nn.Module, *, head: Head = "causal_lm") -> Any:
    """peft's own description of the adapter on `model`. A classifier's head is no target: it is trained whole.

    Raises:
        RunError: a target that no linear layer of the model has.
    """
    from peft import LoraConfig

    whole = _linear_names(model, inside=trained_whole(model)) if head == "classifier" else []
    return LoraConfig(
        task_type=_TASKS[head],
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]
        lora_dropout=adapter.dropout,
        target_modules=_targets(adapter, model, besides=whole),
        exclude_modules=whole or None,
        use_rslora=adapter.rank_stabilized,
        use_dora=adapter.weight_decomposed,
        bias="none",
    )


def _targets(adapter: AdapterConfig, model: nn.Module, *, besides: Sequence[str]) -> str | list[str]:
    if adapter.targets == "all-linear":
        return adapter.targets
    names = [name for name in _linear_names(model) if name not in besides]
    if adapter.targets == "by-architecture":
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL

        kind = str(model.config.model_type)
        wanted = [target for target in USUAL.get(kind, ()) if _is_target(target, names)]
        if not wanted:
            raise RunError(f"adapter.targets: peft knows no usual targets of {kind!r}; {_have(names)}")
        return wanted
    missing = [target for target in adapter.targets if not _is_target(target, names)]
    if missing:
        raise RunError(f"adapter.targets: the model has no linear layer {', '.join(missing)}; {_have(names)}")
    return list(adapter.targets)


def _linear_names(model: nn.Module, *, inside: Sequence[str] = ("",)) -> list[str]:
    """Linear layers but the output embedding; only those within the modules `inside`."""
    from torch import nn

    head = model.get_output_embeddings()  # type: ignore[operator]
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    return [name for name in names if any(f"{name}.".startswith(f"{part}." if part else "") for part in inside)]


def _is_target(target: str, names: list[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for name in names)


def _have(names: list[str]) -> str:
    return f"choose among {', '.join(sorted({name.rsplit('.', 1)[-1] for name in names}))}, or set 'all-linear'"


def add_adapter(
    model: nn.Module, adapter: AdapterConfig, *, seed: int, dtype: torch.dtype, head: Head = "causal_lm"
) -> None:
    """Freeze `model` and put trainable matrices of `dtype` beside its targets, in place.

    They are a pure function of `seed`, and change no output before the first update (B is zero). A classifier's head
    stays trainable itself; no copy of it is kept.
    """
    import torch
    from peft import inject_adapter_in_model

    torch.manual_seed(seed)
    inject_adapter_in_model(peft_config(adapter, model, head=head), model)
    for name in trained_whole(model) if head == "classifier" else ():
        model.get_submodule(name).requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
