"""The curves of a report: the same figure of several runs side by side, of one stage on one scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from launch.report_data import RunRecord, Series, as_number
from launch.report_html import Markup, section, tag
from launch.report_plots import Chart, Line, Mark, figure, value_range
from launch.report_summary import FIGURE_NAMES, scored

Maker = Callable[[RunRecord], Chart]


def curves_section(runs: Sequence[RunRecord]) -> Markup:
    """A row for each figure, a column for each run; of more than two runs, a block for each."""
    if len(runs) > 2:
        return section("curves", "학습 곡선", "Curves", *(_of_one(run) for run in runs))
    figures: list[Markup] = []
    for make in MAKERS:
        figures += _row([(run, make(run)) for run in runs], is_alone=len(runs) == 1)
    for run in runs:
        figures += [figure(chart, subtitle="" if len(runs) == 1 else run.name) for chart in _of_pairs(run)]
    return section("curves", "학습 곡선", "Curves", tag("div", *figures, cls="grid even"))


def _of_one(run: RunRecord) -> Markup:
    """All charts of a run under its name, where there are too many runs for a column each."""
    loss, quality, rate, *others = (make(run) for make in MAKERS)
    # The first rows are of charts of full height; with pairs there are six of them, else three.
    figures = [figure(chart) for chart in (loss, quality, *_of_pairs(run), replace(rate, is_low=False), *others)]
    return tag("div", tag("h3", run.name), tag("div", *figures, cls="grid even three"), cls="of-run")


def _row(charts: Sequence[tuple[RunRecord, Chart]], *, is_alone: bool) -> list[Markup]:
    drawn = []
    for run, chart in charts:
        peers = [other for its, other in charts if its.stage == run.stage and other.title == chart.title]
        if len(peers) > 1:
            chart = replace(chart, y_range=value_range(line.series for other in peers for line in other.lines))
        drawn.append(figure(chart, subtitle="" if is_alone else run.name))
    return drawn


def _loss(run: RunRecord) -> Chart:
    unit = {"documents": "nats/token", "answers": "nats/answer token", "pairs": "nats/pair", "rows": "loss"}
    return Chart("손실 Loss", unit[scored(run)], _both(run, "loss"), _marks(run), may_be_log=True)


def _both(run: RunRecord, name: str) -> tuple[Line, Line]:
    """A figure of training and of the held-out rows; shares in percent."""
    series = [run.curves[name], run.evaluated(name)]
    train, heldout = (_percent(one) for one in series) if name == "accuracy" else series
    return Line("학습 train", train, "a"), Line("검증 held-out", heldout, "b", dots=True)


def _of_pairs(run: RunRecord) -> list[Chart]:
    """By how much chosen answers are ahead, and what that costs: the way from the reference, the entropy."""
    titles = {
        "margin": ("마진 Margin", "chosen − rejected"),
        "log_ratio": ("기준 대비 로그 비 Log ratio", "nats/answer"),
        "entropy": ("엔트로피 Entropy", "nats/token"),
    }
    if scored(run) != "pairs":
        return []
    drawn = [(title, unit, _both(run, name)) for name, (title, unit) in titles.items()]
    return [
        Chart(title, unit, lines, _resumes(run), x_range=_steps(run))
        for title, unit, lines in drawn
        if any(line.series.finite for line in lines)
    ]


def _quality(run: RunRecord) -> Chart:
    exact = run.evaluated("exact_match")
    if exact.finite:
        lines = (
            Line("정답 exact match", _percent(exact), "a", dots=True),
            Line("끝맺음 ended", _percent(run.evaluated("ended_share")), "b", dots=True),
        )
        return Chart("답변 Answers", "%", lines, y_range=(0.0, 100.0), x_range=_steps(run))
    if scored(run) in ("pairs", "rows"):
        return _stage_figure(run)
    line = Line("검증 held-out", run.evaluated("bits_per_byte"), "b", dots=True)
    unit = {"documents": "bits/document byte", "answers": "bits/answer byte"}[scored(run)]
    return Chart("바이트당 비트 Bits per byte", unit, (line,), x_range=_steps(run), may_be_log=True)


def _stage_figure(run: RunRecord) -> Chart:
    """The first figure of the stage that its evaluations tell."""
    names = FIGURE_NAMES[scored(run)]
    name = next((name for name in names if run.evaluated(name).finite), "loss")
    if name == "accuracy":
        title = "쌍 정확도 Pair accuracy" if scored(run) == "pairs" else "정확도 Accuracy"
        return Chart(title, "%", _both(run, name), y_range=(0.0, 100.0), x_range=_steps(run))
    line = Line("검증 held-out", run.evaluated(name), "b", dots=True)
    return Chart(" ".join(names[name]), name, (line,), x_range=_steps(run))


def _learning_rate(run: RunRecord) -> Chart:
    return _one(run, "lr", "학습률 Learning rate", "lr")


def _throughput(run: RunRecord) -> Chart:
    return _one(run, "tokens_per_second", "처리량 Throughput", "tokens/s")


def _memory(run: RunRecord) -> Chart:
    return _one(run, "memory_gib", "메모리 Memory", "GiB")


def _one(run: RunRecord, name: str, title: str, unit: str) -> Chart:
    word = title.split()[0]
    return Chart(
        title, unit, (Line(word, run.curves[name]),), _resumes(run), from_zero=True, x_range=_steps(run), is_low=True
    )


def _grad_norm(run: RunRecord) -> Chart:
    line = Line("노름", run.curves["grad_norm"])
    return Chart(
        "기울기 노름 Gradient norm", "L2", (line,), _resumes(run), may_be_log=True, x_range=_steps(run), is_low=True
    )


MAKERS: tuple[Maker, ...] = (_loss, _quality, _learning_rate, _throughput, _memory, _grad_norm)


def _resumes(run: RunRecord) -> tuple[Mark, ...]:
    return tuple(mark for mark in _marks(run) if mark.kind == "resume")


def _percent(series: Series) -> Series:
    percent = Series()
    for step, value in zip(series.steps, series.values, strict=True):
        percent.add(step, 100 * value)
    return percent


def _steps(run: RunRecord) -> tuple[float, float] | None:
    """The steps of the loss: all charts of a run share them."""
    steps = [*run.curves["loss"].steps, *run.evaluated("loss").steps]
    return (min(steps), max(steps)) if steps else None


def _marks(run: RunRecord) -> tuple[Mark, ...]:
    """Where the run went on after a stop, and which updates were refused."""
    marks = []
    for event in run.events:
        step = as_number(event.get("step"))
        if step is None:
            continue
        if event.get("kind") == "started" and step > 0:
            marks.append(Mark(step, "resume", f"{step:,.0f}단계에서 이어서 시작 · resumed"))
        elif event.get("kind") == "skipped_step":
            detail = event.get("detail")
            reason = detail.get("reason", "") if isinstance(detail, dict) else detail
            marks.append(Mark(step, "skip", f"{step:,.0f}단계 건너뜀 · update refused: {reason}"))
    return tuple(marks)
