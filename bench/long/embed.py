"""Question and answer as a pair: how many answers an encoder finds before and after `stage: embed`, on ChatbotData.

python bench/long/embed.py [--data ../shared/data] [--output bench/out/embed] [--mlm-steps N] [--embed-steps N]

Every part is a `dure` command, printed as it is started; a second call goes on where the first one ended. A small
encoder is pretrained by `stage: mlm` on movie reviews and documents; `embed` then begins on it, and once more on new
weights. Minutes on two CPU cores. Many questions of this set share an answer, and a chat has no single right one: the
figures compare models over it, no more. Ends with a table, what some questions find, and bench/out/embed.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

REPO = Path(__file__).resolve().parents[2]
OUT = REPO / "bench/out/embed.json"
RANKS = 2
SEQ_LEN = 64
FIGURES = ("loss", "recall_at_1", "recall_at_10", "mrr")
QUESTIONS = ("안녕하세요", "오늘 너무 피곤하다", "짝사랑하는 사람이 생겼어", "시험을 망쳤어", "주말에 뭐 하지?")

MODEL = """\
model:
  architecture: bert
  hidden_size: 192
  num_layers: 3
  num_heads: 3
  max_positions: 64
  dropout: 0.1
"""
RUN = """\
run: {{name: {name}, folder: {folder}}}
stage: {stage}
seed: 1
{model}
data: {{shards: {shards}, seq_len: {seq_len}}}
train:
  precision: fp32
  max_steps: {steps}
  global_batch_sequences: {batch}
  micro_batch_sequences: {micro}
  optimizer: {{weight_decay: 0.01, beta2: 0.98, eps: 1e-6}}
  schedule: {{kind: linear, peak_lr: {lr}, min_lr_ratio: 0.0, warmup_steps: {warmup}}}
checkpoint: {{every_steps: {steps}}}
evaluation: {{every_steps: {every}, at_start: true, micro_batch_sequences: 64}}
logging: {{every_steps: 10, tensorboard: false, progress_bar: false}}
"""


def dure(*words: str) -> None:
    print("\n$ dure " + " ".join(words), flush=True)
    subprocess.run([sys.executable, "-m", "launch.cli", *words], cwd=REPO, check=True)


def prepare(data: Path, output: Path) -> None:
    """Corpora of texts and of pairs, one tokenizer, and shards of both."""
    output.mkdir(parents=True, exist_ok=True)
    nsmc, chat = data / "nsmc/ratings_train_rebuilt.txt", data / "chatbot_ko/ChatbotData.csv"
    (output / "text.yaml").write_text(
        f"inputs:\n  - path: {data / 'docs_ko'}\n"
        f"  - {{path: {nsmc}, format: tsv, text_column: document, source: nsmc}}\noutput: {output / 'text'}\n",
        encoding="utf-8",
    )
    (output / "pairs.yaml").write_text(
        f"record: pair\ninputs:\n  - {{path: {chat}, columns: {{text_a: Q, text_b: A}}}}\noutput: {output / 'pairs'}\n",
        encoding="utf-8",
    )
    dure("corpus", "build", str(output / "text.yaml"))
    dure("corpus", "build", str(output / "pairs.yaml"))
    tokenizer = str(output / "tokenizer")
    dure("tokenizer", "train", "--corpus", str(output / "text"), "--output", tokenizer, "vocab_size=8192")
    for corpus, extra in (
        ("text", ["heldout_fraction=0.005"]),
        ("pairs", ["heldout_fraction=0.1", f"max_tokens={SEQ_LEN}", "too_long=cut"]),
    ):
        named = [
            "--corpus",
            str(output / corpus),
            "--tokenizer",
            tokenizer,
            "--output",
            str(output / f"{corpus}-shards"),
        ]
        dure("shards", "build", *named, *extra)


def train(output: Path, name: str, **keys: Any) -> float:
    """Seconds of a run of those keys of RUN."""
    config = output / f"{name}.yaml"
    config.write_text(RUN.format(name=name, folder=output, seq_len=SEQ_LEN, **keys), encoding="utf-8")
    started = time.perf_counter()
    dure("train", str(config), "--cpu-ranks", str(RANKS))
    return time.perf_counter() - started


def evaluations(output: Path, name: str) -> list[dict[str, Any]]:
    lines = (output / name / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def found(output: Path, name: str) -> dict[str, str]:
    """The nearest of all answers to each of QUESTIONS, by vectors of `dure predict`."""
    answers = sorted({row["text_b"] for row in pq.read_table(output / "pairs/data", columns=["text_b"]).to_pylist()})
    vectors = {}
    for what, texts in (("answers", answers), ("questions", QUESTIONS)):
        file, written = output / f"{what}.jsonl", output / f"{name}-{what}.npy"
        file.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
        if not written.exists():
            dure("predict", str(output / name), "--input", str(file), "--output", str(written))
        vectors[what] = np.load(written)
    nearest = (vectors["questions"] @ vectors["answers"].T).argmax(axis=1)
    return {question: answers[place] for question, place in zip(QUESTIONS, nearest.tolist(), strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=REPO.parent / "shared/data")
    parser.add_argument("--output", type=Path, default=REPO / "bench/out/embed")
    parser.add_argument("--mlm-steps", type=int, default=1500)
    parser.add_argument("--embed-steps", type=int, default=400)
    arguments = parser.parse_args()
    data, output = arguments.data.resolve(), arguments.output.resolve()
    if not (data / "chatbot_ko/ChatbotData.csv").is_file():
        print(f"{data}: no chatbot_ko/ChatbotData.csv; give --data (skipped)")
        return
    prepare(data, output)
    mlm, embed = arguments.mlm_steps, arguments.embed_steps
    texts = {"stage": "mlm", "shards": output / "text-shards", "batch": 64, "micro": 32, "lr": "1e-3", "warmup": 50}
    pairs = {"stage": "embed", "shards": output / "pairs-shards", "batch": 128, "micro": 32, "lr": "1e-3", "warmup": 20}
    seconds = {
        "mlm": train(output, "mlm", model=MODEL, steps=mlm, every=mlm, **texts),
        "tuned": train(
            output, "tuned", model=f"model: {{from: {output / 'mlm'}}}", steps=embed, every=max(1, embed // 4), **pairs
        ),
        "scratch": train(output, "scratch", model=MODEL, steps=embed, every=max(1, embed // 4), **pairs),
    }
    result: dict[str, Any] = {
        name: {"seconds": took, "evaluations": evaluations(output, name)} for name, took in seconds.items()
    }
    result["tuned"]["found"] = found(output, "tuned")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    show(result)


def show(result: Mapping[str, Any]) -> None:
    for name, figures in result.items():
        print(f"\n{name}: {figures['seconds']:.0f} s")
        for line in figures["evaluations"]:
            told = ", ".join(f"{key} {line[key]:.4f}" for key in FIGURES if key in line)
            print(f"  step {line['step']:>6,}: {told}")
        for question, answer in figures.get("found", {}).items():
            print(f"  {question} -> {answer}")


if __name__ == "__main__":
    main()
