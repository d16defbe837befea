"""The card of a tokenizer, in Korean and English: what it is, what it was made from and what it does to text."""

from __future__ import annotations

from typing import Any

_KIND = {
    "byte_level_bpe": ("바이트 단위 BPE", "byte-level BPE"),
    "hash_hash_bpe": ("`##` BPE (WordPiece 표기)", "`##` BPE (WordPiece notation)"),
    "unigram": ("Unigram (바이트 대체)", "Unigram with byte fallback"),
    "wordpiece": ("WordPiece (BERT 방식)", "WordPiece (as BERT's)"),
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
    "unigram": (
        "NFC 텍스트는 빠짐없이 그대로 복원됩니다. 토큰이 없는 글자는 바이트로 쓰므로 모르는 글자가 없습니다.",
        "Every NFC text comes back exactly: a character without a token is spelled in bytes, so nothing is unknown.",
    ),
    "wordpiece": (
        "공백과 줄바꿈은 보존되지 않고, 알파벳에 없는 글자가 하나라도 있거나 100자가 넘는 단어는 통째로 `<|unk|>`가 "
        "됩니다. 아래 손실률을 보십시오. 인코더(BERT 계열)용이며, bits per byte는 다른 것과 비교할 수 없습니다.",
        "White space and newlines do not come back, and a word with one character outside the alphabet, or of over "
        "100, becomes one `<|unk|>`; see the loss below. It is for encoders (BERT class); its bits per byte can't be "
        "compared with those of other tokenizers.",
    ),
}
_SHOWN_RULES = 20


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
        *_morphemes(card),
        *_rules(card),
        "특수 토큰 / special tokens: " + ", ".join(f"`{token}` {number}" for token, number in _first(card)) + ", …",
        "",
        "말뭉치 출처 / corpus sources: "
        + ", ".join(f"{name} ({n:,})" for name, n in card["training"]["sources"].items()),
        "",
        *_sources(card["training"]),
    ]
    return "\n".join(lines)


def _morphemes(card: dict[str, Any]) -> list[str]:
    if "border_sample" not in card:
        return []
    sample = card["border_sample"]
    shares = f"{sample['kept_share']:.1%}", f"{sample['cut_share']:.1%}"
    return [
        f"형태소 경계를 넘는 토큰은 배우지 않았습니다 ({card['morphemes']}, 학습 때만). 인코딩에는 Kiwi가 필요 없고, "
        f"다른 단어에서 배운 토큰이 경계를 넘을 수 있습니다: 표본의 형태소 경계 {sample['num_borders']:,}곳 중 "
        f"{shares[0]}가 토큰 경계이고, 단어 안 토큰 경계의 {shares[1]}가 형태소 경계입니다.",
        "",
        f"No token was learned across two morphemes ({card['morphemes']}, in training only). Encoding needs no Kiwi, "
        "so a token that was learned inside one word may cross a border in another: of the sample's "
        f"{sample['num_borders']:,} borders {shares[0]} are borders of tokens, and {shares[1]} of the cuts inside "
        "words are borders of morphemes.",
        "",
    ]


def _rules(card: dict[str, Any]) -> list[str]:
    rules = card.get("merge_rules", [])
    if not rules:
        return []
    sample = card["rules_sample"]
    shown = ", ".join(f"`{old}` → `{new}`" for old, new in rules[:_SHOWN_RULES])
    more = f", … ({len(rules) - _SHOWN_RULES:,})" if len(rules) > _SHOWN_RULES else ""
    facts = tuple(
        f"{sample[key]:,}" for key in ("num_texts", "num_changed", "num_replacements", "num_exact", "num_unstable")
    )
    return [
        f"병합 규칙 {len(rules):,}개를 자르기 전에 적용합니다 (tokenizer.json 안): {shown}{more}. 복원한 글에는 "
        f"바뀐 꼴이 남습니다. 표본 {facts[0]}건 중 {facts[1]}건이 바뀌었고 ({facts[2]}곳), {facts[3]}건이 바뀐 꼴까지 "
        f"정확히 돌아왔습니다. 돌아온 글을 규칙이 또 바꾸는 것은 {facts[4]}건입니다.",
        "",
        f"{len(rules):,} merge rules are applied before a text is cut (inside tokenizer.json): {shown}{more}. A "
        f"decoded text has the new forms. Of {facts[0]} sampled texts {facts[1]} were changed ({facts[2]} places), and "
        f"{facts[3]} came back exactly, the new forms aside; {facts[4]} would be changed once more.",
        "",
    ]


def _sources(training: dict[str, Any]) -> list[str]:
    weights = training.get("source_weights", {})
    if not weights:
        return []
    total, all_weights = max(training["num_bytes"], 1), sum(weights.values())
    lines = [
        "가중치는 표본 바이트의 몫입니다. 글이 모자란 출처는 전부 한 번만 쓰고, 남은 몫은 다른 출처가 나눕니다. / "
        "A weight is a share of the sampled bytes; a source with too little text is taken whole, never twice, and the "
        "others share what it leaves.",
        "",
        "| 출처 source | 바이트 bytes | 몫 share | 원한 몫 asked |",
        "|---|---|---|---|",
    ]
    for name, weight in sorted(weights.items()):
        taken = training["bytes_by_source"].get(name, 0)
        lines.append(f"| {name} | {taken:,} | {taken / total:.1%} | {weight / all_weights:.1%} |")
    return [*lines, ""]


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
