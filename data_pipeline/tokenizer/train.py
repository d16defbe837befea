"""`dure tokenizer train`: a finished corpus -> a tokenizer folder that transformers loads, with its card. The stage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field
from tokenizers import Tokenizer

from data_pipeline import disk, stage
from data_pipeline.config import Config, to_tree
from data_pipeline.stage import Manifest, StageError, Task, read_manifest
from data_pipeline.tokenizer import recipe
from data_pipeline.tokenizer.card import readme
from data_pipeline.tokenizer.encode import Encoder
from data_pipeline.tokenizer.fingerprint import TOKENIZER_FILE, tokenizer_fingerprint
from data_pipeline.tokenizer.measure import measure, measure_hostile
from data_pipeline.tokenizer.recipe import Kind
from data_pipeline.tokenizer.sample import sample_texts
from data_pipeline.tokenizer.special import ROLES, SPECIAL_TOKENS, TEMPLATE_MARKERS

FORMAT_VERSION = 1  # of the code that turns equal inputs into an equal tokenizer
FILES = (TOKENIZER_FILE, "tokenizer_config.json", "special_tokens_map.json", "card.json", "README.md")


class TokenizerConfig(Config):
    """What `tokenizer train` makes, and from what."""

    corpus: Path
    output: Path
    kind: Kind = "byte_level_bpe"
    vocab_size: int = Field(
        default=32_000, gt=len(SPECIAL_TOKENS), description="special tokens included; exactly this many"
    )
    min_frequency: int = Field(default=2, ge=1, description="a pair seen less often is never merged")
    max_training_bytes: int = Field(default=1 << 30, gt=0, description="of text; from a larger corpus a share is taken")
    measured_bytes: int = Field(default=8 << 20, gt=0, description="of text that the card's figures come from")
    markers: tuple[str, ...] = Field(
        default=TEMPLATE_MARKERS, description="special tokens of a hash_hash_bpe; a byte_level_bpe spells them itself"
    )
    max_alphabet: int = Field(default=8_000, gt=0, description="characters that a hash_hash_bpe knows")


@dataclass(frozen=True)
class TokenizerTrain:
    """The stage: train, then measure. Each leaves a hidden mark with the hash of its inputs.

    A finished tokenizer of other inputs is refused, never overwritten.
    """

    config: TokenizerConfig

    @property
    def output(self) -> Path:
        return self.config.output

    @cached_property
    def inputs(self) -> dict[str, Any]:
        tree = {key: value for key, value in to_tree(self.config).items() if key not in ("corpus", "output")}
        corpus = read_manifest(self.config.corpus, kind="corpus")
        return {"format_version": FORMAT_VERSION, "corpus_manifest_sha256": corpus["manifest_sha256"], "config": tree}

    @cached_property
    def inputs_sha256(self) -> str:
        return stage.fingerprint(self.inputs)

    def is_done(self) -> bool:
        return stage.is_done(self.output, kind="tokenizer", inputs_sha256=self.inputs_sha256)

    def plan(self) -> list[Task]:
        """Two tasks, none where all is done; raises StageError where another tokenizer stands there."""
        if self.is_done():
            return []
        self._prepare()
        num_bytes = read_manifest(self.config.corpus, kind="corpus")["num_text_bytes"]
        return [
            Task("train", 0, {}, min(num_bytes, self.config.max_training_bytes)),
            Task("measure", 1, {}, min(num_bytes, self.config.measured_bytes)),
        ]

    def is_task_done(self, task: Task) -> bool:
        return self._result(task.name) is not None

    def run(self, task: Task) -> None:
        if self.is_task_done(task):
            return
        result = self._train() if task.name == "train" else self._measure()
        disk.write_json(self._mark(task.name), {"inputs_sha256": self.inputs_sha256, "result": result})

    def finish(self) -> Manifest:
        if self.is_done():
            self._remove_marks()
            return read_manifest(self.output, kind="tokenizer")
        trained, measured = self._result("train"), self._result("measure")
        if trained is None or measured is None:
            missing = "train" if trained is None else "measure"
            raise StageError(f"{self.output}: task {missing!r} is not done; run the stage again")
        card = {**trained, **measured}
        disk.write_json(self.output / "card.json", card)
        disk.write_bytes(self.output / "README.md", readme(card).encode())
        manifest = {
            "kind": "tokenizer",
            "tokenizer_kind": self.config.kind,
            "tokenizer_fingerprint": trained["fingerprint"],
            "vocab_size": trained["vocab_size"],
            "special_tokens": trained["special_tokens"],
            "unk_rate": measured["corpus_sample"]["unk_rate"],
            "files": [self._file_entry(name) for name in FILES],
            "corpus_manifest_sha256": self.inputs["corpus_manifest_sha256"],
            "config": to_tree(self.config),
            "inputs": self.inputs,
            "inputs_sha256": self.inputs_sha256,
        }
        manifest = stage.write_manifest(self.output, manifest)
        self._remove_marks()
        return manifest

    def _train(self) -> dict[str, Any]:
        corpus = read_manifest(self.config.corpus, kind="corpus")
        texts = _CountedTexts(self.config)
        tokenizer = _trained(self.config, texts)
        _check_size(tokenizer, self.config, texts.num_bytes)
        _write_tokenizer(tokenizer, self.output)
        added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
        return {
            "kind": self.config.kind,
            "vocab_size": tokenizer.get_vocab_size(),
            "fingerprint": tokenizer_fingerprint(self.output),
            "normalizer": "NFC",
            "special_tokens": dict(sorted(added.items(), key=lambda pair: pair[1])),
            "training": {
                "corpus_manifest_sha256": corpus["manifest_sha256"],
                "num_documents": texts.num_documents,
                "num_bytes": texts.num_bytes,
                "sources": {name: counts["num_records"] for name, counts in corpus["sources"].items()},
            },
        }

    def _measure(self) -> dict[str, Any]:
        encoder = Encoder(self.output)
        sample = sample_texts(self.config.corpus, max_bytes=self.config.measured_bytes, salt="measure")
        on_corpus = measure(encoder, (text for batch in sample for text in batch))
        hostile = {name: figures.to_tree() for name, figures in measure_hostile(encoder).items()}
        return {"corpus_sample": on_corpus.to_tree(), "hostile": hostile}

    def _remove_marks(self) -> None:
        for name in ("train", "measure"):
            self._mark(name).unlink(missing_ok=True)

    def _mark(self, name: str) -> Path:
        return self.output / f".{name}.json"

    def _result(self, name: str) -> dict[str, Any] | None:
        """What a finished task left, if it worked on these inputs."""
        if not self._mark(name).is_file():
            return None
        tree = json.loads(self._mark(name).read_text(encoding="utf-8"))
        return tree["result"] if tree["inputs_sha256"] == self.inputs_sha256 else None

    def _prepare(self) -> None:
        """Make the output; a finished tokenizer of other inputs is refused, and so are other people's files."""
        # A kill leaves what it was writing as *.partial.
        names = (
            {path.name.removesuffix(disk.PARTIAL_SUFFIX) for path in self.output.iterdir()}
            if self.output.is_dir()
            else set()
        )
        foreign = sorted(name for name in names - {*FILES, stage.MANIFEST_NAME} if not name.startswith("."))
        if foreign:
            held = ", ".join(foreign)
            raise StageError(
                f"output: {self.output} holds {held}, which no tokenizer training wrote; give an empty folder"
            )
        self.output.mkdir(parents=True, exist_ok=True)
        if (self.output / stage.MANIFEST_NAME).exists():
            theirs = read_manifest(self.output, kind="tokenizer")
            differing = "; ".join(stage.differences(theirs["inputs"], self.inputs))
            raise StageError(
                f"{self.output}: holds a tokenizer of other inputs ({theirs['inputs_sha256'][:12]}…, now "
                f"{self.inputs_sha256[:12]}…): {differing}; give another output folder, or remove this one"
            )

    def _file_entry(self, name: str) -> dict[str, Any]:
        path = self.output / name
        return asdict(disk.FileRecord(name, path.stat().st_size, disk.sha256_of(path)))


