"""The report: it shows what a run folder holds, whatever that is, and nothing in it can act."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from launch.cli import main
from launch.report import SECTIONS, write_report
from launch.report_data import find_run, num_parameters, read_run
from launch.report_html import tag, text
from tests.launch.report_runs import (
    HOSTILE,
    evaluation_line,
    make_data,
    make_run,
    step_line,
    write_answers,
    write_lines,
)
from trainer.errors import RunError
from trainer.run_folder import RunFolder

# All that a page is made of. Nothing here loads, runs, submits or leads away.
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "footer", "nav", "section", "article"),
    *("h1", "h2", "h3", "p", "span", "b", "i", "small", "code", "pre", "div", "ul", "li", "a", "time"),
    *("table", "thead", "tbody", "tr", "th", "td", "dl", "dt", "dd", "details", "summary", "figure", "figcaption"),
    *("svg", "g", "path", "rect", "line", "circle", "text"),
}


TEMPLATE = """
user: "### 질문: {content}\\n\\n"
user_with_input: "### 질문: {content}\\n\\n### 맥락: {input}\\n\\n"
answer_prefix: "### 답변:"
"""


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and the text outside of the style."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.tables: list[list[list[str]]] = []  # of rows of cells
        self._open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((name, dict(attributes)))
        if name == "table":
            self.tables.append([])
        elif name == "tr":
            self.tables[-1].append([])
        elif name in ("th", "td"):
            self.tables[-1][-1].append("")
        self._open += [name] if name not in ("meta",) else []

    def handle_endtag(self, name: str) -> None:
        assert self._open.pop() == name

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.texts.append(data)
        if {"th", "td"} & set(self._open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for its, attributes in self.tags if its == name]


def report(folder: Path, *runs: Path, **extra: object) -> Page:
    return Page(write_report(runs, folder / "page.html", extra=extra).read_text(encoding="utf-8"))


def hostile_run(folder: Path) -> Path:
    """A run in whose every text stands HTML, a control character, half a surrogate pair."""
    run = make_run(folder, name="<b>두레<br>&'\"")
    event = {"time": 1.0, "attempt": 1, "rank": 0, "step": 9, "kind": HOSTILE, "detail": HOSTILE, "action": HOSTILE}
    skip = {"reason": HOSTILE, "row_ids": [HOSTILE]}
    write_lines(run / "events.jsonl", [event, event | {"kind": "skipped_step", "detail": skip}])
    write_lines(run / "attempts.jsonl", [{"attempt": 1, "host": HOSTILE, "changes": {HOSTILE: [HOSTILE, HOSTILE]}}])
    (run / "exit.json").write_text(json.dumps({"code": HOSTILE, "reason": HOSTILE, "step": HOSTILE}))
    (run / "environment.json").write_text(
        json.dumps({"commit": HOSTILE, "packages": {HOSTILE: HOSTILE}, "gpus": [HOSTILE]})
    )
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + f"note: {json.dumps(HOSTILE)}\n")
    write_answers(run, 0, [(HOSTILE, HOSTILE, HOSTILE)])
    write_answers(run, 100, [(HOSTILE, HOSTILE, HOSTILE), ("질문", "답", HOSTILE * 200)])
    make_data(folder, name="corpus <img src=x>", source=HOSTILE.replace("\ud800", ""))
    (folder / "foreign").mkdir()
    manifest = {"kind": "corpus", "files": HOSTILE, "fingerprint": []}
    (folder / "foreign" / "manifest.json").write_text(json.dumps(manifest))
    (folder / "foreign" / "card.json").write_text(json.dumps(manifest))
    return run


def test_text_is_escaped_and_what_has_no_form_becomes_visible() -> None:
    assert text('<a b="c">&\'') == "&lt;a b=&quot;c&quot;&gt;&amp;&#x27;"
    assert text("a\x00b\x1bc\x7fd\ud800e\r\nf\tg") == "a␀b␛c␡d\ufffde\nf\tg"
    assert tag("p", "<", tag("b", "&"), title='"', hidden=True, lang=None) == (
        '<p title="&quot;" hidden>&lt;<b>&amp;</b></p>'
    )


def test_nothing_in_a_run_becomes_markup(tmp_path: Path) -> None:
    page = report(tmp_path, hostile_run(tmp_path), baselines={HOSTILE: {"loss": 1.0}})

    assert {name for name, _ in page.tags} <= TAGS
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    shown = 'alert("두레")</script><img src=x onerror=alert(1)>&amp;\u202e␇\ufffd'
    assert page.text.count(shown) > 20


def test_a_page_asks_for_nothing_and_forbids_scripts(tmp_path: Path) -> None:
    page = report(tmp_path, hostile_run(tmp_path))
    source = (tmp_path / "page.html").read_text(encoding="utf-8")
    style = source.partition("<style>")[2].partition("</style>")[0]

    assert {"src", "srcset", "data", "action", "xlink:href", "background"} & {
        k for _, a in page.tags for k in a
    } == set()
    assert all((link["href"] or "").startswith("#") for link in page.of("a"))
    assert re.search(r"url\(|@import|@font-face|expression", style) is None
    policy = next(its["content"] for its in page.of("meta") if its.get("http-equiv") == "Content-Security-Policy")
    assert (policy or "").startswith("default-src 'none'; style-src 'unsafe-inline'")


def test_every_part_has_its_heading_in_korean_and_english(tmp_path: Path) -> None:
    page = report(tmp_path, make_run(tmp_path))

    assert [part["id"] for part in page.of("section")] == [anchor for anchor, _, _ in SECTIONS]
    assert [link["href"] for link in page.of("a")] == [f"#{anchor}" for anchor, _, _ in SECTIONS]
    assert "Llama 2×32 모델을 100단계 처음부터 사전학습했습니다(fp32, 길이 32)." in page.text
    assert "Pretraining from scratch of Llama 2×32, 100 steps (fp32, rows of 32)." in page.text


def test_a_run_without_a_step_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=[], evaluations=[])
    (run / "exit.json").unlink()

    page = report(tmp_path, run)

    assert "아직 기록된 단계가 없습니다 · no step was logged yet" in page.text
    assert "running or killed" in page.text
    assert "not evaluated yet" in page.text
    assert page.of("svg") == []


def test_a_folder_with_nothing_but_a_config_has_a_page(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("")

    assert "no step was logged yet" in report(tmp_path, run).text


def test_torn_and_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    lines = '[]\n"a"\n{"loss": 3}\n{"step": "nan", "loss": 3}\n{"step": 120, "loss": "3.5", "lr": []}\n\xff\n{"step": 1'
    with (run / "metrics.jsonl").open("a", encoding="latin-1") as file:
        file.write(lines)

    record = read_run(run)

    assert record.curves["loss"].steps[-1] == 120
    assert record.curves["loss"].values[-1] == 3.5
    assert len(record.curves["loss"]) == 51
    assert len(record.curves["lr"]) == 50


def test_damaged_files_become_notes_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "config.yaml").write_bytes(b"run: [\xff")
    (run / "environment.json").write_text("[1]")
    (run / "exit.json").write_text("{")

    page = report(tmp_path, run)

    assert "읽지 못한 것 not readable" in page.text
    assert f"{run}/environment.json: holds a list, not an object with keys" in page.text
    assert f"{run}/exit.json: Expecting property name" in page.text
    assert "run: [\ufffd" in page.text
    assert len(page.of("svg")) == 6


def test_losses_that_are_not_finite_leave_a_gap_and_a_cross(tmp_path: Path) -> None:
    lines = [
        step_line(step, **({"loss": "nan", "grad_norm": "inf"} if step in (40, 42) else {}))
        for step in range(2, 101, 2)
    ]
    run = make_run(tmp_path, steps=lines)
    detail = {"reason": "not finite: loss nan, grad_norm inf", "loss": "nan", "row_ids": list(range(10))}
    event = {"time": 2e9, "attempt": 2, "rank": 0, "kind": "skipped_step", "detail": detail, "action": "update refused"}
    with (run / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(event | {"step": step}) + "\n" for step in (39, 41))

    page = report(tmp_path, run)

    stroke = next(its["d"] or "" for its in page.of("path") if its.get("class") == "stroke")
    assert stroke.count("M") == 2
    assert "nan" not in stroke
    marks = [its["class"] for its in page.of("path") if its.get("class") in ("resume", "skip")]
    assert marks[:3] == ["skip", "skip", "resume"]
    assert "단계 건너뜀 skipped step 2" in page.text
    assert "not finite: loss nan, grad_norm inf; 행 rows 0, 1, 2, 3, 4, 5, … (10) → update refused" in page.text


@pytest.mark.stages
def test_a_hundred_thousand_lines_make_a_small_page(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_lines(
        run / "metrics.jsonl", (step_line(step, loss=2 + (step * 7919 % 1000) / 1000) for step in range(1, 100_001))
    )
    event = {"time": 1.0, "attempt": 1, "rank": 0, "kind": "skipped_step", "detail": "x", "action": "update refused"}
    write_lines(run / "events.jsonl", (event | {"step": step} for step in range(5000)))

    page = report(tmp_path, run)

    assert (tmp_path / "page.html").stat().st_size < 500_000
    assert "4,943개 줄임 · 4,943 left out, all are in events.jsonl" in page.text
    assert "target tokens 9 M" in page.text


def test_figures_before_and_after_are_the_first_and_the_last_evaluation(tmp_path: Path) -> None:
    first = evaluation_line(0, exact_match=0.004, ended_share=0.02, bits_per_byte=2.5)
    last = evaluation_line(100, exact_match=0.876, ended_share=1.0, bits_per_byte=0.61234)
    run = make_run(tmp_path, evaluations=[first, evaluation_line(50), last], stage="sft")

    text = report(tmp_path, run).text

    assert "정확히 맞힘 exact match 87.6 % 튜닝 전 before 0.4 %" in text
    assert "스스로 끝맺음 ended by itself 100.0 % 튜닝 전 before 2.0 %" in text
    assert "답변 바이트당 비트 bits a byte of answers 0.6123 튜닝 전 before 2.5000" in text


def test_figures_of_documents_and_of_answers_stand_in_no_table_together(tmp_path: Path) -> None:
    documents = evaluation_line(100, bits_per_byte=1.1111, loss=3.3333)
    answers = evaluation_line(100, bits_per_byte=0.2222, loss=0.4444, exact_match=0.5, ended_share=1.0)
    first = make_run(tmp_path, name="first", evaluations=[documents])
    tuned = make_run(tmp_path, name="tuned", evaluations=[answers], stage="sft")

    page = report(tmp_path, first, tuned, baselines={"trigram": {"bits_per_byte": 2.2, "loss": 5.5}})

    tables = [grid for grid in page.tables if "1.1111" in str(grid) or "0.2222" in str(grid)]
    assert [("1.1111" in str(grid), "0.2222" in str(grid)) for grid in tables] == [
        (True, False),
        (True, False),
        (False, True),
    ]
    assert tables[0] == [
        ["모델 model", "문서 바이트당 비트 bits a byte of documents", "문서 토큰당 손실 nats a token of documents"],
        ["first", "1.1111", "3.3333"],
        ["trigram", "2.2000", "5.5000"],
    ]
    assert tables[2][0][1:3] == [
        "답변 바이트당 비트 bits a byte of answers",
        "답변 토큰당 손실 nats a token of answers",
    ]
    assert "답변 바이트당 비트 bits a byte of answers 0.2222" in page.text
    assert page.text.count("nats/answer token") == 1


def test_given_figures_win_over_those_of_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    extra = {"before": {"exact_match": 0.0}, "after": {"exact_match": 0.55, "num_rows": 250}}

    page = report(tmp_path, run, **extra, baselines={"삼그램 trigram": {"bits_per_byte": 1.234567}})

    assert "정확히 맞힘 exact match 55.0 % 튜닝 전 before 0.0 %" in page.text
    assert "검증 질문 250개 · 250 held-out instructions." in page.text
    assert "삼그램 trigram 1.2346" in page.text


def test_unknown_extras_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"extra: unknown keys \['befor'\]; known are \['after', 'baselines'"):
        report(tmp_path, make_run(tmp_path), befor={})


def test_answers_are_shown_with_verdict_expectation_and_the_first_answer(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "template.yaml").write_text(TEMPLATE, encoding="utf-8")
    prompt = "### 질문: 하늘은\n무슨 색입니까?\n\n### 답변:"
    turns = "### 질문: 가?\n\n### 답변: 나\n\n### 질문: 다?\n\n### 답변:"
    write_answers(run, 0, [(prompt, "푸른색", "꽃이 꽃이"), (turns, "라", "")], ended=False)
    write_answers(run, 50, [(prompt, "푸른색", "가운데")])
    about = "### 질문: 누구?\n\n### 맥락: 철수는 산다.\n\n### 답변:"
    write_answers(run, 100, [(prompt, "푸른색", "푸른색"), (turns, "라", "마"), (about, "철수", "철수")])

    page = report(tmp_path, run)

    assert "✓ 정답 right 2/3 끝맺음 ended 3/3" in page.text
    assert "질문 prompt 하늘은 무슨 색입니까? 모델 model 푸른색 기대한 답 expected: 푸른색" in page.text
    assert "튜닝 전의 답 earlier answer 모델 model: 꽃이 꽃이" in page.text
    assert "질문 prompt 누구? 철수는 산다. 모델 model 철수" in page.text
    assert "✗ 오답 wrong" in page.text
    assert "### 질문: 가? ### 답변: 나 ### 질문: 다?" in page.text  # of several turns every word stays
    assert [step for step, _ in read_run(run).answers] == [0, 100]


def test_corpus_and_tokenizer_are_found_by_hash_and_not_by_name(tmp_path: Path) -> None:
    make_data(tmp_path, name="other", source="another_source", mark="0")
    make_data(tmp_path, name="말뭉치", mark="e")
    run = make_run(tmp_path)

    page = report(tmp_path, run)

    assert "말뭉치 Corpus · 말뭉치" in page.text
    assert "5,750 문서 documents" in page.text
    assert "남김 kept 5,750" in page.text
    assert "버림 duplicate 250" in page.text
    assert "거부 bad_json 7" in page.text
    assert "eeeeeeeeeeeeeeee" in page.text
    assert "another_source" not in page.text
    assert "0000000000000000" not in page.text


def test_data_that_is_gone_is_named(tmp_path: Path) -> None:
    page = report(tmp_path, make_run(tmp_path), corpora=[tmp_path / "gone"])

    assert f"{tmp_path}/gone/manifest.json: not there (any more); its figures are left out" in page.text
    assert f"{tmp_path}/shards/manifest.json: not there (any more)" in page.text


def test_runs_of_one_stage_that_followed_one_another_share_a_scale(tmp_path: Path) -> None:
    high = make_run(tmp_path, name="high", steps=[step_line(1, lr=4e-3), step_line(2, lr=4e-3)])
    steps = [step_line(1, lr=1e-3), step_line(2, lr=1e-3)]
    low = make_run(tmp_path, name="low", steps=steps, model={"from": str(high)})

    report(tmp_path, high, low)
    together = ticks_of(tmp_path / "page.html")
    report(tmp_path, low)
    alone = ticks_of(tmp_path / "page.html")

    assert together[4] == together[5] == ["0", "2", "4"]
    assert alone[2] == ["0", "0.5", "1.0"]


def ticks_of(page: Path) -> list[list[str]]:
    """The labels of each chart's values."""
    charts = re.findall(r"<svg.*?</svg>", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [re.findall(r'class="tick y">([^<]*)<', chart) for chart in charts]


def test_parameters_are_those_that_the_latest_start_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    detail = {"reason": "a new run", "total": 900, "trainable": 30}
    RunFolder(run, rank=0).append_event(kind="started", step=0, detail=detail, action="trains on from here")

    assert num_parameters(read_run(run)) == 30


def test_parameters_are_counted_from_the_headers_of_the_newest_checkpoint(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert num_parameters(read_run(run)) is None
    for step, rows in ((50, 3), (100, 5)):
        folder = run / "checkpoints" / f"step-{step:08d}"
        folder.mkdir()
        save_file({"a": np.zeros((rows, 4), np.float32), "b": np.zeros((2,), np.float16)}, folder / "model.safetensors")

    assert num_parameters(read_run(run)) == 22
    (run / "checkpoints" / "step-00000100" / "model.safetensors").write_bytes(b"\xff" * 20)
    assert num_parameters(read_run(run)) is None


def test_the_verb_writes_into_the_first_run_and_takes_names_and_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs", name="첫 번째")
    make_run(tmp_path / "runs", name="second", model={"from": "첫 번째"})
    checkpoint = run / "checkpoints" / "step-00000050"
    checkpoint.mkdir()
    for name in ("config.yaml", "COMPLETE"):
        (checkpoint / name).write_text("")

    assert main(["report", "첫 번째", "second"]) == 0
    assert main(["report", str(checkpoint), "--output", "new/한 페이지.html"]) == 0

    assert "첫 번째 → second · dure" in (run / "report.html").read_text(encoding="utf-8")
    assert "<title>첫 번째 · dure" in (tmp_path / "new" / "한 페이지.html").read_text(encoding="utf-8")
    assert "runs/첫 번째/report.html: " in capsys.readouterr().out


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match=r"nothing: not a run folder \(config.yaml is not there\)"):
        find_run("nothing")

    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: not a run folder")
