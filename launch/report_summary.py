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
SHOWN_AS_SHARES = SHARES | {"accuracy", "chosen_share", "rejected_share", "written_share"}
TOKEN_STAGES = frozenset({"pretrain", "sft", "mlm"})
MAX_BIG_NUMBERS = 6
UNTUNED = "학습 전 before"
_ARCHITECTURES = {"llama": "Llama", "gpt_neox": "GPT-NeoX"}
_OPTIMIZERS = {"paged_adamw_8bit": "paged 8-bit AdamW", "adamw_8bit": "8-bit AdamW"}


Scored = Literal["documents", "answers", "pairs", "rows"]
PAIRED_STAGES = frozenset({"dpo", "orpo", "cpo", "kto", "reward"})
# What a stage is called in a sentence: Korean, English.
_STAGES = {
    "sft": ("지시 튜닝", "instruction tuning"),
    "dpo": ("선호 학습(DPO)", "preference tuning (DPO)"),
    "orpo": ("선호 학습(ORPO)", "preference tuning (ORPO)"),
    "cpo": ("선호 학습(CPO)", "preference tuning (CPO)"),
    "kto": ("선호 학습(KTO)", "preference tuning (KTO)"),
    "reward": ("보상 모델 학습", "reward modelling"),
    "ppo": ("강화 학습(PPO)", "reinforcement learning (PPO)"),
    "grpo": ("강화 학습(GRPO)", "reinforcement learning (GRPO)"),
    "classify": ("분류 학습", "training as a classifier"),
    "embed": ("문장 임베딩 학습", "training as a sentence encoder"),
    "mlm": ("빈칸 채우기 학습", "masked language modelling"),
}


class Change(NamedTuple):
    """A held-out figure of documents, answers or pairs of answers, before and after; `before_is`: what before means."""

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
    if run.stage in _STAGES:
        how = f"{'전체 가중치' if method(run) == 'full' else method(run)} {_STAGES[run.stage][0]}"
        return f"{_model(run)} 위에 {how}을 {steps} 진행했습니다({precision}{rows})."
    begun = "이어서 사전학습" if run.get("model.from") else "처음부터 사전학습"
    return f"{_model(run)} 모델을 {steps} {begun}했습니다({precision}{rows})."


def _english(run: RunRecord) -> str:
    length = run.get("data.seq_len")
    rows = f", rows of {length:,}" if isinstance(length, int) else ""
    tail = f"{run.step:,} steps ({run.get('train.precision') or '?'}{rows})."
    if run.stage in _STAGES:
        how = {"full": "Full-weight"}.get(method(run), method(run))
        return f"{how} {_STAGES[run.stage][1]} of {_model(run)}, {tail}"
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
        telling = [run for run in runs if scored(run) != "pairs" and name in FIGURE_NAMES[scored(run)]]
        known = [(run, one) for run in telling if (one := run.evaluated(name)).finite]
        if known:
            run, series = known[-1]
            steps, values = series.steps, series.finite
            where = "튜닝 전 before" if steps[0] == 0 and scored(run) == "answers" else f"{steps[0]:,.0f}단계 step"
            found.append(Change(name, scored(run), values[0] if len(values) > 1 else None, values[-1], where))
    return found


def pair_changes(run: RunRecord, extra: Mapping[str, Any]) -> list[Change]:
    """The figures of a run over held-out pairs of answers, before and after: as given, else its first and last."""
    given = (extra.get("preference") or {}).get("evaluated") or {}
    found = []
    for name in ("accuracy", "margin", "loss"):
        series = run.evaluated(name)
        before, after = (as_number((given.get(when) or {}).get(name)) for when in ("before", "after"))
        if after is None and series.finite:
            before, after = series.finite[0] if len(series.finite) > 1 else None, series.finite[-1]
        if after is not None:
            first = 0 if given or not len(series) else series.steps[0]
            where = f"{first:,.0f}단계 step" if first else UNTUNED
            found.append(Change(name, "pairs", before, after, where))
    return found


def chosen_change(extra: Mapping[str, Any]) -> list[Change]:
    """How many answers were as the chosen one, before and after, where that was told."""
    asked = (extra.get("preference") or {}).get("asked") or {}
    before, after = (as_number((asked.get(when) or {}).get("chosen_share")) for when in ("before", "after"))
    return [] if after is None else [Change("chosen_share", "pairs", before, after, UNTUNED)]


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
    "pairs": {
        "accuracy": ("고른 답이 앞선 쌍", "pairs whose chosen answer is ahead"),
        "margin": ("마진", "margin of the chosen answer"),
        "loss": ("쌍당 손실", "loss a pair"),
        "chosen_share": ("고른 답과 같음", "answers equal to the chosen one"),
        "log_ratio": ("기준 대비 로그 비", "log ratio to the reference"),
        "entropy": ("엔트로피", "entropy"),
    },
    "rows": {
        "accuracy": ("정확도", "accuracy"),
        "macro_f1": ("매크로 F1", "macro F1"),
        "spearman": ("스피어먼 상관", "Spearman"),
        "pearson": ("피어슨 상관", "Pearson"),
        "recall_at_1": ("재현율@1", "recall at 1"),
        "mrr": ("평균 역순위", "mean reciprocal rank"),
        "reward": ("보상", "reward"),
        "kl": ("기준과의 거리", "KL from the reference"),
        "entropy": ("엔트로피", "entropy"),
        "loss": ("손실", "loss"),
    },
}


def scored(run: RunRecord) -> Scored:
    """What the evaluations of a run score: whole documents, answers to instructions, pairs of answers, other rows."""
    if run.stage in PAIRED_STAGES:
        return "pairs"
    if run.stage in _STAGES and run.stage not in TOKEN_STAGES:
        return "rows"
    is_asked = any(name in line for name in SHARES for line in run.evaluations)
    return "answers" if run.stage == "sft" or is_asked else "documents"


def figure_label(name: str, value: float) -> str:
    if name in SHOWN_AS_SHARES:
        return f"{100 * value:.1f} %"
    return f"{value:.4f}" if abs(value) < 100 else value_label(value)


def big_numbers(runs: Sequence[RunRecord], extra: Mapping[str, Any]) -> Markup:
    """At most six tiles, the most telling first."""
    tiles = []
    known = changes(runs, extra)
    shown = [change for change in known if change.name != "loss" or len(known) < 2]
    if scored(runs[-1]) == "pairs":
        of_pairs = {change.name: change for change in (*pair_changes(runs[-1], extra), *chosen_change(extra))}
        second = "chosen_share" if "chosen_share" in of_pairs else "margin"
        shown = [*(of_pairs[name] for name in ("accuracy", second) if name in of_pairs), *shown[:1]]
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
    """Of the runs whose targets are tokens; of pairs and the like they are rows."""
    counts = [count for run in runs if run.stage in TOKEN_STAGES and (count := as_number(run.last.get("tokens")))]
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
