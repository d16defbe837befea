"""What a run's folder tells of the model that is exported: its last evaluation, how it was trained, its tokenizer."""

from __future__ import annotations

from typing import Any

from data_pipeline.stage import MANIFEST_NAME
from trainer.run_folder import EVALUATIONS_NAME, METRICS_NAME, read_lines
from trainer.saved import Saved, quantization_of, read_json, tokenizer_folder

TOKENIZER_CARD_NAME = "card.json"


def tokenizer_figures(saved: Saved, *, fingerprint: str) -> dict[str, Any] | None:
    """What the tokenizer's card says of it; None for one that brings no card of its own."""
    told = read_json(tokenizer_folder(saved) / TOKENIZER_CARD_NAME)
    if told.get("fingerprint") != fingerprint:
        before = read_json(saved.path / MANIFEST_NAME)  # of an export that is exported again
        return before.get("tokenizer") if before.get("tokenizer_fingerprint") == fingerprint else None
    return {key: told[key] for key in ("kind", "normalizer", "vocab_size", "training", "corpus_sample")}


def last_evaluation(saved: Saved) -> dict[str, Any]:
    """The last evaluation up to the exported step."""
    lines = _lines_up_to(saved, EVALUATIONS_NAME)
    return lines[-1] if lines else {}


def _lines_up_to(saved: Saved, name: str) -> list[dict[str, Any]]:
    if saved.run_folder is None or saved.step is None:
        return []
    return [line for line in read_lines(saved.run_folder / name) if line["step"] <= saved.step]


def training_of(saved: Saved) -> dict[str, Any]:
    """How it was trained, for the card."""
    if saved.config is None:
        return {}
    config = saved.config
    logged = _lines_up_to(saved, METRICS_NAME)
    rows: dict[str, Any] = {
        "stage": config.stage,
        "steps": f"{saved.step:,}",
        "rows a step · tokens a row": f"{config.train.global_batch_sequences:,} · {config.data.seq_len:,}",
        "precision": config.train.precision,
        "learning rate": f"{config.train.schedule.peak_lr:g}",
        "seed": config.seed,
    }
    if logged:
        rows["last training loss"] = f"{float(logged[-1]['loss']):.4f}"
    if config.adapter is not None:
        adapter = config.adapter
        rows["adapter"] = f"{adapter.kind}, rank {adapter.rank}, alpha {adapter.alpha:g}, targets {adapter.targets}"
    if (quantization := quantization_of(saved)) is not None:
        rows["base held in"] = f"{quantization.kind}, computed in {quantization.compute_dtype}"
    return rows
