"""`dure shards build`: corpus records -> ids -> Arrow shards of train and heldout.

Documents are encoded as they are; instruction, preference, feedback and prompt records through a template; label and
pair records in a frame. What made the ids is kept beside them.

One task a Parquet part of the corpus; each commits its own shards and then a record of them under `.tasks/`, so that a
killed task leaves nothing that counts. The result depends on corpus, tokenizer and config alone: not on the number
of workers, on where folders lie, or on what was killed before.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from data_pipeline import disk
from data_pipeline.config import Config, to_tree
from data_pipeline.corpus.records import HELDOUT
from data_pipeline.shards.accept import KEYS, check_corpus, check_counts, check_faults, examples_manifest
from data_pipeline.shards.companions import remove_companions, write_companions
from data_pipeline.shards.examples import ExampleShape, TooLong, examples_recipe, scan_corpus
from data_pipeline.shards.format import (
    ANSWERED,
    EXAMPLES,
    FORMAT_VERSION,
    FRAMED,
    KIND,
    SPLITS,
    Split,
    read_shards_manifest,
    token_dtype,
)
from data_pipeline.shards.frames import FrameChoice, find_frame
from data_pipeline.shards.instructions import instructions_recipe
from data_pipeline.shards.labels import Labels
from data_pipeline.shards.part import COUNTS, DOCUMENTS, Recipe, is_heldout, write_part
from data_pipeline.shards.preferences import AnsweredShape, has_references, heldout_prompts, preferences_recipe
from data_pipeline.stage import MANIFEST_NAME, Manifest, StageError, Task, fingerprint, read_manifest, write_manifest
from data_pipeline.templates.load import load_template
from data_pipeline.tokenizer.encode import special_tokens
from data_pipeline.tokenizer.fingerprint import tokenizer_file, tokenizer_fingerprint

if TYPE_CHECKING:
    from data_pipeline.templates.template import Template
    from data_pipeline.tokenizer.encode import Encoder

Shape = ExampleShape | AnsweredShape

TASKS_FOLDER = ".tasks"
# What decides whether a build is accepted, not what its shards hold.
_LIMITS = ("max_unk_rate", "drop_faulty_rows")
_OF_EXAMPLES = tuple(key for key, records in KEYS.items() if set(records) <= set(EXAMPLES))


class ShardsConfig(Config):
    """What `dure shards build` reads, where it writes, and how it splits."""

    corpus: Path
    tokenizer: Path
    output: Path
    # By a hash of the record id; of preference, feedback and prompt records, of the prompt.
    heldout_fraction: float = Field(default=0.01, ge=0, lt=1)
    use_split_hint: bool = True  # records that their source calls held out (AIHub's Validation) go to heldout
    max_shard_bytes: int = Field(default=256_000_000, ge=16_384)
    max_unk_rate: float = Field(default=0.01, ge=0, le=1)  # of all tokens without EOS
    # Of instruction, preference, feedback and prompt records: a name, a file, or "tokenizer" for the tokenizer's own.
    template: str | None = None
    # Of an instruction row, EOS included, or of a sequence of an example, its frame included; longer ones are faulty.
    max_tokens: int | None = Field(default=None, ge=2)
    drop_faulty_rows: bool = False  # count and leave out rows that can't be learned, instead of refusing
    frame: FrameChoice = Field(default="auto", description="of label and pair records: what stands around their texts")
    labels: Labels | None = Field(
        default=None, description="of label records: the classes in their order; none = all of the corpus"
    )
    too_long: TooLong = Field(
        default="refuse",
        description="of sequences of more than max_tokens; cut = the longest text first, from its end (label and pair)",
    )
    references: bool = Field(
        default=True, description="of prompt records: keep the answers that a reward function may compare with"
    )


@dataclass(frozen=True)
class ShardsBuild:
    """The stage. A finished folder of other inputs is refused, never overwritten."""

    config: ShardsConfig

    @property
    def output(self) -> Path:
        return self.config.output

    def is_done(self) -> bool:
        """Whether the folder holds the shards of these inputs; raises StageError if it holds those of others."""
        if not (self.output / MANIFEST_NAME).is_file():
            return False
        manifest = read_shards_manifest(self.output)
        ours, theirs = self.inputs, manifest["inputs"]
        if theirs["tokenizer_fingerprint"] != ours["tokenizer_fingerprint"]:
            raise StageError(
                f"{self.output}: holds shards of tokenizer {theirs['tokenizer_fingerprint'][:16]}…, but "
                f"{self.config.tokenizer} is {ours['tokenizer_fingerprint'][:16]}… (다른 토크나이저); "
                "give another output folder, or remove this one"
            )
        differing = [f"{key} {theirs.get(key)!r}, now {ours[key]!r}" for key in ours if theirs.get(key) != ours[key]]
        if differing:
            raise StageError(
                f"{self.output}: holds shards of other inputs: {'; '.join(differing)}; "
                "give another output folder, or remove this one"
            )
        return True

    def plan(self) -> list[Task]:
        """One task a part of the corpus, in corpus order."""
        self.is_done()
        corpus = self._corpus()
        inputs, shape = self.inputs, self._shape()
        task_inputs = fingerprint({key: value for key, value in inputs.items() if key not in _LIMITS})
        return [
            Task(
                name=f"part-{number:05d}",
                wave=0,
                spec={
                    "file": entry["name"],
                    "inputs_sha256": task_inputs,
                    "tokenizer_fingerprint": inputs["tokenizer_fingerprint"],
                    **({} if shape is None else {"shape": shape.to_tree()}),
                },
                num_bytes=entry["num_bytes"],
            )
            for number, entry in enumerate(corpus["files"])
        ]

    def is_task_done(self, task: Task) -> bool:
        """Whether the shards of a part stand there, committed."""
        return self._committed(task) is not None

    def run(self, task: Task) -> None:
        """Encode one part and commit its shards; does nothing if they stand there already."""
        if self.is_done() or self.is_task_done(task):
            return
        encoder = _encoder(self.config.tokenizer)
        if encoder.fingerprint != task.spec["tokenizer_fingerprint"]:
            raise StageError(
                f"{self.config.tokenizer}: the tokenizer is {encoder.fingerprint[:16]}…, but the build was planned "
                f"with {task.spec['tokenizer_fingerprint'][:16]}…; it was changed meanwhile: start the build again"
            )
        part = write_part(
            self.config.corpus / task.spec["file"],
            recipe=self._recipe(_shape_of(task.spec["shape"]) if "shape" in task.spec else None),
            encoder=encoder,
            output=self.output,
            name=task.name,
            max_shard_bytes=self.config.max_shard_bytes,
            is_heldout=functools.partial(self._is_heldout, heldout_keys=self._heldout_keys()),
        )
        record = {
            "inputs_sha256": task.spec["inputs_sha256"],
            "tokenizer": {
                "vocab_size": encoder.vocab_size,
                "eos_id": encoder.eos_id,
                "pad_id": encoder.pad_id,
                "unk_id": encoder.unk_id,
            },
            "eos_is_sep": encoder.eos_is_sep,
            "files": part.files,
            "counts": part.counts,
            "sources": part.sources,
            "examples": part.examples,
            "classes": part.classes,
        }
        folder = self.output / TASKS_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        disk.write_json(folder / f"{task.name}.json", record)

    def finish(self) -> Manifest:
        """Refuse what could not be trained on, then commit the manifest."""
        if self.is_done():
            self._remove_task_records()
            return read_shards_manifest(self.output)
        records, shape = self._records(), self._shape()
        recipe = self._recipe(shape)
        splits = {
            split: {key: sum(record["counts"][split][key] for record in records) for key in (*COUNTS, *recipe.counts)}
            for split in SPLITS
        }
        if not self.config.drop_faulty_rows:
            check_faults(self.output, recipe=recipe, splits=splits, examples=[record["examples"] for record in records])
        check_counts(self.output, recipe=recipe, splits=splits, max_unk_rate=self.config.max_unk_rate)
        examples = examples_manifest(self.output, shape, records)
        files = [
            entry for split in SPLITS for record in records for entry in record["files"] if entry["split"] == split
        ]
        self._remove_strays({entry["name"] for entry in files})
        inputs = self.inputs
        tokenizer = records[0]["tokenizer"]
        template = self._template()
        companions = write_companions(self.output, tokenizer=self.config.tokenizer, template=template)
        content = {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "record": recipe.record,
            "template": inputs["template"],
            "tokenizer_fingerprint": inputs["tokenizer_fingerprint"],
            "tokenizer": tokenizer,
            "pad_is_eos": tokenizer["pad_id"] is None,
            "dtype": token_dtype(tokenizer["vocab_size"]).name,
            **({"eos_is_sep": True} if records[0]["eos_is_sep"] else {}),
            **examples,
            "corpus_files_sha256": inputs["corpus_files_sha256"],
            "splits": splits,
            "sources": _add_sources(records),
            "files": files,
            "inputs": inputs,
            "inputs_sha256": fingerprint(inputs),
        }
        # A tokenizer's card tells how fast it was measured to be: equal shards give one order whatever stands there.
        whole = content | {"companions": companions, "content_sha256": fingerprint(content)}
        manifest = write_manifest(self.output, whole)
        self._remove_task_records()
        return manifest

    def _corpus(self) -> Manifest:
        corpus = read_manifest(self.config.corpus, kind="corpus")
        check_corpus(self.config.corpus, corpus, self.config)
        return corpus

    @property
    def inputs(self) -> dict[str, Any]:
        """All that decides the shards; no paths, so that equal shards have equal manifests wherever they lie."""
        tree = to_tree(self.config)
        corpus, template, shape = self._corpus(), self._template(), self._shape()
        folder = tokenizer_file(self.config.tokenizer).parent
        return {
            "format_version": FORMAT_VERSION,
            # By content: the manifest also holds the paths and times of the files that the corpus was built from.
            "corpus_files_sha256": fingerprint(corpus["files"]),
            "tokenizer_fingerprint": tokenizer_fingerprint(self.config.tokenizer),
            "special_tokens": special_tokens(folder),
            **{
                key: value for key, value in tree.items() if key not in ("corpus", "tokenizer", "output", *_OF_EXAMPLES)
            },
            "template": None if template is None else {"name": template.name, "sha256": template.sha256},
            # Not for other records: their shards of before there were examples are as good.
            **({} if shape is None else {"examples": shape.to_tree()}),
        }

    def _template(self) -> Template | None:
        name = self.config.template
        return None if name is None else load_template(name, tokenizer=self.config.tokenizer)

    def _shape(self) -> Shape | None:
        """What decides the examples of a corpus; None of documents and instructions."""
        corpus = self._corpus()
        if corpus["record"] in ANSWERED:
            return self._answered_shape(corpus)
        if corpus["record"] not in FRAMED:
            return None
        labels, num_sequences = scan_corpus(
            self.config.corpus, corpus["manifest_sha256"], has_labels=self.config.labels is None
        )
        return ExampleShape(
            record=corpus["record"],
            frame=find_frame(self.config.tokenizer, wanted=self.config.frame),
            num_sequences=num_sequences,
            labels=labels if self.config.labels is None else self.config.labels,
            max_tokens=self.config.max_tokens,
            too_long=self.config.too_long,
        )

    def _answered_shape(self, corpus: Manifest) -> AnsweredShape:
        num_sequences = {"preference": 2, "feedback": 1}.get(corpus["record"])
        if num_sequences is None:
            has_more = self.config.references and has_references(self.config.corpus, corpus["manifest_sha256"])
            num_sequences = 1 + has_more
        return AnsweredShape(
            record=corpus["record"],
            num_sequences=num_sequences,
            max_tokens=self.config.max_tokens,
            too_long=self.config.too_long,
        )

    def _recipe(self, shape: Shape | None) -> Recipe:
        if isinstance(shape, ExampleShape):
            return examples_recipe(shape)
        template = self._template()
        if shape is not None:
            assert template is not None  # a corpus of such records is refused without one
            return preferences_recipe(shape, template)
        return DOCUMENTS if template is None else instructions_recipe(template, max_tokens=self.config.max_tokens)

    def _heldout_keys(self) -> frozenset[str]:
        """Split keys that are held out whatever their hash, for another record of theirs is."""
        corpus = self._corpus()
        if corpus["record"] not in ANSWERED or not self.config.use_split_hint:
            return frozenset()
        return heldout_prompts(self.config.corpus, corpus["manifest_sha256"])

    def _is_heldout(self, key: str, split_hint: str, *, heldout_keys: frozenset[str]) -> bool:
        hinted = self.config.use_split_hint and (split_hint == HELDOUT or key in heldout_keys)
        return hinted or is_heldout(key, self.config.heldout_fraction)

    def _committed(self, task: Task) -> dict[str, Any] | None:
        """The record of a task that is done for these inputs, its shards in place; else None."""
        path = self.output / TASKS_FOLDER / f"{task.name}.json"
        if not path.is_file():
            return None
        record: dict[str, Any] = json.loads(path.read_text())
        # A record of before classes were counted is made again.
        if record["inputs_sha256"] != task.spec["inputs_sha256"] or "classes" not in record:
            return None
        for entry in record["files"]:
            shard = self.output / entry["name"]
            if not shard.is_file() or shard.stat().st_size != entry["num_bytes"]:
                return None
        return record

    def _records(self) -> list[dict[str, Any]]:
        tasks = self.plan()
        records = [self._committed(task) for task in tasks]
        missing = [task.name for task, record in zip(tasks, records, strict=True) if record is None]
        if missing:
            raise StageError(
                f"{self.output}: {len(missing)} of {len(tasks)} tasks are not done, the first is {missing[0]}; "
                "start the build again, it goes on where it stopped"
            )
        return [record for record in records if record is not None]

    def _remove_task_records(self) -> None:
        if (self.output / TASKS_FOLDER).exists():
            disk.remove_tree(self.output / TASKS_FOLDER)

    def _remove_strays(self, names: set[str]) -> None:
        """Remove what killed or other builds left beside the shards."""
        remove_companions(self.output)
        for split in SPLITS:
            for path in (self.output / split).glob("part-*"):
                if path.relative_to(self.output).as_posix() not in names:
                    path.unlink()


def _shape_of(tree: dict[str, Any]) -> Shape:
    return AnsweredShape.from_tree(tree) if tree["record"] in ANSWERED else ExampleShape.from_tree(tree)


def _add_sources(records: list[dict[str, Any]]) -> dict[Split, dict[str, int]]:
    """Documents of each source in each split, over all parts."""
    total: dict[Split, Counter[str]] = {split: Counter() for split in SPLITS}
    for record in records:
        for split in SPLITS:
            total[split].update(record["sources"][split])
    return {split: dict(sorted(total[split].items())) for split in SPLITS}


@functools.lru_cache(maxsize=1)
def _encoder(folder: Path) -> Encoder:
    from data_pipeline.tokenizer.encode import Encoder

    return Encoder(folder)
