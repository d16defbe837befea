"""Greedy answers of saved models to held-out instructions, in a process of its own: python -m launch.demo_ask.

Writes one line an answer and shows a progress bar; the demo asks the same questions before and after tuning, and once
more of the merged export, which a fresh process has to load.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BATCH_SIZE = 32


@dataclass(frozen=True)
class Questions:
    """Which questions are asked: `num_rows` of the held-out rows of `shards`, and how long an answer may be."""

    shards: Path
    num_rows: int
    seq_len: int
    max_new_tokens: int


def ask(models: Mapping[Path, Path], questions: Questions) -> int:
    """Start this module once for all of `models` (model -> the file for its lines) and wait; returns its exit code."""
    words = [str(value) for value in asdict(questions).values()]
    pairs = [str(path) for pair in models.items() for path in pair]
    return subprocess.run([sys.executable, "-m", "launch.demo_ask", *words, *pairs]).returncode


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The lines that `ask` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def figures(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares over all lines: exact match, and answers that ended by EOS."""
    from trainer.answers import summarize

    found = summarize(lines).as_dict()
    return {"num_rows": found.pop("num_answers"), **found}


def _answer(model: Path, output: Path, questions: Questions) -> None:
    from tqdm import tqdm

    from data_pipeline import disk
    from data_pipeline.shards.format import read_shards
    from trainer.answers import heldout_questions, told
    from trainer.generate import Sampling, generate_answers
    from trainer.saved import find_saved, open_model, open_template, open_tokenizer

    saved, shards = find_saved(model), read_shards(questions.shards, split="heldout")
    opened, encoder = open_model(saved), open_tokenizer(saved)
    template = open_template(saved, name=str(questions.shards / "template.yaml"))
    assert template is not None, "instruction shards have one"
    asked = heldout_questions(questions.shards, num_rows=questions.num_rows, seq_len=questions.seq_len)
    with tqdm(total=len(asked), desc=f"answers of {model.name}", unit="row", disable=None) as bar:
        answers = generate_answers(
            opened.model,
            [question.prompt for question in asked],
            eos_ids=[shards.eos_id],
            pad_id=shards.pad_id,
            sampling=Sampling(max_new_tokens=questions.max_new_tokens),
            batch_size=BATCH_SIZE,
            device=opened.device,
            max_positions=getattr(opened.model.config, "max_position_embeddings", None),
            on_batch=bar.update,
        )
    lines = told(asked, answers, encoder=encoder, template=template, step=saved.step or 0)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    disk.write_bytes(output, text.encode())


def main() -> None:
    """The words that `ask` gives: shards, three numbers, and pairs of a model and a file."""
    from trainer.quiet import quieten_libraries

    quieten_libraries(use_gpu=False)
    shards, num_rows, seq_len, max_new_tokens, *pairs = sys.argv[1:]
    questions = Questions(Path(shards), int(num_rows), int(seq_len), int(max_new_tokens))
    for model, output in zip(pairs[::2], pairs[1::2], strict=True):
        _answer(Path(model), Path(output), questions)


if __name__ == "__main__":
    main()
