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
} | dict.fromkeys(
    ("preference", "feedback", "prompt"),
    "dure shards build --corpus {output} --tokenizer DIR --template NAME --output DIR",
)


_TOLD_CHANGES = {
    "last_question_cut": "cut: last question without an answer",
    "original_text_instead": "sentences without text: original_text",
    "long_text_cut": "long texts cut into several",
    "duplicate": "rows that repeat one of before (중복), kept",
    "also_held_out": "rows for train that are held out too, kept",
    "held_out_again": "held-out rows that repeat one of before, kept",
    "label_stripped": "labels with spaces around them, taken off",
    "label_folded": "labels like 1.0, read as 1 (소수로 적힌 라벨)",
    "contradicting_label": "texts of before with another label (모순된 라벨), kept",
    "contradicting_score": "texts of before with another score, kept",
    "contradicting_preference": "answers of before with the other one chosen (모순된 선호), kept",
    "contradicting_feedback": "answers of before that were judged otherwise (모순된 평가), kept",
}


_HELD_BY = {
    "split": "by split: heldout",
    "validation": "AIHub's Validation",
    "name": "files called dev, test or valid",
}


def build(arguments: argparse.Namespace) -> int:
    """Files -> documents, instructions, labelled texts, pairs, preferences, feedback or prompts."""
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
    if by_name := manifest.get("heldout", {"reasons": {}})["reasons"].get("name"):
        yield (
            f"{by_name['num_records']:,} records are held out, because their files are called dev, test or valid "
            "(파일 이름이 검증용); to train on them set split: train for their input"
        )
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
    for why, counts in manifest.get("heldout", {"reasons": {}})["reasons"].items():
        files = f"{counts['num_files']:,} file{'s' * (counts['num_files'] != 1)}"
        yield Figure(f"held out (검증용), {_HELD_BY[why]}", f"{counts['num_records']:,} of {files}")
    for fate in ("dropped", "rejected", "passed_over"):
        for reason, count in sorted(manifest["counts"][fate].items()):
            if count:
                yield Figure(f"{fate.replace('_', ' ')}: {reason}", count)
    for change, name in _TOLD_CHANGES.items():
        if count := manifest["counts"]["changed"].get(change):
            yield Figure(name, count)
