"""Training and encoding of every kind of tokenizer: MB a CPU-second beside the tokenizers library, in one run.

    .venv/bin/python bench/tokenizer.py [--corpus ../shared/data/docs_ko] [--vocab-size 8000] [--rounds 3]

A contender encodes every document of the corpus once a round; the rounds are interleaved, so that a busy machine slows
all of them, and each one's median counts. CPU-seconds are of all threads of this process. Each round has texts that
the contender has not seen (every document begins with the round's number), but words repeat, as they do in life.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from tokenizers import Tokenizer  # noqa: E402

from data_pipeline.corpus.build import CorpusBuild, CorpusConfig  # noqa: E402
from data_pipeline.corpus.records import iterate_documents  # noqa: E402
from data_pipeline.stage import Stage  # noqa: E402
from data_pipeline.tokenizer.encode import Encoder  # noqa: E402
from data_pipeline.tokenizer.train import TokenizerConfig, TokenizerTrain  # noqa: E402

# What is trained, by the keys of its config; Kiwi's where it is installed.
KINDS: dict[str, dict[str, Any]] = {
    "byte_level_bpe": {},
    "hash_hash_bpe": {"kind": "hash_hash_bpe"},
    "unigram": {"kind": "unigram"},
    "wordpiece": {"kind": "wordpiece"},
    "byte_level + 100 rules": {"merge_rules": [f"낱말{number} 하나 → 낱말{number}하나" for number in range(100)]},
}
if importlib.util.find_spec("kiwipiepy") is not None:
    KINDS["byte_level + kiwi"] = {"morphemes": "kiwi"}
Encode = Callable[[list[str]], Any]


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    print(f"{'kind':<22} {'what':<34} {'CPU-s':>8} {'MB/CPU-s':>9} {'bytes/token':>12} {'chars/token':>12}")
    for row in rows:
        print(
            f"{row['kind']:<22} {row['what']:<34} {row['cpu_seconds']:>8.2f} {row['mb_per_cpu_second']:>9.2f} "
            f"{row['bytes_per_token']:>12.3f} {row['chars_per_token']:>12.3f}"
        )
    out = REPO / "bench/out/tokenizer.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    report = {"command": sys.argv, "python": platform.python_version(), "machine": platform.machine(), "rows": rows}
    out.write_text(json.dumps(report, indent=1) + "\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, default=REPO.parent / "shared/data/docs_ko")
    parser.add_argument("--vocab-size", type=int, default=8_000)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    config = {"inputs": [options.corpus], "output": folder / "corpus"}
    run(CorpusBuild(CorpusConfig.model_validate(config)))
    texts = [text for batch in iterate_documents(folder / "corpus", columns=["text"]) for text in batch[0].to_pylist()]
    rows = []
    for kind, keys in KINDS.items():
        tree = {"corpus": folder / "corpus", "output": folder / kind, "vocab_size": options.vocab_size, **keys}
        start = time.process_time()
        run(TokenizerTrain(TokenizerConfig.model_validate(tree)))
        figures = on_corpus(folder / kind)
        rows.append(row(kind, "train and measure", time.process_time() - start, texts, figures))
        for what, seconds in encode_seconds(folder / kind, texts, rounds=options.rounds).items():
            rows.append(row(kind, what, statistics.median(seconds), texts, figures))
    return rows


def run(stage: Stage) -> None:
    for task in stage.plan():
        stage.run(task)
    stage.finish()


def on_corpus(folder: Path) -> dict[str, float]:
    figures: dict[str, float] = json.loads((folder / "card.json").read_text(encoding="utf-8"))["corpus_sample"]
    return figures


def encode_seconds(folder: Path, texts: list[str], *, rounds: int) -> dict[str, list[float]]:
    """CPU-seconds of each round of each contender."""
    fastest, reference = Encoder(folder), Encoder(folder, backend="tokenizers")
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    contenders: dict[str, Encode] = {
        "tokenizers encode_batch": lambda batch: [
            one.ids for one in plain.encode_batch(batch, add_special_tokens=False)
        ],
        "Encoder by tokenizers": reference.encode_batch,
    }
    if fastest.backend != reference.backend:
        contenders[f"Encoder by {fastest.backend}"] = fastest.encode_batch
    seconds: dict[str, list[float]] = {what: [] for what in contenders}
    for number in range(rounds):
        batch = [f"{number} {text}" for text in texts]
        for what, encode in contenders.items():
            start = time.process_time()
            encode(batch)
            seconds[what].append(time.process_time() - start)
    return seconds


def row(kind: str, what: str, seconds: float, texts: list[str], figures: dict[str, float]) -> dict[str, Any]:
    num_bytes = sum(len(text.encode()) for text in texts)
    return {
        "kind": kind,
        "what": what,
        "cpu_seconds": seconds,
        "mb_per_cpu_second": num_bytes / seconds / 1e6,
        "bytes_per_token": figures["bytes_per_token"],
        "chars_per_token": figures["chars_per_token"],
    }


if __name__ == "__main__":
    main()
