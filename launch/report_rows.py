"""Figures of several runs in one row of a table: how they are called and shown, and which of them is the better one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launch.report_axes import value_label
from launch.report_data import RunRecord
from launch.report_html import Child, Markup, join, tag
from launch.report_summary import SHARES
from trainer.stages import HIGHER_IS_BETTER

MAX_CURVES = 5  # beyond these, colours and dashes can't be told apart
_LOWER_IS_BETTER = frozenset({"loss", "bits_per_byte", "masked_perplexity"})
_PERCENT = SHARES | {"accuracy", "masked_accuracy", "macro_f1", "binary_f1", "pair_accuracy"}
_NAMES = {
    "loss": "손실 loss",
    "bits_per_byte": "바이트당 비트 bits a byte",
    "accuracy": "정확도 accuracy",
    "margin": "마진 margin",
    "reward": "보상 reward",
    "kl": "KL",
}


@dataclass(frozen=True)
class Row:
    """One figure of every run, None where a run has none. `best`: 1 where more is better, -1 where less is, else 0."""

    name: Child
    values: tuple[float | None, ...]
    show: Callable[[float], str]
    best: int = 0

    @property
    def winners(self) -> frozenset[int]:
        """The places of the better one, or of several that are equal; none where all are, or none can be better."""
        known = [value for value in self.values if value is not None]
        if not self.best or len({self.show(value) for value in known}) < 2:
            return frozenset()
        top = self.show(max(known) if self.best > 0 else min(known))
        # What reads alike is alike: nobody wins by a digit that is not shown.
        return frozenset(n for n, value in enumerate(self.values) if value is not None and self.show(value) == top)


def better(name: str) -> int:
    """Whether more of a figure is better (1), or less (-1), or neither (0)."""
    if name in HIGHER_IS_BETTER or name.startswith(("acc", "f1", "exact")):
        return 1
    return -1 if name in _LOWER_IS_BETTER else 0


def label_of(name: str) -> str:
    return _NAMES.get(name, name.replace("_", " "))


def shower(name: str) -> Callable[[float], str]:
    if name in _PERCENT or name.startswith(("acc", "exact_match", "f1")):
        return lambda value: f"{100 * value:.1f} %"
    return lambda value: f"{value:.4f}" if abs(value) < 100 else value_label(value)


def style_of(number: int) -> str:
    return f"r{number + 1}"


def key_of(number: int) -> Markup:
    return tag("i", cls=f"key line-{style_of(number)}") if number < MAX_CURVES else tag("i")


def named(number: int, run: RunRecord) -> str:
    """A letter, by which the short words at a chart's pointer know it, and the name."""
    return f"{chr(ord('A') + number)} {run.name}" if number < 26 else run.name


def head_of(runs: Sequence[RunRecord], *words: Child) -> list[Child]:
    return [*words, *(join(key_of(number), " ", named(number, run)) for number, run in enumerate(runs))]


def cells_of(row: Row) -> list[Child]:
    cells: list[Child] = [row.name]
    for place, value in enumerate(row.values):
        label = "–" if value is None else row.show(value)
        cells.append(tag("b", f"★ {label}", cls="better") if place in row.winners else label)
    return cells
