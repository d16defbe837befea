"""Build or load the weights; say what each attention kernel needs; prove that packed documents don't see each other.

transformers makes the models. What a batch means to a loss is the objective's business.
Shapes: B rows, T inputs a row, V vocabulary.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from data_pipeline.shards.format import read_shards, read_shards_manifest
from data_pipeline.stream.batch import Batch
from data_pipeline.stream.examples import ExampleBatch
from trainer.errors import RunError
from trainer.heads import NEW_HEAD, auto_class, check_predicts_tokens, head_options, note_padding
from trainer.initial_weights import initialize, new_model
from trainer.model_config import ModelConfig
from trainer.quantize import CLASSIFIER_PARTS, keep_layout, loading_options, logical_numel
from trainer.quiet import bars_on_terminals_only
from trainer.stages import Head

Kernel = Literal["flash_attention_2", "sdpa"]

CPU = torch.device("cpu")

MAX_POSITION_OFFSET = 1_000

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
    counts = read_shards_manifest(shards)["splits"]
    # Of a test file by itself all rows are held out.
    found = read_shards(shards, split="train" if counts["train"]["num_documents"] else "heldout")
    return Vocabulary(size=found.vocab_size, eos_id=found.eos_id, pad_id=found.pad_id)


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


@dataclass(frozen=True)
class Reading:
    """How a model reads a row: both ways or from left to right, and which of its positions is a segment's first."""

    both_ways: bool = False
    first_position: int = 0


def reading_of(model: nn.Module) -> Reading:
    """Found where transformers' kernels look: each attention module says whether it is causal.

    RoBERTa counts positions from the one behind its padding on, which is why its positions have a padding row.
    """
    both_ways, first = False, 0
    for name, module in model.named_modules():
        both_ways = both_ways or getattr(module, "is_causal", None) is False
        if name.endswith("embeddings.position_embeddings") and getattr(module, "padding_idx", None) is not None:
            first = int(module.padding_idx) + 1  # type: ignore[arg-type]
    return Reading(both_ways, first)


def packed_inputs(
    batch: Batch, *, kernel: Kernel, device: torch.device, reading: Reading | None = None
) -> dict[str, Any]:
    """The keyword arguments that make `kernel` keep law 4 for the packed rows of `batch`; `reading`: of the model.

    sdpa reads the documents' boundaries from restarting position_ids, but only without a mask and without a cache; in a
    model that reads both ways it reads none, and takes a mask (B, 1, T, T) of what may see what.
    flash_attention_2 takes one flat row of B*T inputs and all four boundary arguments: position_ids alone are read
    only at batch size 1, and cost a device synchronisation in each layer.
    """
    reading = reading or Reading()
    input_ids = torch.from_numpy(batch.input_ids)
    position_ids = torch.from_numpy(batch.position_ids + reading.first_position)
    inputs: dict[str, Any] = (
        {"attention_mask": None} if reading.both_ways else {"attention_mask": None, "use_cache": False}
    )
    if kernel == "sdpa":
        if reading.both_ways:
            inputs["attention_mask"] = _same_segment(batch, device)
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


def _same_segment(batch: Batch, device: torch.device) -> torch.Tensor:
    """(B, 1, T, T) bool: whether two places stand in the same document or in the same padding."""
    segments_BT = _to(torch.from_numpy(np.cumsum(batch.position_ids == 0, axis=1)), device)
    return (segments_BT[:, None, :, None] == segments_BT[:, None, None, :]).contiguous()


def padded_inputs(batch: ExampleBatch, *, device: torch.device) -> dict[str, Any]:
    """The keyword arguments for S padded sequences: positions count by themselves, and padding is attended by nothing.

    `token_type_ids` are left to the objective that knows its frame.
    """
    places = np.arange(batch.input_ids.shape[1])
    is_text = torch.from_numpy((places[None] < batch.lengths[:, None]).astype(np.int64))
    return {"input_ids": _to(torch.from_numpy(batch.input_ids), device), "attention_mask": _to(is_text, device)}


def with_token_types(inputs: dict[str, Any], model: nn.Module, *, sep_id: int | None) -> dict[str, Any]:
    """`inputs` with `token_type_ids` for a model that tells two texts apart (BERT): 1 behind the first separator."""
    if sep_id is None or not tells_texts_apart(_bare(model)):
        return inputs
    is_separator = (inputs["input_ids"] == sep_id).long() * inputs["attention_mask"]
    is_second = (is_separator.cumsum(dim=1) - is_separator > 0).long()
    return inputs | {"token_type_ids": is_second * inputs["attention_mask"]}


def tells_texts_apart(model: nn.Module) -> bool:
    """Whether a transformers model has an embedding for the second text of two."""
    return int(getattr(model.config, "type_vocab_size", 0)) >= 2


