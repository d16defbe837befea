"""The data verbs from a file to sound shards: each says what it made and what is next, and does nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch import cli

SUBJECTS = ("고양이가", "할머니가", "선생님이", "아이들이", "강아지가")
PLACES = ("마당에서", "학교에서", "시장에서", "강릉에서")
VERBS = ("잠을 잔다.", "노래를 부른다.", "책을 읽는다.", "밥을 먹는다.")
TEXTS = [f"{who} {where} {what}" for who in SUBJECTS for where in PLACES for what in VERBS]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    lines = [json.dumps({"id": f"d{number}", "text": text}, ensure_ascii=False) for number, text in enumerate(TEXTS)]
    path = tmp_path / "in" / "texts.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join([*lines, lines[0], "{broken"]) + "\n", encoding="utf-8")
    return path


def build_all(source: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What each of the three steps prints."""
    corpus, tokenizer, shards = (str(root / name) for name in ("corpus", "tokenizer", "shards"))
    commands = [
        ["corpus", "build", "--input", str(source), "--output", corpus, "--workers", "1"],
        ["tokenizer", "train", "--corpus", corpus, "--output", tokenizer, "vocab_size=300"],
        ["shards", "build", "--corpus", corpus, "--tokenizer", tokenizer, "--output", shards, "heldout_fraction=0.2"],
    ]
    printed = []
    for command in commands:
        assert cli.main(command) == 0
        printed.append(capsys.readouterr().out)
    return printed


def figure(printed: str, name: str) -> str:
    """The value behind a name in the closing table."""
    (line,) = (line for line in printed.splitlines() if line.startswith(f"  {name} "))
    return line.rsplit(" ", 1)[-1]


def test_each_step_says_what_it_made_and_what_is_next(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, tokenizer, shards = build_all(source, tmp_path, capsys)

    assert figure(corpus, "documents") == str(len(TEXTS))
    assert figure(corpus, "text bytes") == f"{sum(len(text.encode()) for text in TEXTS):,}"
    assert figure(corpus, "dropped: duplicate") == "1"
    assert sum(line.startswith("  rejected: ") for line in corpus.splitlines()) == 1
    assert corpus.splitlines()[-1] == f"next: dure tokenizer train --corpus {tmp_path / 'corpus'} --output DIR"
    assert figure(tokenizer, "vocabulary") == "300"
    assert figure(tokenizer, "round trip rate") == "1.0"
    assert int(figure(shards, "train documents")) + int(figure(shards, "heldout documents")) == len(TEXTS)
    assert shards.splitlines()[-1] == f"next: dure train CONFIG data.shards={tmp_path / 'shards'}"
    for printed in (corpus, tokenizer, shards):
        assert "done (완료)" in printed
        assert float(figure(printed, "seconds")) >= 0


def test_a_second_run_with_equal_inputs_does_nothing_and_says_so(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = build_all(source, tmp_path, capsys)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    second = build_all(source, tmp_path, capsys)

    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files
    for before, after in zip(first, second, strict=True):
        assert "up to date (이미 완료)" in after.splitlines()[0]
        assert after.splitlines()[1:] == [line for line in before.splitlines()[1:] if "seconds" not in line]


def test_sound_shards_are_shown_and_a_flipped_byte_is_found(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_all(source, tmp_path, capsys)
    shards, tokenizer = str(tmp_path / "shards"), str(tmp_path / "tokenizer")

    assert cli.main(["shards", "verify", shards]) == 0
    assert capsys.readouterr().out == f"{shards}: sound (정상)\n"
    assert cli.main(["shards", "inspect", shards, "--tokenizer", tokenizer, "--seq-len", "64", "--rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert "row 0" in shown
    assert "row 1" not in shown
    assert TEXTS[0][:4] in shown

    part = next((tmp_path / "shards" / "train").glob("*.arrow"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)

    assert cli.main(["shards", "verify", shards]) == 1
    captured = capsys.readouterr()
    assert f"{part}: sha256 is" in captured.err
    assert "faults (손상됨)" in captured.out


def test_inspect_shows_what_a_build_would_read_and_writes_nothing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))

    assert cli.main(["corpus", "inspect", str(source)]) == 0

    printed = capsys.readouterr().out
    assert TEXTS[0] in printed
    assert "1 jsonl" in printed
    assert sorted(tmp_path.rglob("*")) == before


def test_questions_and_answers_are_told_and_built_by_one_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / "qa.csv", tmp_path / "out"
    path.write_text("질문,답변\n수도는?,서울.\n인구는?,\n넓이는?,넓습니다.\n", encoding="utf-8")

    assert cli.main(["corpus", "inspect", str(path)]) == 0
    *_, command = capsys.readouterr().out.splitlines()
    assert command == f"next: dure corpus build --record instruction --input {path} --output DIR"
    words = command.removeprefix("next: dure ").replace("DIR", str(output)).split()
    assert cli.main([*words, "--workers", "1"]) == 0

    printed = capsys.readouterr().out
    names = ("instructions", "form: 질문_답변", "rejected: empty_answer")
    assert [figure(printed, name) for name in names] == ["2", "2", "1"]
    assert printed.splitlines()[-1] == (
        f"next: dure shards build --corpus {output} --tokenizer DIR --template NAME --output DIR"
    )


def test_a_config_file_says_the_same_as_flags(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "corpus.yaml"
    config.write_text(f"inputs: [{source}]\noutput: {tmp_path / 'a'}\n", encoding="utf-8")

    assert cli.main(["corpus", "build", str(config), "--output", str(tmp_path / "b")]) == 0

    assert not (tmp_path / "a").exists()
    assert (tmp_path / "b" / "manifest.json").is_file()
    capsys.readouterr()
