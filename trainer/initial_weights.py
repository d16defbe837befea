"""New weights: each module's are a pure function of (seed, its name), whatever engine, rank or slice will hold them.

Under ZeRO-3 a module is whole only while it is filled: on rank 0, in host memory, then sliced. Nothing here knows an
architecture; transformers' own rule for each module says what its weights are drawn from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from trainer.errors import RunError
from trainer.heads import auto_class, head_options
from trainer.stages import Head

# transformers draws nothing into a tensor that bears it.
_MARK = "_is_hf_initialized"


def new_model(
    described: Any, *, kernel: str, seed: int, head: Head = "causal_lm", labels: Sequence[str] = ()
) -> nn.Module:
    """The model of a transformers config, in float32, or in slices where `loading_in_slices` says so."""
    from transformers.initialization import no_init_weights

    options = head_options(described, head=head, labels=labels)
    with no_init_weights():
        # float32 whatever the precision, so that one seed gives the same weights to every engine.
        model: Any = auto_class(head).from_config(described, attn_implementation=kernel, dtype=torch.float32, **options)
    model.tie_weights()
    initialize(model, seed=seed)
    made: nn.Module = model
    return made


@torch.no_grad()
def initialize(model: Any, *, seed: int, only: Collection[str] | None = None) -> None:
    """Fill every parameter of a transformers model, or those named in `only`; torch's generators stay as they were.

    Raises:
        RunError: a parameter that no rule of transformers fills.
    """
    chosen = None if only is None else {id(each) for name, each in model.named_parameters() if name in only}
    filled: list[nn.Parameter] = []
    with torch.random.fork_rng(devices=[]):
        for name, module, rules in _children_first(model):
            # A tied parameter belongs to the module that comes first; its mark keeps the others' rules off it.
            ours = [each for each in module.parameters(recurse=False) if not hasattr(each, _MARK)]
            if not ours or (chosen is not None and not chosen.intersection(map(id, ours))):
                continue
            with _whole(ours) as is_here:
                if is_here:
                    torch.manual_seed(_module_seed(seed, name))
                    _fill(module, ours, name=name, rules=rules)
            for parameter in ours:
                setattr(parameter, _MARK, True)
            filled += ours
    for parameter in filled:
        delattr(parameter, _MARK)


def _children_first(model: Any, name: str = "") -> Iterator[tuple[str, nn.Module, Any]]:
    """Every module under its name, with the model whose rules are for it: a model inside another one has its own."""
    from transformers import PreTrainedModel

    def walk(module: nn.Module, path: str, rules: Any) -> Iterator[tuple[str, nn.Module, Any]]:
        rules = module if isinstance(module, PreTrainedModel) else rules
        for key, child in module.named_children():
            yield from walk(child, f"{path}.{key}" if path else key, rules)
        yield path, module, rules

    return walk(model, name, model)


def _module_seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little", signed=True)


def _fill(module: nn.Module, parameters: Sequence[nn.Parameter], *, name: str, rules: Any) -> None:
    """Draw in float32 on the host, and round to what the parameter is held in."""
    held = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = torch.full(parameter.shape, torch.nan, dtype=torch.float32, device="cpu")
    rules._init_weights(module)
    for parameter, place in zip(parameters, held, strict=True):
        if bool(parameter.isnan().any()):
            raise RunError(
                f"model: {type(rules).__name__} has no rule for new weights of {name} ({type(module).__name__}); begin "
                "from a model that has weights (model.from)"
            )
        place.copy_(parameter.data)
        parameter.data = place


@contextmanager
def _whole(parameters: Sequence[nn.Parameter]) -> Iterator[bool]:
    """Whole parameters within the block, and whether this rank fills them; slices are cut from what rank 0 has."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        yield True
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0):
        yield deepspeed.comm.get_rank() == 0
