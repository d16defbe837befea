"""The page in a browser: it opens from disk, asks for nothing, and is drawn whole and legibly at every width."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.report import SECTIONS, write_report
from tests import browser
from tests.launch.report_runs import evaluation_line, make_data, make_run, step_line, write_answers
from tests.launch.test_report import hostile_run
from tests.launch.test_report_preference import dpo_run, told

pytestmark = pytest.mark.stages

WIDTHS = (1280, 768, 390)

# Measures a page that lies in a frame, and sends the result to the frame's parent.
MEASURE = """
const faults = [], contrasts = [], svgs = [...document.querySelectorAll('svg')];
const name = e => e.tagName + '.' + (e.getAttribute('class') || '') + ' ' + e.textContent.slice(0, 40);
const meet = (a, b) =>
  a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
for (const svg of svgs) {
  const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal, edge = 0.5;
  const top = box.bottom - box.width * view.height / view.width;
  for (const e of svg.querySelectorAll('text, path, line, rect, circle')) {
    const b = e.getBoundingClientRect();
    const isIn = b.left > box.left - edge && b.right < box.right + edge && b.top > top - edge;
    if (!isIn || b.bottom > box.bottom + edge) faults.push('outside its viewBox: ' + name(e));
  }
  const texts = [...svg.querySelectorAll('text')].map(e => [e, e.getBoundingClientRect(), e.closest('.band')]);
  texts.forEach(([a, boxA, bandA], i) => texts.slice(i + 1).forEach(([b, boxB, bandB]) => {
    if (!(bandA && bandB) && meet(boxA, boxB)) faults.push('on one another: ' + name(a) + ' | ' + name(b));
  }));
}
const whole = document.documentElement.scrollWidth;
if (whole > innerWidth) faults.push('wider than the window: ' + whole);
const channel = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const parse = c => c.match(/[\\d.]+/g).map(Number);
const light = c => { const [r, g, b] = parse(c).map(channel); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const behind = e => {
  for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if ((parse(c)[3] ?? 1) === 1) return c;
  }
  return 'rgb(255, 255, 255)';
};
for (const e of document.querySelectorAll('body :not(title)')) {
  if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
  const style = getComputedStyle(e), color = e.tagName === 'text' ? style.fill : style.color;
  const [a, b] = [light(color), light(behind(e))];
  contrasts.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), name(e)]);
}
const size = s => parseFloat(getComputedStyle(s.querySelector('text')).fontSize);
parent.postMessage(JSON.stringify({
  width: innerWidth,
  faults,
  strokes: svgs.map(s => s.querySelectorAll('path.stroke').length),
  letters: Math.min(...svgs.map(s => size(s) * s.getBoundingClientRect().width / s.viewBox.baseVal.width)),
  background: getComputedStyle(document.body).backgroundColor,
  contrast: contrasts.sort((a, b) => a[0] - b[0])[0],
}), '*');
"""


def measured(page: Path, *, is_dark: bool = False) -> dict[int, dict[str, Any]]:
    """What a script found in a copy of the page, by the width of the frame in which it lay."""
    source = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8"))
    copy, outer = page.with_name("copy.html"), page.with_name("frames.html")
    copy.write_text(source.replace("</body>", f"<script>{MEASURE}</script></body>"), encoding="utf-8")
    style = "height:900px;border:0;width"
    frames = "".join(f'<iframe src="copy.html" style="{style}:{width}px"></iframe>' for width in WIDTHS)
    keep = "const p = document.createElement('pre'); p.textContent = e.data; document.body.append(p)"
    listen = f"addEventListener('message', e => {{{keep}}})"
    outer.write_text(f"<!doctype html><meta charset=utf-8><body><script>{listen}</script>{frames}", encoding="utf-8")
    seen = browser.visit(outer, width=1400, is_dark=is_dark)
    results = [json.loads(html.unescape(found)) for found in re.findall(r"<pre>(.*?)</pre>", seen.dom, flags=re.DOTALL)]
    assert sorted(result["width"] for result in results) == sorted(WIDTHS), seen.console
    return {result["width"]: result for result in results}


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pretraining and tuning with everything that a page can show."""
    folder = tmp_path_factory.mktemp("report")
    make_data(folder)
    lines = [step_line(step, **({"loss": "nan", "grad_norm": "nan"} if step == 40 else {})) for step in range(1, 101)]
    first = make_run(folder, name="두레-사전학습", steps=lines)
    detail = {"reason": "not finite: loss nan", "row_ids": [1, 2]}
    event = {
        "time": 2e9,
        "attempt": 2,
        "rank": 0,
        "step": 39,
        "kind": "skipped_step",
        "detail": detail,
        "action": "refused",
    }
    with (first / "events.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")
    figures = [evaluation_line(s, exact_match=s / 120, ended_share=s / 100, loss=4.0 / (1 + s)) for s in (0, 50, 100)]
    steps = [step_line(step, loss=3.0 / step, tokens_per_second=123_456.0, lr=2e-5) for step in range(1, 101)]
    second = make_run(folder, name="지시-튜닝", steps=steps, evaluations=figures)
    write_answers(second, 0, [("질문?", "답", "아무 말")])
    write_answers(second, 100, [("질문?", "답", "답"), ("긴 " * 80, "답", "틀린답" * 60), ("a" * 300, "b", "c" * 300)])
    return write_report([first, second], folder / "report.html", extra={"baselines": {"trigram": {"loss": 3.0}}})


