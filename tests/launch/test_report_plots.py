"""Charts: whatever the values, they are drawn inside their box, with few round ticks, and lose no extreme."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.report_axes import linear_ticks, log_ticks, number_label, value_label
from launch.report_data import Series
from launch.report_plots import HEIGHT, LOW_HEIGHT, MAX_POINTS, WIDTH, Chart, Line, Mark, downsample, draw, legend

numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(-1e3, 1e3),
    st.sampled_from(["nan", "inf", "1e400", None, True, [], 10**400]),
)


def series(*values: object, first: int = 1, stride: int = 1) -> Series:
    made = Series()
    for number, value in enumerate(values):
        made.add(first + number * stride, value)
    return made


def ticks(svg: str, axis: str) -> list[str]:
    return re.findall(rf'class="tick {axis}[^"]*">([^<]*)<', svg)


@given(st.lists(numbers, max_size=40), st.lists(numbers, max_size=5), st.booleans(), st.booleans(), st.booleans())
def test_any_values_are_drawn_inside_the_box_with_labels_that_differ(
    values: list[object], others: list[object], from_zero: bool, may_be_log: bool, is_low: bool
) -> None:
    lines = (Line("a", series(*values)), Line("b", series(*others, stride=9), "b", dots=True))
    chart = Chart("t", "u", lines, (Mark(3, "skip", ""),), from_zero=from_zero, may_be_log=may_be_log, is_low=is_low)

    svg = draw(chart)

    if not any(line.series.finite for line in lines):
        assert "nothing recorded yet" in svg
        return
    for name, limit in (("x", WIDTH), ("y", LOW_HEIGHT if is_low else HEIGHT)):
        places = [float(found) for found in re.findall(rf'\b(?:{name}|c{name}|{name}1|{name}2)="([^"]*)"', svg)]
        assert all(0 <= place <= limit for place in places)
    places = re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", "".join(re.findall(r' d="([^"]*)"', svg)))
    assert all(0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT for x, y in places)
    labels = ticks(svg, "y")
    assert 2 <= len(labels) <= 9
    assert len(set(labels)) == len(labels)
    assert "nan" not in svg


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_round_and_of_equal_distance(low: float, span: float, count: int) -> None:
    found = linear_ticks(low, low + span, count)

    noise = 1e-6 * span + 4 * math.ulp(abs(low) + span)  # of float64, where the span is tiny beside the values
    gaps = [b - a for a, b in pairwise(found)]
    assert max(gaps, default=0) - min(gaps, default=0) <= noise
    assert len(found) <= count + 1
    assert all(low - noise <= tick <= low + span + noise for tick in found)


@given(st.floats(1e-90, 1e90), st.floats(20, 1e9))
def test_logarithmic_ticks_enclose_their_range(low: float, ratio: float) -> None:
    found = log_ticks(low, low * ratio)

    assert found == sorted(found)
    assert found[0] <= low * 1.001
    assert found[-1] >= low * ratio * 0.999
    assert 2 <= len(found) <= 9


@settings(max_examples=20)
@given(st.lists(st.one_of(st.just(math.nan), st.integers(-9999, 9999)), min_size=MAX_POINTS + 1, max_size=900))
def test_fewer_points_keep_the_mean_and_the_extremes(values: list[float]) -> None:
    points = downsample(series(*values))

    finite = [value for value in values if not math.isnan(value)]
    assert len(points) <= MAX_POINTS
    if finite:
        shown = [point for point in points if not math.isnan(point.mean)]
        assert (min(p.low for p in shown), max(p.high for p in shown)) == (min(finite), max(finite))
        assert all(p.low - 1e-6 <= p.mean <= p.high + 1e-6 for p in shown)
        assert [p.x for p in points] == sorted(p.x for p in points)


def test_an_axis_is_logarithmic_only_where_a_linear_one_would_squeeze() -> None:
    def unit(*values: float) -> str:
        return draw(Chart("t", "u", (Line("a", series(*values)),), may_be_log=True))

    assert "u (로그 log)" in unit(10, 1, 0.4)
    assert "로그" not in unit(10, 1, 0.6)
    assert "로그" not in unit(10, 1, 0.0)
    assert ticks(unit(10, 1, 0.4), "y") == ["0.2", "0.5", "1", "2", "5", "10"]


def test_small_values_share_a_power_of_ten() -> None:
    svg = draw(Chart("t", "lr", (Line("a", series(0.0, 3e-4)),), from_zero=True, is_low=True))

    assert "lr ×10⁻⁴" in svg
    assert ticks(svg, "y") == ["0", "1", "2", "3"]


def test_a_value_between_two_gaps_is_a_dot() -> None:
    svg = draw(Chart("t", "u", (Line("a", series("nan", 2.0, "nan", 1.0, 1.5)),)))

    stroke = re.search(r'd="([^"]*)" class="stroke"', svg)
    assert stroke is not None
    assert re.fullmatch(r"M[\d.]+ [\d.]+h\.01M[\d.]+ [\d.]+L[\d.]+ [\d.]+", stroke[1])


def test_a_band_tells_step_and_values_of_all_curves_there() -> None:
    lines = (Line("학습 train", series(4.0, 3.0)), Line("검증 held-out", series(3.5, first=2), "b"))

    svg = draw(Chart("t", "u", lines))

    assert re.findall(r"<title>([^<]*)</title>", svg) == ["1단계 · 학습 4", "2단계 · 학습 3 · 검증 3.5"]


def test_marks_that_would_hide_one_another_become_one_and_the_legend_names_them() -> None:
    marks = tuple(Mark(step, "skip", "") for step in range(1, 1000))
    chart = Chart("t", "u", (Line("a", series(1.0, 2.0, stride=999)),), marks)

    assert draw(chart).count('class="skip"') < 90
    assert "건너뛴 단계 skipped" in str(legend(chart))
    assert legend(Chart("t", "u", chart.lines)) is None


@pytest.mark.parametrize(
    ("value", "step", "label"),
    [
        (0.0, 1.0, "0"), (2.5, 0.5, "2.5"), (0.25, 0.25, "0.25"), (1000.0, 500.0, "1,000"), (12_000.0, 2000.0, "12k"),
        (1500.0, 1000.0, "1.5k"), (2.5e6, 5e5, "2.5M"), (1e12, 1e12, "1T"), (-3.0, 1.0, "-3"),
    ],
)  # fmt: skip
def test_axis_numbers_are_short(value: float, step: float, label: str) -> None:
    assert number_label(value, step=step) == label


@pytest.mark.parametrize(
    ("value", "label"), [(0.0, "0"), (3.14159, "3.142"), (12345.6, "12,346"), (3e-4, "0.0003"), (2.5e7, "25M")]
)
def test_values_have_four_digits(value: float, label: str) -> None:
    assert value_label(value) == label
