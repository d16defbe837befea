"""An audit of tokenizers as lines for a terminal: figures side by side, the dearest terms, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data_pipeline.tokenizer.audit_verdict import EQUAL_ROUND_TRIP
from launch.doctor_findings import width_of

Tree = dict[str, Any]

MAX_NAME = 24
MAX_SHOWN_TERMS = 12
MAX_SOURCES = 12
VERDICTS = {"keep": "그대로 쓰기 keep", "extend": "확장 extend", "retrain": "다시 학습 retrain"}


def lines(tree: Tree) -> Iterator[str]:
    """All that a terminal shows of an audit."""
    yield from _about(tree)
    yield from _side_by_side(tree)
    yield from unequal(tree)
    if tree["terms"]:
        yield from _terms(tree)
    for one in tree["tokenizers"]:
        verdict = one["verdict"]
        yield f"{one['name']}: {VERDICTS[verdict['verdict']]}"
        yield f"  {verdict['korean']}"
        yield f"  {verdict['english']}"
    yield f"next: {_next(tree)}"


def _next(tree: Tree) -> str:
    """The command that the verdict on the audited tokenizer asks for."""
    first = tree["tokenizers"][0]
    tokens = tree["terms"]["path"] if tree["terms"] else "FILE"
    return {
        "keep": f"dure shards build --corpus DIR --tokenizer {first['path']} --output DIR",
        "extend": f"dure tokenizer extend {first['path']} --tokens {tokens} --output DIR",
        "retrain": "dure tokenizer train --corpus DIR --output DIR",
    }[first["verdict"]["verdict"]]


def names_of(tree: Tree) -> tuple[str, ...]:
    """The tokenizers of an audit, the audited one first."""
    return tuple(one["name"] for one in tree["tokenizers"])


def unequal(tree: Tree) -> Iterator[str]:
    """A sentence on each tokenizer that encodes less of the text than others, so that its lengths flatter it."""
    best = max(one["total"]["round_trip_rate"] for one in tree["tokenizers"])
    for one in tree["tokenizers"]:
        total = one["total"]
        if total["round_trip_rate"] < best - EQUAL_ROUND_TRIP:
            exact, unknown = f"{total['round_trip_rate']:.1%}", f"{total['unk_rate']:.2%}"
            yield (
                f"{one['name']}: 글의 {exact}만 그대로 돌아와(빈칸이나 글자를 잃음, 모르는 토큰 {unknown}) 길이가 "
                f"실제보다 좋아 보입니다 · gives back {exact} of the texts (white space or characters are lost, "
                f"{unknown} unknown tokens): its lengths look better than they are"
            )


def _about(tree: Tree) -> Iterator[str]:
    corpus, seen = tree["corpus"], tree["corpus"]["seen"]
    kind = "corpus" if corpus["is_corpus"] else "files as they are"
    share = corpus["num_bytes"] / seen["num_bytes"] if seen["num_bytes"] else 1.0
    yield (
        f"{corpus['path']} ({kind}): {corpus['num_bytes']:,} of {seen['num_bytes']:,} bytes measured ({share:.1%}), "
        f"{len(seen['sources'])} sources"
    )
    if corpus["rejected"]:
        found = ", ".join(f"{count:,} {reason}" for reason, count in corpus["rejected"].items())
        yield f"not readable (읽지 못함): {found}; `dure corpus build` names each"
    if tree["terms"]:
        yield from _about_terms(tree["terms"])


def _about_terms(terms: Tree) -> Iterator[str]:
    left_out = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in terms["left_out"].items())
    tail = f"; left out: {left_out}" if left_out else ""
    yield f"{terms['path']} ({terms['encoding']}): {terms['num_terms']:,} terms{tail}"
    for kind, named in terms["named"].items():
        yield f"  {kind.replace('_', ' ')}: {'; '.join(named)}"


def _side_by_side(tree: Tree) -> Iterator[str]:
    tokenizers = tree["tokenizers"]
    rows = [(label, [show(one) for one in tokenizers]) for label, show in _figures(tree)]
    names = [_cut(one["name"]) for one in tokenizers]
    label_width = max(width_of(label) for label, _ in rows)
    widths = [
        max(width_of(cell) for cell in column) for column in zip(names, *(cells for _, cells in rows), strict=True)
    ]
    for label, cells in [("", names), *rows]:
        shown = "  ".join(" " * (width - width_of(cell)) + cell for cell, width in zip(cells, widths, strict=True))
        yield f"  {label}{' ' * (label_width - width_of(label))}  {shown}"


def _cut(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"…{name[-MAX_NAME + 1 :]}"


def _figures(tree: Tree) -> Iterator[tuple[str, Callable[[Tree], str]]]:
    """Each line's label, and what it shows of one tokenizer."""
    body = tree["body"]
    yield "kind", lambda one: str(one["model"])
    yield "vocabulary", lambda one: f"{one['vocabulary']['num_rows']:,}"
    for name in ("chars_per_token", "bytes_per_token", "words_per_token", "tokens_per_word"):
        yield name.replace("_", " "), lambda one, name=name: f"{one['total'][name]:.3f}"  # type: ignore[misc]
    yield "unknown tokens", lambda one: f"{one['total']['unk_rate']:.3%}"
    yield "texts that come back exactly", lambda one: f"{one['total']['round_trip_rate']:.2%}"
    yield "characters lost", lambda one: f"{one['total']['lost_character_rate']:.3%}"
    yield "  beyond its normaliser", lambda one: f"{one['total']['vocabulary_loss_rate']:.3%}"
    sources = list(tree["corpus"]["seen"]["sources"])
    measured = [source for source in sources if source in tree["tokenizers"][0]["sources"]]
    for source in measured[:MAX_SOURCES] if len(measured) > 1 else []:
        yield f"bytes per token: {source}", lambda one, at=source: f"{one['sources'][at]['bytes_per_token']:.3f}"  # type: ignore[misc]
    if len(measured) > MAX_SOURCES:
        yield f"… {len(measured) - MAX_SOURCES} more sources in audit.json", lambda one: ""
    yield "unused vocabulary", lambda one: f"{one['vocabulary']['unused_share']:.1%}"
    yield "encoding, MB a CPU-second (one thread)", lambda one: f"{one['speed']['megabytes_per_cpu_second']:.1f}"
    yield "tokens of the whole corpus", lambda one: f"{one['cost']['corpus_tokens']:,}"
    yield "  relative", lambda one: f"{one['relative']['tokens']:.3f}"
    yield "training cost, relative", lambda one: f"{one['relative']['flops']:.3f}"
    yield (
        f"embedding at H {body['hidden_size']:,}, parameters",
        lambda one: f"{one['cost']['vocabulary_parameters'] / 1e6:.1f} M",
    )
    yield f"bytes in a row of {body['seq_len']:,}", lambda one: f"{one['cost']['bytes_in_row']:,.0f}"
    if tree["terms"]:
        yield "pieces a term, in text", lambda one: f"{one['terms']['mean_pieces']:.2f}"
        yield "pieces a term, alone", lambda one: f"{one['terms']['mean_pieces_alone']:.2f}"
        yield f"terms of more than {tree['max_term_pieces']} pieces", lambda one: f"{one['terms']['broken_share']:.1%}"
        yield "terms with an unknown token", lambda one: f"{one['terms']['num_unknown']:,}"


