"""One hash for what a tokenizer does to text: equal hashes give equal ids. Works for any `tokenizer.json`.

What does not decide ids is left out: decoder, padding, truncation, and the post-processor, whose tokens no stage adds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_pipeline.stage import StageError, fingerprint

TOKENIZER_FILE = "tokenizer.json"

_DECIDING = ("normalizer", "pre_tokenizer", "model")
_ADDED_TOKEN_KEYS = ("id", "content", "single_word", "lstrip", "rstrip", "normalized", "special")


def tokenizer_fingerprint(folder_or_file: str | Path) -> str:
    """sha256 over what decides the ids of the tokenizer in a folder, or in a `tokenizer.json`.

    It depends neither on the path, nor on how the file is formatted, nor on which version of the format it has.

    Raises:
        StageError: there is no such file, or it is not a tokenizer.
    """
    return fingerprint(deciding_parts(read_tokenizer_json(tokenizer_file(folder_or_file))))


def tokenizer_file(folder_or_file: str | Path) -> Path:
    """The `tokenizer.json` in a folder, of a name of the hub, or the file itself; BERT's vocab.txt is made one.

    Raises:
        StageError: there is none, or the hub can't be reached.
    """
    path = Path(folder_or_file)
    if not path.exists():
        from data_pipeline.tokenizer.found import hub_folder

        path = hub_folder(path) or path
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if file.is_file():
        return file
    if (path / "vocab.txt").is_file():
        from data_pipeline.tokenizer.found import from_vocab

        return from_vocab(path)
    raise StageError(
        f"{path}: no {TOKENIZER_FILE} there; give a folder that `dure tokenizer train` or "
        "`AutoTokenizer.save_pretrained` wrote, or a name of the hub such as klue/bert-base"
    )


def read_tokenizer_json(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StageError(f"{file}: not valid JSON: {error}; train the tokenizer again, or copy it anew") from None
    if not isinstance(tree, dict) or "model" not in tree:
        raise StageError(f"{file}: no 'model' in it, so it is not a tokenizer; give another file")
    return tree


def deciding_parts(tree: dict[str, Any]) -> dict[str, Any]:
    """Of a `tokenizer.json`: what decides ids, in one spelling."""
    parts = {key: _without_defaults(tree.get(key)) for key in _DECIDING}
    merges = tree["model"].get("merges")
    if merges is not None:
        # Until tokenizers 0.20 a merge was one string "a b", since then it is a pair.
        parts["model"]["merges"] = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges]
    added = sorted(tree.get("added_tokens") or [], key=lambda token: token["id"])
    parts["added_tokens"] = [{key: token.get(key, False) for key in _ADDED_TOKEN_KEYS} for token in added]
    return parts


def _without_defaults(node: Any) -> Any:
    """Absent, null and false mean the same in this format; older versions leave out what newer ones spell."""
    if isinstance(node, dict):
        kept = {key: _without_defaults(value) for key, value in node.items() if key not in ("trim_offsets", "merges")}
        return {key: value for key, value in kept.items() if value is not None and value is not False}
    if isinstance(node, list):
        return [_without_defaults(item) for item in node]
    return node
