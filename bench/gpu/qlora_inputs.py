"""What bench/gpu/qlora.py trains on: synthetic rows of KoAlpaca's lengths, and a GPT-NeoX of random weights on disk.

Nothing is downloaded. What stands complete in the cache folder is left as it is.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.stage import Stage

NUM_DOCUMENTS, NUM_ROWS = 3000, 6000
VOCAB_SIZE = 4096
# Characters of an answer: a log-normal that gives, with its question, the 210 tokens a row that
# configs/sft/polyglot-ko-12.8b-qlora.yaml estimates for KoAlpaca v1.1a (measured: 3 characters a token here).
MEDIAN_ANSWER, ANSWER_SIGMA, LONGEST_ANSWER = 340, 0.8, 3500
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
INDEX_NAME = "model.safetensors.index.json"
MAX_SHARD_BYTES = 2 << 30
INITIALIZER_RANGE = 0.02


@dataclass(frozen=True)
class Size:
    """The shape of a polyglot-ko, from its model card. `rows`: of the embedding."""

    hidden_size: int
    num_layers: int
    num_heads: int
    rotary_share: float
    rows: int = 30_080


# The 5.8B has 16 heads of 256 dimensions, the others heads of 128; each rotates 64 of them.
SIZES = {
    "tiny": Size(hidden_size=64, num_layers=2, num_heads=2, rotary_share=0.5, rows=4_224),
    "1.3b": Size(hidden_size=2048, num_layers=24, num_heads=16, rotary_share=0.5),
    "5.8b": Size(hidden_size=4096, num_layers=28, num_heads=16, rotary_share=0.25),
    "12.8b": Size(hidden_size=5120, num_layers=40, num_heads=40, rotary_share=0.5),
}


@dataclass(frozen=True)
class Inputs:
    """Where things lie. The text is the same for every size."""

    cache: Path
    size: str

    @property
    def text(self) -> Path:
        return self.cache / "text"

    @property
    def shards(self) -> Path:
        return self.text / "shards"

    @property
    def base(self) -> Path:
        return self.cache / f"base-{self.size}"


def make_text(inputs: Inputs, *, num_workers: int = 1) -> None:
    """Documents, a tokenizer of them, and shards of instruction rows in KoAlpaca's template."""
    from data_pipeline.corpus.build import CorpusBuild, CorpusConfig
    from data_pipeline.shards.build import ShardsBuild, ShardsConfig
    from data_pipeline.tokenizer.train import TokenizerConfig, TokenizerTrain

    folder = inputs.text
    _write_lines(folder / "documents.jsonl", _documents())
    _write_lines(folder / "rows.jsonl", _rows())
    for name, record in (("documents", "document"), ("rows", "instruction")):
        corpus = {"inputs": [str(folder / f"{name}.jsonl")], "output": folder / f"{name}-corpus", "record": record}
        _run(CorpusBuild(CorpusConfig.model_validate(corpus)), num_workers)
    tokenizer = {"corpus": folder / "documents-corpus", "output": folder / "tokenizer", "vocab_size": VOCAB_SIZE}
    _run(TokenizerTrain(TokenizerConfig.model_validate(tokenizer)), num_workers)
    shards = {"corpus": folder / "rows-corpus", "tokenizer": folder / "tokenizer", "output": inputs.shards}
    _run(ShardsBuild(ShardsConfig.model_validate(shards | {"template": "koalpaca"})), num_workers)


def _run(stage: Stage, num_workers: int) -> None:
    from launch.tasks import run_stage

    run_stage(stage, num_workers, label=stage.output.name)