def dearest(tree: Tree, limit: int) -> list[int]:
    """The places of the terms that cost the audited tokenizer the most, by what one token each would save; then by
    pieces.
    """
    rows, pieces = tree["terms"]["rows"], tree["tokenizers"][0]["term_pieces"]

    def cost(at: int) -> tuple[int, int, int]:
        extra = pieces[at]["num_in_text"] - 1
        return -rows[at]["count"] * extra, -extra, at

    return sorted(range(len(rows)), key=cost)[:limit]


def _terms(tree: Tree) -> Iterator[str]:
    chosen = dearest(tree, MAX_SHOWN_TERMS)
    rows = tree["terms"]["rows"]
    width = max(width_of(rows[at]["term"]) for at in chosen)
    yield f"terms that cost the most (용어), pieces behind a space, by {tree['tokenizers'][0]['name']}:"
    for at in chosen:
        term, count = rows[at]["term"], rows[at]["count"]
        pieces = tree["tokenizers"][0]["term_pieces"][at]["in_text"]
        yield f"  {term}{' ' * (width - width_of(term))}  {count:>7,}×  {_pieces(pieces)}{_others(tree, at)}"


def _pieces(pieces: Sequence[str]) -> str:
    return f"{len(pieces)}: {' '.join(pieces)}"


def _others(tree: Tree, at: int) -> str:
    others = [str(one["term_pieces"][at]["num_in_text"]) for one in tree["tokenizers"][1:]]
    return f"  (others: {', '.join(others)})" if others else ""
