"""Whether one tokenizer is another one with tokens added, told from the two files alone.

That is what lets a model train on shards of an extended tokenizer: every old text has the ids that the model knows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from data_pipeline.tokenizer.fingerprint import deciding_parts, read_tokenizer_json, tokenizer_file


@dataclass(frozen=True)
class NewToken:
    """A token that only the extended tokenizer has, and what the base makes of its text."""

    id: int
    text: str
    pieces: tuple[int, ...]
    """Ids of the base's tokens: what the rows of the new token begin from."""


def new_tokens(base: Path, extended: Path) -> list[NewToken] | None:
    """The tokens of `extended` beyond those of `base` (folders or files), by id; [] where both do the same to text.

    None where it is not `base` with ordinary tokens added at ids after its last one: then old texts may have other ids.
    """
    old, new = (read_tokenizer_json(tokenizer_file(place)) for place in (base, extended))
    ours, theirs = deciding_parts(old), deciding_parts(new)
    known, added = ours.pop("added_tokens"), theirs.pop("added_tokens")
    if ours != theirs or any(token not in added for token in known):
        return None
    if not (extra := [token for token in added if token not in known]):
        return []
    tokenizer = _reference(old)
    first = first_free_id(tokenizer)
    if any(token["special"] or token["single_word"] for token in extra):
        return None
    if [token["id"] for token in extra] != list(range(first, first + len(extra))):
        return None
    encoded = tokenizer.encode_batch([token["content"] for token in extra], add_special_tokens=False)
    return [
        NewToken(id=token["id"], text=token["content"], pieces=tuple(encoding.ids))
        for token, encoding in zip(extra, encoded, strict=True)
    ]


def first_free_id(tokenizer: Tokenizer) -> int:
    """The id after a tokenizer's last one."""
    return int(max(tokenizer.get_vocab(with_added_tokens=True).values())) + 1


def _reference(tree: dict[str, Any]) -> Tokenizer:
    tokenizer = Tokenizer.from_str(json.dumps(tree, ensure_ascii=False))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer
