"""An audit's page in a browser: it opens from disk, asks for nothing, and is drawn whole and legibly at every width."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launch.tokenizer_report import SECTIONS, page
from tests import browser
from tests.launch.audit_trees import make_tree
from tests.launch.test_report_page import measured

pytestmark = pytest.mark.stages


@pytest.fixture(scope="module")
def audit_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    path = folder / "audit.html"
    path.write_text(page(make_tree(folder)), encoding="utf-8")
    return path


def test_the_page_opens_without_a_word_or_a_request(audit_page: Path) -> None:
    seen = browser.visit(audit_page)

    assert (seen.console, seen.requests) == ((), ())
    headings = [re.sub(r"<[^>]*>", "", found) for found in re.findall(r"<h2>(.*?)</h2>", seen.dom)]
    assert headings == [f"{korean} {english}" for _, korean, english in SECTIONS]
    assert "<script" not in seen.dom


@pytest.mark.parametrize("is_dark", [False, True])
def test_plots_lie_in_their_box_and_words_stand_out_at_every_width(audit_page: Path, is_dark: bool) -> None:
    for width, found in measured(audit_page, is_dark=is_dark).items():
        assert found["faults"] == [], width
        assert len(found["strokes"]) == 5  # plots
        assert found["letters"] > 9.5, width
        assert found["contrast"][0] >= 4.5, found["contrast"]


def test_a_picture_of_the_page_can_be_taken(audit_page: Path, tmp_path: Path) -> None:
    browser.visit(audit_page, screenshot=tmp_path / "page.png")

    assert (tmp_path / "page.png").stat().st_size > 20_000
