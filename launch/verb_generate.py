"""`dure generate RUN --input ROWS`: an answer to each row, in batches, into a file that a later call goes on with."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline import disk
from launch.question_rows import QuestionRow, read_questions
from launch.sampling_flags import sampling_of
from trainer.errors import RunError

if TYPE_CHECKING:
    from trainer.conversation import Speaker
    from trainer.generate import Sampling
    from trainer.saved import Saved

MADE_WITH_SUFFIX = ".made_with.json"
BATCHES_A_WRITE = 4  # rows of like length share a batch among so many; a kill loses no more than these

Line = dict[str, Any]


def generate(arguments: argparse.Namespace) -> int:
    """Answer what is not answered yet; the output has the rows in their order."""
    if not arguments.input:
        raise RunError("--input: no file given; name a JSONL file of rows")
    source = Path(arguments.input)
    output = Path(arguments.output) if arguments.output else source.with_suffix(".answers.jsonl")
    questions, sampling = read_questions(source), sampling_of(arguments)

    import torch

    from trainer.conversation import open_speaker
    from trainer.quiet import quieten_libraries
    from trainer.saved import find_saved

    quieten_libraries(use_gpu=torch.cuda.is_available())
    saved = find_saved(arguments.path)
    made_with = _made_with(saved, source, sampling, arguments)
    done = _continue_output(output, questions, made_with)
    left = [question for question in questions if question.number not in done]
    if not left:
        print(f"{output}: all {len(questions):,} rows are answered already (이미 완료); nothing was done")
        return 0
    if done:
        print(f"{output}: {len(done):,} of {len(questions):,} rows are answered; going on (이어서)")
    speaker = open_speaker(saved, template=arguments.template, quantize=arguments.quantize)
    output.parent.mkdir(parents=True, exist_ok=True)
    disk.write_json(_beside(output), made_with)
    figures = _answer(speaker, left, output, sampling=sampling, batch_size=arguments.batch)
    print(f"{output}: {len(left):,} rows answered (완료), {figures}")
    return 0


def _made_with(saved: Saved, source: Path, sampling: Sampling, arguments: argparse.Namespace) -> Line:
    """What decides the answers; a file is gone on with only where all of it is equal."""
    return {
        "model": str(saved.checkpoint or saved.path),
        "step": saved.step,
        "template": arguments.template or "its own",
        "quantize": arguments.quantize or "as trained",
        "sampling": vars(sampling).copy(),
        "input_sha256": disk.sha256_of(source),
    }


def _beside(output: Path) -> Path:
    return output.with_name(output.name + MADE_WITH_SUFFIX)


def _continue_output(output: Path, questions: Sequence[QuestionRow], made_with: Line) -> set[int]:
    """The numbers of the rows that a file answers already; a last line that a kill tore is cut off.

    Raises:
        RunError: the file is not of these questions, or was made in another way.
    """
    from trainer.run_folder import read_lines, repair_lines

    if not output.exists():
        return set()
    if not _beside(output).is_file():
        raise RunError(f"{output}: exists already, and `dure generate` did not write it; give another --output")
    before = json.loads(_beside(output).read_text(encoding="utf-8"))
    for key, value in made_with.items():
        if before.get(key) != value:
            raise RunError(
                f"{output}: its answers were made with {key} {before.get(key)!r}, this call has {value!r}; "
                "ask as before to go on with it, or give another --output"
            )
    repair_lines(output)
    done = {int(line["row"]) for line in read_lines(output)}
    assert done <= {question.number for question in questions}, "the input has the same hash"
    return done


def _answer(speaker: Speaker, left: Sequence[QuestionRow], output: Path, *, sampling: Sampling, batch_size: int) -> str:
    from tqdm import tqdm

    started, num_tokens, num_ended = time.perf_counter(), 0, 0
    prompts = [speaker.prompt_ids(question.messages) for question in left]
    with tqdm(total=len(left), desc="generate", unit="row", disable=None) as bar:
        for some in _in_turn(range(len(left)), batch_size * BATCHES_A_WRITE):
            answers = speaker.answers(
                [prompts[place] for place in some],
                sampling=sampling,
                batch_size=batch_size,
                rows=[left[place].number for place in some],
            )
            lines = []
            for place, answer in zip(some, answers, strict=True):
                num_tokens, num_ended = num_tokens + len(answer.ids), num_ended + answer.ended
                lines.append(_line(left[place], speaker.text_of(answer.ids), ended=answer.ended, num=len(answer.ids)))
            _append(output, lines)
            bar.update(len(some))
    seconds = time.perf_counter() - started
    return (
        f"{num_tokens:,} tokens in {seconds:.1f} s, {num_tokens / seconds:,.1f} tokens/s; "
        f"{num_ended / len(left):.1%} ended with EOS"
    )


def _in_turn(places: range, size: int) -> Iterator[range]:
    return (places[start : start + size] for start in range(0, len(places), size))


def _line(question: QuestionRow, text: str, *, ended: bool, num: int) -> Line:
    """The row as it was asked, and the answer; an `answer` that it came with is kept as `expected`."""
    row = dict(question.row)
    if "answer" in row:
        row["expected"] = row.pop("answer")
    return {"row": question.number, **row, "answer": text, "ended": ended, "num_tokens": num}


def _append(output: Path, lines: Sequence[Line]) -> None:
    """Add lines in one write, on the disk for good."""
    disk.append_line(output, "\n".join(json.dumps(line, ensure_ascii=False) for line in lines).encode())
    with output.open("rb") as file:
        os.fsync(file.fileno())