def _bare(module: nn.Module) -> Any:
    """The transformers model inside what an engine wraps around it."""
    found: Any = module
    while not hasattr(found, "config") or not hasattr(found.config, "model_type"):
        found = next(getattr(found, name) for name in ("inner", "module") if hasattr(found, name))
    return found


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
    head: Head = "causal_lm",
    labels: Sequence[str] = (),
) -> nn.Module:
    """The model that `config` describes: new weights, a pure function of `seed`, or those of `model.from`.

    A head that `model.from` does not bring is new too: a classifier's, of `labels`.

    It stands on the host, but for a quantised one: that is packed weight by weight on `device`, into bytes that call
    themselves `storage`.
    """
    if config.source is not None:
        unpacked = CLASSIFIER_PARTS if head == "classifier" else ()
        packing = loading_options(config.quantization, device=device, storage=storage, unpacked=unpacked)
        options = {"kernel": kernel, "dtype": dtype, "packing": packing, "seed": seed, "head": head, "labels": labels}
        loaded = _load(config, vocabulary=vocabulary, **options)  # type: ignore[arg-type]
        _let_tokens_learn(loaded, vocabulary)
        _pool_rightly(loaded, vocabulary, head=head)
        return loaded
    described = describe(config, vocabulary=vocabulary)
    made = new_model(described, kernel=kernel, seed=seed, head=head, labels=labels)
    _let_tokens_learn(made, vocabulary)
    _pool_rightly(made, vocabulary, head=head)
    return made


def _pool_rightly(model: nn.Module, vocabulary: Vocabulary, *, head: Head) -> None:
    """A classifier knows what pads; a cache of keys and values would be made for nothing."""
    if head == "classifier":
        note_padding(model, vocabulary.in_model(model).pad_id)
        model.config.use_cache = False  # type: ignore[union-attr, assignment]


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
    from transformers import BertConfig, GPTNeoXConfig, LlamaConfig, RobertaConfig

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
    if config.architecture in ("bert", "roberta"):
        both_ways = shared | dict(
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            pad_token_id=vocabulary.pad_id,
            classifier_dropout=None,
            # As published; untied, their heads would hold a second bias that nothing reads.
            tie_word_embeddings=True,
        )
        del both_ways["attention_dropout"]
        if config.architecture == "bert":
            return BertConfig(**both_ways)
        # RoBERTa counts positions from the one behind the pad id on.
        if vocabulary.pad_id > MAX_POSITION_OFFSET:
            raise RunError(
                f"model.architecture: roberta counts positions from its pad id on, which is {vocabulary.pad_id:,}: so "
                "many rows of its positions would stand for nothing; use a tokenizer with a pad token among its "
                "first ids, as those of `dure tokenizer train` have, or architecture: bert"
            )
        both_ways["max_position_embeddings"] = config.max_positions + vocabulary.pad_id + 1
        return RobertaConfig(**both_ways, type_vocab_size=1)
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
    config: ModelConfig,
    *,
    vocabulary: Vocabulary,
    kernel: Kernel,
    dtype: torch.dtype,
    packing: dict[str, Any],
    seed: int,
    head: Head,
    labels: Sequence[str],
) -> nn.Module:
    from transformers import AutoConfig

    source = str(config.source)
    check_source(source)
    bars_on_terminals_only()
    if config.trust_remote_code:
        print(f"model.trust_remote_code: code that {source} brings will run in this process", flush=True)
    try:
        found = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
        described = AutoConfig.from_pretrained(source, **found)
        if head == "masked_lm":
            check_predicts_tokens(described.architectures, source=source)
        options = head_options(described, head=head, labels=labels)
        model: nn.Module
        model, told = auto_class(head).from_pretrained(
            source,
            config=described,
            attn_implementation=kernel,
            dtype=dtype,
            output_loading_info=True,
            # A classifier of other classes gets a new head.
            **({"ignore_mismatched_sizes": True} if head == "classifier" else {}),
            **found,
            **packing,
            **options,
        )
    except (OSError, ValueError) as error:
        kind = "a folder without a loadable model" if Path(source).is_dir() else "neither a folder here nor a hub model"
        first_line = str(error).strip().splitlines()[0]
        raise RunError(f"model.from: {source!r} is {kind}: {first_line}; check the path or the name") from None
    keep_layout(model)
    _begin_head(model, told, seed=seed, head=head, source=source)
    have = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator, union-attr]
    have = int(getattr(model.config, "vocab_size", have))
    if have < vocabulary.size:
        raise RunError(
            f"model.from: {source!r} has {have:,} embedding rows, but the shards' tokenizer has {vocabulary.size:,} "
            "tokens; build the shards with the model's own tokenizer"
        )
    return model


