"""`dure tokenizer train`: a finished corpus -> a tokenizer folder that transformers loads, with its card. The stage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from tokenizers import Tokenizer
from tqdm import tqdm

from data_pipeline import disk, stage
from data_pipeline.config import Config, to_tree
from data_pipeline.stage import Manifest, StageError, Task, read_manifest
from data_pipeline.tokenizer import morphemes
from data_pipeline.tokenizer.card import readme
from data_pipeline.tokenizer.encode import Encoder
from data_pipeline.tokenizer.fingerprint import TOKENIZER_FILE, tokenizer_fingerprint
from data_pipeline.tokenizer.kinds import TRAINERS
from data_pipeline.tokenizer.measure import measure, measure_hostile
from data_pipeline.tokenizer.merge_rules import MergeRules, measure_rules, read_merge_rules
from data_pipeline.tokenizer.recipe import OF_WORDS, Kind, Recipe, Texts
from data_pipeline.tokenizer.sample import CountedTexts, SampledText, check_weights, sample_rows
from data_pipeline.tokenizer.special import ROLES, SPECIAL_TOKENS, TEMPLATE_MARKERS

FORMAT_VERSION = 1  # of the code that turns equal inputs into an equal tokenizer
BORDER_BYTES = 2 << 20  # of the measured text that Kiwi sees too: some 200,000 borders
# Keys that tokenizers of before had not; unset they change nothing, so that a finished one stays done.
_LATER_KEYS: dict[str, Any] = {"morphemes": "none", "merge_rules": [], "source_weights": {}, "seed": 0}
FILES = (TOKENIZER_FILE, "tokenizer_config.json", "special_tokens_map.json", "card.json", "README.md")


class TokenizerConfig(Config):
    """What `tokenizer train` makes, and from what."""

    corpus: Path
    output: Path
    kind: Kind = "byte_level_bpe"
    vocab_size: int = Field(
        default=32_000, gt=len(SPECIAL_TOKENS), description="special tokens included; exactly this many"
    )
    min_frequency: int = Field(
        default=2, ge=1, description="a pair seen less often is never merged; a unigram weighs pieces by itself"
    )
    morphemes: Literal["none", "kiwi"] = Field(
        default="none", description="kiwi: no token is learned across two morphemes of the training text"
    )
    merge_rules: Path | tuple[str, ...] = Field(
        default=(), description="`old → new`, a file or a list: applied to every text before it is cut"
    )
    source_weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default={}, description="each source's share of the sampled bytes; empty: as the corpus has them"
    )
    seed: int = Field(default=0, ge=0, description="another one samples other documents")
    max_training_bytes: int = Field(default=1 << 30, gt=0, description="of text; from a larger corpus a share is taken")
    measured_bytes: int = Field(default=8 << 20, gt=0, description="of text that the card's figures come from")
    markers: tuple[str, ...] = Field(
        default=TEMPLATE_MARKERS,
        description="special tokens of a hash_hash_bpe or wordpiece; the other kinds spell them themselves",
    )
    max_alphabet: int = Field(default=8_000, gt=0, description="characters with a token; a byte_level_bpe has bytes")

    @field_validator("source_weights")
    @classmethod
    def _some_source_weighs(cls, value: dict[str, float]) -> dict[str, float]:
        if value and not any(value.values()):
            names = ", ".join(map(repr, value))
            raise ValueError(f"every weight is 0 ({names}), so no text would be taken; give one above 0")
        return value

    def sample(self, salt: str, *, max_bytes: int) -> Iterator[list[SampledText]]:
        """The documents of the corpus that are taken for a purpose."""
        salt = f"{salt}{self.seed or ''}"
        yield from sample_rows(self.corpus, max_bytes=max_bytes, salt=salt, source_weights=self.source_weights)


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
        inputs = {"format_version": FORMAT_VERSION, "corpus_manifest_sha256": corpus["manifest_sha256"], "config": tree}
        tree["merge_rules"] = self.rules.tree()  # what a file says, not where it lies
        for key, unset in _LATER_KEYS.items():
            if tree[key] == unset:
                del tree[key]
        if self.config.morphemes == "kiwi":
            inputs["analyser"] = morphemes.version()
        return inputs

    @cached_property
    def rules(self) -> MergeRules:
        return read_merge_rules(self.config.merge_rules)

    @cached_property
    def inputs_sha256(self) -> str:
        return stage.fingerprint(self.inputs)

    def is_done(self) -> bool:
        return stage.is_done(self.output, kind="tokenizer", inputs_sha256=self.inputs_sha256)

    def plan(self) -> list[Task]:
        """Two tasks, none where all is done; raises StageError where another tokenizer stands there."""
        if self.is_done():
            return []
        if self.config.source_weights:
            check_weights(self.config.corpus, self.config.source_weights)
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
        texts = CountedTexts(partial(self.config.sample, "train", max_bytes=self.config.max_training_bytes))
        tokenizer = _trained(self.config, self.rules, texts)
        _check_size(tokenizer, self.config, texts.num_bytes)
        _write_tokenizer(tokenizer, self.output)
        added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
        return {
            "kind": self.config.kind,
            "vocab_size": tokenizer.get_vocab_size(),
            "fingerprint": tokenizer_fingerprint(self.output),
            "normalizer": "NFC",
            "merge_rules": self.rules.tree(),
            "morphemes": self.inputs.get("analyser", "none"),
            "special_tokens": dict(sorted(added.items(), key=lambda pair: pair[1])),
            "training": {
                "corpus_manifest_sha256": corpus["manifest_sha256"],
                "num_documents": texts.num_documents,
                "num_bytes": texts.num_bytes,
                "sources": {name: counts["num_records"] for name, counts in corpus["sources"].items()},
                "source_weights": self.config.source_weights,
                "bytes_by_source": dict(sorted(texts.bytes_by_source.items())),
            },
        }

    def _measure(self) -> dict[str, Any]:
        encoder = Encoder(self.output)
        on_corpus = measure(encoder, (text for batch in self._measured_texts() for text in batch))
        hostile = {name: figures.to_tree() for name, figures in measure_hostile(encoder).items()}
        measured = {"corpus_sample": on_corpus.to_tree(), "hostile": hostile}
        if self.rules.rules:
            measured["rules_sample"] = measure_rules(encoder, self._measured_texts(), self.rules)
        if self.config.morphemes == "kiwi":
            kiwi = morphemes.shared_morphemes()
            texts = self._measured_texts(max_bytes=BORDER_BYTES)
            measured["border_sample"] = morphemes.agreement(encoder.tokenizer, texts, kiwi).tree()
        return measured

    def _measured_texts(self, *, max_bytes: int | None = None) -> Iterator[list[str]]:
        limit = self.config.measured_bytes
        for batch in self.config.sample("measure", max_bytes=min(limit, max_bytes or limit)):
            yield [row.text for row in batch]

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


def _trained(config: TokenizerConfig, rules: MergeRules, texts: Texts) -> Tokenizer:
    kiwi = morphemes.shared_morphemes() if config.morphemes == "kiwi" else None
    with tqdm(desc="morphemes", unit="run", unit_scale=True, disable=None if kiwi else True) as bar:
        recipe = Recipe(
            vocab_size=config.vocab_size,
            min_frequency=config.min_frequency,
            max_alphabet=config.max_alphabet,
            markers=config.markers if config.kind in OF_WORDS else (),
            rules=rules,
            cut=None if kiwi is None else partial(kiwi.split, bar=bar),
        )
        return TRAINERS[config.kind](texts, recipe)


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
