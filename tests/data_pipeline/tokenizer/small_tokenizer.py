"""A WordPiece of a dozen pieces that a person can apply by hand, in a folder as BERT's: without an end of text."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PIECES = ("강릉", "##에서", "바다", "##를", "IFC", "##4", "가", "a")


def write_word_piece(
    folder: Path, *, pieces: tuple[str, ...] = PIECES, is_lower: bool = False, has_sep: bool = False
) -> Path:
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=is_lower, strip_accents=is_lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens(list(SPECIAL))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"unk_token": "[UNK]", "pad_token": "[PAD]"} | ({"sep_token": "[SEP]"} if has_sep else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    return folder


def write_texts(folder: Path, **files: list[str]) -> Path:
    """`name=[texts]` as JSONL files of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in files.items():
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
