"""`dure corpus build` and `dure corpus inspect`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.config import load
from data_pipeline.corpus.build import CorpusBuild, CorpusConfig
from data_pipeline.corpus.inspect import inspect_path
from data_pipeline.stage import Manifest, read_manifest
from launch.data_stage import Figure, run_verb

MAX_NAMED = 5  # of the files that were lost
_NEXT = {
    "document": "dure tokenizer train --corpus {output} --output DIR",
    "instruction": "dure shards build --corpus {output} --tokenizer DIR --template NAME --output DIR",
    "label": "dure shards build --corpus {output} --tokenizer DIR --output DIR",
    "pair": "dure shards build --corpus {output} --tokenizer DIR --output DIR",
}


_TOLD_CHANGES = {
    "last_question_cut": "cut: last question without an answer",
    "original_text_instead": "sentences without text: original_text",
    "long_text_cut": "long texts cut into several",
    "label_stripped": "labels with spaces around them, taken off",
    "contradicting_label": "texts of before with another label (모순된 라벨), kept",
    "contradicting_score": "texts of before with another score, kept",
}


def build(arguments: argparse.Namespace) -> int:
    """Files -> documents, instructions, labelled texts or pairs."""
    config = load(arguments.config, arguments.overrides, CorpusConfig)
    next_command = _NEXT[config.record].format(output=config.output)
    code = run_verb(
        CorpusBuild(config),
        kind="corpus",
        num_workers=arguments.workers,
        figures=lambda manifest: list(_figures(manifest)),
        next_command=next_command,
    )
    for line in _warnings(config.output, read_manifest(config.output, kind="corpus")):
        print(line, file=sys.stderr)
    return code


def inspect(arguments: argparse.Namespace) -> int:
    """Show what a build would read."""
    report = inspect_path(Path(arguments.path))
    print("\n".join(report.lines()))
    flag = "" if report.record == "document" else f"--record {report.record} "
    print(f"next: dure corpus build {flag}--input {arguments.path} --output DIR")
    return 0


def _warnings(output: Path, manifest: Manifest) -> Iterator[str]:
    """Which files could not be opened at all, the first few by name, and where every reject is told."""
    if lost := manifest["lost"]:
        archives = manifest["archives"]
        yield (
            f"warning: {archives['num_lost']:,} of {archives['num_found']:,} archives could not be opened "
            "(압축 파일 손상); of what was lost:"
        )
        for reject in lost[:MAX_NAMED]:
            yield f"  {reject['file']}: {reject['reason']}: {reject['error']}"
    if num_rejected := sum(manifest["counts"]["rejected"].values()):
        yield f"{num_rejected:,} rejected: {output / 'rejects'} names each, with its place and error"


def _figures(manifest: Manifest) -> Iterator[Figure]:
    """What was kept, and everything that was not, by reason."""
    yield Figure(f"{manifest['record']}s", manifest["num_records"])
    yield Figure("text bytes", manifest["num_text_bytes"])
    yield Figure("files", len(manifest["files"]))
    for form, count in manifest.get("forms", {}).items():
        yield Figure(f"form: {form}", count)
    for dataset in manifest.get("hub", []):
        yield Figure(f"hf:{dataset['name']}@{dataset['revision']}", dataset["commit"])
    for encoding, count in manifest["encodings"].items():
        yield Figure(f"encoding: {encoding}", count)
    for fate in ("dropped", "rejected", "passed_over"):
        for reason, count in sorted(manifest["counts"][fate].items()):
            if count:
                yield Figure(f"{fate.replace('_', ' ')}: {reason}", count)
    for change, name in _TOLD_CHANGES.items():
        if count := manifest["counts"]["changed"].get(change):
            yield Figure(name, count)
