"""`report.html`: one page that says what was trained, on what, how well, and what went wrong. Opens from disk.

It needs nothing beside itself: no script, no font, no image, no request. Its own security policy forbids them all, so
that text from a corpus or a model could do nothing even where an escape were forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline import disk
from launch.report_answers import answers_section
from launch.report_compare import (
    COMPARE_SECTIONS,
    are_rivals,
    rival_headline,
    rival_meta,
    rival_parts,
    rival_summary,
)
from launch.report_curves import curves_section
from launch.report_data import DataRecord, RunRecord, find_run, read_data, read_run
from launch.report_details import config_section, data_section, environment_section, events_section
from launch.report_heldout import heldout_section
from launch.report_html import Child, Markup, both, join, tag
from launch.report_preference import ANCHOR, ENGLISH, KOREAN, has_preferences, preference_section
from launch.report_style import STYLE
from launch.report_summary import big_numbers, headline, status_chip, summaries

REPORT_NAME = "report.html"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
EXTRA_KEYS = frozenset({"corpora", "tokenizers", "before", "after", "baselines", "preference"})
SECTIONS = (
    ("curves", "학습 곡선", "Curves"),
    ("heldout", "검증", "Held-out"),
    ("answers", "답변 예시", "Answers"),
    ("data", "데이터", "Data"),
    ("events", "사건", "Events"),
    ("config", "설정", "Configuration"),
    ("environment", "환경", "Environment"),
)


def write_report(runs: Sequence[Path], output: Path, *, extra: Mapping[str, Any]) -> Path:
    """Write the page of `runs`, in the order in which they were trained, to `output`; returns it.

    Runs of one stage of which none began with another stand side by side instead, where nothing `extra` is told.

    `extra`: what run folders don't know. `corpora` and `tokenizers` (folders; those that lie beside a run's shards are
    found by their hashes), `before` and `after` (held-out figures of the model before and after tuning:
    `bits_per_byte` and `loss` of answers, `exact_match`, `ended_share`, `num_rows`), `baselines` (name ->
    `bits_per_byte` and `loss` of documents), `preference` (of the last run over pairs, as `demo_preference` tells it:
    `evaluated` and `asked` before and after, `answers`, `talk`).

    Raises:
        RunError: one of `runs` is no run folder.
        DiskError: the page can't be written.
    """
    if unknown := set(extra) - EXTRA_KEYS:
        raise ValueError(f"extra: unknown keys {sorted(unknown)}; known are {sorted(EXTRA_KEYS)}")
    records = [read_run(find_run(run)) for run in runs]
    data = read_data(
        records,
        corpora=[Path(path) for path in extra.get("corpora", ())],
        tokenizers=[Path(path) for path in extra.get("tokenizers", ())],
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    disk.write_bytes(output, page(records, data, extra=extra).encode())
    return output


def page(runs: Sequence[RunRecord], data: DataRecord, *, extra: Mapping[str, Any]) -> str:
    """The whole HTML document."""
    between = " · " if are_rivals(runs) and not extra else " → "
    title = f"{between.join(run.name for run in runs)} · dure"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    body = tag("body", _top(runs, extra), tag("main", *_parts(runs, data, extra)), _footer(runs))
    return f"<!doctype html>\n{tag('html', head, body, lang='ko')}\n"


def _top(runs: Sequence[RunRecord], extra: Mapping[str, Any]) -> Markup:
    is_rivals = are_rivals(runs) and not extra
    sections = COMPARE_SECTIONS if is_rivals else sections_of(runs)
    links = (tag("li", tag("a", both(korean, english), href=f"#{anchor}")) for anchor, korean, english in sections)
    return tag(
        "header",
        tag("p", tag("b", "두레 dure"), tag("span", "학습 보고서 · Training report"), cls="brand"),
        tag("h1", rival_headline(runs) if is_rivals else headline(runs)),
        *(rival_summary(runs) if is_rivals else summaries(runs)),
        tag("ul", *(tag("li", item) for item in (rival_meta(runs) if is_rivals else _meta(runs))), cls="meta"),
        None if is_rivals else big_numbers(runs, extra),
        tag("nav", tag("ul", *links), aria_label="목차 contents"),
        cls="top",
    )


def sections_of(runs: Sequence[RunRecord]) -> tuple[tuple[str, str, str], ...]:
    """Anchor and title of each part of the page of runs that followed one another."""
    if not has_preferences(runs):
        return SECTIONS
    return (*SECTIONS[:2], (ANCHOR, KOREAN, ENGLISH), *SECTIONS[2:])


def _meta(runs: Sequence[RunRecord]) -> list[Child]:
    items: list[Child] = [tag("span", status_chip(run), f" {run.name}" if len(runs) > 1 else "") for run in runs]
    newest = runs[-1]
    attempt = newest.attempts[-1] if newest.attempts else {}
    machine = ", ".join(str(gpu) for gpu in newest.environment.get("gpus") or ()) or newest.environment.get("cpu")
    items += [f"{attempt['ranks']} × {machine}"] if machine and "ranks" in attempt else []
    commit = newest.environment.get("commit")
    items += [join("커밋 commit ", tag("code", str(commit)[:12]))] if commit else []
    return items


def _parts(runs: Sequence[RunRecord], data: DataRecord, extra: Mapping[str, Any]) -> list[Markup | None]:
    notes = [note for run in runs for note in run.notes] + list(data.notes)
    preference = [preference_section(runs, extra)] if has_preferences(runs) else []
    own = [curves_section(runs), heldout_section(runs, extra), *preference, answers_section(runs)]
    return [
        _notes(notes) if notes else None,
        *(rival_parts(runs) if are_rivals(runs) and not extra else own),
        data_section(data),
        events_section(runs),
        config_section(runs),
        environment_section(runs),
    ]


def _notes(notes: Sequence[str]) -> Markup:
    lines = tag("ul", *(tag("li", note) for note in notes))
    return tag("div", tag("b", "읽지 못한 것 ", tag("span", "not readable", cls="en")), lines, cls="card notes")


def _footer(runs: Sequence[RunRecord]) -> Markup:
    made = time.strftime("%Y-%m-%d %H:%M:%S %z")
    command = "dure report " + " ".join(str(run.folder) for run in runs)
    return tag("footer", "만든 때 made ", tag("time", made), " · ", tag("code", command))