class _CountedTexts:
    """The training texts, given anew at each call; counts those of the last."""

    def __init__(self, config: TokenizerConfig) -> None:
        self._config = config
        self.num_documents = self.num_bytes = 0

    def __call__(self) -> Iterator[list[str]]:
        self.num_documents = self.num_bytes = 0
        for batch in sample_texts(self._config.corpus, max_bytes=self._config.max_training_bytes, salt="train"):
            self.num_documents += len(batch)
            self.num_bytes += sum(len(text.encode()) for text in batch)
            yield batch


def _trained(config: TokenizerConfig, texts: recipe.Texts) -> Tokenizer:
    if config.kind == "byte_level_bpe":
        return recipe.train_byte_level(texts, vocab_size=config.vocab_size, min_frequency=config.min_frequency)
    return recipe.train_hash_hash(
        texts,
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        markers=config.markers,
        max_alphabet=config.max_alphabet,
    )


def _check_size(tokenizer: Tokenizer, config: TokenizerConfig, num_bytes: int) -> None:
    reached = tokenizer.get_vocab_size()
    if reached != config.vocab_size:
        raise StageError(
            f"vocab_size: {config.vocab_size:,} was asked for, {num_bytes:,} bytes of text gave {reached:,} "
            f"(min_frequency {config.min_frequency}); set vocab_size: {reached} or less, or "
            "give more text"
        )


def _write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 30,
        **ROLES,
    }
    disk.write_json(folder / "tokenizer_config.json", settings)
    disk.write_json(folder / "special_tokens_map.json", ROLES)
    disk.write_json(folder / TOKENIZER_FILE, json.loads(tokenizer.to_str()))
