"""`dure tokenizer audit`: a table, a page and its figures; what is wrong is told as everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch import cli
from launch.tokenizer_plots import LONGEST, MAX_LABEL_COLUMNS, WIDTH, Bars, Group, draw
from launch.tokenizer_report import SECTIONS, page
from launch.tokenizer_table import dearest, lines, unequal
from launch.verb_tokenizer import tokenizer_place
from tests.launch.audit_trees import HOSTILE, make_tree, write_byte_level, write_inputs


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_tree(tmp_path_factory.mktemp("audit"))


def test_the_verb_shows_a_table_and_writes_page_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (first, *others), texts, terms = write_inputs(tmp_path)
    command = ["tokenizer", "audit", str(first), "--corpus", str(texts), "--terms", str(terms)]
    output = tmp_path / "out" / "audit"

    assert cli.main([*command, "--against", *map(str, others), "--output", str(output), "--hidden-size", "8"]) == 0

    printed = capsys.readouterr().out
    written = json.loads((output / "audit.json").read_text(encoding="utf-8"))
    total = written["tokenizers"][0]["total"]
    (line,) = (line for line in printed.splitlines() if line.startswith("  bytes per token  "))
    assert line.split()[-3] == f"{total['bytes_per_token']:.3f}"
    assert written["body"]["hidden_size"] == 8
    assert [one["name"] for one in written["tokenizers"]] == ["bytes-300", others[0].name, "words"]
    assert "  duplicate: line 8: 바다 (as line 5); line 9: <script>" in printed
    for one in written["tokenizers"]:
        assert one["verdict"]["korean"] in printed
        assert one["verdict"]["english"] in printed
    assert (output / "audit.html").read_text(encoding="utf-8") == page(written)
    assert printed.splitlines()[-1].startswith(f"written: {output / 'audit.html'}")


def test_without_output_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (first, *_), texts, _ = write_inputs(tmp_path)
    before = sorted(tmp_path.rglob("*"))

    assert cli.main(["tokenizer", "audit", str(first), "--corpus", str(texts)]) == 0

    assert sorted(tmp_path.rglob("*")) == before
    assert "No terms were given" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "dure tokenizer audit: --corpus is missing; name a corpus folder"),
        (["--corpus", "none"], "--corpus none: does not exist; give a corpus folder"),
        (["--corpus", "{texts}", "--terms", "none"], "--terms none: no such file"),
        (["--corpus", "{texts}", "--against", "none"], "none: no tokenizer.json there"),
        (["--corpus", "{texts}", "--against", "{first}"], "the same tokenizer as"),
        (["--corpus", "{texts}", "--output", "{terms}"], "a file stands there; name a folder"),
    ],
)
def test_a_bad_input_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    (first, *_), texts, terms = write_inputs(tmp_path)
    places = {"{texts}": str(texts), "{first}": str(first), "{terms}": str(terms)}

    assert cli.main(["tokenizer", "audit", str(first), *(places.get(word, word) for word in words)]) == 2

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert says in captured.err


def test_a_tokenizer_is_found_in_a_run_a_checkpoint_and_a_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    tokenizer = write_byte_level(run / "tokenizer", vocab_size=260)
    (run / "config.yaml").write_text("")
    checkpoint = run / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMPLETE").write_text("{}")
    model = write_byte_level(tmp_path / "model", vocab_size=261)
    (model / "config.json").write_text("{}")

    assert tokenizer_place(str(run)) == tokenizer
    assert tokenizer_place(str(checkpoint)).resolve() == tokenizer.resolve()
    assert tokenizer_place(str(model)) == model
    assert tokenizer_place(str(model / "tokenizer.json")) == model / "tokenizer.json"
    assert tokenizer_place(str(tmp_path / "none")) == tmp_path / "none"


def test_columns_of_the_table_stand_under_their_names(tree: dict[str, Any]) -> None:
    from launch.doctor_findings import width_of

    shown = list(lines(tree))
    start = next(at for at, line in enumerate(shown) if line.endswith("words") and "bytes-300" in line)
    table = shown[start : start + 20]

    assert len({width_of(line) for line in table}) == 1


def test_the_dearest_terms_come_first(tree: dict[str, Any]) -> None:
    rows, pieces = tree["terms"]["rows"], tree["tokenizers"][0]["term_pieces"]

    costs = [rows[at]["count"] * (pieces[at]["num_in_text"] - 1) for at in dearest(tree, 99)]

    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[-1]
    assert dearest(tree, 2) == dearest(tree, 99)[:2]


def test_the_page_escapes_what_it_shows_and_names_every_section(tree: dict[str, Any]) -> None:
    html = page(tree)

    assert HOSTILE not in html
    assert "&lt;script&gt;" in html
    assert "<b>\n" not in html
    assert "<script" not in html
    for anchor, korean, english in SECTIONS:
        assert f'id="{anchor}"' in html
        assert f"{korean} <span" in html
        assert english in html


def test_a_page_without_terms_or_rivals_says_what_was_not_judged(tmp_path: Path) -> None:
    from data_pipeline.tokenizer.audit import AuditInputs, audit

    (first, *_), texts, _ = write_inputs(tmp_path)

    html = page(audit(AuditInputs((first,), texts)))

    assert "--terms FILE" in html
    assert "No terms were given (--terms), so whether to extend was not judged." in html


def test_bars_are_as_long_as_their_values() -> None:
    bars = Bars("t", ("x", "y"), (Group("g" * 99, (2.0, 1.0), ("2", "1")), Group("가" * 99, (0.0, 4.0), ("0", "4"))))

    svg = draw(bars)

    assert [f'width="{width:g}"' in svg for width in (LONGEST / 2, LONGEST / 4, 1, LONGEST)] == [True] * 4
    assert "g" * (MAX_LABEL_COLUMNS - 1) + "…<" in svg
    assert "가" * ((MAX_LABEL_COLUMNS - 1) // 2) + "…<" in svg
    assert f'viewBox="0 0 {WIDTH:g}' in svg
    assert "x 2, y 1" in svg


def test_a_tokenizer_that_loses_text_is_said_to_look_shorter_than_it_is(tree: dict[str, Any]) -> None:
    (note,) = unequal(tree)

    words = tree["tokenizers"][2]["total"]
    assert note.startswith(f"words: 글의 {words['round_trip_rate']:.1%}만 그대로")
    assert note in "\n".join(lines(tree))
    assert f"{words['unk_rate']:.2%} unknown tokens" in page(tree)
