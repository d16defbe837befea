"""How each kind of record is read: a table. A further kind is a row of it, and a row of `records.SCHEMAS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from data_pipeline.corpus import aihub, examples, instructions, preferences
from data_pipeline.corpus.columns import DOCUMENTS, RowShape
from data_pipeline.corpus.delimited import read_csv, read_tsv
from data_pipeline.corpus.examples import LABELS, PAIRS
from data_pipeline.corpus.instructions import INSTRUCTIONS
from data_pipeline.corpus.parquet import read_parquet
from data_pipeline.corpus.preferences import FEEDBACK, PREFERENCES, PROMPTS
from data_pipeline.corpus.records import Found, RecordName
from data_pipeline.corpus.sources import InputConfig, Kind
from data_pipeline.corpus.workbook import read_workbook

# Of tables; JSONL, which is read by byte ranges, and JSON, which is read whole or not at all, are `read.py`'s.
ROW_READERS: dict[Kind, Callable[[BinaryIO, InputConfig, RowShape], Iterator[Found]]] = {
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": read_parquet,
    "xlsx": read_workbook,
}


def _skip_workbook(path: str, kind: Kind | None) -> str:
    """A workbook beside documents tells of them: AIHub's lists of files, a team's notes."""
    return "no_reader" if kind == "xlsx" else ""


@dataclass(frozen=True)
class RecordKind:
    """What rows of named columns become, what a JSON file holds, and why a file that could be read is passed over.

    `is_all`: whether all that a package holds should be of this kind, so that other files speak against it. `columns`:
    the keys of the config's columns that it takes, and `needs` the sets of them of which it must have one.
    """

    rows: RowShape
    read_json: Callable[[BinaryIO, InputConfig], Iterator[Found]]
    skip_reason: Callable[[str, Kind | None], str]
    is_all: bool = False
    columns: tuple[str, ...] = ()
    needs: tuple[tuple[str, ...], ...] = ()


_ASKED = ("prompt", "input", "system", "id")
_COMPARED = ("chosen", "rejected", "answers", "ranking", "ratings")
_COMPARISONS = (("chosen", "rejected"), ("prompt", "answers", "ranking"), ("prompt", "answers", "ratings"))

KINDS: dict[RecordName, RecordKind] = {
    "document": RecordKind(DOCUMENTS, aihub.read_aihub, _skip_workbook, is_all=True),
    "instruction": RecordKind(
        INSTRUCTIONS.shape,
        INSTRUCTIONS.read_json,
        instructions.skip_reason,
        columns=("instruction", "output", "input", "system", "messages", "id"),
        needs=(("instruction", "output"), ("messages",)),
    ),
    "label": RecordKind(
        LABELS.shape,
        LABELS.read_json,
        examples.skip_reason,
        columns=("text_a", "text_b", "label", "id"),
        needs=(("text_a", "label"),),
    ),
    "pair": RecordKind(
        PAIRS.shape,
        PAIRS.read_json,
        examples.skip_reason,
        columns=("text_a", "text_b", "text_c", "score", "id"),
        needs=(("text_a", "text_b"),),
    ),
    "preference": RecordKind(
        PREFERENCES.shape,
        PREFERENCES.read_json,
        preferences.skip_reason,
        columns=(*_ASKED, *_COMPARED),
        needs=_COMPARISONS,
    ),
    "feedback": RecordKind(
        FEEDBACK.shape,
        FEEDBACK.read_json,
        preferences.skip_reason,
        columns=(*_ASKED, "answer", "is_desirable", "messages", *_COMPARED),
        needs=(("prompt", "answer", "is_desirable"), ("messages", "is_desirable"), *_COMPARISONS),
    ),
    "prompt": RecordKind(
        PROMPTS.shape,
        PROMPTS.read_json,
        preferences.skip_text,
        columns=(*_ASKED, "answer", "is_desirable", "messages", *_COMPARED, "instruction", "output"),
        needs=(("prompt",), ("messages",), ("instruction", "output"), ("chosen", "rejected")),
    ),
}
