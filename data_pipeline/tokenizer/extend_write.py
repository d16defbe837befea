"""The folder of an extended tokenizer.

    tokenizer.json, and all that stood beside it       what transformers loads
    extension.json                                     what it came from: each new token, its old pieces, what it saves
    candidates.json                                    what was chosen on a corpus, in the order of the choice
    card.json  README.md  manifest.json

It is made beside its place under a hidden name and renamed: it is there whole, or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import disk, stage
from data_pipeline.config import to_tree
from data_pipeline.disk import PARTIAL_SUFFIX, FileRecord, read_object
from data_pipeline.stage import MANIFEST_NAME, Manifest, StageError
from data_pipeline.tokenizer.encode import Encoder
from data_pipeline.tokenizer.extend import Plan, inputs_of, loaded
from data_pipeline.tokenizer.extend_card import readme
from data_pipeline.tokenizer.extend_descent import new_tokens
from data_pipeline.tokenizer.fingerprint import (
    TOKENIZER_FILE,
    read_tokenizer_json,
    tokenizer_file,
    tokenizer_fingerprint,
)

EXTENSION_NAME = "extension.json"
CANDIDATES_NAME = "candidates.json"
TOKENS_NAME = "tokens.txt"
# What some program reads of a tokenizer, copied as it is unless it names added tokens.
COMPANIONS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
)


def extension_tree(plan: Plan) -> dict[str, Any]:
    """extension.json: what the tokenizer came from, and what the rows of each new token can begin from."""
    base = loaded(read_tokenizer_json(tokenizer_file(plan.config.tokenizer)))
    saved = {choice.text: choice.num_saved for choice in plan.choices}
    return {
        "base": {
            "name": plan.config.tokenizer.resolve().name,
            "fingerprint": plan.base_fingerprint,
            "vocab_size": plan.tokens[0].id,
        },
        "num_tokens": len(plan.tokens),
        "tokens": [
            {
                "id": token.id,
                "text": token.text,
                "pieces": list(token.pieces),
                "piece_texts": [base.id_to_token(piece) for piece in token.pieces],
                "count": plan.counts[token.id],
                "num_saved_when_chosen": saved.get(token.text),
            }
            for token in plan.tokens
        ],
        "sample": plan.sizes,
        "set_apart_by_decoding": plan.apart,
        "refused": [each.as_dict() for each in plan.refused],
    }


def write_plan(plan: Plan, output: Path) -> Manifest:
    """Write the folder; raises StageError where something of that name is there."""
    if output.exists():
        raise StageError(f"{output}: exists already; give another --output, or remove this one")
    partial = output.with_name(f".{output.name}{PARTIAL_SUFFIX}")
    shutil.rmtree(partial, ignore_errors=True)  # what a kill left
    partial.mkdir(parents=True)
    try:
        manifest = write_tokenizer_folder(plan, partial)
        disk.sync_folder(partial)
        disk.rename(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest


def write_tokenizer_folder(plan: Plan, folder: Path) -> Manifest:
    """The files of an extended tokenizer in an empty `folder`, the manifest last."""
    source = tokenizer_file(plan.config.tokenizer).parent
    for name in COMPANIONS:
        if (source / name).is_file():
            disk.write_bytes(folder / name, (source / name).read_bytes())
    _tell_companions(plan, folder)
    disk.write_json(folder / TOKENIZER_FILE, plan.tree)
    extension = extension_tree(plan)
    disk.write_json(folder / EXTENSION_NAME, extension)
    fingerprint = tokenizer_fingerprint(folder)
    _check_written(plan, folder)
    if plan.choices:
        disk.write_json(folder / CANDIDATES_NAME, [asdict(choice) for choice in plan.choices])
    vocab_size = plan.tokens[-1].id + 1
    summary = {key: extension[key] for key in ("base", "num_tokens", "sample")}
    card = read_object(source / "card.json") | {
        "fingerprint": fingerprint,
        "vocab_size": vocab_size,
        "extended_from": summary,
    }
    disk.write_json(folder / "card.json", card)
    disk.write_bytes(folder / "README.md", readme(extension, fingerprint=fingerprint).encode())
    told = read_object(source / MANIFEST_NAME)
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST_NAME)
    inputs = inputs_of(plan.config)
    return stage.write_manifest(
        folder,
        {
            "kind": "tokenizer",
            **{key: told[key] for key in ("tokenizer_kind", "special_tokens", "unk_rate") if key in told},
            "tokenizer_fingerprint": fingerprint,
            "vocab_size": vocab_size,
            "extended_from": summary,
            "files": [asdict(file_record(folder, name)) for name in names],
            "config": to_tree(plan.config),
            "inputs": inputs,
            "inputs_sha256": stage.fingerprint(inputs),
        },
    )


def file_record(folder: Path, name: str) -> FileRecord:
    """What a manifest says of a file of `folder`."""
    path = folder / name
    return FileRecord(name, path.stat().st_size, disk.sha256_of(path))


def _tell_companions(plan: Plan, folder: Path) -> None:
    """Older files beside tokenizer.json name added tokens once more; what they leave out, some loaders drop."""
    entries = {entry["content"]: entry for entry in plan.tree["added_tokens"]}
    config = read_object(folder / "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        for token in plan.tokens:
            entry = {key: value for key, value in entries[token.text].items() if key != "id"}
            config["added_tokens_decoder"][str(token.id)] = entry
        disk.write_json(folder / "tokenizer_config.json", config)
    if (folder / "added_tokens.json").is_file():
        ids = read_object(folder / "added_tokens.json") | {token.text: token.id for token in plan.tokens}
        disk.write_json(folder / "added_tokens.json", ids)


def _check_written(plan: Plan, folder: Path) -> None:
    """The folder descends from the base by its files alone, and our fastest encoder agrees with the reference."""
    if new_tokens(plan.config.tokenizer, folder) != plan.tokens:
        raise StageError(f"{folder}: does not read back as {plan.config.tokenizer} with its new tokens; report this")
    fast, reference = (Encoder(folder, backend=backend, needs_eos=False) for backend in ("fastest", "tokenizers"))
    texts = [f"앞 {token.text}은 {token.text}" for token in plan.tokens]
    pairs = zip(fast.encode_batch(texts), reference.encode_batch(texts), strict=True)
    if not all(np.array_equal(*pair) for pair in pairs):
        raise StageError(
            f"{folder}: {fast.backend} gives other ids than the tokenizers library; uninstall {fast.backend}"
        )


def write_candidates(plan: Plan, folder: Path) -> None:
    """For a person to look at and to shorten: the choices, and their texts as a list for --tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    disk.write_json(folder / CANDIDATES_NAME, [asdict(choice) for choice in plan.choices])
    lines: Iterable[str] = (choice.text for choice in plan.choices)
    disk.write_bytes(folder / TOKENS_NAME, ("\n".join(lines) + "\n").encode())
