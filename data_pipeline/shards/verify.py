"""`dure shards verify`: hashes of all files, and whether the shards say what the manifest says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.shards.format import ANSWERED, FRAMED, SPLITS, ShardSet, read_shards, read_shards_manifest
from data_pipeline.shards.reader import loss_spans, open_shard, values
from data_pipeline.shards.verify_answers import faults_of_answers
from data_pipeline.shards.verify_examples import faults_of_examples
from data_pipeline.stage import MANIFEST_NAME, Manifest, StageError, read_manifest, verify_files


def verify(folder: Path) -> list[str]:
    """A line for each fault of a finished shards folder and of the row tables beside it; [] when all is sound.

    Raises StageError if there is no sound manifest to hold the files against.
    """
    manifest = read_shards_manifest(folder)
    faults = verify_files(folder, manifest)
    faults += verify_files(folder, {"files": manifest.get("companions", [])})
    for split in SPLITS:
        if manifest["splits"][split]["num_documents"]:
            faults += _faults_of_split(read_shards(folder, split=split), manifest)
    return faults + list(_faults_of_tables(folder, manifest))


def _faults_of_split(shards: ShardSet, manifest: Manifest) -> list[str]:
    faults: list[str] = []
    found = {"num_documents": 0, "num_tokens": 0, "num_bytes": 0, "num_empty": 0}
    says = manifest["splits"][shards.split]
    if shards.record in ("instruction", "preference", "feedback"):
        found["num_targets"] = 0
    if shards.record == "feedback":
        found["num_desirable"] = 0
    if shards.record == "pair":
        found["num_scored"] = 0
    if shards.record == "label":
        classes = manifest["classes"][shards.split]
        says = says | {f"class {number}": classes[label] for number, label in enumerate(shards.labels)}
        found |= {f"class {number}": 0 for number in range(len(shards.labels))}
    for file in shards.files:
        try:
            for number, batch in enumerate(open_shard(file)):
                faults += _faults_of_batch(batch, shards, where=f"{file.path}: record batch {number}")
                for key, count in _counts(batch, shards).items():
                    found[key] = found.get(key, 0) + count
        except StageError as error:
            faults.append(str(error))
            return faults  # the counts below would only repeat it
    for key, count in found.items():
        if says.get(key, count) != count:
            faults.append(
                f"{shards.folder}: split {shards.split!r} has {key} {count:,}, {MANIFEST_NAME} says {says[key]:,}; "
                "build again"
            )
    return faults


def _faults_of_batch(batch: pa.RecordBatch, shards: ShardSet, *, where: str) -> Iterator[str]:
    column = batch.column("input_ids")
    ids, offsets = column.values.to_numpy(), column.offsets.to_numpy()
    if offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) < 1).any():
        yield f"{where}: the offsets of its documents are not ascending from 0 to {len(ids):,}; build again"
        return
    ends = ids[offsets[1:] - 1]
    if shards.record not in (*FRAMED, *ANSWERED) and (ends != shards.eos_id).any():
        place = int(np.argmax(ends != shards.eos_id))
        name = batch.column("record_id")[place].as_py()
        yield f"{where}: document {name!r} ends in id {ends[place]}, not in EOS {shards.eos_id}; build again"
    if int(ids.max()) >= shards.vocab_size:
        yield f"{where}: id {int(ids.max())} is not below vocab_size {shards.vocab_size}; build again"
    if shards.record == "instruction":
        yield from _faults_of_spans(batch, shards, where=where)
    if shards.record in FRAMED:
        yield from faults_of_examples(batch, shards, where=where)
    if shards.record in ANSWERED:
        yield from faults_of_answers(batch, shards, where=where)


def _faults_of_spans(batch: pa.RecordBatch, shards: ShardSet, *, where: str) -> Iterator[str]:
    """Law 10: spans lie inside their row, in order, and each ends in an EOS; the first id is never a target."""
    ids, offsets = batch.column("input_ids").values.to_numpy(), batch.column("input_ids").offsets.to_numpy()
    span_offsets, starts, ends = loss_spans(batch)
    if span_offsets[0] != 0 or span_offsets[-1] != len(starts) or (np.diff(span_offsets) < 0).any():
        yield f"{where}: the offsets of its loss_spans are not ascending from 0 to {len(starts):,}; build again"
        return
    row = np.repeat(np.arange(batch.num_rows), np.diff(span_offsets))
    lengths = np.diff(offsets)
    is_first = np.diff(row, prepend=-1) != 0
    before = np.where(is_first, 1, np.concatenate([np.zeros(1, np.int64), ends])[:-1])
    is_outside = (starts < before) | (ends <= starts) | (ends > lengths[row])
    names = batch.column("record_id")
    if is_outside.any():
        place = int(np.argmax(is_outside))
        yield (
            f"{where}: document {names[int(row[place])].as_py()!r} has loss span {starts[place]} – {ends[place]}, "
            f"but it must lie in {before[place]} – {lengths[row[place]]}; build again"
        )
        return
    if (np.diff(span_offsets) == 0).any():
        place = int(np.argmax(np.diff(span_offsets) == 0))
        yield f"{where}: document {names[place].as_py()!r} has no loss span, so nothing to learn; build again"
    lasts = ids[offsets[row] + ends - 1]
    if (lasts != shards.eos_id).any():
        place = int(np.argmax(lasts != shards.eos_id))
        yield (
            f"{where}: a loss span of document {names[int(row[place])].as_py()!r} ends in id {lasts[place]}, "
            f"not in EOS {shards.eos_id}; build again"
        )


def _counts(batch: pa.RecordBatch, shards: ShardSet) -> dict[str, int]:
    lengths = np.diff(batch.column("input_ids").offsets.to_numpy())
    if shards.record in ("instruction", "preference", "feedback"):
        _, starts, ends = loss_spans(batch)
        desirable = {"num_desirable": int((values(batch) == 1).sum())} if shards.record == "feedback" else {}
        targets = {"num_targets": int((ends - starts).sum(dtype=np.int64))}
        return _counts_of_ids(batch, lengths) | targets | desirable
    if shards.record == "pair":
        return _counts_of_ids(batch, lengths) | {"num_scored": int(np.count_nonzero(~np.isnan(values(batch))))}
    if shards.record == "label":
        return _counts_of_ids(batch, lengths) | Counter(f"class {value:g}" for value in values(batch).tolist())
    return _counts_of_ids(batch, lengths)


def _counts_of_ids(batch: pa.RecordBatch, lengths: Any) -> dict[str, int]:
    return {
        "num_documents": batch.num_rows,
        "num_tokens": len(batch.column("input_ids").values),
        "num_bytes": int(batch.column("num_bytes").to_numpy().sum()),
        "num_empty": int(np.count_nonzero(lengths == 1)),
    }


def _faults_of_tables(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    for path in sorted((folder / "rows").glob(f"*/{MANIFEST_NAME}")):
        table = read_manifest(path.parent, kind="rows")
        if table["shards_manifest_sha256"] == manifest["manifest_sha256"]:
            yield from (
                fault.replace("build again", f"remove {path.parent}") for fault in verify_files(path.parent, table)
            )
