"""Preference stages on real rows: ChatbotData's answers against answers to other questions, of one label and length.

python bench/long/preference.py [--data ../shared/data] [--output bench/out/preference] [--steps N]

A tenth of the questions is held out of the instruction tuning, of the pairs and of the feedback; preference_rows.py
says how pairs are made, so that neither a length nor an answer by itself tells which one is chosen. Beside the stages
stands what needs no model: the longer answer, the answer that train prefers, and counting which pairs of syllables of a
question and of an answer go together in train (pointwise mutual information). Every part is a `dure` command, printed
as it is started; a second call goes on where the first one ended. About two hours on two idle CPU cores. Ends with a
table and bench/out/preference.json, and with exit code 1 where a stage stays below 75 %.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chatbot
from preference_rows import Pair, Written, write_pairs

REPO = Path(__file__).resolve().parents[2]
OUT = REPO / "bench/out/preference.json"
STAGES = ("dpo", "orpo", "cpo", "kto", "reward")
NUM_ROUNDS, SEED, BAR = 4, 0, 0.75
BASE_STEPS, SFT_STEPS = 2000, 600

# Every weight of the small model is trained: what dpo and kto are held against is computed before step 1.
TUNING = """\
extends: {repo}/configs/base/preference.yaml
stage: {stage}
run: {{name: {stage}, folder: {output}}}
model: {{from: {output}/sft}}
data: {{shards: {output}/{record}-shards, seq_len: 128}}
train:
  precision: fp32
  num_epochs: null
  max_steps: {steps}
  global_batch_sequences: {rows}
  micro_batch_sequences: {rows}
  schedule: {{peak_lr: {rate}, warmup_steps: 40}}
evaluation: {{every_steps: {quarter}, max_documents: null, micro_batch_sequences: 64}}
checkpoint: {{every_steps: {quarter}, keep_last: 1}}
logging: {{every_steps: 50, progress_bar: false}}
"""


def read_pairs(path: Path) -> list[Pair]:
    return [Pair(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def syllable_pairs(text: str) -> set[str]:
    letters = "".join(letter for letter in text if letter.isalnum())
    return {letters[place : place + 2] for place in range(len(letters) - 1)}


class Counts:
    """Which pairs of syllables of a question and its answer stand together in train, and how much above chance."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        rows = {(pair.prompt, pair.chosen) for pair in pairs}
        self.num_rows = len(rows)
        self.asked: Counter[str] = Counter()
        self.said: Counter[str] = Counter()
        self.together: dict[str, Counter[str]] = defaultdict(Counter)
        for prompt, chosen in rows:
            asked, said = syllable_pairs(prompt), syllable_pairs(chosen)
            self.asked.update(asked)
            self.said.update(said)
            for piece in asked:
                self.together[piece].update(said)

    def score(self, prompt: str, answer: str) -> float:
        said = syllable_pairs(answer)
        total = 0.0
        for piece in syllable_pairs(prompt) & self.asked.keys():
            for other in said:
                if count := self.together[piece][other]:
                    ratio = count * self.num_rows / (self.asked[piece] * self.said[other])
                    total += max(0.0, math.log(ratio)) * min(1.0, count / 3)
        return total / (1 + len(said))

    def accuracy(self, pairs: Sequence[Pair]) -> float:
        margins = [self.score(pair.prompt, pair.chosen) - self.score(pair.prompt, pair.rejected) for pair in pairs]
        return sum((margin > 0) + 0.5 * (margin == 0) for margin in margins) / len(margins)


