"""Greedy answers of a saved model to held-out instructions, in a process of its own: python -m launch.demo_ask.

Writes one line an answer and prints a progress bar; the demo asks the same questions before and after tuning, and once
more of the merged export, which a fresh process has to load.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

BATCH_SIZE = 32


def ask(model: Path, *, shards: Path, output: Path, num_rows: int, seq_len: int, max_new_tokens: int) -> int:
    """Start this module for `model` and wait; returns its exit code. `output` holds the lines."""
    words = [str(model), str(shards), str(output), str(num_rows), str(seq_len), str(max_new_tokens)]
    return subprocess.run([sys.executable, "-m", "launch.demo_ask", *words]).returncode


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The lines that `ask` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def figures(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares over all lines: exact match, and answers that ended by EOS."""
    from trainer.answers import summarize

    found = summarize(lines).as_dict()
    return {"num_rows": found.pop("num_answers"), **found}


def _answer(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from data_pipeline import disk
    from data_pipeline.shards.format import read_shards
    from trainer.answers import heldout_questions, told
    from trainer.generate import Sampling, generate_answers
    from trainer.quiet import quieten_libraries
    from trainer.saved import find_saved, open_model, open_template, open_tokenizer

    quieten_libraries(use_gpu=False)
    saved = find_saved(arguments.model)
    opened, encoder = open_model(saved), open_tokenizer(saved)
    shards = read_shards(arguments.shards, split="heldout")
    template = open_template(saved, name=str(arguments.shards / "template.yaml"))
    assert template is not None, "instruction shards have one"
    questions = heldout_questions(arguments.shards, num_rows=arguments.num_rows, seq_len=arguments.seq_len)
    with tqdm(total=len(questions), desc="answers", unit="row", disable=None) as bar:
        answers = generate_answers(
            opened.model,
            [question.prompt for question in questions],
            eos_ids=[shards.eos_id],
            pad_id=shards.pad_id,
            sampling=Sampling(max_new_tokens=arguments.max_new_tokens),
            batch_size=BATCH_SIZE,
            device=opened.device,
            max_positions=getattr(opened.model.config, "max_position_embeddings", None),
            on_batch=bar.update,
        )
    lines = told(questions, answers, encoder=encoder, template=template, step=saved.step or 0)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    disk.write_bytes(arguments.output, text.encode())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "shards", "output"):
        parser.add_argument(name, type=Path)
    for name in ("num_rows", "seq_len", "max_new_tokens"):
        parser.add_argument(name, type=int)
    return parser.parse_args()


if __name__ == "__main__":
    _answer(_arguments())
