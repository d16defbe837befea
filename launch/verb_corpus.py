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

_NEXT = {
    "document": "dure tokenizer train --corpus {output} --output DIR",
    "instruction": "dure shards build --corpus {output} --tokenizer DIR --template NAME --output DIR",
}


def build(arguments: argparse.Namespace) -> int:
    """Files -> documents, or instructions."""
    config = load(arguments.config, arguments.overrides, CorpusConfig)
    next_command = _NEXT[config.record].format(output=config.output)
    return run_verb(
        CorpusBuild(config),
        kind="corpus",
        num_workers=arguments.workers,
        figures=lambda manifest: list(_figures(manifest)),
        next_command=next_command,
    )


def inspect(arguments: argparse.Namespace) -> int:
    """Show what a build would read."""
    report = inspect_path(Path(arguments.path))
    print("\n".join(report.lines()))
    flag = "" if report.record == "document" else f"--record {report.record} "
    print(f"next: dure corpus build {flag}--input {arguments.path} --output DIR")
    return 0


def _figures(manifest: Manifest) -> Iterator[Figure]:
    """What was kept, and everything that was not, by reason."""
    yield Figure(f"{manifest['record']}s", manifest["num_records"])
    yield Figure("text bytes", manifest["num_text_bytes"])
    yield Figure("files", len(manifest["files"]))
    for form, count in manifest.get("forms", {}).items():
        yield Figure(f"form: {form}", count)
    for dataset in manifest.get("hub", []):
        yield Figure(f"hf:{dataset['name']}@{dataset['revision']}", dataset["commit"])
    for fate in ("dropped", "rejected", "passed_over"):
        for reason, count in sorted(manifest["counts"][fate].items()):
            if count:
                yield Figure(f"{fate.replace('_', ' ')}: {reason}", count)
    if cut := manifest["counts"]["changed"].get("last_question_cut"):
        yield Figure("cut: last question without an answer", cut)
