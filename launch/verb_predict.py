"""`dure predict RUN --input FILE`: a class with its probabilities, or a vector, of each row; whole or absent."""

from __future__ import annotations

import argparse
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline import disk
from launch.prediction_files import OF_CLASSES, OF_VECTORS, open_writer
from trainer.errors import RunError

if TYPE_CHECKING:
    from data_pipeline.corpus.sources import InputConfig
    from data_pipeline.corpus.texts import RejectedRow, TextRow
    from trainer.predict import Prediction, Predictor
    from trainer.saved import Saved

    Row = TextRow | RejectedRow

MADE_WITH_SUFFIX = ".made_with.json"
MAX_NAMED = 3  # rejected rows of a reason that are named


@dataclass
class Tally:
    """What a file held and what became of it. `rejected`: reason -> the first rows, and how many."""

    num_rows: int = 0
    num_cut: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    named: dict[str, list[str]] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)

    @property
    def num_rejected(self) -> int:
        return sum(self.rejected.values())

    def reject(self, row: RejectedRow) -> None:
        reason = row.reject.reason
        self.rejected[reason] += 1
        some = self.named.setdefault(reason, [])
        if len(some) < MAX_NAMED:
            some.append(f"row {row.number}: {row.reject.error}")

    def lines(self) -> Iterator[str]:
        """What a person must know of rows that could not be predicted, or not whole."""
        for reason, count in self.rejected.most_common():
            more = ", …" if count > len(self.named[reason]) else ""
            yield f"  {count:,} {reason}: {'; '.join(self.named[reason])}{more}"


def predict(arguments: argparse.Namespace) -> int:
    """Predict every row of a file; rows that can't be are counted, named and written as such."""
    if not arguments.input:
        raise RunError("--input: no file given; name a CSV, TSV, JSONL, JSON or Parquet file of texts")

    import torch

    from trainer.output_lock import only_writer
    from trainer.quiet import quieten_libraries
    from trainer.saved import find_saved
    from trainer.saved_head import head_of_saved, saved_head

    quieten_libraries(use_gpu=torch.cuda.is_available())
    saved = find_saved(arguments.path, checkpoint=arguments.checkpoint)
    if saved.told:
        print(saved.told)
    is_classifier = head_of_saved(saved) == "classifier"
    output = _output(arguments, is_classifier=is_classifier)
    options = _options(arguments)
    with only_writer(output):
        if output.exists():
            raise RunError(f"{output}: exists already, and is never written over; remove it, or give another --output")
        found = _look(options, num_texts=saved_head(saved).num_texts if is_classifier else 0)
        tally = _write(saved, options, output, num_rows=found.num_rows, arguments=arguments)
        disk.write_json(output.with_name(output.name + MADE_WITH_SUFFIX), _made_with(saved, options, tally))
    _tell(output, tally)
    return 0


def _options(arguments: argparse.Namespace) -> InputConfig:
    from data_pipeline.corpus.sources import InputConfig

    columns = {"text_a": arguments.text_a, "text_b": arguments.text_b}
    named = {key: value for key, value in columns.items() if value}
    if arguments.text_b and not arguments.text_a:
        raise RunError(f"--text-b: {arguments.text_b!r} is the second of two texts; name the first with --text-a")
    tree: dict[str, Any] = {"path": arguments.input, **({"columns": named} if named else {})}
    return InputConfig.model_validate(tree | ({"format": arguments.format} if arguments.format else {}))


def _output(arguments: argparse.Namespace, *, is_classifier: bool) -> Path:
    suffixes = OF_CLASSES if is_classifier else OF_VECTORS
    if not arguments.output:
        beside = Path(Path(arguments.input).name if arguments.input.startswith("hf:") else arguments.input)
        return beside.with_suffix(".predictions.jsonl" if is_classifier else ".vectors.parquet")
    output = Path(arguments.output)
    if output.suffix not in suffixes:
        what = "classes" if is_classifier else "vectors"
        raise RunError(
            f"--output: {output}: {what} are written as {', '.join(suffixes)}; end the name with one of them"
        )
    return output


def _rows(options: InputConfig) -> Iterator[Row]:
    from data_pipeline.corpus.texts import read_texts

    return read_texts(options.path, options, "label")


