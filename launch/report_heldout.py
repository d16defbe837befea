"""Held-out figures: before and after tuning as bars, beside baselines, and every evaluation in a table.

Figures of documents and of answers never stand in one column: they are different measures of different texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launch.report_data import RunRecord, as_number
from launch.report_html import Markup, both, card, section, table, tag
from launch.report_summary import FIGURE_NAMES, SHOWN_AS_SHARES, Change, changes, figure_label, scored

MAX_ROWS = 40
_OF_DOCUMENTS = (
    "보류된 문서의 모든 토큰. 튜닝한 모델의 답변 수치는 다른 척도라 여기 없습니다 · "
    "all tokens of held-out documents; a tuned model's figures of answers are another measure, and not here."
)


def heldout_section(runs: Sequence[RunRecord], extra: Mapping[str, Any]) -> Markup:
    parts = []
    if known := changes(runs, extra):
        parts.append(_comparison(runs, known, extra))
    if baselines := extra.get("baselines"):
        parts.append(_baselines(runs, baselines))
    parts += [_evaluations(run, is_alone=len(runs) == 1) for run in runs if run.evaluations]
    if not parts:
        parts.append(card(tag("p", "아직 평가하지 않았습니다 · not evaluated yet", cls="empty")))
    return section("heldout", "검증", "Held-out", tag("div", *parts, cls="stack"))


def _comparison(runs: Sequence[RunRecord], known: Sequence[Change], extra: Mapping[str, Any]) -> Markup:
    is_tuned = any(change.before_is.startswith("튜닝") for change in known)
    title = both("튜닝 전과 후", "Before and after tuning") if is_tuned else both("처음과 끝", "First and last")
    rows: list[Markup] = []
    for change in known:
        rows += [tag("div", both(*FIGURE_NAMES[change.scored][change.name])), bars(change)]
    answered = [line["num_answers"] for run in runs for line in run.evaluations if "num_answers" in line]
    num_rows = as_number((extra.get("after") or {}).get("num_rows", answered[-1] if answered else None))
    counted = f"검증 질문 {num_rows:,.0f}개 · {num_rows:,.0f} held-out instructions. " if num_rows else ""
    befores = " · ".join(dict.fromkeys(change.before_is for change in known if change.before is not None))
    legend = f"회색 grey: {befores}. 초록 green: 마지막 last. " if befores else ""
    better = "비율은 높을수록, 비트와 손실은 낮을수록 좋습니다 · shares: higher is better; bits and loss: lower."
    return card(tag("h3", title), tag("div", *rows, cls="bars"), tag("p", counted + legend + better, cls="hint"))


def bars(change: Change) -> Markup:
    """A figure before and after, one bar under the other."""
    scale = 1.0 if change.name in SHOWN_AS_SHARES else max(change.after, change.before or 0.0) or 1.0
    bars = [("before", change.before)] * (change.before is not None) + [("after", change.after)]
    return tag("div", *(_bar(change.name, kind, value, scale) for kind, value in bars if value is not None), cls="pair")


def _bar(name: str, kind: str, value: float, scale: float) -> Markup:
    width = min(100.0, max(0.0, 100 * value / scale))
    fill = tag("span", cls="fill", style=f"width:{width:.1f}%")
    number = tag("b" if kind == "after" else "span", figure_label(name, value))
    return tag("div", tag("span", fill, cls="track"), number, cls=f"bar {kind}")


def _baselines(runs: Sequence[RunRecord], baselines: Mapping[str, Mapping[str, Any]]) -> Markup:
    """The last figures of each run that scored documents, beside those of other models on the same documents."""
    ours = [(run.name, run.evaluations[-1]) for run in runs if run.evaluations and scored(run) == "documents"]
    entries, titles = ours + list(baselines.items()), FIGURE_NAMES["documents"]
    names = [name for name in titles if any(as_number(figures.get(name)) is not None for _, figures in entries)]
    rows = [[label, *(_cell(name, figures.get(name)) for name in names)] for label, figures in entries]
    head = ["모델 model", *(" ".join(titles[name]) for name in names)]
    title = both("문서에서 다른 모델과 비교", "Beside other models, on documents")
    return card(tag("h3", title), table(head, rows), tag("p", _OF_DOCUMENTS, cls="hint"))


def _cell(name: str, value: Any) -> str:
    number = as_number(value)
    return "" if number is None else figure_label(name, number)


def _evaluations(run: RunRecord, *, is_alone: bool) -> Markup:
    """Every evaluation of a run; the middle of very many is left out and said."""
    lines = run.evaluations
    titles = FIGURE_NAMES[scored(run)]
    names = [name for name in titles if any(name in line for line in lines)]
    counts = {"documents": "문서 documents", "answers": "지시 instructions", "pairs": "쌍 pairs", "rows": "행 rows"}
    counted = counts[scored(run)]
    head = ["단계 step", *(" ".join(titles[name]) for name in names), counted, "초 seconds"]
    shown = lines if len(lines) <= MAX_ROWS else [*lines[: MAX_ROWS // 2], *lines[-MAX_ROWS // 2 :]]
    rows = [
        [
            f"{line['step']:,}{' ★' if line.get('is_best') else ''}",
            *(_cell(name, line.get(name)) for name in names),
            _count(line.get("num_documents")),
            _cell("seconds", line.get("seconds")),
        ]
        for line in shown
    ]
    left_out = f" · 앞뒤 {MAX_ROWS // 2}개씩 · the first and last {MAX_ROWS // 2}" if len(shown) < len(lines) else ""
    name = "" if is_alone else f"{run.name}: "
    title = f"{name}평가 {len(lines):,}번 · {len(lines):,} evaluations{left_out} (★ 가장 좋음 best so far)"
    return tag("details", tag("summary", title), table(head, rows), cls="card", open=len(lines) <= 3)


def _count(value: Any) -> str:
    number = as_number(value)
    return "" if number is None else f"{number:,.0f}"
