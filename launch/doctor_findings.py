"""What `dure doctor` says of one thing, and how findings are shown: a table for a person, JSON for a machine."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "note", "warn", "broken"]
MARKS: dict[State, str] = {"ok": "ok", "note": "·", "warn": "WARN", "broken": "FAIL"}
COLOURS: dict[State, str] = {"ok": "\x1b[32m", "note": "\x1b[2m", "warn": "\x1b[33m", "broken": "\x1b[31m"}
BOLD, RESET = "\x1b[1m", "\x1b[0m"


@dataclass(frozen=True)
class Finding:
    """One line. `note`: absent, and not needed here. `warn`: works, but will hurt. `broken`: does not work.

    `advice` says what to do, and stands for every `warn` and `broken`.
    """

    area: str
    name: str
    value: str
    state: State = "ok"
    advice: str = ""

    def __post_init__(self) -> None:
        assert self.advice or self.state in ("ok", "note"), f"{self.area}: {self.name}: what is to be done?"


def area_table(area: str, findings: Sequence[Finding], *, colour: bool) -> str:
    """The lines of one area, each that needs something followed by what to do."""
    width = max((width_of(finding.name) for finding in findings), default=0)
    lines = [f"{BOLD}{area}{RESET}" if colour else area]
    for finding in findings:
        mark = f"{MARKS[finding.state]:<4}"
        shown = f"{COLOURS[finding.state]}{mark}{RESET}" if colour else mark
        name = finding.name + " " * (width - width_of(finding.name))
        lines.append(f"  {shown}  {name}  {finding.value}")
        if finding.advice:
            lines.append(f"        → {finding.advice}")
    return "\n".join(lines)


def width_of(text: str) -> int:
    """Columns on a terminal: a Korean syllable takes two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def summary(findings: Sequence[Finding], *, colour: bool) -> str:
    """One line: how many need something, and which are broken."""
    broken = [finding for finding in findings if finding.state == "broken"]
    warned = [finding for finding in findings if finding.state == "warn"]
    if broken:
        text = f"{len(broken)} broken ({', '.join(_names(broken))}), {len(warned)} warnings, of {len(findings)} checks"
    elif warned:
        text = f"nothing is broken; {len(warned)} of {len(findings)} checks warn ({', '.join(_names(warned))})"
    else:
        text = f"all of {len(findings)} checks are well (이상 없음)"
    state: State = "broken" if broken else "warn" if warned else "ok"
    return f"{COLOURS[state]}{text}{RESET}" if colour else text


def _names(findings: Sequence[Finding]) -> Iterator[str]:
    yield from (f"{finding.area}: {finding.name}" for finding in findings[:4])
    if len(findings) > 4:
        yield f"{len(findings) - 4} more"


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """`{"broken": n, "warnings": n, "findings": [{area, name, value, state, advice}]}`."""
    states = [finding.state for finding in findings]
    return {
        "broken": states.count("broken"),
        "warnings": states.count("warn"),
        "findings": [asdict(finding) for finding in findings],
    }
