"""The frame of a model's texts as its exported tokenizer puts it there: pipelines read what the model learnt from.

It is the post-processor of tokenizer.json, which no stage of ours runs and no fingerprint holds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_pipeline import disk
from data_pipeline.shards.format import Frame
from data_pipeline.tokenizer.fingerprint import TOKENIZER_FILE, read_tokenizer_json

SETTINGS_NAME = "tokenizer_config.json"

Json = dict[str, Any]


def frame_tokenizer(folder: Path, frame: Frame, *, eos_id: int, has_token_types: bool) -> None:
    """Make the tokenizer in `folder` put `frame` around one text or two.

    Args:
        eos_id: ends a text of a plain frame, which may begin with a token too.
        has_token_types: whether the model tells the second text apart: behind the first separator the type is 1.
    """
    tree = read_tokenizer_json(folder / TOKENIZER_FILE)
    template = _template(frame, tree, eos_id, has_token_types and frame.kind != "plain")
    tree["post_processor"] = _beside_offsets(tree.get("post_processor"), template)
    disk.write_bytes(folder / TOKENIZER_FILE, json.dumps(tree, ensure_ascii=False, indent=2).encode())
    settings = disk.read_object(folder / SETTINGS_NAME)
    types = ["token_type_ids"] if has_token_types else []
    settings |= {"model_input_names": ["input_ids", *types, "attention_mask"], "padding_side": "right"}
    for key in ("add_bos_token", "add_eos_token"):  # they would write a post-processor of their own
        settings.pop(key, None)
    disk.write_json(folder / SETTINGS_NAME, settings)


def _template(frame: Frame, tree: Json, eos_id: int, has_types: bool) -> Json:
    """tokenizers' TemplateProcessing; see `Frame` for what stands where."""
    end = eos_id if frame.sep_id is None else frame.sep_id
    opening = [] if frame.cls_id is None else [frame.cls_id]
    single: list[int | str] = [*opening, "A", end]
    pair: list[int | str] = [*single, *([end] if frame.kind == "roberta" else []), "B", end]
    names = {number: _token(tree, number) for number in {*single, *pair} if isinstance(number, int)}
    return {
        "type": "TemplateProcessing",
        "single": _pieces(single, names, end=end, has_types=has_types),
        "pair": _pieces(pair, names, end=end, has_types=has_types),
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]} for number, token in sorted(names.items())
        },
    }


def _pieces(pieces: list[int | str], names: dict[int, str], *, end: int, has_types: bool) -> list[Json]:
    found: list[Json] = []
    num_ends = 0
    for piece in pieces:
        type_id = int(has_types and num_ends > 0)
        if isinstance(piece, str):
            found.append({"Sequence": {"id": piece, "type_id": type_id}})
        else:
            found.append({"SpecialToken": {"id": names[piece], "type_id": type_id}})
            num_ends += piece == end
    return found


def _beside_offsets(before: Json | None, template: Json) -> Json:
    """`template` behind what only mends offsets; in place of what put other tokens there."""
    steps = [before] if before and before["type"] != "Sequence" else (before or {}).get("processors", [])
    kept = [step for step in steps if step["type"] == "ByteLevel"]
    return {"type": "Sequence", "processors": [*kept, template]} if kept else template


def _token(tree: Json, number: int) -> str:
    added = {token["id"]: token["content"] for token in tree.get("added_tokens") or []}
    if number in added:
        return str(added[number])
    vocabulary = tree["model"]["vocab"]
    if isinstance(vocabulary, dict):
        return next(token for token, found in vocabulary.items() if found == number)
    return str(vocabulary[number][0])
