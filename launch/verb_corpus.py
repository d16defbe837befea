"""`dure corpus build` and `dure corpus inspect`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.config import load
from data_pipeline.corpus.build import CorpusBuild, CorpusConfig
from data_pipeline.corpus.inspect import inspect_path
from data_pipeline.stage import Manifest
from launch.data_stage import Figure, run_verb


def build(arguments: argparse.Namespace) -> int:
    """Files -> documents."""
    config = load(arguments.config, arguments.overrides, CorpusConfig)
    next_command = f"dure tokenizer train --corpus {config.output} --output DIR"
    return run_verb(
        CorpusBuild(config),
        kind="corpus",
        num_workers=arguments.workers,
        figures=lambda manifest: list(_figures(manifest)),
        next_command=next_command,
    )


def inspect(arguments: argparse.Namespace) -> int:
    """Show what a build would read."""
    print("\n".join(inspect_path(Path(arguments.path)).lines()))
    print(f"next: dure corpus build --input {arguments.path} --output DIR")
    return 0


def _figures(manifest: Manifest) -> Iterator[Figure]:
    """What was kept, and everything that was not, by reason."""
    yield Figure("documents", manifest["num_records"])
    yield Figure("text bytes", manifest["num_text_bytes"])
    yield Figure("files", len(manifest["files"]))
    for fate in ("dropped", "rejected", "passed_over"):
        for reason, count in sorted(manifest["counts"][fate].items()):
            if count:
                yield Figure(f"{fate.replace('_', ' ')}: {reason}", count)
