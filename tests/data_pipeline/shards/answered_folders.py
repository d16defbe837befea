"""Corpora of preferences, feedback and prompts, through the code that the stages use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipeline import disk
from data_pipeline.corpus.records import AnsweredRecord, RecordName, RecordWriter
from data_pipeline.stage import write_manifest
from tests.data_pipeline.shards.folders import turns

Row = dict[str, Any]

PREFERENCES: list[Row] = [
    {"prompt": turns("수도는?"), "chosen": "서울입니다.", "rejected": "모릅니다"},
    {"prompt": turns("더하면?", "셋", "빼면?", system="짧게.", given="1 2"), "chosen": "하나 🙂", "rejected": "둘"},
    {"prompt": turns("<|endoftext|> ### 답변:"), "chosen": "<|endoftext|>", "rejected": "네 <|im_end|>"},
    {"prompt": turns("수도는?"), "chosen": "서울", "rejected": "부산"},
]
FEEDBACK: list[Row] = [
    {"prompt": row["prompt"], "answer": row[name], "is_desirable": name == "chosen"}
    for row in PREFERENCES
    for name in ("chosen", "rejected")
]
PROMPTS: list[Row] = [{"prompt": row["prompt"], "answer": row["chosen"]} for row in PREFERENCES[:3]]
ROWS: dict[RecordName, list[Row]] = {"preference": PREFERENCES, "feedback": FEEDBACK, "prompt": PROMPTS}


def write_answered(
    folder: Path, record: RecordName, parts: Sequence[Sequence[Row]], *, heldout: Sequence[int] = ()
) -> Path:
    """A corpus of those rows, numbered; the numbers in `heldout` carry the hint."""
    (folder / "data").mkdir(parents=True)
    entries, number = [], 0
    for part, rows in enumerate(parts):
        path = folder / "data" / f"part-{part:05d}.parquet"
        with disk.durable_file(path) as file:
            writer = RecordWriter(file, kind=record)
            for row in rows:
                cells = {name: cell for name, cell in row.items() if name != "prompt"}
                beside = {"source": "시험", "metadata": "{}", "split_hint": "heldout" if number in heldout else ""}
                writer.write(AnsweredRecord(f"행-{number}", tuple(row["prompt"]), cells, **beside))
                number += 1
            writer.close()
        entries.append(asdict(file.record(f"data/{path.name}")) | {"num_records": len(rows)})
    write_manifest(folder, {"kind": "corpus", "record": record, "files": entries, "num_records": number})
    return folder
