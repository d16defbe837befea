"""`dure shards build`, `dure shards verify` and `dure shards inspect`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from data_pipeline.config import load
from data_pipeline.shards.build import ShardsBuild, ShardsConfig
from data_pipeline.stage import Manifest
from launch.data_stage import Figure, run_verb

MAX_CLASSES_SHOWN = 20
_ROW_FIGURES = {
    "num_targets": "target tokens",
    "num_desirable": "rows with a desirable answer",
    "num_scored": "rows with a score",
    "num_cut": "rows cut",
    "num_no_target": "rows without a target",
    "num_no_eos": "rows without an EOS target",
    "num_emptied": "rows emptied",
    "num_equal": "rows of equal answers",
    "num_mixed": "rows without a text that others have",
    "num_unknown_label": "rows of an unknown label",
    "num_prompt_too_long": "rows whose prompt is too long",
    "num_too_long": "rows too long",
}


def build(arguments: argparse.Namespace) -> int:
    """Documents, instruction rows, examples or rows with answers -> token ids."""
    config = load(arguments.config, arguments.overrides, ShardsConfig)
    return run_verb(
        ShardsBuild(config),
        kind="shards",
        num_workers=arguments.workers,
        figures=lambda manifest: list(_figures(manifest)),
        next_command=f"dure train CONFIG data.shards={config.output}",
    )


def verify(arguments: argparse.Namespace) -> int:
    """Print each fault; 1 if there is one."""
    from data_pipeline.shards.verify import verify as faults_of

    faults = faults_of(Path(arguments.path))
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{arguments.path}: {_verdict(len(faults))}")
    return 1 if faults else 0


def _verdict(num_faults: int) -> str:
    return f"{num_faults:,} fault{'s' * (num_faults != 1)} (손상됨)" if num_faults else "sound (정상)"


def inspect(arguments: argparse.Namespace) -> int:
    """Print counts, lengths and rows."""
    from data_pipeline.shards.inspect import describe
    from data_pipeline.stream.packing import Packing

    text = describe(
        Path(arguments.path),
        tokenizer=Path(arguments.tokenizer) if arguments.tokenizer else None,
        split=arguments.split,
        seq_len=arguments.seq_len,
        packing=cast("Packing | None", arguments.packing),
        num_rows=arguments.rows,
        colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ,
    )
    print(text, end="")
    return 0


def _figures(manifest: Manifest) -> Iterator[Figure]:
    for split, counts in manifest["splits"].items():
        yield Figure(f"{split} {'examples' if 'num_sequences' in manifest else 'documents'}", counts["num_documents"])
        yield Figure(f"{split} tokens", counts["num_tokens"])
        yield Figure(f"{split} {'answer ' * ('num_targets' in counts)}bytes", counts["num_bytes"])
        yield Figure(f"{split} unknown tokens", counts["num_unk"])
        for key, name in _ROW_FIGURES.items():
            if key in counts:
                yield Figure(f"{split} {name}", counts[key])
        classes = list(manifest.get("classes", {}).get(split, {}).items())
        for label, count in classes[:MAX_CLASSES_SHOWN]:
            yield Figure(f"{split} label {label}", count)
        if len(classes) > MAX_CLASSES_SHOWN:
            yield Figure(f"{split} further labels", len(classes) - MAX_CLASSES_SHOWN)
    if "frame" in manifest:
        yield Figure("frame", manifest["frame"]["kind"])
    if "num_sequences" in manifest:
        yield Figure("sequences an example", manifest["num_sequences"])
    if "held_out_by" in manifest:
        yield Figure("held out by", manifest["held_out_by"])
    if manifest.get("eos_is_sep"):
        yield Figure("end of a document", "the tokenizer's sep_token (it names no eos_token)")
    yield Figure("files", len(manifest["files"]))
