"""Build or load the weights; say what each attention kernel needs; prove that packed documents don't see each other.

transformers makes the models. What a batch means to a loss is the objective's business.
Shapes: B rows, T inputs a row, V vocabulary.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from data_pipeline.shards.format import read_shards
from data_pipeline.stream.batch import Batch
from trainer.errors import RunError
from trainer.initial_weights import new_model
from trainer.model_config import ModelConfig
from trainer.quantize import keep_layout, loading_options, logical_numel
from trainer.quiet import bars_on_terminals_only

Kernel = Literal["flash_attention_2", "sdpa"]

CPU = torch.device("cpu")

# Attention kernels with a varlen form start at this compute capability (A100).
_FLASH_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class KernelChoice:
    """The attention kernel of a run, and why it is this one."""

    kernel: Kernel
    reason: str


@dataclass(frozen=True)
class Vocabulary:
    """What the model must know of the tokenizer that made the shards. `pad_id` is EOS where it has no pad token."""

    size: int
    eos_id: int
    pad_id: int

    def in_rows(self, rows: int) -> Vocabulary:
        """This vocabulary over an embedding of `rows`: for want of a pad token its first free row pads, if it has one.

        The row stands for no token and is never a target: it is padding and nothing else, where EOS is a word too.
        """
        if self.pad_id != self.eos_id or rows <= self.size:
            return self
        return replace(self, pad_id=self.size)

    def in_model(self, model: nn.Module) -> Vocabulary:
        """`in_rows` of a model's embedding, by its logical size: under ZeRO-3 the weight itself is a slice."""
        embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
        return self.in_rows(int(embedding.num_embeddings))


def read_vocabulary(shards: Path) -> Vocabulary:
    """The tokenizer's figures that the shards' manifest keeps; `in_model` tells what a model makes of them."""
    train = read_shards(shards, split="train")
    return Vocabulary(size=train.vocab_size, eos_id=train.eos_id, pad_id=train.pad_id)


def choose_attention(config: ModelConfig, *, device: torch.device, precision: str) -> KernelChoice:
    """The kernel that `model.attention` names, or for `auto` the fastest that keeps documents apart here.

    Raises:
        RunError: flash_attention_2 is asked for, but the card, the package or the precision is missing.
    """
    obstacle = _flash_obstacle(device, precision)
    if config.attention == "flash_attention_2" and obstacle is not None:
        raise RunError(f"model.attention: flash_attention_2 cannot run here: {obstacle}; use 'auto' or 'sdpa'")
    if config.attention == "sdpa":
        return KernelChoice("sdpa", "the config asks for it")
    if obstacle is not None:
        return KernelChoice("sdpa", obstacle)
    return KernelChoice("flash_attention_2", "flash-attn and a card of compute capability 8.0 or newer are here")


def _flash_obstacle(device: torch.device, precision: str) -> str | None:
    if device.type != "cuda":
        return "no CUDA device"
    if importlib.util.find_spec("flash_attn") is None:
        return "the package flash-attn is not installed"
    if (capability := torch.cuda.get_device_capability(device)) < _FLASH_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} is older than 8.0"
    if precision == "fp32":
        return "flash-attn has no fp32 kernels"
    return None


