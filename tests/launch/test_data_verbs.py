"""The data verbs from a file to sound shards: each says what it made and what is next, and does nothing twice."""

from __future__ import annotations

import json
import re
import zipfile
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
    assert (
        captured.out
        == f"{shards}: {captured.err.count(chr(10))} fault{'s' * (captured.err.count(chr(10)) > 1)} (손상됨)\n"
    )


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


@pytest.mark.parametrize("workers", ["1", "2"])
def test_columns_that_are_not_there_are_bad_input_as_any_other_fault_of_a_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("body\n고양이가 잔다.\n", encoding="utf-8")
    config = tmp_path / "corpus.yaml"
    inputs = ", ".join(f"{{path: {tmp_path}/{name}.csv, text_column: content}}" for name in ("a", "b"))
    config.write_text(f"inputs: [{inputs}]\noutput: {tmp_path / 'out'}\ntask_bytes: 1\n", encoding="utf-8")

    assert cli.main(["corpus", "build", str(config), "--workers", workers]) == 2

    assert re.search(r"inputs\.[01]: [ab]\.csv: no column 'content'; the columns are body", capsys.readouterr().err)


def test_the_table_of_a_tokenizer_tells_what_it_loses(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = str(tmp_path / "corpus")
    assert cli.main(["corpus", "build", "--input", str(source), "--output", corpus, "--workers", "1"]) == 0
    printed = {}
    for kind in ("byte_level_bpe", "hash_hash_bpe"):
        capsys.readouterr()
        output = str(tmp_path / kind)
        words = ["tokenizer", "train", "--corpus", corpus, "--output", output, f"kind={kind}"]
        assert cli.main([*words, f"vocab_size={300 if kind == 'byte_level_bpe' else 430}"]) == 0
        printed[kind] = capsys.readouterr().out

    assert figure(printed["byte_level_bpe"], "lost character rate") == "0.0"
    assert "  hostile texts exact" in printed["byte_level_bpe"]
    assert not re.search(r"hostile: (emoji|hanja|nfd)", printed["byte_level_bpe"])
    for name in ("emoji", "hanja"):
        assert re.search(rf"  hostile: {name} +\d+\.\d% unknown, [1-9]\d*\.\d% lost", printed["hash_hash_bpe"])


def test_the_table_of_a_tokenizer_tells_what_rules_and_weights_did(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus"
    assert cli.main(["corpus", "build", "--input", str(source), "--output", str(corpus), "--workers", "1"]) == 0
    sources = json.loads((corpus / "manifest.json").read_text())["sources"]
    config = tmp_path / "tokenizer.yaml"
    weights = json.dumps(dict.fromkeys(sources, 1))
    word = TEXTS[0].split()[0]
    config.write_text(
        f"corpus: {corpus}\noutput: {tmp_path / 'out'}\nvocab_size: 300\nsource_weights: {weights}\n"
        f"merge_rules: ['{word} → 바뀐낱말']\n",
        encoding="utf-8",
    )

    capsys.readouterr()
    assert cli.main(["tokenizer", "train", str(config)]) == 0
    printed = capsys.readouterr().out

    assert int(figure(printed, "texts changed by rules")) > 0
    (name,) = sources
    assert figure(printed, f"bytes of {name}") == figure(printed, "training bytes")


def test_archives_that_can_not_be_opened_are_named_with_the_folder_of_rejects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(7):
        (folder / f"TL_{number}.zip").write_bytes(b"PK\x03\x04 and then nothing")
    with zipfile.ZipFile(folder / "TL_9.zip", "w") as archive:
        archive.writestr("a.jsonl", json.dumps({"text": TEXTS[0]}))
    words = ["corpus", "build", "--input", str(folder), "--output", str(output), "--workers", "1"]

    assert cli.main(words) == 2
    assert "7 of 8 archives could not be opened" in capsys.readouterr().err
    assert cli.main([*words, "accept_thin_packages=true"]) == 0

    first, *named, last = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: 7 of 8 archives could not be opened")
    assert [line.partition(": ")[0] for line in named] == [f"  in/TL_{number}.zip" for number in range(5)]
    assert last == f"7 rejected: {output / 'rejects'} names each, with its place and error"


def test_an_override_goes_into_the_list_of_a_flag_and_the_encoding_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / "a.csv", tmp_path / "out"
    path.write_bytes("text\n고양이가 잔다.\n".encode("cp949"))
    words = ["corpus", "build", "--input", str(path), "--output", str(output), "--workers", "1"]

    assert cli.main([*words, "inputs.0.encoding=cp949", "inputs.0.source=고양이"]) == 0

    printed = capsys.readouterr().out
    assert figure(printed, "encoding: cp949") == "1"
    manifest = json.loads((output / "manifest.json").read_text())
    assert list(manifest["sources"]) == ["고양이"]


def test_a_config_file_says_the_same_as_flags(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "corpus.yaml"
    config.write_text(f"inputs: [{source}]\noutput: {tmp_path / 'a'}\n", encoding="utf-8")

    assert cli.main(["corpus", "build", str(config), "--output", str(tmp_path / "b")]) == 0

    assert not (tmp_path / "a").exists()
    assert (tmp_path / "b" / "manifest.json").is_file()
    capsys.readouterr()
