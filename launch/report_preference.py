"""Preference tuning on a page: pairs and answers before and after as bars, answers side by side, a talk.

What the run folder knows is shown of any run over pairs; answers and the talk are told by `extra["preference"]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launch.report_answers import asked_in, bubble
from launch.report_data import RunRecord, Tree, as_number
from launch.report_heldout import bars
from launch.report_html import Child, Markup, both, card, facts, folded, join, section, tag
from launch.report_summary import FIGURE_NAMES, UNTUNED, Change, pair_changes, scored

ANCHOR, KOREAN, ENGLISH = "preference", "선호 학습", "Preference tuning"
NUM_OPEN, NUM_SHOWN = 6, 30
# Of answers to held-out prompts.
_SHARES = {
    "chosen_share": ("고른 답과 같음", "answers equal to the chosen one"),
    "rejected_share": ("버린 답과 같음", "answers equal to the rejected one"),
    "written_share": ("문어체로 답함", "answers as one writes"),
    "ended_share": ("스스로 끝맺음", "ended by itself"),
}
_MADE = (
    "만들어 낸 쌍은 같은 답을 글로 쓰듯(문어체, ‘…다’) 쓴 쪽을 고르고, 말하듯(해요체, ‘…요’) 쓴 쪽을 버립니다.",
    "Of two answers that say the same, the made-up pairs choose the one as one writes (…다) and reject the one as one "
    "speaks (…요), as the instruction tuning had taught.",
)
_LEGEND = (
    ("회색은 학습 전, 초록은 학습 후.", "Grey: before; green: after."),
    (
        "마진: 고른 답이 버린 답을 앞선 정도. DPO와 KTO에서는 기준 모델에 견주어 재고 β를 곱함.",
        "Margin: by how much the chosen answer is ahead; of DPO and KTO against the reference, times β.",
    ),
)


def has_preferences(runs: Sequence[RunRecord]) -> bool:
    return any(scored(run) == "pairs" and run.evaluations for run in runs)


def preference_section(runs: Sequence[RunRecord], extra: Mapping[str, Any]) -> Markup:
    """Of each run over pairs the figures; of the last one also what `extra` tells."""
    paired = [run for run in runs if scored(run) == "pairs" and run.evaluations]
    told = extra.get("preference") or {}
    parts = []
    for run in paired:
        is_last = run is paired[-1]
        parts.append(_before_and_after(run, extra if is_last else {}, is_alone=len(paired) == 1))
    parts += [_answers(paired[-1], told["answers"])] if told.get("answers") else []
    parts += [_talk(told["talk"])] if told.get("talk") else []
    return section(ANCHOR, KOREAN, ENGLISH, tag("div", *parts, cls="stack"))


def _before_and_after(run: RunRecord, extra: Mapping[str, Any], *, is_alone: bool) -> Markup:
    asked = (extra.get("preference") or {}).get("asked") or {}
    others = asked.get("others") or {}
    rows: list[Markup] = []
    for change in pair_changes(run, extra):
        rows += [tag("div", both(*FIGURE_NAMES["pairs"][change.name])), bars(change)]
    for name, titles in _SHARES.items():
        before, after = (as_number((asked.get(when) or {}).get(name)) for when in ("before", "after"))
        if after is not None:
            rows += [tag("div", both(*titles)), bars(Change(name, "pairs", before, after, UNTUNED))]
    if others.get("num_rows"):
        change = Change("chosen_share", "pairs", others["before"], others["after"], UNTUNED)
        rows += [tag("div", both("다른 질문의 정답", "other questions right")), bars(change)]
    title = both("선호 학습 전과 후", "Before and after")
    is_made = "written_share" in (asked.get("after") or {})
    return card(
        tag("h3", title if is_alone else join(f"{run.name}: ", title)),
        tag("p", both(*_MADE), cls="about") if is_made else None,
        tag("div", *rows, cls="bars"),
        *(tag("p", both(*line), cls="hint") for line in _LEGEND),
        facts(_counts(run, asked, others)),
    )


def _counts(run: RunRecord, asked: Tree, others: Tree) -> list[tuple[Child, Child]]:
    """Of how many rows the figures are, and how long their answers."""
    last = run.evaluations[-1]
    lines: list[tuple[Child, Child]] = []
    if (num_pairs := as_number(last.get("num_documents"))) is not None:
        lines.append((both("검증 쌍", "held-out pairs"), f"{num_pairs:,.0f}"))
    chosen, rejected = (as_number(last.get(f"{name}_length")) for name in ("chosen", "rejected"))
    if chosen is not None and rejected is not None:
        told = f"고른 답 chosen {chosen:.1f} · 버린 답 rejected {rejected:.1f}"
        lines.append((both("답의 평균 토큰", "tokens of an answer"), told))
    if asked:
        lines.append((both("물은 프롬프트", "prompts asked"), f"{asked['after']['num_rows']:,}"))
    if others.get("num_rows"):
        title = both("다른 질문: 바꾸지 말아야 할 답", "other questions, whose answers were to stay")
        lines.append((title, f"{others['num_rows']:,}"))
    return lines


def _answers(run: RunRecord, rows: Sequence[Tree]) -> Markup:
    """Cards of equal prompts: the answer before, the answer after, and what was chosen and rejected."""
    cards = [_compared(run, row) for row in rows[:NUM_SHOWN]]
    rest = cards[NUM_OPEN:]
    return tag(
        "div",
        tag("h3", both("같은 질문, 학습 전과 후의 답", "The same questions, answered before and after")),
        tag("div", *cards[:NUM_OPEN], cls="chats"),
        folded(f"{len(rest)}개 더 보기 · {len(rest)} more", tag("div", *rest, cls="chats")) if rest else None,
    )


def _compared(run: RunRecord, row: Tree) -> Markup:
    before, after, chosen, rejected = (str(row.get(key, "")) for key in ("before", "answer", "expected", "rejected"))
    is_chosen = row.get("is_exact") is True
    verdict = "✓ 고른 답과 같음 as chosen" if is_chosen else "✗ 고른 답과 다름 not as chosen"
    return tag(
        "article",
        tag("header", tag("span", verdict, cls=f"chip {'good' if is_chosen else 'bad'}")),
        bubble("user", "질문 prompt", asked_in(str(row.get("prompt", "")), run.template)),
        bubble("earlier", "학습 전 before", before),
        bubble("model", "학습 후 after", after),
        tag("div", "고른 답 chosen: ", tag("b", chosen), cls="beside"),
        tag("div", "버린 답 rejected: ", tag("b", rejected), cls="beside"),
        cls=f"card chat {'right' if is_chosen else 'wrong'}",
    )


def _talk(turns: Sequence[Tree]) -> Markup:
    """What `dure chat` said with the exported model."""
    told = [bubble("user" if turn.get("role") == "user" else "model", *_speaker(turn)) for turn in turns]
    title = both("내보낸 모델과의 대화", "A talk with the exported model")
    words = both("학습에서 묻지 않은 질문, dure chat으로.", "Questions that no training row asks, by dure chat.")
    return card(tag("h3", title), tag("div", join(*told), cls="talk"), tag("p", words, cls="hint"))


def _speaker(turn: Tree) -> tuple[str, str]:
    name = "질문 question" if turn.get("role") == "user" else "모델 model"
    return name, str(turn.get("content", ""))