def packed_inputs(batch: Batch, *, kernel: Kernel, device: torch.device) -> dict[str, Any]:
    """The keyword arguments that make `kernel` keep law 4 for the packed rows of `batch`.

    sdpa reads the documents' boundaries from restarting position_ids, but only without a mask and without a cache.
    flash_attention_2 takes one flat row of B*T inputs and all four boundary arguments: position_ids alone are read
    only at batch size 1, and cost a device synchronisation in each layer.
    """
    input_ids = torch.from_numpy(batch.input_ids)
    position_ids = torch.from_numpy(batch.position_ids)
    inputs: dict[str, Any] = {"attention_mask": None, "use_cache": False}
    if kernel == "sdpa":
        return inputs | {"input_ids": _to(input_ids, device), "position_ids": _to(position_ids, device)}
    starts = np.flatnonzero(batch.position_ids.reshape(-1) == 0)
    boundaries = np.append(starts, batch.position_ids.size).astype(np.int32)
    longest = int(np.diff(boundaries).max())
    cu_seq_lens = _to(torch.from_numpy(boundaries), device)
    return inputs | {
        "input_ids": _to(input_ids.reshape(1, -1), device),
        "position_ids": _to(position_ids.reshape(1, -1), device),
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    # On a CPU the tensor shares the stream's buffer, which is used again only when nobody holds it.
    return tensor.to(device)


def make_model(
    config: ModelConfig,
    *,
    vocabulary: Vocabulary,
    kernel: Kernel,
    dtype: torch.dtype,
    seed: int,
    device: torch.device = CPU,
    storage: torch.dtype = torch.uint8,
) -> nn.Module:
    """The model that `config` describes: new weights, a pure function of `seed`, or those of `model.from`.

    It stands on the host, but for a quantised one: that is packed weight by weight on `device`, into bytes that call
    themselves `storage`.
    """
    if config.source is not None:
        packing = loading_options(config.quantization, device=device, storage=storage)
        loaded = _load(config, vocabulary=vocabulary, kernel=kernel, dtype=dtype, packing=packing)
        _let_tokens_learn(loaded, vocabulary)
        return loaded
    return new_model(describe(config, vocabulary=vocabulary), kernel=kernel, seed=seed)


def _let_tokens_learn(model: nn.Module, vocabulary: Vocabulary) -> None:
    """Llama's embedding gives the row of `pad_token_id` no gradient; only what pads here and is no token may be it.

    A base may name EOS there, the unknown token, or a row that was free until the tokenizer grew.
    """
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    pad_id = vocabulary.in_model(model).pad_id
    if getattr(embedding, "padding_idx", None) != pad_id or pad_id == vocabulary.eos_id:
        embedding.padding_idx = None


def describe(config: ModelConfig, *, vocabulary: Vocabulary) -> Any:
    """The transformers config of a new model."""
    from transformers import GPTNeoXConfig, LlamaConfig

    rows = -(-vocabulary.size // config.pad_vocab_to_multiple) * config.pad_vocab_to_multiple
    vocabulary = vocabulary.in_rows(rows)
    shared = dict(
        vocab_size=rows,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.feed_forward_size,
        max_position_embeddings=config.max_positions,
        initializer_range=config.initializer_range,
        tie_word_embeddings=config.tie_embeddings,
        attention_dropout=config.dropout,
        bos_token_id=vocabulary.eos_id,
        eos_token_id=vocabulary.eos_id,
        # Named only where it is a row of its own: transformers gives its embedding zeros and no gradient.
        pad_token_id=None if vocabulary.pad_id == vocabulary.eos_id else vocabulary.pad_id,
    )
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.architecture == "gpt_neox":
        rope = rope | {"partial_rotary_factor": 0.25}
        return GPTNeoXConfig(**shared, hidden_dropout=config.dropout, rope_parameters=rope)
    return LlamaConfig(**shared, num_key_value_heads=config.key_value_heads, rope_parameters=rope)


def check_source(source: str) -> None:
    """Refuse what is a path by its looks, but no folder here; a hub name can only be tried."""
    if source.startswith(("/", ".")) and not Path(source).is_dir():
        raise RunError(f"model.from: {source!r}: no such folder; check the path, or give a hub name")


def _load(
    config: ModelConfig, *, vocabulary: Vocabulary, kernel: Kernel, dtype: torch.dtype, packing: dict[str, Any]
) -> nn.Module:
    from transformers import AutoModelForCausalLM

    source = str(config.source)
    check_source(source)
    bars_on_terminals_only()
    if config.trust_remote_code:
        print(f"model.trust_remote_code: code that {source} brings will run in this process", flush=True)
    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            source,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            attn_implementation=kernel,
            dtype=dtype,
            **packing,
        )
    except (OSError, ValueError) as error:
        kind = "a folder without a loadable model" if Path(source).is_dir() else "neither a folder here nor a hub model"
        first_line = str(error).strip().splitlines()[0]
        raise RunError(f"model.from: {source!r} is {kind}: {first_line}; check the path or the name") from None
    keep_layout(model)
    have = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator, union-attr]
    have = int(getattr(model.config, "vocab_size", have))
    if have < vocabulary.size:
        raise RunError(
            f"model.from: {source!r} has {have:,} embedding rows, but the shards' tokenizer has {vocabulary.size:,} "
            "tokens; build the shards with the model's own tokenizer"
        )
    return model


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters by their logical shape, tied ones once: of the whole model, and those that are trained."""

    total: int
    trainable: int

    @property
    def trainable_percent(self) -> float:
        return 100 * self.trainable / self.total


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Counted by logical shape: ZeRO-3 holds a slice of each, and 4-bit weights lie two in a byte."""
    counts = [(logical_numel(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return ParameterCounts(sum(count for count, _ in counts), sum(count for count, is_trained in counts if is_trained))


def flops_per_token(model: nn.Module, *, seq_len: int) -> float:
    """Training FLOPs a token, forward and backward: 6 N + 12 L H T; 4 N for a frozen N.

    Chowdhery et al. 2022, "PaLM", appendix B: N the parameters that multiply (the input embedding is a lookup, the
    head a product even where it is tied), L layers of width H, T the row's length. A frozen matrix passes gradients
    on, but needs none itself: a third of its products fall away. Recomputation does not count, and attention counts as
    if it were dense over the row, as the peers' published figures do.
    """
    described, counts = model.config, count_parameters(model)
    embedding = 0 if described.tie_word_embeddings else described.vocab_size * described.hidden_size
    frozen = counts.total - counts.trainable
    # Where anything is frozen, so is the embedding.
    multiplying = 6.0 * counts.trainable + 4.0 * frozen - (4.0 if frozen else 6.0) * embedding
    attention = 12 * described.num_hidden_layers * described.hidden_size * seq_len
    return multiplying + float(attention)


@torch.no_grad()
def check_documents_apart(model: nn.Module, *, kernel: Kernel, device: torch.device, vocab_size: int) -> None:
    """Law 4 on the real model and kernel: other tokens in document 1 move no logit of document 2 by a bit.

    Raises:
        RunError: they do; training on packed rows would let documents read each other.
    """
    length, border = 48, 24
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, vocab_size, (2, 1, length))
    second[:, border:] = first[:, border:]
    positions = np.concatenate([np.arange(border), np.arange(length - border)])[None, :]
    was_training = model.training
    model.eval()
    logits = [_probe_logits(model, ids, positions, kernel=kernel, device=device) for ids in (first, second)]
    model.train(was_training)
    moved = (logits[0][border:] - logits[1][border:]).abs().max().item()
    stirred = (logits[0][:border] - logits[1][:border]).abs().max().item()
    if moved != 0.0 or stirred == 0.0:
        raise RunError(
            f"model.attention: {kernel} lets packed documents read each other: a change in document 1 moved document "
            f"2's logits by {moved:.3g} (must be 0) and its own by {stirred:.3g} (must not be 0); use another kernel"
        )


def _probe_logits(
    model: nn.Module, ids: np.ndarray, positions: np.ndarray, *, kernel: Kernel, device: torch.device
) -> torch.Tensor:
    batch = Batch(
        input_ids=ids.astype(np.int64),
        labels=np.full_like(ids, -100, dtype=np.int64),
        position_ids=positions.astype(np.int64),
        row_ids=np.zeros(1, dtype=np.int64),
        num_targets=0,
    )
    logits = model(**packed_inputs(batch, kernel=kernel, device=device)).logits
    return logits.float().reshape(ids.shape[1], -1)