def test_a_page_opens_from_disk_without_a_word_or_a_request(two_runs: Path) -> None:
    seen = browser.visit(two_runs)

    assert seen.console == ()
    assert seen.requests == ()
    headings = re.findall(r"<h2>(.*?)</h2>", seen.dom)
    assert [re.sub(r"<[^>]*>", "", heading).split()[0] for heading in headings] == [
        korean.split()[0] for _, korean, _ in SECTIONS
    ]


def test_a_hostile_page_does_nothing(tmp_path: Path) -> None:
    seen = browser.visit(write_report([hostile_run(tmp_path)], tmp_path / "report.html", extra={}))

    assert (seen.console, seen.requests) == ((), ())
    assert "<script" not in seen.dom


@pytest.mark.parametrize("is_dark", [False, True])
def test_charts_lie_in_their_box_and_words_stand_out_at_every_width(two_runs: Path, is_dark: bool) -> None:
    for width, found in measured(two_runs, is_dark=is_dark).items():
        assert found["faults"] == [], width
        assert found["strokes"] == [2, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1]
        assert found["letters"] > 9.5, width  # pixels; a label of a chart is never smaller
        assert found["contrast"][0] >= 4.5, found["contrast"]  # WCAG 2.2, 1.4.3
        assert (found["background"] == "rgb(15, 20, 18)") == is_dark


def test_hostile_and_empty_pages_keep_their_width(tmp_path: Path) -> None:
    empty = make_run(tmp_path, name="empty", steps=[], evaluations=[])
    page = write_report([hostile_run(tmp_path), empty], tmp_path / "report.html", extra={})

    for width, found in measured(page).items():
        assert found["faults"] == [], width


def test_a_chain_of_three_runs_is_drawn_whole_at_every_width(tmp_path: Path) -> None:
    first = make_run(tmp_path, name="pretrain")
    second = make_run(tmp_path, name="sft", stage="sft", model={"from": str(first)})
    third = dpo_run(tmp_path, model={"from": str(second)})
    page = write_report([first, second, third], tmp_path / "report.html", extra={"preference": told()})

    for width, found in measured(page).items():
        assert found["faults"] == [], width
        assert len(found["strokes"]) == 6 + 6 + 9
        assert found["letters"] > 9.5, width
        assert found["contrast"][0] >= 4.5, found["contrast"]


def test_a_faulty_page_is_noticed(two_runs: Path, tmp_path: Path) -> None:
    """The negative control of this file."""
    bad = tmp_path / "bad.html"
    line = '<path class="stroke" d="M0 0L120 20"/>'
    svg = f'<svg viewBox="0 0 100 50" style="width:100px">{line}<text x="0" y="20">a</text>'
    wide = '<p style="width:3000px;color:#777">b</p>'
    bad.write_text(f"<!doctype html><html><body>{svg}<text x='1' y='21'>a</text></svg>{wide}</body></html>")

    (found, *_) = measured(bad).values()

    kinds = {fault.partition(":")[0] for fault in found["faults"]}
    assert kinds == {"outside its viewBox", "on one another", "wider than the window"}
    assert found["contrast"][0] < 4.5
    bad.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('here')</script>")
    seen = browser.visit(bad)
    assert seen.requests == ("http://127.0.0.1:9/x.png",)
    assert any("here" in line for line in seen.console)
    policy = re.search(r"<meta http-equiv[^>]*>", two_runs.read_text(encoding="utf-8"))
    assert policy is not None
    bad.write_text(f"{policy[0]}<img src='http://127.0.0.1:9/x.png'><script>console.error('here')</script>")
    assert browser.visit(bad).requests == ()


def test_a_picture_of_the_page_can_be_taken(two_runs: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"

    browser.visit(two_runs, screenshot=picture)

    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 skipped"), ("true", "1 failed")])
def test_without_a_browser_tests_skip_and_fail_only_under_ci(tmp_path: Path, ci: str, outcome: str) -> None:
    module = tmp_path / "test_it.py"
    module.write_text("from tests import browser\ndef test_it(): browser.require_browser()\n")
    environment = {"PATH": str(tmp_path), "CI": ci, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-q",
        "-rsf",
        "--rootdir",
        str(tmp_path),
        str(module),
    ]

    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)

    assert outcome in done.stdout
    assert "apt-get install chromium" in done.stdout
