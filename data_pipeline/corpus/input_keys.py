"""The keys of an input held against the kind of record that is built, and those of them that decide the result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_pipeline.corpus.kinds import KINDS
from data_pipeline.corpus.mapping import Columns
from data_pipeline.corpus.records import RecordName
from data_pipeline.corpus.sources import InputConfig

# Keys of classes, and of answers that are compared, and the records that they are for.
_OF_RECORDS: dict[str, tuple[RecordName, ...]] = {
    "label_names": ("label",),
    "pairs": ("preference",),
    "ties": ("preference", "feedback"),
    "min_margin": ("preference", "feedback"),
}


def unfit_keys(record: RecordName, index: int, options: InputConfig) -> Iterator[str]:
    """The keys of an input that mean nothing to records of this kind, each with what to set instead."""
    if options.columns is not None:
        yield from _unfit_columns(record, f"inputs.{index}.columns", options.columns)
    for key, records in _OF_RECORDS.items():
        value = getattr(options, key)
        if record not in records and value != InputConfig.model_fields[key].default:
            kinds = " or ".join(records)
            yield f"inputs.{index}.{key} is {value!r}, but record is {record}; leave it out, or set record: {kinds}"
    if record == "document":
        return
    for key, instead in (("text_column", "columns"), ("id_column", "columns.id")):
        if getattr(options, key) != InputConfig.model_fields[key].default:
            yield f"inputs.{index}.{key} is for documents, but record is {record}; set inputs.{index}.{instead}"
    if options.format == "text":
        yield f"inputs.{index}.format is text, which has no rows, but record is {record}; give JSON, JSONL or a table"


def _unfit_columns(record: RecordName, where: str, columns: Columns) -> Iterator[str]:
    taken, named = KINDS[record].columns, list(columns.named)
    fitting = [name for name, kind in KINDS.items() if kind.columns and set(named) <= set(kind.columns)]
    if not taken:
        yield (
            f"{where} is for record: {' or '.join(fitting) or 'instruction, label or pair'}, but record is {record}; "
            "set record, or leave columns out"
        )
    elif others := [name for name in named if name not in taken]:
        instead = f", or set record: {fitting[0]}" if fitting else ""
        yield (
            f"{where} names {', '.join(others)}, but record is {record}, which takes {', '.join(taken)}; leave "
            f"{'it' if len(others) == 1 else 'them'} out{instead}"
        )
    elif not any(set(needed) <= set(named) for needed in KINDS[record].needs):
        needs = ", or ".join(" and ".join(needed) for needed in KINDS[record].needs)
        yield f"{where} names {', '.join(named)}, but record is {record}, which needs {needs}; name what is missing"


def deciding_keys(options: dict[str, Any]) -> dict[str, Any]:
    """What of an input's config decides the result. Keys of a later version do so only where they are set."""
    later = {key: InputConfig.model_fields[key].default for key in ("split", *_OF_RECORDS)}
    tree = {key: value for key, value in options.items() if key != "path" and (key not in later or value != later[key])}
    if tree["columns"]:
        named = tree["columns"].items()
        tree["columns"] = {key: name for key, name in named if name or key in KINDS["instruction"].columns}
    return tree
