"""`dure tokenizer train` and `dure tokenizer audit`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline import disk
from data_pipeline.config import load
from data_pipeline.stage import Manifest, StageError
from data_pipeline.tokenizer.fingerprint import TOKENIZER_FILE
from data_pipeline.tokenizer.train import TokenizerConfig, TokenizerTrain
from launch.data_stage import Figure, run_verb
from trainer.locate import locate

AUDIT_PAGE, AUDIT_TREE = "audit.html", "audit.json"


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


def audit(arguments: argparse.Namespace) -> int:
    """Figures side by side and a verdict; the page and audit.json where --output names a folder."""
    from data_pipeline.tokenizer.audit import AuditInputs
    from data_pipeline.tokenizer.audit import audit as audited
    from data_pipeline.tokenizer.audit_cost import Body
    from launch.tokenizer_report import page
    from launch.tokenizer_table import lines

    if arguments.corpus is None:
        raise StageError("dure tokenizer audit: --corpus is missing; name a corpus folder, or files of text")
    output = Path(arguments.output) if arguments.output else None
    if output is not None and output.exists() and not output.is_dir():
        raise StageError(f"--output {output}: a file stands there; name a folder")
    inputs = AuditInputs(
        tuple(tokenizer_place(name) for name in (arguments.path, *(arguments.against or ()))),
        Path(arguments.corpus),
        Path(arguments.terms) if arguments.terms else None,
        max_bytes=arguments.max_bytes,
        text_column=arguments.text_column,
        term_column=arguments.term_column,
        body=Body(arguments.hidden_size, arguments.layers, arguments.seq_len),
    )
    tree = audited(inputs)
    print("\n".join(lines(tree)))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        disk.write_json(output / AUDIT_TREE, tree)
        disk.write_bytes(output / AUDIT_PAGE, page(tree).encode())
        print(f"written: {output / AUDIT_PAGE} and {AUDIT_TREE}; open it in a browser (브라우저로 여십시오)")
    return 0


def tokenizer_place(name: str) -> Path:
    """The tokenizer that `name` means: its folder or file, a model folder, or that of a run.

    A name that is none of these comes back as it is, for the reader to refuse.
    """
    path, place = Path(name), locate(name)
    if place is None or (path / TOKENIZER_FILE).is_file():
        return path
    own = place.run_folder / "tokenizer" if place.run_folder is not None else place.path
    return own if (own / TOKENIZER_FILE).is_file() else place.path


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
    if card["training"]["source_weights"]:
        for name, num_bytes in card["training"]["bytes_by_source"].items():
            yield Figure(f"bytes of {name}", num_bytes)
    if "border_sample" in card:
        yield Figure("morpheme borders kept", round(card["border_sample"]["kept_share"], 4))
    if "rules_sample" in card:
        yield Figure("texts changed by rules", card["rules_sample"]["num_changed"])
    yield from _hostile(card["hostile"])


def _hostile(measures: dict[str, dict[str, Any]]) -> Iterator[Figure]:
    """What of the texts that tokenizers get wrong does not come back, a line each; one line where all of it does."""
    faulty = {name: figures for name, figures in measures.items() if figures["num_exact"] < figures["num_texts"]}
    yield Figure("hostile texts exact", f"{len(measures) - len(faulty)} of {len(measures)}")
    for name, figures in faulty.items():
        lost = f"{figures['unk_rate']:.1%} unknown, {figures['lost_character_rate']:.1%} lost"
        yield Figure(f"hostile: {name}", lost)
