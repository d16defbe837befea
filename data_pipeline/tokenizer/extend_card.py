"""README.md of an extended tokenizer, in Korean and English: where it comes from, what each new token was before."""

from __future__ import annotations

from typing import Any

_SHOWN = 20


def readme(extension: dict[str, Any], *, fingerprint: str) -> str:
    """The page for the tree of `extension.json`."""
    base, sample, tokens = extension["base"], extension["sample"], extension["tokens"]
    before, after = sample["num_tokens_before"], sample["num_tokens_after"]
    checked = sample["num_texts_checked"]
    share = 1 - after / before if before else 0.0
    rows = [
        f"| `{token['text']}` | {token['id']:,} | {token['count']:,} | {' '.join(token['piece_texts'])} |"
        for token in tokens[:_SHOWN]
    ]
    return "\n".join(
        [
            "# 확장된 토크나이저 / Extended tokenizer",
            "",
            f"`{base['name']}` (지문 `{base['fingerprint'][:16]}…`, 어휘 {base['vocab_size']:,}개)에 토큰 "
            f"{extension['num_tokens']:,}개를 더했습니다. 새 토큰이 없는 글은 이전과 똑같은 번호로 바뀝니다: 그런 글과 "
            f"줄 {checked:,}개에서 확인했습니다. 표본 문서 {sample['num_texts']:,}개의 토큰은 {before:,}개에서 "
            f"{after:,}개로 {share:.1%} 줄었습니다.",
            "",
            f"`{base['name']}` (fingerprint `{base['fingerprint'][:16]}…`, {base['vocab_size']:,} tokens) with "
            f"{extension['num_tokens']:,} new ones. A text without a new token has the ids that it had before: checked "
            f"on {checked:,} such texts and lines. Over {sample['num_texts']:,} sample documents {before:,} tokens "
            f"became {after:,}, {share:.1%} fewer.",
            "",
            f"지문 / fingerprint: `{fingerprint}`",
            "",
            "| 새 토큰 new token | id | 표본의 횟수 count | 이전 조각 pieces before |",
            "|---|---|---|---|",
            *rows,
            "" if len(tokens) <= _SHOWN else f"\n… `extension.json`: {len(tokens):,}\n",
        ]
    )
