"""Axes: values onto places, round ticks, short numbers. Knows no SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Axis:
    """Values onto places, from `start` (at `low`) to `end` (at `high`)."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...] = ()
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.is_log else v for v in (self.low, self.high, value))
        share = (value - low) / (high - low)
        return self.start + (self.end - self.start) * min(1.0, max(0.0, share))


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """Round values in [low, high], about `count` of them."""
    step = tick_step(low, high, count)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_step(low: float, high: float, count: int) -> float:
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next((factor for factor in (1.0, 2.0, 2.5, 5.0) if factor * power >= rough * 0.999), 10.0)


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that enclose [low, high], thinned to six; with 2 and 5 between where there are few decades."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    if last - first > 2:
        every = math.ceil((last - first) / 6)
        return [10.0**power for power in range(first, last + every, every)]
    fine = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    begin = max(number for number, tick in enumerate(fine) if tick <= low * 1.001)
    end = min(number for number, tick in enumerate(fine) if tick >= high * 0.999)
    return fine[begin : end + 1]


def step_of(ticks: Sequence[float]) -> float:
    return min((b - a for a, b in pairwise(ticks)), default=1.0)


def common_power(ticks: Sequence[float]) -> int:
    """The power of ten that small ticks share, so that 0.0012 is 1.2 x 10^-3; 0 for those that read well."""
    largest = max((abs(tick) for tick in ticks), default=1.0)
    return math.floor(math.log10(largest) + 1e-9) if 0 < largest < 0.0995 else 0


def number_label(value: float, *, step: float) -> str:
    """A short number for an axis: as many decimals as its step needs, 12k, 3.5M."""
    if abs(value) < 1e-12 * max(1.0, abs(step)) or value == 0:
        return "0"
    if abs(value) >= 1e15:
        return f"{value:.3g}"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size and (abs(value) >= 1e4 or step >= 1e3):
            shown = f"{value / size:.{max(2, _decimals(step / size))}f}"
            return shown.rstrip("0").rstrip(".") + letter
    return f"{value:,.{_decimals(step)}f}"


def _decimals(step: float) -> int:
    """Digits behind the point that multiples of `step` need, at most six."""
    if step <= 0:
        return 0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    # 2.5 needs a decimal more than 2.
    return min(6, decimals + (abs(step * 10**decimals - round(step * 10**decimals)) > 1e-6))


def value_label(value: float) -> str:
    """Four significant digits, as a person writes them."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 else number_label(value, step=0.0)
