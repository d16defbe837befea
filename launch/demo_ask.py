"""Greedy answers of saved models to held-out rows, in a process of its own: python -m launch.demo_ask.

Writes one line an answer and shows a progress bar; the demo asks the same questions before and after a tuning, and once
more of the merged export, which a fresh process has to load.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.answers import Ids, Question

BATCH_SIZE = 32


@dataclass(frozen=True)
class Asking:
    """`model` is asked `num_rows` of the held-out rows of `shards`; its lines go to `output`.

    The shards hold instructions, or pairs of which the chosen answer is expected.
    """

    model: str
    output: str
    shards: str
    num_rows: int
    seq_len: int
    max_new_tokens: int


def ask(askings: Sequence[Asking]) -> int:
    """Start this module once for all of them and wait; returns its exit code."""
    words = [json.dumps(asdict(asking)) for asking in askings]
    return subprocess.run([sys.executable, "-m", "launch.demo_ask", *words]).returncode


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The lines that `ask` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def figures(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares over all lines: exact match, and answers that ended by EOS."""
    from trainer.answers import summarize

    found = summarize(lines).as_dict()
    return {"num_rows": found.pop("num_answers"), **found}


def _answer(asking: Asking) -> None:
    from tqdm import tqdm

    from data_pipeline import disk
    from data_pipeline.shards.format import read_shards
    from trainer.answers import heldout_questions, told
    from trainer.generate import Sampling, generate_answers
    from trainer.saved import find_saved, open_model, open_template, open_tokenizer

    saved, folder = find_saved(asking.model), Path(asking.shards)
    shards = read_shards(folder, split="heldout")
    opened, encoder = open_model(saved), open_tokenizer(saved)
    template = open_template(saved, name=str(folder / "template.yaml"))
    assert template is not None, "shards of questions have one"
    rejected: list[Ids] = []
    if shards.record == "preference":
        asked, rejected = _compared(asking)
    else:
        asked = heldout_questions(folder, num_rows=asking.num_rows, seq_len=asking.seq_len)
    with tqdm(total=len(asked), desc=f"answers of {Path(asking.model).name}", unit="row", disable=None) as bar:
        answers = generate_answers(
            opened.model,
            [question.prompt for question in asked],
            eos_ids=[shards.eos_id],
            pad_id=shards.pad_id,
            sampling=Sampling(max_new_tokens=asking.max_new_tokens),
            batch_size=BATCH_SIZE,
            device=opened.device,
            max_positions=getattr(opened.model.config, "max_position_embeddings", None),
            on_batch=bar.update,
        )
    lines = told(asked, answers, encoder=encoder, template=template, step=saved.step or 0)
    for line, ids in zip(lines, rejected, strict=False):
        line["rejected"] = template.answer_text(encoder.tokenizer.decode(list(ids), skip_special_tokens=False))
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    disk.write_bytes(Path(asking.output), text.encode())


def _compared(asking: Asking) -> tuple[list[Question], list[Ids]]:
    """Prompts of held-out pairs with the chosen answers, and the rejected ones; all answers without their EOS."""
    import numpy as np

    from data_pipeline.shards.format import read_shards
    from data_pipeline.stream.examples import ExampleRows
    from data_pipeline.stream.order import RowOrder
    from trainer.answers import Question

    shards = read_shards(Path(asking.shards), split="heldout")
    rows = ExampleRows(shards, seq_len=asking.seq_len, too_long="drop")
    order = RowOrder(shards.content_sha256, seed=0, epoch=0, num_rows=rows.num_rows)
    batch = rows.gather(order.rows_at(np.arange(min(asking.num_rows, rows.num_rows))))
    assert batch.answers is not None, "pairs have answers"
    sequences = [
        (tuple(ids[:start].tolist()), tuple(ids[start : end - 1].tolist()))
        for ids, (start, end) in zip(batch.input_ids, batch.answers.tolist(), strict=True)
    ]
    chosen, rejected = sequences[::2], sequences[1::2]
    return [Question(prompt, answer) for prompt, answer in chosen], [answer for _, answer in rejected]


def main() -> None:
    """Each word that `ask` gives is an `Asking`."""
    from trainer.quiet import quieten_libraries

    quieten_libraries(use_gpu=False)
    for word in sys.argv[1:]:
        _answer(Asking(**json.loads(word)))


if __name__ == "__main__":
    main()
