"""A small encoder pretrained by `stage: mlm` on raw reviews, then `stage: classify` with and without that pretraining.

python bench/long/nsmc.py [--data ../shared/data] [--output bench/out/nsmc] [--rows N]

Every part is a `dure` command, printed as it is started; a second call goes on where the first one ended. The tuned run
is trained twice, once killed (SIGKILL) half-way and resumed: losses, figures and weights must be equal to the bit. The
reviews of the test rows are left out of the pretraining text. `--rows`: of the training rows, a third as many test rows
and four times as many raw reviews; all of them by default. The splits are rebuilt from the raw reviews: never compare
these figures with published ones. Ends with a table, confusion matrices, and bench/out/nsmc.json.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
OUT = REPO / "bench/out/nsmc.json"
RANKS = 2
SEQ_LEN = 64
BATCH = 64
NUM_ROWS = 150_000
# Timings of finished parts, so that a second call still knows them.
SECONDS = "seconds.json"
RUNS = ("tuned", "tuned-killed", "scratch")

MODEL = """\
model:
  architecture: bert
  hidden_size: 192
  num_layers: 3
  num_heads: 3
  max_positions: 64
  dropout: 0.1
"""
SHARED = """\
seed: 1
train:
  precision: fp32
  num_epochs: 1
  global_batch_sequences: 64
  micro_batch_sequences: 32
  optimizer: {{weight_decay: 0.01, beta2: 0.98, eps: 1e-6}}
  schedule: {{kind: linear, peak_lr: {lr}, min_lr_ratio: 0.0, warmup_steps: {warmup}}}