def prepare(data: Path, output: Path) -> Written:
    """The base's corpora and tokenizer, then rows, pairs and feedback with one tenth of the questions held out."""
    chatbot.prepare(data, output)
    written = write_pairs(data / "chatbot_ko/ChatbotData.csv", output / "pairs", SEED, num_rounds=NUM_ROUNDS)
    (output / "asked").mkdir(exist_ok=True)
    for path in written.paths.values():
        rows = dict.fromkeys((pair.prompt, pair.chosen) for pair in read_pairs(path))
        lines = [json.dumps({"instruction": asked, "output": said}, ensure_ascii=False) + "\n" for asked, said in rows]
        (output / "asked" / path.name).write_text("".join(lines), encoding="utf-8")
    for record, folder in (("instruction", "asked"), ("preference", "pairs"), ("feedback", "pairs")):
        named = ["--record", record, "--input", f"{output / folder}", "--output", f"{output / record}"]
        chatbot.dure("corpus", "build", *named)
        paths = ["--corpus", f"{output / record}", "--tokenizer", f"{output / 'tokenizer'}"]
        shards = ["--output", f"{output / record}-shards", "template=koalpaca", "heldout_fraction=0"]
        chatbot.dure("shards", "build", *paths, *shards)
    return written


def tune(output: Path, stage: str, *, steps: int) -> dict[str, Any]:
    """Train one stage; its evaluations and the seconds of the call."""
    started = time.perf_counter()
    record, rows = ("feedback", 64) if stage == "kto" else ("preference", 32)
    quarter, path = max(1, steps // 4), output / f"{stage}.yaml"
    keys = {"repo": REPO, "output": output, "stage": stage, "record": record, "rows": rows, "rate": "1e-3"}
    path.write_text(TUNING.format(steps=steps, quarter=quarter, **keys), encoding="utf-8")
    chatbot.dure("train", str(path), "--cpu-ranks", str(chatbot.RANKS))
    return {"seconds": time.perf_counter() - started, "evaluations": chatbot.evaluations(output, stage)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=REPO.parent / "shared/data")
    parser.add_argument("--output", type=Path, default=REPO / "bench/out/preference")
    parser.add_argument("--steps", type=int, default=1200)
    arguments = parser.parse_args()
    data, output = arguments.data.resolve(), arguments.output.resolve()
    if not (data / "chatbot_ko/ChatbotData.csv").is_file():
        print(f"{data}: no chatbot_ko/ChatbotData.csv; give --data (skipped)")
        return 0
    written = prepare(data, output)
    decay = [f"train.schedule.decay_steps={BASE_STEPS // 3}", f"data.shards={output / 'shards'}"]
    chatbot.train("configs/demo.yaml", output, "base", BASE_STEPS, [*chatbot.PRETRAIN, *decay])
    named = [f"data.shards={output / 'instruction-shards'}", f"model.from={output / 'base'}"]
    whole = ["adapter=null", "model.quantization=null", "train.schedule.peak_lr=1e-3", "engine.kind=none"]
    chatbot.train("configs/demo-sft.yaml", output, "sft", SFT_STEPS, [*chatbot.SFT, *named, *whole])
    result: dict[str, Any] = {stage: tune(output, stage, steps=arguments.steps) for stage in STAGES}
    pairs = {split: read_pairs(path) for split, path in written.paths.items()}
    result["baselines"] = vars(written.baselines["heldout"]) | {
        "counted_together": Counts(pairs["train"]).accuracy(pairs["heldout"])
    }
    result["num_pairs"] = written.num_pairs
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return show(result)


def show(result: dict[str, Any]) -> int:
    """The table; 1 where a stage stays below the bar."""
    print(f"\n{result['num_pairs']['train']:,} pairs of train, {result['num_pairs']['heldout']:,} held out")
    for name, share in result["baselines"].items():
        print(f"  {name:<20} {share:7.2%}")
    reached = []
    for stage in STAGES:
        figure = "pair_accuracy" if stage == "kto" else "accuracy"
        shares = [line[figure] for line in result[stage]["evaluations"]]
        reached.append(max(shares))
        told = " ".join(f"{share:7.2%}" for share in shares)
        print(f"  {stage:<20} {told}  {result[stage]['seconds']:6.0f} s")
    return int(min(reached) < BAR)


if __name__ == "__main__":
    sys.exit(main())
