"""A small stand-in for the model that a run continues: its architecture and tokenizer, few narrow layers, new weights.

A base of 25 GB is replaced by one of megabytes, so that a debug run needs only its config.json and tokenizer.json.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from data_pipeline.config import ConfigError, load
from trainer.base import model_tokenizer, with_source
from trainer.config import TrainConfig
from trainer.debug_config import DebugConfig
from trainer.errors import RunError
from trainer.locate import DEFAULT_ROOT, Place, locate
from trainer.model import describe, read_vocabulary
from trainer.model_config import ModelConfig
from trainer.quiet import quiet_prints
from trainer.run_folder import CONFIG_NAME

BASE_FOLDER = "small-base"
HINT = "give debug.shrink=false to try the real model, or model.from=FOLDER"
# Multi-head attention with heads of 8: what bitsandbytes and rotary embeddings still take.
MIN_HEAD_DIM = 8
# Nats; it raises the first loss by half its square, and the gate's limit for new models is 1.5 ln V.
LOGIT_SPREAD = 1.6


def with_small_base(config: TrainConfig, folder: Path) -> TrainConfig:
    """`config` whose `model.from` is a new, small model under `folder`, made now.

    Raises:
        RunError: the base's description can't be read, or its architecture can't be made smaller.
    """
    from trainer.initial_weights import new_model

    described, tokenizer = _description(config)
    shrink(described, config.debug)
    output = folder / BASE_FOLDER
    try:
        model: Any = new_model(described, kernel="sdpa", seed=config.seed)
    except (ValueError, TypeError, AttributeError, RuntimeError, KeyError) as error:
        raise RunError(
            f"debug.shrink: a small {described.model_type} model can't be made of {config.model.source}: "
            f"{_first_line(error)}; {HINT}"
        ) from None
    _let_head_speak(model)
    with quiet_prints():
        model.save_pretrained(output)
    if tokenizer is not None:
        shutil.copyfile(tokenizer, output / "tokenizer.json")
    return with_source(config, str(output))


@torch.no_grad()
def _let_head_speak(model: Any) -> None:
    """Give the logits of new weights the spread of a trained model's.

    A new head of std 0.02 under a norm bounds a logit by 0.02 x width = 1.3 at width 64: frozen beside an adapter, it
    could not say any token with certainty whatever the adapter did.
    """
    head = model.get_output_embeddings().weight
    head.mul_(LOGIT_SPREAD / (head.shape[1] ** 0.5 * head.std()))


def shrink(described: Any, debug: DebugConfig) -> None:
    """Make a transformers config of a causal LM describe a small model of the same kind, in place.

    Widths become at most those of `debug`; the share of key-value heads stays.
    """
    heads = int(described.num_attention_heads)
    groups = heads // int(getattr(described, "num_key_value_heads", None) or heads)
    small_heads = min(debug.num_heads, heads)
    hidden = min(debug.hidden_size, int(described.hidden_size))
    hidden = max(hidden // (small_heads * MIN_HEAD_DIM), 1) * small_heads * MIN_HEAD_DIM
    layers = min(debug.num_layers, int(described.num_hidden_layers))
    values: dict[str, Any] = {
        "hidden_size": hidden,
        "num_attention_heads": small_heads,
        "num_key_value_heads": max(1, small_heads // groups),
        "head_dim": hidden // small_heads,
        "intermediate_size": min(int(getattr(described, "intermediate_size", 0) or 4 * hidden), 4 * hidden),
        "num_hidden_layers": layers,
    }
    for name, value in values.items():
        if getattr(described, name, None) is not None:
            setattr(described, name, value)
    if getattr(described, "layer_types", None):
        described.layer_types = described.layer_types[:layers]
    if getattr(described, "quantization_config", None) is not None:
        del described.quantization_config


def _description(config: TrainConfig) -> tuple[Any, Path | None]:
    """The transformers config of the base, and its tokenizer.json where it brings one."""
    place = locate(str(config.model.source), roots=(Path(config.run.folder), DEFAULT_ROOT))
    if place is not None and place.kind != "model":
        return _of_run(place, shards=Path(config.data.shards))
    return _of_model(config.model)


def _of_model(model: ModelConfig) -> tuple[Any, Path | None]:
    from transformers import AutoConfig

    try:
        described = AutoConfig.from_pretrained(
            model.source, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
        return getattr(described, "get_text_config", lambda: described)(), model_tokenizer(model)
    except (OSError, ValueError) as error:
        raise RunError(
            f"model.from: the config.json of {model.source!r} can't be read: {_first_line(error)}; check the name, "
            f"fetch it once where there is a network (`hf download {model.source} config.json tokenizer.json`), or "
            f"{HINT}"
        ) from None


def _of_run(place: Place, *, shards: Path) -> tuple[Any, Path | None]:
    """What a run's own config says of its model; that of its base where it has one."""
    run_folder = place.run_folder or place.path
    try:
        config = load(run_folder / CONFIG_NAME, [], TrainConfig)
    except ConfigError as error:
        raise RunError(f"model.from: {place.path} is a run whose config can't be read: {error}; {HINT}") from None
    tokenizer = run_folder / "tokenizer" / "tokenizer.json"
    if config.model.source is not None:
        data = config.data.model_copy(update={"shards": str(shards)})
        described, other = _description(config.model_copy(update={"data": data}))
        return described, tokenizer if tokenizer.is_file() else other
    described = describe(config.model, vocabulary=read_vocabulary(shards))
    return described, tokenizer if tokenizer.is_file() else None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