def _look(options: InputConfig, *, num_texts: int) -> Tally:
    """Read every row once, before a model is loaded.

    Args:
        num_texts: of a row that the model learnt from; 0 where that is not known.

    Raises:
        RunError: there is nothing to predict, or rows have another number of texts.
    """
    from data_pipeline.corpus.texts import RejectedRow

    tally, others = Tally(), Counter[int]()
    first = 0
    for row in _rows(options):
        tally.num_rows += 1
        if isinstance(row, RejectedRow):
            tally.reject(row)
        elif num_texts and len(row.texts) != num_texts:
            first = first if others else row.number
            others[len(row.texts)] += 1
    if others:
        have = " or ".join(_texts(number) for number in sorted(others))
        name = "name its column by --text-a" if num_texts == 1 else "name both columns by --text-a and --text-b"
        raise RunError(
            f"{options.path}: the model learnt from rows of {_texts(num_texts)}, but {others.total():,} of "
            f"{tally.num_rows:,} rows have {have} (the first is row {first}; 글의 개수가 다름); {name}"
        )
    if tally.num_rows == tally.num_rejected:
        told = "\n".join(["", *tally.lines()])
        raise RunError(f"{options.path}: none of its {tally.num_rows:,} rows can be predicted; name its columns{told}")
    return tally


def _texts(number: int) -> str:
    return f"{number} text{'s' * (number != 1)}"


def _write(saved: Saved, options: InputConfig, output: Path, *, num_rows: int, arguments: argparse.Namespace) -> Tally:
    from tqdm import tqdm

    from data_pipeline.corpus.texts import RejectedRow
    from trainer.predict import open_predictor

    predictor, tally = open_predictor(saved, quantize=arguments.quantize), Tally()
    is_classifier = predictor.told.head == "classifier"
    with (
        open_writer(output, labels=predictor.labels, num_rows=num_rows) as writer,
        tqdm(total=num_rows, desc="predict", unit="row", disable=None) as bar,
    ):
        for row, prediction in _predicted(predictor, _rows(options), batch=arguments.batch, one_text=not is_classifier):
            tally.num_rows += 1
            if isinstance(row, RejectedRow):
                tally.reject(row)
            elif prediction is not None:
                tally.num_cut += prediction.num_cut > 0
                if is_classifier:
                    tally.labels[predictor.labels[int(prediction.scores.argmax())]] += 1
            writer.write(row, prediction)
            bar.update(1)
        if tally.num_rows != num_rows:
            raise RunError(
                f"{options.path}: had {num_rows:,} rows at the first look, and {tally.num_rows:,} when they were "
                "predicted: it was changed meanwhile; start again"
            )
    return tally


def _predicted(
    predictor: Predictor, rows: Iterator[Row], *, batch: int, one_text: bool
) -> Iterator[tuple[Row, Prediction | None]]:
    """Every row in its order, with what the model says of it; None beside those that it was not asked about."""
    from data_pipeline.corpus.texts import TextRow
    from trainer.predict import predict

    waiting: deque[Row] = deque()

    def asked() -> Iterator[tuple[str, ...]]:
        for row in rows:
            waiting.append(row)
            if not isinstance(row, TextRow):
                continue
            if one_text and len(row.texts) > 1:
                raise RunError(
                    f"row {row.number}: has {len(row.texts)} texts, but a vector is of one; name its column by --text-a"
                )
            yield row.texts

    for prediction in predict(predictor, asked(), batch_sequences=batch):
        while not isinstance(waiting[0], TextRow):
            yield waiting.popleft(), None
        yield waiting.popleft(), prediction
    while waiting:
        yield waiting.popleft(), None


def _made_with(saved: Saved, options: InputConfig, tally: Tally) -> dict[str, Any]:
    from trainer.saved import usual_dtype, weights_sha256

    return {
        "model": str(saved.checkpoint or saved.path),
        "step": saved.step,
        "weights_sha256": weights_sha256(saved),
        "dtype": usual_dtype(saved),
        "input": str(options.path),
        "num_rows": tally.num_rows,
        "num_cut": tally.num_cut,
        "rejected": dict(tally.rejected),
    }


def _tell(output: Path, tally: Tally) -> None:
    print(f"{output}: {tally.num_rows - tally.num_rejected:,} of {tally.num_rows:,} rows predicted (완료)")
    for label, count in tally.labels.most_common():
        print(f"  {count:>9,} {label}")
    if tally.num_cut:
        print(f"  {tally.num_cut:,} rows were longer than the model's sequences, and were cut at their ends (잘림)")
    if tally.num_rejected:
        print(
            f"  {tally.num_rejected:,} rows could not be predicted (예측하지 못한 행); they stand there with an error:"
        )
        for line in tally.lines():
            print(f"  {line}")
