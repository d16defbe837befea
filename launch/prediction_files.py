"""Predictions as files: a line or a row for each row of the input, in its order, the bad ones among them.

.jsonl  .csv        classes: row, id, texts, label, probability, the probability of each class
.parquet  .npy      vectors: (rows, H) float32; NaN in .npy, null in .parquet for a row without one
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from data_pipeline import disk

if TYPE_CHECKING:
    from data_pipeline.corpus.texts import RejectedRow, TextRow
    from trainer.predict import Prediction

    Row = TextRow | RejectedRow

OF_CLASSES = (".jsonl", ".csv")
OF_VECTORS = (".parquet", ".npy")
ROWS_A_GROUP = 4_096
DIGITS = 6  # of a probability


class Writer(Protocol):
    """Takes every row of the input in order; `prediction` is None beside a bad one."""

    def write(self, row: Row, prediction: Prediction | None) -> None: ...

    def close(self) -> None: ...


@contextlib.contextmanager
def open_writer(path: Path, *, labels: Sequence[str], num_rows: int) -> Iterator[Writer]:
    """What writes `path` by its suffix; the file is there when the block has ended, and not before."""
    with disk.durable_file(path) as file:
        writer = _WRITERS[path.suffix](file, labels, num_rows)
        yield writer
        writer.close()


def _columns(row: Row) -> dict[str, Any]:
    """What of a row is told in every format; `error` for a bad one."""
    texts = getattr(row, "texts", None)
    if texts is None:
        reject = row.reject  # type: ignore[union-attr]
        return {"row": row.number, "error": f"{reject.reason}: {reject.error}"}
    named = dict(zip(("text_a", "text_b"), texts, strict=False))
    return {"row": row.number, "id": row.id, **named}  # type: ignore[union-attr]


class _Jsonl:
    def __init__(self, file: Any, labels: Sequence[str], num_rows: int) -> None:
        self._file, self._labels = file, labels

    def write(self, row: Row, prediction: Prediction | None) -> None:
        line = _columns(row)
        if prediction is not None:
            line |= _class_of(prediction, self._labels)
            line["probabilities"] = _probabilities(prediction, self._labels)
        self._file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())

    def close(self) -> None:
        pass


class _Csv:
    """With a byte order mark, by which Excel knows UTF-8."""

    def __init__(self, file: Any, labels: Sequence[str], num_rows: int) -> None:
        self._file, self._labels = file, labels
        self._text = io.StringIO()
        beside = ["row", "id", "text_a", "text_b", "label", "probability"]
        names = [*beside, *(f"p({label})" for label in labels), "num_cut_tokens", "error"]
        self._writer = csv.DictWriter(self._text, names, restval="")
        file.write(b"\xef\xbb\xbf")
        self._writer.writeheader()

    def write(self, row: Row, prediction: Prediction | None) -> None:
        line = _columns(row)
        if prediction is not None:
            line |= _class_of(prediction, self._labels)
            line |= {f"p({label})": share for label, share in _probabilities(prediction, self._labels).items()}
        self._writer.writerow(line)
        self.close()

    def close(self) -> None:
        self._file.write(self._text.getvalue().encode())
        self._text.seek(0)
        self._text.truncate()


def _class_of(prediction: Prediction, labels: Sequence[str]) -> dict[str, Any]:
    best = int(prediction.scores.argmax())
    share = round(float(prediction.scores[best]), DIGITS)
    return {"label": labels[best], "probability": share, "num_cut_tokens": prediction.num_cut}


def _probabilities(prediction: Prediction, labels: Sequence[str]) -> dict[str, float]:
    return {label: round(float(share), DIGITS) for label, share in zip(labels, prediction.scores, strict=True)}


class _Parquet:
    def __init__(self, file: Any, labels: Sequence[str], num_rows: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        texts = [(name, pa.string()) for name in ("id", "text_a", "error")]
        counts = [("num_cut_tokens", pa.int64())]
        schema = pa.schema([("row", pa.int64()), *texts, *counts, ("vector", pa.list_(pa.float32()))])
        self._writer = pq.ParquetWriter(file, schema)
        self._rows: list[dict[str, Any]] = []

    def write(self, row: Row, prediction: Prediction | None) -> None:
        told = {} if prediction is None else {"vector": prediction.scores, "num_cut_tokens": prediction.num_cut}
        self._rows.append(_columns(row) | told)
        if len(self._rows) == ROWS_A_GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._writer.schema))
        self._rows = []


class _Npy:
    """NumPy's own format, version 1.0, written as it comes: the number of rows is known."""

    def __init__(self, file: Any, labels: Sequence[str], num_rows: int) -> None:
        self._file, self._num_rows = file, num_rows
        self._num_before, self._width = 0, 0

    def write(self, row: Row, prediction: Prediction | None) -> None:
        import numpy as np

        if prediction is None and not self._width:
            self._num_before += 1  # the width is told by the first vector
            return
        if not self._width:
            assert prediction is not None
            self._width = len(prediction.scores)
            header = {"descr": "<f4", "fortran_order": False, "shape": (self._num_rows, self._width)}
            np.lib.format.write_array_header_1_0(self._file, header)
            self._file.write(np.full((self._num_before, self._width), np.nan, "<f4").tobytes())
        vector = np.full(self._width, np.nan) if prediction is None else prediction.scores
        self._file.write(vector.astype("<f4").tobytes())

    def close(self) -> None:
        pass


_WRITERS: dict[str, Any] = {".jsonl": _Jsonl, ".csv": _Csv, ".parquet": _Parquet, ".npy": _Npy}
