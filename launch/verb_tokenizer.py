"""`dure tokenizer train`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.config import load
from data_pipeline.stage import Manifest
from data_pipeline.tokenizer.train import TokenizerConfig, TokenizerTrain
from launch.data_stage import Figure, run_verb


def train(arguments: argparse.Namespace) -> int:
    """Documents -> a tokenizer folder with its card."""
    config = load(arguments.config, arguments.overrides, TokenizerConfig)
    return run_verb(
        TokenizerTrain(config),
        kind="tokenizer",
        num_workers=1,  # training and measuring wait for each other, and each uses every core
        figures=lambda manifest: list(_figures(config.output, manifest)),
        next_command=f"dure shards build --corpus {config.corpus} --tokenizer {config.output} --output DIR",
    )


def _figures(folder: Path, manifest: Manifest) -> Iterator[Figure]:
    card: dict[str, Any] = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    sample = card["corpus_sample"]
    yield Figure("kind", manifest["tokenizer_kind"])
    yield Figure("vocabulary", manifest["vocab_size"])
    yield Figure("fingerprint", manifest["tokenizer_fingerprint"][:16])
    yield Figure("training documents", card["training"]["num_documents"])
    yield Figure("training bytes", card["training"]["num_bytes"])
    for name in ("bytes_per_token", "chars_per_token", "unk_rate", "round_trip_rate", "lost_character_rate"):
        yield Figure(name.replace("_", " "), round(sample[name], 4))
    yield from _hostile(card["hostile"])


def _hostile(measures: dict[str, dict[str, Any]]) -> Iterator[Figure]:
    """What of the texts that tokenizers get wrong does not come back, a line each; one line where all of it does."""
    faulty = {name: figures for name, figures in measures.items() if figures["num_exact"] < figures["num_texts"]}
    yield Figure("hostile texts exact", f"{len(measures) - len(faulty)} of {len(measures)}")
    for name, figures in faulty.items():
        lost = f"{figures['unk_rate']:.1%} unknown, {figures['lost_character_rate']:.1%} lost"
        yield Figure(f"hostile: {name}", lost)
