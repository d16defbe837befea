"""Several runs of one stage side by side: where their configs differ, their curves over one another, their figures.

Runs that followed one another are a story, which `report.py` tells; these are rivals.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from launch.report_axes import value_label
from launch.report_compare_evaluations import evaluations_section
from launch.report_data import RunRecord, Series, as_number
from launch.report_html import Child, Markup, both, card, join, section, table, tag
from launch.report_plots import Chart, Line, figure
from launch.report_rows import MAX_CURVES, Row, better, cells_of, head_of, key_of, label_of, named, shower, style_of
from launch.report_summary import duration, scored, short, status_chip
from trainer.locate import locate

COMPARE_SECTIONS = (
    ("figures", "마지막 수치", "Final figures"),
    ("changes", "다른 설정", "What differs"),
    ("curves", "학습 곡선", "Curves"),
    ("evaluations", "평가", "Evaluations"),
    ("data", "데이터", "Data"),
    ("events", "사건", "Events"),
    ("config", "설정", "Configuration"),
    ("environment", "환경", "Environment"),
)
# Of no config that a person chose: where a run lies, and what it is called.
_OWN_KEYS = ("run.name", "run.folder")
_COUNTS = frozenset({"step", "is_best", "seconds", "epoch"})


def are_rivals(runs: Sequence[RunRecord]) -> bool:
    """Whether several runs are of one stage and none of them began with another."""
    if len(runs) < 2 or len({run.stage for run in runs}) > 1:
        return False
    return not any(_began_with(run, other) for run in runs for other in runs if run is not other)


def _began_with(run: RunRecord, other: RunRecord) -> bool:
    source = run.get("model.from")
    if not isinstance(source, str):
        return False
    place = locate(source)
    if place is not None and place.run_folder is not None:
        return place.run_folder.resolve() == other.folder.resolve()
    return other.folder.resolve().name in Path(source).parts


def rival_headline(runs: Sequence[RunRecord]) -> Markup:
    parts: list[Child] = []
    for run in runs:
        parts += [tag("span", "·", cls="arrow")] * bool(parts) + [run.name]
    return join(*parts)


def rival_summary(runs: Sequence[RunRecord]) -> list[Markup]:
    """What the page compares, in Korean and in English."""
    stage, count = runs[0].stage, len(runs)
    korean = f"같은 단계({stage})의 실행 {count}개를 나란히 놓았습니다. ★은 더 좋은 쪽입니다."
    english = f"{count} runs of stage {stage}, side by side; ★ marks the better one."
    return [
        tag("p", tag("span", korean), cls="lead"),
        tag("p", tag("span", english), cls="lead en", lang="en"),
    ]


def rival_meta(runs: Sequence[RunRecord]) -> list[Child]:
    entries = (
        (key_of(number), tag("span", f" {named(number, run)} "), status_chip(run)) for number, run in enumerate(runs)
    )
    return [join(*parts) for parts in entries]


def rival_parts(runs: Sequence[RunRecord]) -> list[Markup]:
    """The sections that only such a page has."""
    return [_figures(runs), _changes(runs), _curves(runs), evaluations_section(runs)]


def _figures(runs: Sequence[RunRecord]) -> Markup:
    rows = [*_quality_rows(runs), *_cost_rows(runs)]
    notes = [note for note in (_other_rows(runs), _cut_short(runs)) if note]
    return section(
        "figures",
        "마지막 수치",
        "Final figures",
        card(
            table(head_of(runs, ""), [cells_of(row) for row in rows]),
            *(tag("p", note, cls="hint") for note in notes),
        ),
    )


def _quality_rows(runs: Sequence[RunRecord]) -> Iterator[Row]:
    """Held-out figures at the last evaluation, and at the best one where that is another."""
    for name in _evaluated_names(runs):
        best = better(name)
        series = [run.evaluated(name).finite for run in runs]
        last = tuple(values[-1] if values else None for values in series)
        yield Row(both("검증 " + label_of(name), "held-out, last"), last, shower(name), best)
        choose = max if best > 0 else min
        tops = tuple(choose(values) if values else None for values in series)
        if best and tops != last:
            yield Row(both("검증 " + label_of(name), "held-out, best"), tops, shower(name), best)
    losses = tuple(_last_mean(run.curves["loss"]) for run in runs)
    yield Row(both("학습 손실", "train loss, its last tenth"), losses, value_label, -1)


def _cost_rows(runs: Sequence[RunRecord]) -> Iterator[Row]:
    yield Row(both("단계", "steps"), tuple(float(run.step) for run in runs), short)
    yield Row(both("학습 토큰", "target tokens"), tuple(as_number(run.last.get("tokens")) for run in runs), short)
    rates = tuple(_median(run.curves["tokens_per_second"]) for run in runs)
    yield Row(both("처리량", "tokens a second"), rates, short, 1)
    yield Row(both("학습 시간", "training time"), tuple(run.seconds or None for run in runs), _duration, -1)
    peaks = tuple(max(values) if (values := run.curves["memory_gib"].finite) else None for run in runs)
    yield Row(both("최대 메모리", "peak memory, GiB"), peaks, lambda value: f"{value:.1f}", -1)
    refused = tuple(float(sum(event.get("kind") == "skipped_step" for event in run.events)) for run in runs)
    yield Row(both("거부한 단계", "refused steps"), refused, short)


def _duration(seconds: float) -> str:
    return " ".join(duration(seconds))


def _evaluated_names(runs: Sequence[RunRecord]) -> list[str]:
    """Figures that some evaluation of some run tells, the loss first."""
    names: dict[str, None] = {}
    for run in runs:
        for line in run.evaluations:
            names |= {
                name: None
                for name, value in line.items()
                if name not in _COUNTS and not name.startswith("num_") and as_number(value) is not None
            }
    return sorted(names, key=lambda name: (name != "loss", not better(name)))


def _last_mean(series: Series) -> float | None:
    finite = series.finite
    last = finite[-max(1, len(finite) // 10) :]
    return sum(last) / len(last) if last else None


def _median(series: Series) -> float | None:
    return median(series.finite) if series.finite else None


def _other_rows(runs: Sequence[RunRecord]) -> str:
    """A word of caution where held-out figures are of other rows."""
    counts = {run.evaluations[-1].get("num_documents") for run in runs if run.evaluations}
    folders = {str(run.get("data.shards")) for run in runs}
    if len(folders) < 2 and len(counts) < 2:
        return ""
    return (
        "샤드나 평가한 행이 서로 다르므로 검증 수치를 그대로 비교할 수 없습니다 · their shards or the rows that were "
        "scored differ, so held-out figures are of different texts"
    )


def _cut_short(runs: Sequence[RunRecord]) -> str:
    steps = {run.step for run in runs}
    return "단계 수가 서로 다릅니다 · the runs are of different lengths" if len(steps) > 1 else ""


def _changes(runs: Sequence[RunRecord]) -> Markup:
    rows = [[tag("code", key), *map(_value, values)] for key, values in config_differences(runs)]
    told: Markup = (
        table(head_of(runs, "키 key"), rows, text_columns=1 + len(runs))
        if rows
        else tag("p", "이름 말고는 같은 설정입니다 · equal but for their names", cls="empty")
    )
    return section("changes", "다른 설정", "What differs", card(told))


def config_differences(runs: Sequence[RunRecord]) -> list[tuple[str, tuple[Any, ...]]]:
    """The dotted keys whose values differ, with those of each run; None where a run has no such key."""
    trees = [dict(_leaves(run.config)) for run in runs]
    keys = dict.fromkeys(key for tree in trees for key in tree)
    found = []
    for key in keys:
        values = tuple(tree.get(key) for tree in trees)
        if key not in _OWN_KEYS and any(_plain(value) != _plain(values[0]) for value in values):
            found.append((key, values))
    return found


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def _value(value: Any) -> Child:
    if value is None:
        return tag("span", "–", cls="muted")
    return tag("code", value if isinstance(value, str) else _plain(value))


def _curves(runs: Sequence[RunRecord]) -> Markup:
    shown = runs[:MAX_CURVES]
    charts = [_chart(shown, "학습 손실 Train loss", _loss_unit(shown), lambda run: run.curves["loss"], may_be_log=True)]
    for name in _evaluated_names(shown)[:5]:
        title = f"검증 {label_of(name)}"
        charts.append(_chart(shown, title, "held-out", _evaluated(name), dots=True))
    low = []
    for name, title, unit in (
        ("lr", "학습률 Learning rate", "lr"),
        ("tokens_per_second", "처리량 Throughput", "tokens/s"),
        ("memory_gib", "메모리 Memory", "GiB"),
        ("grad_norm", "기울기 노름 Gradient norm", "L2"),
    ):
        low.append(_chart(shown, title, unit, _curve(name), from_zero=name != "grad_norm", is_low=True))
    grids = [tag("div", *map(figure, some), cls="grid even") for some in (charts, low)]
    note = None
    if len(runs) > MAX_CURVES:
        note = tag("p", f"처음 {MAX_CURVES}개만 그렸습니다 · the first {MAX_CURVES} runs are drawn", cls="hint")
    return section("curves", "학습 곡선", "Curves", _legend(shown), tag("div", *grids, cls="stack"), note)


def _evaluated(name: str) -> Callable[[RunRecord], Series]:
    return lambda run: run.evaluated(name)


def _curve(name: str) -> Callable[[RunRecord], Series]:
    return lambda run: run.curves[name]


def _loss_unit(runs: Sequence[RunRecord]) -> str:
    if runs[0].stage not in ("pretrain", "sft"):
        return "loss"
    return {"documents": "nats/token", "answers": "nats/answer token"}[scored(runs[0])]


def _chart(
    runs: Sequence[RunRecord],
    title: str,
    unit: str,
    of: Callable[[RunRecord], Series],
    *,
    dots: bool = False,
    may_be_log: bool = False,
    from_zero: bool = False,
    is_low: bool = False,
) -> Chart:
    lines = tuple(Line(named(number, run), of(run), style_of(number), dots=dots) for number, run in enumerate(runs))
    steps = [step for run in runs for step in run.curves["loss"].steps]
    x_range = (min(steps), max(steps)) if steps else None
    return Chart(title, unit, lines, x_range=x_range, may_be_log=may_be_log, from_zero=from_zero, is_low=is_low)


def _legend(runs: Sequence[RunRecord]) -> Markup:
    entries = (tag("li", key_of(number), named(number, run)) for number, run in enumerate(runs))
    return tag("ul", *entries, cls="legend whole")
