"""Run folders for tests of the report, written as runs write them, without training."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.stage import fingerprint, write_manifest
from tests.trainer.tiny_run import tiny_config
from trainer.config import TrainConfig
from trainer.resilience import ExitRecord
from trainer.run_folder import RunFolder

HOSTILE = '<script>alert("두레")</script><img src=x onerror=alert(1)>&amp;\u202e\x07\ud800 \'"'


def config(folder: Path, *, name: str = "run", **sections: Any) -> TrainConfig:
    return tiny_config(folder, folder / "shards", run={"name": name, "folder": str(folder)}, **sections)


def step_line(step: int, **figures: Any) -> dict[str, Any]:
    """What a logged step writes down."""
    line = {"step": step, "loss": 2 + 3 * math.exp(-step / 40), "grad_norm": 0.5, "lr": 1e-3, "num_targets": 90}
    line |= {"tokens": 90 * step, "epoch": 0, "skipped": False, "tokens_per_second": 4000.0 + step % 7}
    return line | {"seconds_per_step": 0.02, "eta_seconds": 1.0, "memory_gib": 0.5} | figures


def evaluation_line(step: int, **figures: Any) -> dict[str, Any]:
    line = {"step": step, "loss": 2 + 3 * math.exp(-step / 40), "bits_per_byte": 1 + math.exp(-step / 40)}
    return (
        line | {"num_documents": 40, "num_targets": 900, "num_bytes": 3000, "is_best": True, "seconds": 0.2} | figures
    )


def make_run(
    folder: Path,
    *,
    name: str = "run",
    steps: Iterable[Mapping[str, Any]] | None = None,
    evaluations: Iterable[Mapping[str, Any]] | None = None,
    **sections: Any,
) -> Path:
    """A run of 100 steps that stopped at 50 and went on, as its own classes leave it on disk."""
    settings = config(folder, name=name, train={"max_steps": 100}, **sections)
    run = RunFolder(folder / name, rank=0)
    with run.hold(settings, ranks=2):
        run.append_event(kind="started", step=0, detail="a new run", action="trains on from here")
        run.write_exit(ExitRecord(code=85, reason="SIGTERM", step=50))
    with run.hold(settings, ranks=2):
        run.append_event(kind="started", step=50, detail="step-00000050", action="trains on from here")
        for line in steps if steps is not None else map(step_line, range(2, 101, 2)):
            run.append_metrics(line)
        for line in evaluations if evaluations is not None else map(evaluation_line, (25, 50, 75, 100)):
            run.append_evaluation(line)
        run.write_exit(ExitRecord(code=0, reason="done", step=100))
    return run.path


def write_answers(run: Path, step: int, rows: Iterable[tuple[str, str, str]], *, ended: bool = True) -> None:
    """Rows of prompt, expected and answer."""
    (run / "answers").mkdir(exist_ok=True)
    lines = [
        {"step": step, "prompt": prompt, "expected": expected, "answer": answer, "ended": ended}
        | {"is_exact": expected == answer}
        for prompt, expected, answer in rows
    ]
    write_lines(run / "answers" / f"step-{step:08d}.jsonl", lines)


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def make_data(
    folder: Path, *, name: str = "corpus", source: str = "aihub_653", mark: str = "f"
) -> tuple[Path, Path, Path]:
    """A corpus, a tokenizer and shards of both, as far as a report reads them: manifests and a card."""
    corpus, tokenizer, shards = folder / name, folder / f"{name}-tokenizer", folder / "shards"
    for place in (corpus, tokenizer, shards):
        place.mkdir(parents=True, exist_ok=True)
    files = [{"name": "data/part-00000.parquet", "sha256": mark * 64}]
    counts = {"kept": 5750, "dropped": {"duplicate": 250, "too_short": 31}, "rejected": {"bad_json": 7}}
    sources = {source: {"num_records": 5750, "num_text_bytes": 6_171_639}}
    tree = {"kind": "corpus", "record": "document", "files": files, "counts": counts, "sources": sources}
    write_manifest(corpus, tree | {"num_records": 5750, "num_text_bytes": 6_171_639})
    figures = {"chars_per_token": 1.85, "bytes_per_token": 4.5, "unk_rate": 0.0, "round_trip_rate": 1.0}
    card = {"kind": "byte_level_bpe", "vocab_size": 2048, "fingerprint": mark * 64, "corpus_sample": figures}
    card |= {"training": {"num_documents": 5500, "num_bytes": 5_888_549}, "hostile": {"hangul jamo": figures}}
    (tokenizer / "card.json").write_text(json.dumps(card), encoding="utf-8")
    splits = {"train": {"num_documents": 5500, "num_tokens": 733_175}, "heldout": {"num_documents": 250}}
    made_from = {"tokenizer_fingerprint": mark * 64, "corpus_files_sha256": fingerprint(files)}
    write_manifest(shards, {"kind": "shards", "splits": splits} | made_from)
    return corpus, tokenizer, shards
