"""Of an audit's page: what tokenizers do to texts (length and loss) and to terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.report_html import Child, Markup, both, card, folded, join, section, table, tag
from launch.tokenizer_plots import Bars, Group, figure, letter
from launch.tokenizer_table import dearest, names_of, unequal

Tree = dict[str, Any]

MAX_SOURCES = 10
MAX_TERMS = 150
MOST_PIECES = 8  # terms of as many or more pieces are one group of the plot


def _measured_sources(tree: Tree) -> list[str]:
    return [name for name in tree["corpus"]["seen"]["sources"] if name in tree["tokenizers"][0]["sources"]]


def length_section(tree: Tree) -> Markup:
    tokenizers, sources = tree["tokenizers"], _measured_sources(tree)
    shown = sorted(sources, key=lambda name: -tree["corpus"]["seen"]["sources"][name]["num_bytes"])[:MAX_SOURCES]
    places = [("전체 all", None), *((name, name) for name in shown)] if len(sources) > 1 else [("전체 all", None)]

    def plot(title: str, name: str) -> Markup:
        groups = []
        for label, source in places:
            values = [_of(one, source)[name] for one in tokenizers]
            groups.append(Group(label, tuple(values), tuple(f"{value:.2f}" for value in values)))
        return figure(Bars(title, names_of(tree), tuple(groups)))

    head = ["출처 source", "토크나이저", "토큰 tokens", "글자 chars/token", "바이트 bytes/token", "어절 words/token",
            "어절당 tokens/word"]  # fmt: skip
    rows = [
        [label, f"{letter(number)} {one['name']}", f"{its['num_tokens']:,}", f"{its['chars_per_token']:.3f}",
         f"{its['bytes_per_token']:.3f}", f"{its['words_per_token']:.3f}", f"{its['tokens_per_word']:.3f}"]
        for label, source in [("전체 all", None), *((name, name) for name in sources)]
        for number, one in enumerate(tokenizers)
        if (its := _of(one, source))
    ]  # fmt: skip
    more = f" · 큰 출처 {MAX_SOURCES}개 the largest {MAX_SOURCES}" if len(sources) > MAX_SOURCES else ""
    plots = tag(
        "div",
        plot(f"토큰당 바이트 · bytes a token{more}", "bytes_per_token"),
        plot(f"어절당 토큰 · tokens a word{more}", "tokens_per_word"),
        cls="grid even plots",
    )
    hint = "길수록(토큰당 바이트) 같은 글이 짧은 열이 됩니다 · more bytes a token: the same text in fewer tokens."
    full = folded(f"출처별 수치 {len(rows)}줄 · figures by source", table(head, rows, text_columns=2), is_open=False)
    notes = (tag("p", words, cls="hint") for words in unequal(tree))
    return section("length", "길이", "Length", plots, card(tag("p", hint, cls="hint"), *notes, full))


def _of(one: Tree, source: str | None) -> Tree:
    found: Tree = one["total"] if source is None else one["sources"][source]
    return found


def loss_section(tree: Tree) -> Markup:
    head = [
        "토크나이저",
        "모르는 토큰 unknown",
        "그대로 돌아온 글 exact",
        "잃은 글자 lost",
        "정규화 밖 beyond normaliser",
    ]
    rows = [
        [
            f"{letter(number)} {one['name']}",
            f"{one['total']['unk_rate']:.3%}",
            f"{one['total']['round_trip_rate']:.1%}",
            f"{one['total']['lost_character_rate']:.3%}",
            f"{one['total']['vocabulary_loss_rate']:.3%}",
        ]
        for number, one in enumerate(tree["tokenizers"])
    ]
    hint = join(
        "공백을 뺀 글자로 셉니다. 공백과 줄바꿈만 잃어도 '그대로'가 아닙니다. ",
        tag("span", "Letters without white space; a text that loses a newline alone is not exact. Beyond normaliser: "
            "without what the tokenizer changes on purpose, such as upper case.", cls="en"),
    )  # fmt: skip
    return section("loss", "손실", "Loss", card(table(head, rows), tag("p", hint, cls="hint")))


def terms_section(tree: Tree) -> Markup:
    if not tree["terms"]:
        told = "용어를 주지 않았습니다: --terms FILE · no terms were given: --terms FILE"
        return section("terms", "용어", "Terms", card(tag("p", told, cls="empty")))
    chosen = dearest(tree, MAX_TERMS)
    head = ["용어 term", "횟수 count", *(f"{letter(at)} {name}" for at, name in enumerate(names_of(tree)))]
    rows = [
        [
            tree["terms"]["rows"][at]["term"],
            f"{tree['terms']['rows'][at]['count']:,}",
            *(_pieces(one["term_pieces"][at]) for one in tree["tokenizers"]),
        ]
        for at in chosen
    ]
    left = len(tree["terms"]["rows"]) - len(chosen)
    more = f" · 나머지 {left:,}개는 audit.json · the other {left:,} are in audit.json" if left else ""
    summary = f"용어 {len(chosen):,}개, 비용이 큰 순서 · terms by what they cost{more}"
    pieces = tag("div", _pieces_plot(tree), card(_term_figures(tree), *_left_out(tree)), cls="grid plots")
    hint = (
        "빈칸 뒤의 조각입니다. ␣ 빈칸, ⟨EC 95⟩ 글자가 되지 못한 바이트 · pieces behind a space: ␣ is a space, "
        "⟨EC 95⟩ bytes that are no whole character"
    )
    return section("terms", "용어", "Terms", pieces,
                   card(tag("h3", summary), _term_table(head, rows), tag("p", hint, cls="hint")))  # fmt: skip


def _term_table(head: Sequence[Child], rows: Sequence[Sequence[Child]]) -> Markup:
    """Like `table`, with the pieces as words: they wrap."""

    def style(at: int) -> str | None:
        return "n" if at == 1 else "pieces" if at > 1 else None

    titles = tag("tr", *(tag("th", one, cls=style(at)) for at, one in enumerate(head)))
    body = (tag("tr", *(tag("td", child, cls=style(at)) for at, child in enumerate(row))) for row in rows)
    return tag("div", tag("table", tag("thead", titles), tag("tbody", *body)), cls="scroll")


def _pieces(broken: Tree) -> Markup:
    shown = (tag("span", piece, cls="piece") for piece in broken["in_text"])
    return join(tag("b", f"{broken['num_in_text']} "), *shown)


def _pieces_plot(tree: Tree) -> Markup:
    groups = []
    for number in range(1, MOST_PIECES + 1):
        values = tuple(
            sum(min(broken["num_in_text"], MOST_PIECES) == number for broken in one["term_pieces"])
            for one in tree["tokenizers"]
        )
        label = f"{number}{'+' if number == MOST_PIECES else ''}조각 pieces"
        groups.append(Group(label, values, tuple(f"{value:,}" for value in values)))
    title = "몇 조각으로 나뉘나 · terms by number of pieces"
    return figure(Bars(title, names_of(tree), tuple(groups)), subtitle="빈칸 뒤 behind a space")


def _term_figures(tree: Tree) -> Markup:
    terms = [one["terms"] for one in tree["tokenizers"]]
    head = ["", *(f"{letter(at)} {name}" for at, name in enumerate(names_of(tree)))]
    limit = tree["max_term_pieces"]
    rows: list[list[Child]] = [
        ["평균 조각, 글 속 mean pieces in text", *(f"{its['mean_pieces']:.2f}" for its in terms)],
        ["평균 조각, 홀로 alone", *(f"{its['mean_pieces_alone']:.2f}" for its in terms)],
        ["횟수로 가중 by occurrence", *(f"{its['mean_pieces_by_occurrence']:.2f}" for its in terms)],
        ["한 토큰인 것 whole", *(f"{its['num_whole']:,}" for its in terms)],
        [f"{limit}조각 초과 over {limit} pieces", *(f"{its['broken_share']:.1%}" for its in terms)],
        ["모르는 토큰이 든 것 with unknown", *(f"{its['num_unknown']:,}" for its in terms)],
        ["한 토큰이면 줄어드는 토큰 saved if whole", *(f"{its['num_saved']:,}" for its in terms)],
    ]
    return join(tag("h3", both("용어 수치", "Figures of the terms")), table(head, rows))


def _left_out(tree: Tree) -> list[Markup]:
    left_out = tree["terms"]["left_out"]
    if not left_out:
        return []
    told = "; ".join(
        f"{count:,} {kind.replace('_', ' ')} ({', '.join(tree['terms']['named'].get(kind, ()))})"
        for kind, count in left_out.items()
    )
    return [tag("p", f"빠진 줄 left out: {told}", cls="hint")]
