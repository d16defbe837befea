"""The head of a report: what was trained in a line, and the numbers that matter, large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from launch.report_axes import value_label
from launch.report_data import RunRecord, as_number, num_parameters
from launch.report_html import Child, Markup, both, join, tag

SHARES = frozenset({"exact_match", "ended_share"})
MAX_BIG_NUMBERS = 6
_ARCHITECTURES = {"llama": "Llama", "gpt_neox": "GPT-NeoX"}
_OPTIMIZERS = {"paged_adamw_8bit": "paged 8-bit AdamW", "adamw_8bit": "8-bit AdamW"}


Scored = Literal["documents", "answers"]


class Change(NamedTuple):
    """A held-out figure of documents or of answers, before and after; `before_is` says what before means."""

    name: str
    scored: Scored
    before: float | None
    after: float
    before_is: str


def headline(runs: Sequence[RunRecord]) -> Markup:
    parts: list[Child] = []
    for run in runs:
        parts += [tag("span", "→", cls="arrow")] * bool(parts) + [run.name]
    return join(*parts)


def summaries(runs: Sequence[RunRecord]) -> list[Markup]:
    """What was trained: a sentence a run in Korean, then the same in English."""
    korean = tag("p", *(tag("span", _korean(run)) for run in runs), cls="lead")
    return [korean, tag("p", *(tag("span", _english(run)) for run in runs), cls="lead en", lang="en")]


def _model(run: RunRecord) -> str:
    source = run.get("model.from")
    if source:
        path = Path(str(source))
        place = path.parent.parent if path.name.startswith("step-") else path  # a checkpoint or an export of a run
        return place.name or str(source)
    name = str(run.get("model.architecture") or "?")
    sizes = [run.get(f"model.{key}") for key in ("num_layers", "hidden_size")]
    shape = f" {sizes[0]}×{sizes[1]}" if all(sizes) else ""
    return _ARCHITECTURES.get(name, name) + shape


def method(run: RunRecord) -> str:
    """How the weights are tuned: "QLoRA r=8, NF4", "LoRA r=16", "full"."""
    rank, kind = run.get("adapter.rank"), run.get("model.quantization.kind")
    if rank is None:
        return "full"
    name = (
        "DoRA" if run.get("adapter.weight_decomposed") else "rsLoRA" if run.get("adapter.rank_stabilized") else "LoRA"
    )
    return f"Q{name} r={rank}, {str(kind).upper()}" if kind else f"{name} r={rank}"


def _korean(run: RunRecord) -> str:
    steps, precision = f"{run.step:,}단계", run.get("train.precision") or "?"
    length = run.get("data.seq_len")
    rows = f", 길이 {length:,}" if isinstance(length, int) else ""
    if run.stage == "sft":
        how = {"full": "전체 가중치 지시 튜닝"}.get(method(run), f"{method(run)} 지시 튜닝")
        return f"{_model(run)} 위에 {how}을 {steps} 진행했습니다({precision}{rows})."
    begun = "이어서 사전학습" if run.get("model.from") else "처음부터 사전학습"
    return f"{_model(run)} 모델을 {steps} {begun}했습니다({precision}{rows})."


def _english(run: RunRecord) -> str:
    length = run.get("data.seq_len")
    rows = f", rows of {length:,}" if isinstance(length, int) else ""
    tail = f"{run.step:,} steps ({run.get('train.precision') or '?'}{rows})."
    if run.stage == "sft":
        how = {"full": "Full-weight"}.get(method(run), method(run))
        return f"{how} instruction tuning of {_model(run)}, {tail}"
    begun = "Continued pretraining of" if run.get("model.from") else "Pretraining from scratch of"
    return f"{begun} {_model(run)}, {tail}"


def status_chip(run: RunRecord) -> Markup:
    """How the last attempt ended."""
    code = run.exit.get("code")
    words = {
        0: ("good", "끝남 done"),
        1: ("bad", "실패 failed"),
        2: ("bad", "거부됨 refused"),
        85: ("", "신호로 멈춤 stopped"),
    }
    style, shown = words.get(code if isinstance(code, int) else -1, ("", "진행 중이거나 끊김 running or killed"))
    return tag("span", shown, cls=f"chip {style}".strip())


def changes(runs: Sequence[RunRecord], extra: Mapping[str, Any]) -> list[Change]:
    """Held-out figures before and after: as given, else the first and last evaluation of the last run that has them.

    Both are of one run and so of one kind; what is given is of answers.
    """
    given_before, given_after = extra.get("before") or {}, extra.get("after") or {}
    found = []
    for name in ("exact_match", "ended_share", "bits_per_byte", "loss"):
        before, after = as_number(given_before.get(name)), as_number(given_after.get(name))
        if after is not None:
            found.append(Change(name, "answers", before, after, "튜닝 전 before"))
            continue
        telling = [run for run in runs if name in FIGURE_NAMES[scored(run)]]
        known = [(run, one) for run in telling if (one := run.evaluated(name)).finite]
        if known:
            run, series = known[-1]
            steps, values = series.steps, series.finite
            where = "튜닝 전 before" if steps[0] == 0 and scored(run) == "answers" else f"{steps[0]:,.0f}단계 step"
            found.append(Change(name, scored(run), values[0] if len(values) > 1 else None, values[-1], where))
    return found


# The nats of an answer's tokens, its question given, are another measure than those of a whole text.
FIGURE_NAMES: dict[Scored, dict[str, tuple[str, str]]] = {
    "documents": {
        "bits_per_byte": ("문서 바이트당 비트", "bits a byte of documents"),
        "loss": ("문서 토큰당 손실", "nats a token of documents"),
    },
    "answers": {
        "bits_per_byte": ("답변 바이트당 비트", "bits a byte of answers"),
        "loss": ("답변 토큰당 손실", "nats a token of answers"),
        "exact_match": ("정확히 맞힘", "exact match"),
        "ended_share": ("스스로 끝맺음", "ended by itself"),
    },
}


def scored(run: RunRecord) -> Scored:
    """What the evaluations of a run score: answers to instructions, or whole documents."""
    is_asked = any(name in line for name in SHARES for line in run.evaluations)
    return "answers" if run.stage == "sft" or is_asked else "documents"


def figure_label(name: str, value: float) -> str:
    if name in SHARES:
        return f"{100 * value:.1f} %"
    return f"{value:.4f}" if abs(value) < 100 else value_label(value)


def big_numbers(runs: Sequence[RunRecord], extra: Mapping[str, Any]) -> Markup:
    """At most six tiles, the most telling first."""
    tiles = []
    known = changes(runs, extra)
    shown = [change for change in known if change.name != "loss" or len(known) < 2]
    for change in shown:
        before = None
        if change.before is not None:
            before = f"{change.before_is} {figure_label(change.name, change.before)}"
        name = FIGURE_NAMES[change.scored][change.name]
        tiles.append(_tile(name, *_split(figure_label(change.name, change.after)), before))
    tiles += [tile for tile in (_size(runs), _tokens(runs), _speed(runs[-1]), _time(runs), _memory(runs)) if tile]
    tiles = tiles[:MAX_BIG_NUMBERS]
    if not tiles:
        return tag("p", "아직 기록된 단계가 없습니다 · no step was logged yet", cls="empty")
    cells = [tag("div", *tile, cls="first" if index == 0 else None) for index, tile in enumerate(tiles)]
    return tag("div", *cells, cls="big")


def _tile(name: tuple[str, str], value: str, unit: str = "", note: str | None = None) -> list[Markup]:
    return [
        tag("span", both(*name), cls="name"),
        tag("span", value, tag("small", unit) if unit else None, cls="value"),
        tag("span", note, cls="from"),
    ]


def _split(label: str) -> tuple[str, str]:
    value, _, unit = label.partition(" ")
    return value, unit


def _size(runs: Sequence[RunRecord]) -> list[Markup] | None:
    counts = [(run, count) for run in runs if (count := num_parameters(run))]
    if not counts:
        return None
    run, count = counts[0]
    name = ("학습한 파라미터", "trained parameters") if _trained(run) else ("파라미터", "parameters")
    others = [f"{other.name} {short(number)}{_trained(other)}" for other, number in counts[1:]]
    return _tile(name, *short_parts(count), " · ".join(others) or None)


def _trained(run: RunRecord) -> str:
    """Said of an adapter's numbers: its checkpoint holds no others."""
    return "" if run.get("adapter.rank") is None else " 학습 trained"


