"""Sample answers as a talk: the question, what the model said, what was expected, and whether they are equal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from launch.report_data import RunRecord, Tree
from launch.report_html import Markup, both, folded, join, section, tag

NUM_OPEN, NUM_SHOWN = 8, 48
MAX_CHARS = 1200


def answers_section(runs: Sequence[RunRecord]) -> Markup:
    parts = [_run_answers(run, is_alone=len(runs) == 1) for run in runs if run.answers and run.answers[-1][1]]
    if not parts:
        words = "이 실행은 질문에 답하지 않았습니다 · no questions were asked in these runs"
        parts = [tag("div", tag("p", words, cls="empty"), cls="card")]
    return section("answers", "답변 예시", "Sample answers", tag("div", *parts, cls="stack"))


def _run_answers(run: RunRecord, *, is_alone: bool) -> Markup:
    """The newest answers, each beside the first one to the same question."""
    step, rows = run.answers[-1]
    first_step, first_rows = run.answers[0]
    earlier = {_text(row, "prompt"): row for row in first_rows} if first_step < step else {}
    cards = [_chat(run, row, earlier.get(_text(row, "prompt"))) for row in rows[:NUM_SHOWN]]
    exact, ended = (sum(row.get(key) is True for row in rows) for key in ("is_exact", "ended"))
    counts = [
        tag("span", f"{step:,}단계 step" + ("" if is_alone else f" · {run.name}"), cls="chip"),
        tag("span", f"✓ 정답 right {exact}/{len(rows)}", cls="chip good"),
        tag("span", f"끝맺음 ended {ended}/{len(rows)}", cls="chip"),
    ]
    rest = cards[NUM_OPEN:]
    more = f"{len(rest)}개 더 보기 · {len(rest)} more"
    return join(
        tag("div", *counts, cls="chips"),
        tag("div", *cards[:NUM_OPEN], cls="chats"),
        folded(more, tag("div", *rest, cls="chats")) if rest else None,
    )


def _chat(run: RunRecord, row: Tree, earlier: Tree | None) -> Markup:
    is_exact, ended = row.get("is_exact") is True, row.get("ended") is True
    verdict = tag("span", "✓ 정답 right" if is_exact else "✗ 오답 wrong", cls=f"chip {'good' if is_exact else 'bad'}")
    return tag(
        "article",
        tag("header", verdict, tag("span", "스스로 끝맺음 ended" if ended else "길이 한도에서 끊김 cut off")),
        bubble("user", "질문 prompt", asked_in(_text(row, "prompt"), run.template)),
        bubble("model", "모델 model", _text(row, "answer")),
        _beside("기대한 답 expected", _text(row, "expected")),
        _before(earlier, run.answers[0][0]) if earlier else None,
        cls=f"card chat {'right' if is_exact else 'wrong'}",
    )


def bubble(who: str, name: str, words: str) -> Markup:
    said: Any = words.strip("\n") or tag("span", "(빈 답 empty)", cls="muted")
    return tag("div", tag("span", name, cls="who"), said, cls=f"bubble {who}")


def _beside(name: str, words: str) -> Markup:
    return tag("div", f"{name}: ", tag("b", words.strip() or "(비어 있음 empty)"), cls="beside")


def _before(earlier: Tree, step: int) -> Markup:
    name = "튜닝 전" if step == 0 else f"{step:,}단계"
    return folded(both(f"{name}의 답", "earlier answer"), _beside("모델 model", _text(earlier, "answer")))


def asked_in(prompt: str, template: Tree) -> str:
    """What was asked, and what it is about, without the words that the run's template puts around a single question."""
    for key in ("user_with_input", "user"):
        form = f"{template.get(key) or ''}{template.get('answer_prefix') or ''}".strip()
        if "{content}" not in form:
            continue
        before = form.partition("{content}")[0]
        pattern = re.escape(form).replace(re.escape("{content}"), "(.+?)", 1).replace(re.escape("{input}"), "(.+)", 1)
        found = re.fullmatch(pattern, prompt.strip(), flags=re.DOTALL)
        if found and not (before and any(before in inside for inside in found.groups())):
            return "\n\n".join(inside.strip() for inside in found.groups())
    return prompt


def _text(row: Tree, key: str) -> str:
    """A text of a row; of a very long one the beginning, and how much was left out."""
    words = str(row.get(key, ""))
    left_out = len(words) - MAX_CHARS
    return words if left_out <= 0 else f"{words[:MAX_CHARS]}… (+{left_out:,}자)"