def _write_lines(path: Path, lines: Iterator[Mapping[str, Any]]) -> None:
    from data_pipeline import disk

    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.write_bytes(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def _documents() -> Iterator[Mapping[str, Any]]:
    from data_pipeline.synthetic.config import SyntheticConfig
    from data_pipeline.synthetic.documents import document

    config = SyntheticConfig()
    return ({"text": document(config, split="train", index=index).text} for index in range(NUM_DOCUMENTS))


def _rows() -> Iterator[Mapping[str, Any]]:
    """Synthetic instructions; each answer is continued by stories until it is as long as one of KoAlpaca's."""
    from data_pipeline.synthetic.config import SyntheticConfig
    from data_pipeline.synthetic.documents import document
    from data_pipeline.synthetic.instructions import instruction

    config = SyntheticConfig()
    stories = (document(config, split="train", index=index).text for index in itertools.count())
    for index in range(NUM_ROWS):
        row = instruction(config, split="train", index=index).row
        wanted = random.Random(index).lognormvariate(math.log(MEDIAN_ANSWER), ANSWER_SIGMA)
        length = max(len(row["output"]), min(int(wanted), LONGEST_ANSWER))
        answer = row["output"]
        while len(answer) < length:
            answer += f"\n{next(stories)}"
        yield {**row, "output": answer[:length].strip()}


def is_complete(base: Path) -> bool:
    """Whether every file of the weights stands; their index is written last."""
    index = base / INDEX_NAME
    if not index.is_file():
        return False
    return all((base / name).is_file() for name in json.loads(index.read_text())["weight_map"].values())


def make_base(inputs: Inputs, *, max_shard_bytes: int = MAX_SHARD_BYTES) -> int:
    """Write the random model in bf16, holding one shard of it at a time; returns its bytes, 0 where it stood.

    A weight is a pure function of its name, its shape and the kind of device that drew it (a GPU where there is one).

    Raises:
        OSError: the disk has no room for it.
    """
    if is_complete(inputs.base):
        return 0
    import safetensors.torch
    import torch
    from transformers import AutoModelForCausalLM

    described = describe(inputs)
    with torch.device("meta"):
        shapes = {
            name: tensor.shape for name, tensor in AutoModelForCausalLM.from_config(described).state_dict().items()
        }
    num_bytes = sum(_num_bytes(shape) for shape in shapes.values())
    inputs.base.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(inputs.base).free) < num_bytes:
        raise OSError(f"{inputs.base}: {free:,} bytes free, {num_bytes:,} are needed; give another --cache")
    described.save_pretrained(inputs.base)
    for name in TOKENIZER_FILES:
        shutil.copyfile(inputs.text / "tokenizer" / name, inputs.base / name)
    shards = list(_in_shards(shapes, max_bytes=max_shard_bytes))
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        tensors = {name: _draw(name, shapes[name]) for name in names}
        safetensors.torch.save_file(tensors, inputs.base / file, metadata={"format": "pt"})
    places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    index = {"metadata": {"total_size": num_bytes}, "weight_map": places}
    (inputs.base / INDEX_NAME).write_text(json.dumps(index, indent=1))
    return num_bytes


def describe(inputs: Inputs) -> Any:
    """The transformers config of the size, with the special tokens of the tokenizer that made the shards."""
    from transformers import GPTNeoXConfig

    from trainer.model import read_vocabulary

    size, vocabulary = SIZES[inputs.size], read_vocabulary(inputs.shards)
    return GPTNeoXConfig(
        architectures=["GPTNeoXForCausalLM"],
        dtype="bfloat16",
        vocab_size=size.rows,
        hidden_size=size.hidden_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        intermediate_size=4 * size.hidden_size,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": size.rotary_share},
        tie_word_embeddings=False,
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=vocabulary.eos_id,
        eos_token_id=vocabulary.eos_id,
        pad_token_id=vocabulary.pad_id,
    )


def _num_bytes(shape: Any) -> int:
    return 2 * math.prod(shape)


def _in_shards(shapes: Mapping[str, Any], *, max_bytes: int) -> Iterator[list[str]]:
    """Names in their order, as many as fit into a file each; a tensor that is larger has one of its own."""
    names: list[str] = []
    held = 0
    for name, shape in shapes.items():
        if names and held + _num_bytes(shape) > max_bytes:
            yield names
            names, held = [], 0
        names.append(name)
        held += _num_bytes(shape)
    yield names


def _draw(name: str, shape: Any) -> Any:
    """Matrices from a normal distribution, gains 1, biases 0, as GPT-NeoX begins."""
    import torch

    if len(shape) < 2:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.bfloat16)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little")
    generator = torch.Generator(device).manual_seed(seed)
    made = torch.empty(shape, dtype=torch.bfloat16, device=device)
    return made.normal_(0.0, INITIALIZER_RANGE, generator=generator).cpu()


def text_figures(inputs: Inputs, *, seq_len: int) -> dict[str, Any]:
    """Of the rows that are trained on: their number, lengths, share of targets, and how they are packed."""
    from data_pipeline.stream.rows import open_rows

    rows = open_rows(inputs.shards, split="train", seq_len=seq_len, packing="best_fit", too_long="drop")
    shards, counts = rows.shards, rows.counts
    return {
        "instructions": counts.num_documents,
        "too_long": counts.num_documents_too_long,
        "tokens_an_instruction": round(shards.num_pairs / shards.num_documents, 1),
        "target_share": round(shards.num_targets / shards.num_pairs, 3),
        "packed_rows": rows.num_rows,
        "padding_share": round(counts.num_padding / (rows.num_rows * seq_len), 5),
    }