def _begin_head(model: nn.Module, told: dict[str, Any], *, seed: int, head: Head, source: str) -> None:
    """New weights for what the source does not bring: a head, as a pure function of `seed`. More is refused."""
    missing = {str(name) for name in told["missing_keys"]} | {str(each[0]) for each in told["mismatched_keys"]}
    if not missing:
        return
    prefix = str(model.base_model_prefix)
    body = [name for name in missing if name.startswith(f"{prefix}.") and ".pooler." not in f".{name}"]
    if head not in ("classifier", "masked_lm") or body:
        names = sorted(body or missing)
        raise RunError(
            f"model.from: {source!r} brings no weights for {', '.join(names[:3])} ({len(names)} tensors); it is "
            "another kind of model, or a part of it is missing: give one that fits the stage"
        )
    print(f"model.from: {source} brings no {', '.join(sorted(missing))}: new weights from the seed", flush=True)
    initialize(model, seed=seed, only=missing)
    setattr(model, NEW_HEAD, True)


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


def flops_per_token(model: nn.Module, *, seq_len: int, head_share: float = 1.0) -> float:
    """Training FLOPs a token, forward and backward: 6 N + 12 L H T; 4 N for a frozen N.

    Chowdhery et al. 2022, "PaLM", appendix B: N the parameters that multiply (the input embedding is a lookup, the
    head a product even where it is tied), L layers of width H, T the row's length. A frozen matrix passes gradients
    on, but needs none itself: a third of its products fall away. Recomputation does not count, and attention counts as
    if it were dense over the row, as the peers' published figures do. `head_share`: of the tokens that reach the head,
    as the masked ones of a masked language model.
    """
    described, counts = model.config, count_parameters(model)
    has_head = model.get_output_embeddings() is not None  # type: ignore[operator]
    is_free = not (has_head and described.tie_word_embeddings)
    embedding = described.vocab_size * described.hidden_size if is_free else 0
    frozen = counts.total - counts.trainable
    # Where anything is frozen, so is the embedding.
    each = 4.0 if frozen else 6.0
    multiplying = 6.0 * counts.trainable + 4.0 * frozen - each * embedding
    attention = 12 * described.num_hidden_layers * described.hidden_size * seq_len
    head = each * described.vocab_size * described.hidden_size if has_head else 0.0
    return multiplying - (1 - head_share) * head + float(attention)


@torch.no_grad()
def check_documents_apart(model: nn.Module, *, kernel: Kernel, device: torch.device, vocab_size: int) -> None:
    """Law 4 on the real model and kernel: other tokens in document 1 move no logit of document 2 by a bit.

    In a model that reads both ways, nor do other tokens in document 2 move one of document 1.

    Raises:
        RunError: they do; training on packed rows would let documents read each other.
    """
    length, border = 48, 24
    documents = (slice(0, border), slice(border, length))
    generator = np.random.default_rng(0)
    ids, others = generator.integers(0, vocab_size, (2, 1, length))
    positions = np.concatenate([np.arange(border), np.arange(length - border)])[None, :]
    reading = reading_of(model)
    was_training = model.training
    model.eval()
    before = _probe_logits(model, ids, positions, kernel=kernel, device=device, reading=reading)
    for changed, kept in ((0, 1), (1, 0)) if reading.both_ways else ((0, 1),):
        perturbed = ids.copy()
        perturbed[:, documents[changed]] = others[:, documents[changed]]
        after = _probe_logits(model, perturbed, positions, kernel=kernel, device=device, reading=reading)
        moved = (before[documents[kept]] - after[documents[kept]]).abs().max().item()
        stirred = (before[documents[changed]] - after[documents[changed]]).abs().max().item()
        if moved != 0.0 or stirred == 0.0:
            model.train(was_training)
            raise RunError(
                f"model.attention: {kernel} lets packed documents read each other: a change in document {changed + 1} "
                f"moved document {kept + 1}'s logits by {moved:.3g} (must be 0) and its own by {stirred:.3g} (must not "
                "be 0); use another kernel"
            )
    model.train(was_training)


def _probe_logits(
    model: nn.Module,
    ids: np.ndarray,
    positions: np.ndarray,
    *,
    kernel: Kernel,
    device: torch.device,
    reading: Reading,
) -> torch.Tensor:
    batch = Batch(
        input_ids=ids.astype(np.int64),
        labels=np.full_like(ids, -100, dtype=np.int64),
        position_ids=positions.astype(np.int64),
        row_ids=np.zeros(1, dtype=np.int64),
        num_targets=0,
    )
    logits = model(**packed_inputs(batch, kernel=kernel, device=device, reading=reading)).logits
    return logits.float().reshape(ids.shape[1], -1)
