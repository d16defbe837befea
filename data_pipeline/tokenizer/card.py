"""The card of a tokenizer, in Korean and English: what it is, what it was made from and what it does to text."""

from __future__ import annotations

from typing import Any

_KIND = {
    "byte_level_bpe": ("바이트 단위 BPE", "byte-level BPE"),
    "hash_hash_bpe": ("`##` BPE (WordPiece 표기)", "`##` BPE (WordPiece notation)"),
}
_LOSS = {
    "byte_level_bpe": (
        "NFC 텍스트는 빠짐없이 그대로 복원되고, 모르는 글자가 없습니다.",
        "Every NFC text comes back exactly, and nothing is unknown.",
    ),
    "hash_hash_bpe": (
        "공백과 줄바꿈은 보존되지 않고, 알파벳에 없는 글자는 `<|unk|>`가 됩니다. 아래 손실률을 보십시오. "
        "bits per byte는 다른 토크나이저와 비교할 수 없습니다.",
        "White space and newlines do not come back, and characters outside the alphabet become `<|unk|>`; see the loss "
        "below. Its bits per byte can't be compared with those of other tokenizers.",
    ),
}


def readme(card: dict[str, Any]) -> str:
    """README.md for the tree of `card.json`."""
    korean, english = _KIND[card["kind"]]
    loss_korean, loss_english = _LOSS[card["kind"]]
    facts = (
        f"{card['vocab_size']:,}",
        f"{card['training']['num_documents']:,}",
        f"{card['training']['num_bytes']:,}",
    )
    lines = [
        "# 토크나이저 / Tokenizer",
        "",
        f"{korean}, 어휘 {facts[0]}개, 문서 {facts[1]}개 ({facts[2]} 바이트)로 학습. 정규화는 NFC. {loss_korean}",
        "",
        f"{english}, {facts[0]} tokens, trained on {facts[1]} documents ({facts[2]} bytes). Normalises to NFC. "
        f"{loss_english}",
        "",
        "```python",
        "from transformers import AutoTokenizer",
        'tokenizer = AutoTokenizer.from_pretrained("…")  # 이 폴더 / this folder',
        "```",
        "",
        f"지문 / fingerprint: `{card['fingerprint']}`",
        "",
        *_table(card),
        "",
        "특수 토큰 / special tokens: " + ", ".join(f"`{token}` {number}" for token, number in _first(card)) + ", …",
        "",
        "말뭉치 출처 / corpus sources: "
        + ", ".join(f"{name} ({n:,})" for name, n in card["training"]["sources"].items()),
        "",
    ]
    return "\n".join(lines)


def _table(card: dict[str, Any]) -> list[str]:
    names = ("텍스트 text", "글자 chars/token", "바이트 bytes/token", "미등록 unknown", "복원 round trip", "손실 lost")
    rows = [("**말뭉치 / corpus sample**", card["corpus_sample"]), *card["hostile"].items()]
    return [f"| {' | '.join(names)} |", "|---|---|---|---|---|---|", *(_row(name, figures) for name, figures in rows)]


def _row(name: str, figures: dict[str, Any]) -> str:
    return (
        f"| {name} | {figures['chars_per_token']:.3f} | {figures['bytes_per_token']:.3f} | {figures['unk_rate']:.3%} "
        f"| {figures['round_trip_rate']:.2%} | {figures['lost_character_rate']:.3%} |"
    )


def _first(card: dict[str, Any]) -> list[tuple[str, int]]:
    return sorted(card["special_tokens"].items(), key=lambda pair: pair[1])[:7]
