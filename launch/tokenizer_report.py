"""The page of an audit: what tokenizers do to a corpus and a field's words, and what to do. Opens from disk.

Like a run's report it needs no script, font, image or request. Made from the tree of `audit.json` and nothing else.
"""

from __future__ import annotations

from typing import Any

from data_pipeline.tokenizer.audit_verdict import figure_words
from launch.report import POLICY
from launch.report_html import Child, Markup, both, card, join, section, table, tag
from launch.report_style import STYLE
from launch.tokenizer_plots import STYLE as PLOT_STYLE
from launch.tokenizer_plots import letter
from launch.tokenizer_report_cost import cost_section, vocabulary_section
from launch.tokenizer_report_text import length_section, loss_section, terms_section
from launch.tokenizer_table import VERDICTS

Tree = dict[str, Any]

SECTIONS = (
    ("verdict", "판정", "Verdict"),
    ("length", "길이", "Length"),
    ("loss", "손실", "Loss"),
    ("terms", "용어", "Terms"),
    ("cost", "비용", "Cost"),
    ("vocabulary", "어휘", "Vocabulary"),
)
OWN_STYLE = """
.piece { display: inline-block; background: var(--soft); border-radius: 5px; padding: 0 5px; margin: 1px 3px 1px 0;
  font-family: "D2Coding", ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 12.5px; }
td.pieces { min-width: 190px; }
:is(th, td).pieces { padding-left: 18px; }
.beyond td { background: var(--bad-soft); }
.beyond td:nth-child(4) { font-weight: 600; }
td.why { min-width: 220px; }
.plots { margin-bottom: 14px; }
"""


def page(tree: Tree) -> str:
    """The whole HTML document of an audit."""
    first = tree["tokenizers"][0]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{first['name']} · 토크나이저 audit · dure"),
        tag("style", Markup(STYLE + PLOT_STYLE + OWN_STYLE)),
    )
    parts = (
        _verdict(tree),
        length_section(tree),
        loss_section(tree),
        terms_section(tree),
        cost_section(tree),
        vocabulary_section(tree),
    )
    body = tag("body", _top(tree), tag("main", *parts), _footer(tree))
    return f"<!doctype html>\n{tag('html', head, body, lang='ko')}\n"


def _top(tree: Tree) -> Markup:
    first, corpus = tree["tokenizers"][0], tree["corpus"]
    links = (tag("li", tag("a", both(korean, english), href=f"#{anchor}")) for anchor, korean, english in SECTIONS)
    seen = corpus["seen"]["num_bytes"]
    meta = (
        f"말뭉치 corpus: {corpus['path']}",
        f"잰 바이트 measured: {corpus['num_bytes']:,} / {seen:,}",
        f"지문 fingerprint: {first['fingerprint'][:12]}",
    )
    return tag(
        "header",
        tag("p", tag("b", "두레 dure"), tag("span", "토크나이저 진단 · Tokenizer audit"), cls="brand"),
        tag("h1", first["name"], tag("span", " → ", cls="arrow"), VERDICTS[first["verdict"]["verdict"]]),
        tag("p", first["verdict"]["korean"], cls="lead"),
        tag("p", first["verdict"]["english"], cls="lead en", lang="en"),
        tag("ul", *(tag("li", item) for item in meta), cls="meta"),
        _big_numbers(tree, first),
        tag("nav", tag("ul", *links), aria_label="목차 contents"),
        cls="top",
    )


def _big_numbers(tree: Tree, one: Tree) -> Markup:
    total, terms = one["total"], one["terms"]
    tiles: list[tuple[str, str, str, str]] = [
        ("토큰당 바이트", "bytes a token", f"{total['bytes_per_token']:.2f}", ""),
        ("토큰당 글자", "characters a token", f"{total['chars_per_token']:.2f}", ""),
        ("어절당 토큰", "tokens a word", f"{total['tokens_per_word']:.2f}", ""),
        ("모르는 토큰", "unknown tokens", f"{total['unk_rate']:.2%}", ""),
        ("안 쓰인 어휘", "unused vocabulary", f"{one['vocabulary']['unused_share']:.0%}", ""),
    ]
    if terms:
        limit = tree["max_term_pieces"]
        share = f"{terms['broken_share']:.0%}"
        tiles.insert(3, ("나뉘는 용어", f"terms of over {limit} pieces", share, f"용어 {terms['num_terms']:,}개 terms"))
    return tag("div", *(_tile(*tile, is_first=at == 0) for at, tile in enumerate(tiles)), cls="big")


def _tile(korean: str, english: str, value: str, beneath: str, *, is_first: bool) -> Markup:
    name = tag("span", korean, tag("span", english, cls="en"), cls="name")
    return tag(
        "div",
        name,
        tag("span", value, cls="value"),
        tag("span", beneath, cls="from"),
        cls="first" if is_first else None,
    )


def _verdict(tree: Tree) -> Markup:
    """The limits and what each tokenizer shows against them; then the others' verdicts in words."""
    tokenizers = tree["tokenizers"]
    rows = []
    for number, check in enumerate(tokenizers[0]["verdict"]["checks"]):
        sign = "≥" if check["is_minimum"] else "≤"
        cells: list[Child] = [
            both(check["korean"], check["english"]),
            both(check["reason_korean"], check["reason_english"]),
            f"{sign} {figure_words(check, key='limit')}",
            *(_judged(one["verdict"]["checks"][number]) for one in tokenizers),
            VERDICTS[check["leads_to"]],
        ]
        rows.append(cells)
    names = [f"{letter(number)} {one['name']}" for number, one in enumerate(tokenizers)]
    head = ["수치 figure", "이유 reason", "한계 limit", *names, "넘으면 beyond it"]
    others = [
        join(
            tag("p", tag("b", f"{letter(number)} {one['name']} "), _chip(one)),
            tag("p", one["verdict"]["korean"]),
            tag("p", one["verdict"]["english"], cls="en", lang="en"),
        )
        for number, one in enumerate(tokenizers)
        if number
    ]
    told = "–: 재지 않음 · not judged. 다시 학습이 확장에 앞섭니다 · retrain goes before extend."
    return section(
        "verdict", "판정", "Verdict",
        tag("div", card(table(head, rows, text_columns=2), tag("p", told, cls="hint")),
            card(tag("h3", both("다른 토크나이저", "The others")), *others) if others else None, cls="stack"),
    )  # fmt: skip


def _judged(check: Tree) -> Markup:
    return tag("span", figure_words(check), cls="chip bad" if check["is_beyond"] else None)


def _chip(one: Tree) -> Markup:
    verdict = one["verdict"]["verdict"]
    return tag("span", VERDICTS[verdict], cls=f"chip {'good' if verdict == 'keep' else 'bad'}")


def _footer(tree: Tree) -> Markup:
    names = [one["path"] for one in tree["tokenizers"]]
    against = f" --against {' '.join(names[1:])}" if names[1:] else ""
    terms = f" --terms {tree['terms']['path']}" if tree["terms"] else ""
    command = f"dure tokenizer audit {names[0]} --corpus {tree['corpus']['path']}{terms}{against}"
    return tag("footer", tag("code", command))
