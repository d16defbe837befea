"""`dure generate RUN --input ROWS`: an answer to each row, in batches, into a file that a later call goes on with."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline import disk
from data_pipeline.corpus.texts import RejectedRow
from launch.question_rows import QuestionRow, read_questions, read_task
from launch.sampling_flags import sampling_of
from launch.verb_predict import Tally
from trainer.errors import RunError

if TYPE_CHECKING:
    from data_pipeline.corpus.task_rows import TaskName
    from trainer.conversation import Speaker
    from trainer.generate import Sampling
    from trainer.saved import Saved

MADE_WITH_SUFFIX = ".made_with.json"
BATCHES_A_WRITE = 4  # rows of like length share a batch among so many; a kill loses no more than these
TOLD = ("model",)  # what the record keeps for people: the same weights may lie elsewhere meanwhile

Line = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """The rows of a file as they were at the first look, read anew each time: memory holds a few of them.

    `faulty`: the rows of a task of which nothing can be asked, counted and named.
    """

    path: Path
    num_rows: int
    sha256: str
    looked_at: tuple[int, ...]
    task: TaskName | None = None
    faulty: Tally = field(default_factory=Tally)

    @classmethod
    def of(cls, path: Path, *, task: TaskName | None = None) -> Source:
        """Read every row once; raises RunError where none can be asked; of rows without a task, where one can't."""
        if not path.is_file():
            raise RunError(f"--input: {path}: no such file; name a JSONL file of rows")
        before, faulty = _stamp(path), Tally()
        for row in _read(path, task):
            faulty.num_rows += 1
            if row.fault is not None:
                faulty.reject(RejectedRow(row.number, row.fault))
        if not faulty.num_rows:
            raise RunError(f"{path}: it holds no row; write one object a line")
        if faulty.num_rejected == faulty.num_rows:
            told = "\n".join(["", *faulty.lines()])
            raise RunError(f"{path}: none of its {faulty.num_rows:,} rows can be asked; mend them{told}")
        source = cls(path, faulty.num_rows, disk.sha256_of(path), before, task, faulty)
        source.check_unchanged()
        return source

    def rows(self, *, start: int) -> Iterator[QuestionRow]:
        return itertools.islice(_read(self.path, self.task), start, None)

    def check_unchanged(self) -> None:
        if (now := _stamp(self.path)) != self.looked_at:
            raise RunError(
                f"{self.path}: was changed while it was read: {self.looked_at[0]:,} bytes, now {now[0]:,}; the answers "
                "so far are of the old rows: restore the file to go on, or give another --output"
            )


def _read(path: Path, task: TaskName | None) -> Iterator[QuestionRow]:
    return read_questions(path) if task is None else read_task(path, task)


