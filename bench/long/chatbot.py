"""Real rows: questions and answers of ChatbotData over a base pretrained on real Korean text, tuned under ZeRO-2 and 3.

python bench/long/chatbot.py [--data ../shared/data] [--output bench/out/chatbot] [--pretrain-steps N] [--sft-steps N]

Every part is a `dure` command, printed as it is started; a second call goes on where the first one ended. About an hour
on two CPU cores. Ends with a table, five answers of each model, and bench/out/chatbot.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
OUT = REPO / "bench/out/chatbot.json"
RANKS = 2
QUESTIONS = ("안녕하세요", "오늘 너무 피곤하다", "짝사랑하는 사람이 생겼어", "시험을 망쳤어", "주말에 뭐 하지?")

# Sizes of a model that two cores train in half an hour; the rest of the configs is the demo's.
PRETRAIN = [
    "data.seq_len=256",
    "model.hidden_size=192",
    "model.intermediate_size=512",
    "train.global_batch_sequences=8",
    "train.micro_batch_sequences=4",
    "train.schedule.peak_lr=3e-3",
    "evaluation.max_documents=1000",
]
SFT = ["data.seq_len=128", "data.too_long=drop", "train.global_batch_sequences=16", "train.micro_batch_sequences=8"]


def dure(*words: str) -> None:
    print("\n$ dure " + " ".join(words), flush=True)
    subprocess.run([sys.executable, "-m", "launch.cli", *words], cwd=REPO, check=True)


def prepare(data: Path, output: Path) -> None:
    """Corpora, one tokenizer for both, and shards."""
    text, rows = output / "corpus.yaml", output / "rows.yaml"
    output.mkdir(parents=True, exist_ok=True)
    nsmc = data / "nsmc/ratings_train_rebuilt.txt"
    text.write_text(
        f"inputs:\n  - path: {data / 'docs_ko'}\n"
        f"  - {{path: {nsmc}, format: tsv, text_column: document, source: nsmc}}\noutput: {output / 'corpus'}\n",
        encoding="utf-8",
    )
    columns = "{instruction: Q, output: A}"
    rows.write_text(
        f"record: instruction\ninputs:\n  - {{path: {data / 'chatbot_ko/ChatbotData.csv'}, columns: {columns}}}\n"
        f"output: {output / 'rows'}\n",
        encoding="utf-8",
    )
    dure("corpus", "build", str(text))
    dure("corpus", "build", str(rows))
    tokenizer = f"{output / 'tokenizer'}"
    dure("tokenizer", "train", "--corpus", f"{output / 'corpus'}", "--output", tokenizer, "vocab_size=8192")
    for corpus, shards, extra in (
        ("corpus", "shards", ["heldout_fraction=0.01"]),
        ("rows", "row-shards", ["heldout_fraction=0.05", "template=koalpaca"]),
    ):
        named = ["--corpus", f"{output / corpus}", "--tokenizer", tokenizer, "--output", f"{output / shards}"]
        dure("shards", "build", *named, *extra)


def train(config: str, output: Path, name: str, steps: int, overrides: list[str]) -> float:
    """Seconds of the call; `steps` with an evaluation and a save every quarter."""
    started = time.perf_counter()
    quarter = max(1, steps // 4)
    common = [f"run.folder={output}", f"run.name={name}", f"train.max_steps={steps}"]
    common += [f"evaluation.every_steps={quarter}", f"checkpoint.every_steps={quarter}", "logging.progress_bar=false"]
    dure("train", config, *common, *overrides, "--cpu-ranks", str(RANKS))
    return time.perf_counter() - started


def answers(output: Path, name: str) -> list[str]:
    questions = output / "questions.jsonl"
    questions.write_text(
        "".join(json.dumps({"instruction": question}, ensure_ascii=False) + "\n" for question in QUESTIONS),
        encoding="utf-8",
    )
    told = output / f"answers-{name}.jsonl"
    dure("generate", str(output / name), "--input", str(questions), "--output", str(told), "--max-new-tokens", "40")
    return [json.loads(line)["answer"] for line in told.read_text(encoding="utf-8").splitlines()]


def evaluations(output: Path, name: str) -> list[dict[str, Any]]:
    lines = (output / name / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=REPO.parent / "shared/data")
    parser.add_argument("--output", type=Path, default=REPO / "bench/out/chatbot")
    parser.add_argument("--pretrain-steps", type=int, default=2000)
    parser.add_argument("--sft-steps", type=int, default=600)
    arguments = parser.parse_args()
    data, output = arguments.data.resolve(), arguments.output.resolve()
    if not (data / "chatbot_ko/ChatbotData.csv").is_file():
        print(f"{data}: no chatbot_ko/ChatbotData.csv; give --data (skipped)")
        return
    prepare(data, output)
    steps = arguments.pretrain_steps
    decay = [f"train.schedule.decay_steps={steps // 3}"]
    shards = [f"data.shards={output / 'shards'}"]
    seconds = {"base": train("configs/demo.yaml", output, "base", steps, [*PRETRAIN, *decay, *shards])}
    for stage in (2, 3):
        named = [f"data.shards={output / 'row-shards'}", f"model.from={output / 'base'}", f"engine.zero_stage={stage}"]
        name = f"qlora-zero-{stage}"
        seconds[name] = train("configs/demo-sft.yaml", output, name, arguments.sft_steps, [*SFT, *named])
    result = {
        name: {"seconds": seconds[name], "evaluations": evaluations(output, name), "answers": answers(output, name)}
        for name in seconds
        if name != "base"
    }
    result["base"] = {"seconds": seconds["base"], "evaluations": evaluations(output, "base")}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    show(result)


def show(result: dict[str, Any]) -> None:
    for name, figures in result.items():
        print(f"\n{name}: {figures['seconds']:.0f} s")
        for line in figures["evaluations"]:
            told = {key: round(value, 4) for key, value in line.items() if isinstance(value, float)}
            print(f"  step {line['step']:>6,}: {told}")
        for question, answer in zip(QUESTIONS, figures.get("answers", []), strict=False):
            print(f"  {question} -> {answer}")


if __name__ == "__main__":
    main()
