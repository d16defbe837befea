"""Of an audit's page: what a tokenizer's length and size cost a training, and how much of its vocabulary is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.report_axes import value_label
from launch.report_html import Child, Markup, both, card, join, section, table, tag
from launch.tokenizer_plots import Bars, Group, figure, letter
from launch.tokenizer_table import names_of

Tree = dict[str, Any]

KIND_WORDS = {
    "special": ("특수 토큰", "special"),
    "added": ("덧붙인 토큰", "added"),
    "byte": ("바이트 하나", "single bytes"),
    "partial": ("글자의 일부", "parts of characters"),
    "character": ("글자 하나", "single characters"),
    "word": ("낱말 조각", "words and pieces"),
}


def cost_section(tree: Tree) -> Markup:
    tokenizers, body = tree["tokenizers"], tree["body"]
    names = names_of(tree)
    kinds = (
        ("tokens", "같은 글의 토큰 tokens of the same text"),
        ("flops", "학습 비용 training FLOPs"),
        ("attention", "한 행에 둘 때의 어텐션 attention over it in one row"),
        ("vocabulary_parameters", "임베딩 parameters of the embedding"),
    )
    groups = tuple(
        Group(label, values := tuple(one["relative"][key] for one in tokenizers), tuple(f"{v:.2f}×" for v in values))
        for key, label in kinds
    )
    model = f"H {body['hidden_size']:,}, L {body['num_layers']}, T {body['seq_len']:,}"
    plot = figure(Bars("A에 대한 비용 · cost relative to A", names, groups), subtitle=model)
    rows: list[list[Child]] = [
        ["말뭉치 전체의 토큰 tokens of the corpus", *(f"{one['cost']['corpus_tokens']:,}" for one in tokenizers)],
        ["토큰당 FLOPs a token", *(_power(one["cost"]["flops_per_token"]) for one in tokenizers)],
        ["한 번 학습 FLOPs of one pass", *(_power(one["cost"]["flops"]) for one in tokenizers)],
        ["임베딩 parameters of the embedding",
         *(_millions(one["cost"]["vocabulary_parameters"]) for one in tokenizers)],
        ["묶지 않은 헤드까지 with an untied head",
         *(_millions(2 * one["cost"]["vocabulary_parameters"]) for one in tokenizers)],
        ["모델에서의 몫, 묶었을 때 share of the model, tied",
         *(f"{one['cost']['vocabulary_share']:.1%}" for one in tokenizers)],
        [f"{body['seq_len']:,} 토큰 행의 바이트 bytes in a row",
         *(f"{one['cost']['bytes_in_row']:,.0f}" for one in tokenizers)],
        ["글의 토큰, 중앙값 median tokens of a text",
         *(f"{one['cost']['text_tokens']['median']:,.0f}" for one in tokenizers)],
        ["행보다 긴 글 texts longer than a row",
         *(f"{one['cost']['text_tokens']['share_longer_than_row']:.1%}" for one in tokenizers)],
        ["인코딩, 한 스레드의 MB/s encoding, MB a CPU-second",
         *(f"{one['speed']['megabytes_per_cpu_second']:.1f} ({one['speed']['library']})" for one in tokenizers)],
    ]  # fmt: skip
    head = ["", *(f"{letter(at)} {name}" for at, name in enumerate(names))]
    formula = (
        f"몸통 {_millions(body['num_parameters'])} (12 L H²), 토큰당 6 N + 12 L H T, N에는 헤드가 들고 임베딩은 "
        "빠집니다 · a body of 12 L H²; 6 N + 12 L H T a token, N with the head and without the embedding"
    )
    figures = card(table(head, rows), tag("p", formula, cls="hint"))
    return section("cost", "비용", "Cost", tag("div", plot, figures, cls="grid"))


def _power(value: float) -> str:
    return f"{value:.2e}"


def _millions(value: float) -> str:
    return f"{value_label(value / 1e6)} M"


def vocabulary_section(tree: Tree) -> Markup:
    tokenizers = tree["tokenizers"]
    kinds = [kind for kind in KIND_WORDS if any(kind in one["vocabulary"]["kinds"] for one in tokenizers)]
    groups = [_unused_group("전체(특수 토큰 빼고) all but special", [one["vocabulary"] for one in tokenizers])]
    for kind in kinds[1:] if kinds[:1] == ["special"] else kinds:
        groups.append(
            _unused_group(" ".join(KIND_WORDS[kind]), [one["vocabulary"]["kinds"].get(kind) for one in tokenizers])
        )
    title = "이 글에서 안 쓰인 어휘 · vocabulary unused on this text"
    plot = figure(Bars(title, names_of(tree), tuple(groups)), subtitle=f"{tree['corpus']['num_bytes']:,} bytes")
    cards = [card(tag("h3", f"{letter(at)} {one['name']}"), _kinds_table(one)) for at, one in enumerate(tokenizers)]
    left, right = tag("div", plot, *cards[1::2], cls="stack"), tag("div", *cards[::2], cls="stack")
    return section("vocabulary", "어휘", "Vocabulary", tag("div", left, right, cls="grid"))


def _unused_group(label: str, lines: Sequence[Tree | None]) -> Group:
    shares = tuple(line["num_unused"] / max(line["num_pieces"], 1) if line else 0.0 for line in lines)
    shown = tuple(f"{share:.0%}" if line else "–" for line, share in zip(lines, shares, strict=True))
    return Group(label, shares, shown)


def _kinds_table(one: Tree) -> Markup:
    head = ["종류 kind", "안 쓰인 것의 예 examples unused", "어휘 pieces", "안 쓰임 unused", "토큰의 몫 of tokens"]
    total = max(one["total"]["num_tokens"], 1)
    rows = [
        [
            both(*KIND_WORDS[kind]),
            join(*(tag("span", piece, cls="piece") for piece in line["examples"])),
            f"{line['num_pieces']:,}",
            f"{line['num_unused']:,} ({line['num_unused'] / line['num_pieces']:.0%})",
            f"{line['num_tokens'] / total:.1%}",
        ]
        for kind, line in one["vocabulary"]["kinds"].items()
    ]
    return table(head, rows, text_columns=2)