def _tokens(runs: Sequence[RunRecord]) -> list[Markup] | None:
    counts = [count for run in runs if (count := as_number(run.last.get("tokens")))]
    steps = " + ".join(f"{run.step:,}" for run in runs)
    return _tile(("학습 토큰", "target tokens"), *short_parts(sum(counts)), f"{steps} 단계") if counts else None


def _speed(run: RunRecord) -> list[Markup] | None:
    rates = run.curves["tokens_per_second"].finite
    if not rates:
        return None
    mfu = run.curves["mfu"].finite
    note = f"MFU {100 * median(mfu):.1f} %" if mfu else "중앙값 median"
    return _tile(("처리량", "throughput"), short(median(rates)), "tok/s", note)


def _time(runs: Sequence[RunRecord]) -> list[Markup] | None:
    seconds = sum(run.seconds for run in runs)
    note = "평가·저장 제외"
    return _tile(("학습 시간", "training time"), *duration(seconds), note) if seconds else None


def _memory(runs: Sequence[RunRecord]) -> list[Markup] | None:
    peaks = [max(values) for run in runs if (values := run.curves["memory_gib"].finite)]
    return _tile(("최대 메모리", "peak memory"), f"{max(peaks):.1f}", "GiB", "랭크 0 rank 0") if peaks else None


def duration(seconds: float) -> tuple[str, str]:
    """As hours, minutes or seconds, whatever reads best: a number and its unit."""
    if seconds < 100:
        return f"{seconds:.0f}", "초 s"
    if seconds < 6000:
        return f"{seconds / 60:.0f}", "분 min"
    return f"{seconds / 3600:,.1f}", "시간 h"


def short_parts(count: float) -> tuple[str, str]:
    """1,234 as it is, 12.3 M, 1.23 B: a number and its unit."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.3g}", letter
    return f"{count:,.0f}", ""


def short(count: float) -> str:
    return "".join(short_parts(count))
