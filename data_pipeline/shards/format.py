"""What a folder of token shards looks like: schema, split names, and the manifest as typed values.

    manifest.json                 written last; tokenizer fingerprint, counts, a hash of each file
    tokenizer/                    what made the ids: tokenizer.json and the settings beside it
    template.yaml                 what rendered the rows of instruction records
    train/part-00000-0000.arrow   part of the corpus, then number of the shard made from it
    heldout/part-00000-0000.arrow
    rows/...                      row tables, made later by data_pipeline/stream/table.py

Every document is its ids and a final EOS. A document of n + 1 ids gives n (input, label) pairs, here called pairs. In
shards of instruction records a row is a document with `loss_spans`: the ids [start, end) of it that are targets. In
shards of label and pair records a row is an example of `num_sequences` framed sequences one after another: `ends` tells
where each of them ends, and `value` is the number of its class, or its score. So are preference (the prompt with the
chosen and with the rejected answer), feedback (the prompt with an answer, `value` 1 where it is desirable) and prompt
records (the prompt, then perhaps an answer to compare with, as it is); their `loss_spans` count from the row's first id
and are the ids of each sequence's last answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from data_pipeline.stage import Manifest, StageError, read_manifest

if TYPE_CHECKING:
    from data_pipeline.templates.template import Template

KIND = "shards"
FORMAT_VERSION = 2
TOKENIZER_FOLDER = "tokenizer"
TEMPLATE_FILE = "template.yaml"
RECORDS_PER_BATCH = 65_536
SPLITS: tuple[Split, ...] = ("train", "heldout")
LOSS_SPANS = pa.list_(
    pa.field(
        "item",
        pa.struct([pa.field("start", pa.int32(), nullable=False), pa.field("end", pa.int32(), nullable=False)]),
        nullable=False,
    )
)

ENDS = pa.list_(pa.field("item", pa.int32(), nullable=False))

Split = Literal["train", "heldout"]
RecordKind = Literal["document", "instruction", "label", "pair", "preference", "feedback", "prompt"]
FrameKind = Literal["bert", "roberta", "plain"]

_ENDS, _VALUE = pa.field("ends", ENDS, nullable=False), pa.field("value", pa.float64(), nullable=False)
_SPANS = pa.field("loss_spans", LOSS_SPANS, nullable=False)
# Columns beside those that every shard has.
COLUMNS: dict[RecordKind, tuple[pa.Field, ...]] = {
    "document": (),
    "instruction": (_SPANS,),
    "label": (_ENDS, _VALUE),
    "pair": (_ENDS, _VALUE),
    "preference": (_ENDS, _SPANS),
    "feedback": (_ENDS, _SPANS, _VALUE),
    "prompt": (_ENDS,),
}
FRAMED: tuple[RecordKind, ...] = ("label", "pair")  # their texts stand in a frame of the tokenizer's roles
ANSWERED: tuple[RecordKind, ...] = ("preference", "feedback", "prompt")  # rendered by a template, as instructions are
TEMPLATED: tuple[RecordKind, ...] = ("instruction", *ANSWERED)
EXAMPLES: tuple[RecordKind, ...] = (*FRAMED, *ANSWERED)  # records whose rows are examples, which are never packed


@dataclass(frozen=True)
class Frame:
    """What stands around the texts of a sequence; ids of the tokenizer's roles.

    bert: CLS a SEP [b SEP]; roberta: CLS a SEP [SEP b SEP]; plain, without a sep_id: a EOS [b EOS], behind
    cls_id where the tokenizer begins a text by one (BOS).
    """

    kind: FrameKind
    cls_id: int | None = None
    sep_id: int | None = None


@dataclass(frozen=True)
class ShardFile:
    """One Arrow file: where it lies and what each of its record batches holds."""

    path: Path
    num_bytes: int
    batch_documents: tuple[int, ...]
    batch_tokens: tuple[int, ...]


@dataclass(frozen=True)
class ShardSet:
    """The shards of one split, in corpus order, as the manifest tells them. Nothing is opened.

    `num_targets`: of examples one each. `num_sequences` (of an example), `labels` (class names in the order of their
    numbers, of label records) and `frame` are 0, () and None where rows are no examples.
    """

    folder: Path
    split: str
    record: RecordKind
    manifest_sha256: str
    content_sha256: str
    """Of all that decides the rows, and no figure that was measured while they were made: what an order is keyed by."""
    tokenizer_fingerprint: str
    dtype: np.dtype[Any]
    vocab_size: int
    eos_id: int
    pad_id: int
    num_documents: int
    num_tokens: int
    num_targets: int
    num_bytes: int
    files: tuple[ShardFile, ...]
    num_sequences: int = 0
    labels: tuple[str, ...] = ()
    frame: Frame | None = None

    @property
    def pad_is_eos(self) -> bool:
        """Whether the tokenizer has no pad token; a model with a free row pads with that, another one with EOS."""
        return self.pad_id == self.eos_id

    @property
    def num_pairs(self) -> int:
        """(input, label) pairs of documents and instruction rows: each token but the last of one is an input once."""
        return self.num_tokens - self.num_documents


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest unsigned type that holds every id of a vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def shard_schema(dtype: np.dtype[Any], *, record: RecordKind) -> pa.Schema:
    """Columns of a shard."""
    ids = pa.large_list(pa.field("item", pa.from_numpy_dtype(dtype), nullable=False))
    columns = [
        pa.field("input_ids", ids, nullable=False),
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
    ]
    return pa.schema([*columns, *COLUMNS[record]])


def read_shards_manifest(folder: Path) -> Manifest:
    """The manifest of a finished shards folder of this format version."""
    manifest = read_manifest(folder, kind=KIND)
    if manifest.get("format_version") != FORMAT_VERSION:
        found = manifest.get("format_version")
        raise StageError(
            f"{folder}: format_version is {found!r}, this program reads {FORMAT_VERSION}; run `dure shards build` again"
        )
    return manifest


def read_shards(folder: Path, *, split: str) -> ShardSet:
    """The shards of one split. Raises StageError if the folder is unfinished or holds no document of that split."""
    manifest = read_shards_manifest(folder)
    counts = manifest["splits"].get(split)
    if counts is None:
        raise StageError(f"{folder}: split {split!r} does not exist; the splits are {', '.join(manifest['splits'])}")
    if counts["num_documents"] == 0:
        raise StageError(
            f"{folder}: split {split!r} holds 0 documents; "
            "raise heldout_fraction or add text, and build the shards again"
        )
    tokenizer, record = manifest["tokenizer"], manifest.get("record", "document")
    num_pairs = counts["num_tokens"] - counts["num_documents"]
    return ShardSet(
        folder=folder,
        split=split,
        record=record,
        manifest_sha256=manifest["manifest_sha256"],
        # Of older shards the whole manifest, as their runs began with it.
        content_sha256=str(manifest.get("content_sha256") or manifest["manifest_sha256"]),
        tokenizer_fingerprint=manifest["tokenizer_fingerprint"],
        dtype=np.dtype(manifest["dtype"]),
        vocab_size=tokenizer["vocab_size"],
        eos_id=tokenizer["eos_id"],
        # Padding is never a target and nothing attends to it, so EOS may stand in until a model offers a free row.
        pad_id=tokenizer["eos_id"] if tokenizer["pad_id"] is None else tokenizer["pad_id"],
        num_documents=counts["num_documents"],
        num_tokens=counts["num_tokens"],
        num_targets=counts["num_documents"] if record in EXAMPLES else counts.get("num_targets", num_pairs),
        num_bytes=counts["num_bytes"],
        files=tuple(_shard_file(folder, entry) for entry in manifest["files"] if entry["split"] == split),
        num_sequences=manifest.get("num_sequences", 0),
        labels=tuple(manifest.get("labels", ())),
        frame=Frame(**manifest["frame"]) if manifest.get("frame") else None,
    )


def _shard_file(folder: Path, entry: dict[str, Any]) -> ShardFile:
    return ShardFile(
        path=folder / entry["name"],
        num_bytes=entry["num_bytes"],
        batch_documents=tuple(entry["batch_documents"]),
        batch_tokens=tuple(entry["batch_tokens"]),
    )


def check_tokenizer(shards: Path, tokenizer_fingerprint: str) -> None:
    """Raise StageError unless the shards were made with the tokenizer of that fingerprint."""
    found = read_shards_manifest(shards)["tokenizer_fingerprint"]
    if found != tokenizer_fingerprint:
        raise StageError(
            f"{shards}: made with tokenizer {found[:16]}…, but this run uses {tokenizer_fingerprint[:16]}… "
            "(다른 토크나이저의 샤드); give the tokenizer that made them, or build shards with this one"
        )


def tokenizer_folder(shards: Path) -> Path:
    """The tokenizer that made a finished shards folder, kept inside it; raises StageError where there is none."""
    folder = shards / TOKENIZER_FOLDER
    if not (folder / "tokenizer.json").is_file():
        read_shards_manifest(shards)
        raise StageError(f"{folder}: no tokenizer.json there, so these shards can't be decoded; build them again")
    return folder


def template_of(shards: Path) -> Template | None:
    """The template that rendered the rows of a finished shards folder; None for shards of documents."""
    says = read_shards_manifest(shards).get("template")
    if says is None:
        return None
    from data_pipeline.templates.load import load_template

    template = load_template(str(shards / TEMPLATE_FILE), tokenizer=tokenizer_folder(shards))
    if template.sha256 != says["sha256"]:
        raise StageError(
            f"{shards / TEMPLATE_FILE}: the template is {template.sha256[:16]}…, manifest.json says "
            f"{says['sha256'][:16]}…; restore the file, or build the shards again"
        )
    return template