checkpoint: {{every_steps: {every}, keep_last: 2, keep_best: false}}
logging: {{every_steps: {log}, tensorboard: false, progress_bar: false}}
"""


def dure(*words: str) -> None:
    print("\n$ dure " + " ".join(words), flush=True)
    subprocess.run(_command(*words), cwd=REPO, check=True)


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "launch.cli", *words]


def write_inputs(data: Path, output: Path, *, rows: int | None) -> tuple[Path, Path, Path]:
    """The raw reviews without those of the test rows, and the rows of both splits, as far as `rows` goes."""
    nsmc, taken = data / "nsmc", output / "inputs"
    taken.mkdir(parents=True, exist_ok=True)
    reviews, train, test = taken / "reviews.jsonl", taken / "train.tsv", taken / "test.tsv"
    for name, path, limit in (("train", train, rows), ("test", test, None if rows is None else rows // 3)):
        lines = (nsmc / f"ratings_{name}_rebuilt.txt").read_text(encoding="utf-8").splitlines()
        _write_once(path, lines if limit is None else lines[: limit + 1])
    test_lines = (nsmc / "ratings_test_rebuilt.txt").read_text(encoding="utf-8").splitlines()
    of_test = {line.split("\t", 1)[0] for line in test_lines}
    with gzip.open(nsmc / "nsmc_raw_reviews.jsonl.gz", "rt", encoding="utf-8") as file:
        kept = (line.rstrip("\n") for line in file if json.loads(line)["review_id"] not in of_test)
        _write_once(reviews, list(kept if rows is None else itertools.islice(kept, 4 * rows)))
    return reviews, train, test


def _write_once(path: Path, lines: list[str]) -> None:
    """Leave a file that is there already as it is: the stages tell their inputs by its time."""
    text = "\n".join(lines) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def prepare(data: Path, output: Path, *, rows: int | None, vocab_size: int) -> None:
    """Corpora of documents and of labelled rows, one tokenizer, and shards of both."""
    reviews, train, test = write_inputs(data, output, rows=rows)
    columns = "columns: {text_a: document, label: label, id: id}"
    (output / "text.yaml").write_text(
        f"inputs:\n  - {{path: {reviews}, text_column: review, id_column: review_id}}\noutput: {output / 'text'}\n",
        encoding="utf-8",
    )
    (output / "rows.yaml").write_text(
        f"record: label\ninputs:\n  - {{path: {train}, format: tsv, {columns}}}\n"
        f"  - {{path: {test}, format: tsv, split: heldout, {columns}}}\noutput: {output / 'rows'}\n",
        encoding="utf-8",
    )
    dure("corpus", "build", str(output / "text.yaml"))
    dure("corpus", "build", str(output / "rows.yaml"))
    tokenizer = str(output / "tokenizer")
    dure("tokenizer", "train", "--corpus", str(output / "text"), "--output", tokenizer, f"vocab_size={vocab_size}")
    for corpus, extra in (
        ("text", ["heldout_fraction=0.005"]),
        ("rows", ["heldout_fraction=0", f"max_tokens={SEQ_LEN}", "too_long=cut"]),
    ):
        named = ["--corpus", f"{output / corpus}", "--tokenizer", tokenizer, "--output", f"{output / corpus}-shards"]
        dure("shards", "build", *named, *extra)


def write_configs(output: Path, *, rows: int | None) -> dict[str, Path]:
    """The YAML of each run."""
    steps = (rows or NUM_ROWS) // BATCH
    warmup, save = max(10, steps // 20), max(10, steps // 6)
    mlm = SHARED.format(lr="1e-3", warmup=warmup, every=save, log=50)
    tuning = SHARED.format(lr="5e-4", warmup=warmup, every=save, log=1)
    data = f"data: {{{{shards: {output}/{{shards}}, seq_len: {SEQ_LEN}}}}}\n"
    evaluation = "evaluation: {every_steps: 1000000, max_documents: 50000, micro_batch_sequences: 128}\n"
    texts = {
        "mlm": "stage: mlm\nmlm: {whole_words: true}\n" + MODEL + mlm + data.format(shards="text-shards") + evaluation
    }
    of_rows = "stage: classify\n" + tuning + data.format(shards="rows-shards") + evaluation
    for name in RUNS:
        model = MODEL if name == "scratch" else f"model: {{from: {output / 'mlm'}}}\n"
        texts[name] = of_rows + model
    paths = {}
    for name, text in texts.items():
        paths[name] = output / f"{name}.yaml"
        paths[name].write_text(f"run: {{name: {name}, folder: {output}}}\n" + text, encoding="utf-8")
    return paths


def train(config: Path, *, kill_after: int | None = None) -> float:
    """Seconds of the run `config`; with `kill_after` it is killed once after that many steps, and started again."""
    output, name = config.parent, config.stem
    timings = json.loads((output / SECONDS).read_text()) if (output / SECONDS).is_file() else {}
    words = ("train", str(config), "--cpu-ranks", str(RANKS))
    started = time.perf_counter()
    if kill_after is not None and not (output / name / "exit.json").is_file():
        _kill_half_way(words, output / name / "metrics.jsonl", after=kill_after)
    dure(*words)
    timings.setdefault(name, time.perf_counter() - started)
    (output / SECONDS).write_text(json.dumps(timings))
    return float(timings[name])


def _kill_half_way(words: tuple[str, ...], metrics: Path, *, after: int) -> None:
    """Start a run and kill every process of it, without a word, once step `after` is logged."""
    print("\n$ dure " + " ".join(words) + f"     # killed after step {after}", flush=True)
    process = subprocess.Popen(_command(*words), cwd=REPO, start_new_session=True)
    while process.poll() is None and (not metrics.is_file() or len(_lines(metrics)) < after):
        time.sleep(0.2)
    assert process.poll() is None, "the run ended before it could be killed"
    # The ranks first: one whose launcher is gone would save and stop.
    for pid in reversed([process.pid, *_descendants(process.pid)]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _descendants(pid: int) -> list[int]:
    """Processes below `pid`, each before its own children."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            told = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            parents.setdefault(int(told[1]), []).append(int(stat.parent.name))
    found = [pid]
    for each in found:
        found += parents.get(each, [])
    return found[1:]


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a file that may be written at this moment."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def outcome(output: Path, name: str) -> dict[str, Any]:
    """What a run ended with: its last evaluation, a hash of its logged losses and one of its weights."""
    run = output / name
    losses = [(line["step"], line["loss"], line["grad_norm"]) for line in _lines(run / "metrics.jsonl")]
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    timed = ("seconds", "time")
    evaluation = {key: value for key, value in _lines(run / "evaluations.jsonl")[-1].items() if key not in timed}
    return {
        "evaluation": evaluation,
        "num_steps": losses[-1][0],
        "num_attempts": len(_lines(run / "attempts.jsonl")),
        "losses_sha256": hashlib.sha256(json.dumps(losses).encode()).hexdigest(),
        "weights_sha256": hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=REPO.parent / "shared/data")
    parser.add_argument("--output", type=Path, default=REPO / "bench/out/nsmc")
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--vocab-size", type=int, default=8192)
    arguments = parser.parse_args()
    data, output = arguments.data.resolve(), arguments.output.resolve()
    if not (data / "nsmc/nsmc_raw_reviews.jsonl.gz").is_file():
        print(f"{data}: no nsmc/nsmc_raw_reviews.jsonl.gz; give --data (skipped)")
        return
    output.mkdir(parents=True, exist_ok=True)
    prepare(data, output, rows=arguments.rows, vocab_size=arguments.vocab_size)
    configs = write_configs(output, rows=arguments.rows)
    seconds = {"mlm": train(configs["mlm"]), "tuned": train(configs["tuned"])}
    half = outcome(output, "tuned")["num_steps"] // 2
    seconds["tuned-killed"] = train(configs["tuned-killed"], kill_after=half + 3)  # between two saves
    seconds["scratch"] = train(configs["scratch"])
    result = {name: {"seconds": seconds[name], **outcome(output, name)} for name in seconds}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    show(result)


def show(result: dict[str, Any]) -> None:
    for name, run in result.items():
        told = {key: round(value, 4) for key, value in run["evaluation"].items() if isinstance(value, float)}
        print(f"\n{name}: {run['num_steps']:,} steps, {run['seconds']:.0f} s, {run['num_attempts']} attempts: {told}")
        if "confusion" in run["evaluation"]:
            labels = run["evaluation"]["labels"]
            print("  true \\ predicted " + "".join(f"{label:>9}" for label in labels))
            for label, counts in zip(labels, run["evaluation"]["confusion"], strict=True):
                print(f"  {label:>16} " + "".join(f"{count:>9,}" for count in counts))
    whole, killed = result["tuned"], result["tuned-killed"]
    same = [key for key in ("losses_sha256", "weights_sha256", "evaluation") if whole[key] == killed[key]]
    print(f"\nkilled and resumed: equal to the bit in {', '.join(same) or 'NOTHING'}")
    if len(same) < 3:
        raise SystemExit("the run that was killed did not end as the other one")


if __name__ == "__main__":
    main()
