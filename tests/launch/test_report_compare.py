"""Runs of one stage side by side: what is compared, which one is better, and what tells rivals from a story."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from launch.report import write_report
from launch.report_compare import COMPARE_SECTIONS, are_rivals, config_differences
from launch.report_data import read_run
from launch.report_rows import Row
from tests import browser
from tests.launch.report_runs import evaluation_line, make_run, step_line, write_lines
from tests.launch.test_report import TAGS, Page, hostile_run
from tests.launch.test_report_page import measured


def two_rivals(folder: Path, **sections: Any) -> list[Path]:
    """Two runs that differ in their learning rate; the second is better and slower."""
    first = make_run(folder, name="lr-1e-3", steps=[step_line(s, loss=4 / s**0.3) for s in range(1, 101)])
    steps = [step_line(s, loss=4 / s**0.4, tokens_per_second=2000.0, lr=2e-3) for s in range(1, 101)]
    lines = [evaluation_line(s, loss=2.5 - s / 100, bits_per_byte=1.2 - s / 400) for s in (25, 50, 75, 100)]
    second = make_run(folder, name="lr-2e-3", steps=steps, evaluations=lines, seed=7, **sections)
    return [first, second]


def write_evaluations(run: Path, **figures: float) -> None:
    """What `dure evaluate` leaves: by source, and tasks, one of them run twice."""
    sources = {name: {"loss": figures["loss"] + n, "num_documents": 9} for n, name in enumerate(("책", "뉴스"))}
    tree = {"step": 100, "num_documents": 18, "sources": sources, **figures}
    (run / "evaluation.json").write_text(json.dumps(tree, ensure_ascii=False), encoding="utf-8")
    task = {"version": 1.0, "num_fewshot": 5, "num_questions": 1404}
    lines = [
        {"group": "kobest", "limit": None, "tasks": {"kobest_copa": {**task, "metrics": {"acc": figure}}}}
        for figure in (0.1, figures["loss"] / 10)
    ]
    write_lines(run / "tasks.jsonl", lines)


def shown(folder: Path, runs: list[Path], **extra: object) -> Page:
    return Page(write_report(runs, folder / "page.html", extra=extra).read_text(encoding="utf-8"))


def row_of(page: Page, beginning: str) -> list[str]:
    (found,) = [row for table in page.tables for row in table if row[0].startswith(beginning)]
    return found


def test_runs_of_one_stage_are_rivals_unless_one_began_with_another(tmp_path: Path) -> None:
    first, second = (read_run(run) for run in two_rivals(tmp_path))
    later = read_run(make_run(tmp_path, name="later", model={"from": str(first.folder)}))
    sft = read_run(make_run(tmp_path, name="tuned", stage="sft"))

    assert are_rivals([first, second])
    assert not are_rivals([first]) and not are_rivals([first, later]) and not are_rivals([first, sft])


def test_what_is_told_beside_the_runs_makes_them_a_story(tmp_path: Path) -> None:
    runs = two_rivals(tmp_path)

    assert "lr-1e-3 · lr-2e-3" in shown(tmp_path, runs).text
    assert "lr-1e-3 → lr-2e-3" in shown(tmp_path, runs, baselines={"trigram": {"loss": 3.0}}).text


def test_only_the_keys_that_differ_are_shown_and_not_the_names(tmp_path: Path) -> None:
    first, second = (read_run(run) for run in two_rivals(tmp_path))

    assert config_differences([first, second]) == [("seed", (first.get("seed"), 7))]
    assert row_of(shown(tmp_path, [first.folder, second.folder]), "seed") == ["seed", str(first.get("seed")), "7"]


def test_the_better_figure_is_marked(tmp_path: Path) -> None:
    page = shown(tmp_path, two_rivals(tmp_path))

    assert row_of(page, "검증 손실")[2] == "★ 1.5000"
    assert row_of(page, "검증 바이트당")[2].startswith("★")
    assert row_of(page, "처리량")[1].startswith("★") and not row_of(page, "처리량")[2].startswith("★")
    assert row_of(page, "단계")[1:] == ["100", "100"]


@pytest.mark.parametrize(
    ("values", "best", "winners"),
    [
        ((1.0, 2.0), -1, {0}),
        ((1.0, 2.0), 1, {1}),
        ((1.0, 2.0, 2.0), 1, {1, 2}),
        ((1.0, None), 1, set()),
        ((1.0, 1.0), 1, set()),
        ((1.0, 2.0), 0, set()),
    ],
)
def test_a_winner_has_someone_to_win_against(values: tuple[Any, ...], best: int, winners: set[int]) -> None:
    assert Row("x", values, str, best).winners == winners


def test_evaluations_are_told_by_source_and_by_task_the_newest_of_each(tmp_path: Path) -> None:
    runs = two_rivals(tmp_path)
    for run, loss in zip(runs, (2.0, 1.5), strict=True):
        write_evaluations(run, loss=loss, bits_per_byte=loss / 2)

    page = shown(tmp_path, runs)

    assert row_of(page, "책: 손실")[1:] == ["2.0000", "★ 1.5000"]
    assert row_of(page, "뉴스: 손실")[1:] == ["3.0000", "★ 2.5000"]
    assert row_of(page, "kobest_copa acc (5-shot)")[1:] == ["★ 20.0 %", "15.0 %"]


def test_figures_of_other_rows_come_with_a_word_of_caution(tmp_path: Path) -> None:
    first, second = two_rivals(tmp_path, evaluation={"max_documents": 99})
    assert "differ, so held-out figures are of different texts" not in shown(tmp_path, [first, second]).text

    write_lines(second / "evaluations.jsonl", [evaluation_line(100, num_documents=41)])

    assert "differ, so held-out figures are of different texts" in shown(tmp_path, [first, second]).text


def test_damaged_files_of_evaluations_are_no_failure(tmp_path: Path) -> None:
    runs = two_rivals(tmp_path)
    (runs[0] / "evaluation.json").write_text("{")
    (runs[1] / "evaluation.json").write_text("[1]")
    (runs[0] / "tasks.jsonl").write_text('{"tasks": 3}\n{"tasks": {"a": []}}\n')

    assert "has not been run on them" in shown(tmp_path, runs).text


def test_nothing_in_rivals_becomes_markup(tmp_path: Path) -> None:
    hostile = hostile_run(tmp_path)
    (hostile / "evaluation.json").write_text(json.dumps({"loss": 1.0, "sources": {"<b>": {"loss": 1.0}, "&": {}}}))
    page = shown(tmp_path, [hostile, make_run(tmp_path, name="other")])

    assert {name for name, _ in page.tags} <= TAGS
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]


@pytest.mark.stages
def test_rivals_are_drawn_over_one_another_whole_and_legibly_at_every_width(tmp_path: Path) -> None:
    runs = two_rivals(tmp_path)
    for run, loss in zip(runs, (2.0, 1.5), strict=True):
        write_evaluations(run, loss=loss, bits_per_byte=loss / 2)
    runs.append(make_run(tmp_path, name="third-with-a-long-name-of-its-own", seed=9))
    page = write_report(runs, tmp_path / "report.html", extra={})

    seen = browser.visit(page)

    assert (seen.console, seen.requests) == ((), ())
    headings = [re.sub(r"<[^>]*>", "", heading) for heading in re.findall(r"<h2>(.*?)</h2>", seen.dom)]
    assert [heading.split()[0] for heading in headings] == [korean.split()[0] for _, korean, _ in COMPARE_SECTIONS]
    for is_dark in (False, True):
        for width, found in measured(page, is_dark=is_dark).items():
            assert found["faults"] == [], width
            assert set(found["strokes"]) == {3}, "every chart holds the three"
            assert found["contrast"][0] >= 4.5, found["contrast"]