def _stamp(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return (stat.st_size, stat.st_mtime_ns, stat.st_ino)


def generate(arguments: argparse.Namespace) -> int:
    """Answer what is not answered yet; the output has the rows in their order."""
    if not arguments.input:
        raise RunError("--input: no file given; name a JSONL file of rows")
    path = Path(arguments.input)
    output = Path(arguments.output) if arguments.output else path.with_suffix(".answers.jsonl")
    source, sampling = Source.of(path, task=arguments.task), sampling_of(arguments)

    import torch

    from trainer.output_lock import only_writer
    from trainer.quiet import quieten_libraries
    from trainer.saved import find_saved

    quieten_libraries(use_gpu=torch.cuda.is_available())
    saved = find_saved(arguments.path, checkpoint=arguments.checkpoint)
    if saved.told:
        print(saved.told)
    made_with = _made_with(saved, source, sampling, arguments)
    with only_writer(output):
        return _continue(saved, source, output, made_with, sampling=sampling, arguments=arguments)


def _continue(
    saved: Saved, source: Source, output: Path, made_with: Line, *, sampling: Sampling, arguments: argparse.Namespace
) -> int:
    from trainer.conversation import open_speaker

    done = _num_answered(output, made_with)
    for line in _told_faulty(source):
        print(line)
    if done >= source.num_rows:
        print(f"{output}: all {source.num_rows:,} rows are answered already (이미 완료); nothing was done")
        return 0
    if done:
        print(f"{output}: {done:,} of {source.num_rows:,} rows are answered; going on (이어서)")
    speaker = open_speaker(saved, template=arguments.template, quantize=arguments.quantize)
    check_prompts(speaker, source, start=done)
    disk.write_json(_beside(output), made_with)
    figures = _answer(speaker, source, output, start=done, sampling=sampling, batch_size=arguments.batch)
    print(f"{output}: {figures}")
    return 0


def _told_faulty(source: Source) -> Iterator[str]:
    """What a person must know of rows that nothing can be asked of."""
    if source.faulty.num_rejected:
        yield (
            f"{source.path}: {source.faulty.num_rejected:,} of {source.num_rows:,} rows can't be asked (물을 수 없는 "
            "행); they stand among the answers with an error:"
        )
        yield from source.faulty.lines()


def _made_with(saved: Saved, source: Source, sampling: Sampling, arguments: argparse.Namespace) -> Line:
    """What decides the answers; a file is gone on with only where all of it but `TOLD` is equal."""
    from trainer.conversation import choose_template
    from trainer.saved import open_tokenizer, usual_dtype, weights_sha256

    template = choose_template(saved, arguments.template)
    return {
        "model": str(saved.checkpoint or saved.path),
        "step": saved.step,
        "weights_sha256": weights_sha256(saved),
        "tokenizer": open_tokenizer(saved).fingerprint,
        "template": {"name": template.name, "sha256": template.sha256} if template else "none",
        "quantize": arguments.quantize or "as trained",
        "dtype": usual_dtype(saved),
        "sampling": vars(sampling).copy(),
        "input_sha256": source.sha256,
        "task": source.task,
    }


def _beside(output: Path) -> Path:
    return output.with_name(output.name + MADE_WITH_SUFFIX)


def _num_answered(output: Path, made_with: Line) -> int:
    """How many rows a file answers already, from the first on; a last line that a kill tore is cut off.

    Raises:
        RunError: the file was made in another way, or its lines are not in order.
    """
    from trainer.run_folder import read_lines, repair_lines

    if not output.exists():
        return 0
    if not _beside(output).is_file():
        raise RunError(f"{output}: exists already, and `dure generate` did not write it; give another --output")
    before = json.loads(_beside(output).read_text(encoding="utf-8"))
    for key, value in made_with.items():
        if key not in TOLD and before.get(key) != value:
            named = f"name {before.get('model')} " if key in ("step", "weights_sha256") else "ask as before "
            raise RunError(
                f"{output}: its answers were made with {key} {before.get(key)!r}, this call has {value!r}; "
                f"{named}to go on with it, or give another --output"
            )
    repair_lines(output)
    done = 0
    for done, line in enumerate(read_lines(output), start=1):
        if line.get("row") != done - 1:
            raise RunError(
                f"{output}: answer {done:,} is of row {line.get('row')}, not of row {done - 1}; the file was changed "
                "after it was written: restore it, or give another --output"
            )
    return done


def check_prompts(speaker: Speaker, source: Source, *, start: int) -> None:
    """Refuse a row that could not be answered, before the first is.

    Raises:
        RunError: the first prompt that the template refuses, that has no token, or that leaves no room for an answer.
    """
    from tqdm import tqdm

    limit = speaker.max_positions
    first, num_too_long = "", 0
    rows = source.rows(start=start)
    for question in tqdm(rows, desc="check", unit="row", total=source.num_rows - start, disable=None):
        if question.fault is not None:
            continue
        length = len(_prompt(speaker, source, question))
        if length == 0:
            raise RunError(f"{source.path}: row {question.number}: its prompt has no token; give it a text")
        if limit is not None and length >= limit:
            num_too_long += 1
            first = first or (
                f"{source.path}: row {question.number}: its prompt has {length:,} tokens, but the model has "
                f"{limit:,} positions"
            )
    if num_too_long:
        others = f" ({num_too_long:,} rows are too long)" if num_too_long > 1 else ""
        raise RunError(f"{first}{others}; shorten such rows, or leave them out; no row was answered by this call")


def _prompt(speaker: Speaker, source: Source, question: QuestionRow) -> list[int]:
    from data_pipeline.stage import StageError

    try:
        return speaker.prompt_ids(question.messages)
    except StageError as error:
        raise RunError(f"{source.path}: row {question.number}: {error}") from None


def _answer(speaker: Speaker, source: Source, output: Path, *, start: int, sampling: Sampling, batch_size: int) -> str:
    from tqdm import tqdm

    started, num_tokens, num_ended, num_asked = time.perf_counter(), 0, 0, 0
    rows = source.rows(start=start)
    with tqdm(total=source.num_rows - start, desc="generate", unit="row", disable=None) as bar:
        while some := list(itertools.islice(rows, batch_size * BATCHES_A_WRITE)):
            source.check_unchanged()
            asked = [question for question in some if question.fault is None]
            answers = (
                speaker.answers(
                    [_prompt(speaker, source, question) for question in asked],
                    sampling=sampling,
                    batch_size=batch_size,
                    rows=[question.number for question in asked],
                )
                if asked
                else []
            )
            lines = {question.number: _faulty_line(question) for question in some if question.fault is not None}
            for question, answer in zip(asked, answers, strict=True):
                num_asked, num_tokens, num_ended = num_asked + 1, num_tokens + len(answer.ids), num_ended + answer.ended
                text = speaker.text_of(answer.ids)
                lines[question.number] = _line(question, text, ended=answer.ended, num=len(answer.ids))
            _append(output, [lines[question.number] for question in some])
            bar.update(len(some))
    seconds = time.perf_counter() - started
    return (
        f"{num_asked:,} rows answered (완료), {num_tokens:,} tokens in {seconds:.1f} s, "
        f"{num_tokens / seconds:,.1f} tokens/s; {num_ended / max(1, num_asked):.1%} ended with EOS"
    )


def _line(question: QuestionRow, text: str, *, ended: bool, num: int) -> Line:
    """The row as it was asked, and the answer; an `answer` that it came with is kept as `expected`."""
    row = dict(question.row)
    if "answer" in row:
        row["expected"] = row.pop("answer")
    return {"row": question.number, **row, "answer": text, "ended": ended, "num_tokens": num}


def _faulty_line(question: QuestionRow) -> Line:
    assert question.fault is not None
    return {"row": question.number, "error": f"{question.fault.reason}: {question.fault.error}"}


def _append(output: Path, lines: Sequence[Line]) -> None:
    """Add lines in one write, on the disk for good."""
    disk.append_line(output, "\n".join(json.dumps(line, ensure_ascii=False) for line in lines).encode())
    with output.open("rb") as file:
        os.fsync(file.fileno())
