"""`dure corpus build --record label|pair` and `dure shards` over it: what each prints, and nothing done twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch import cli
from tests.data_pipeline.shards.example_folders import REVIEWS, TRIPLETS, write_plain

HEADER = "id\tdocument\tlabel\n"


def figures(printed: str) -> dict[str, str]:
    """The closing table: names and values."""
    lines = [line.strip() for line in printed.splitlines() if line.startswith("  ")]
    return {line.rsplit("  ", 1)[0].strip(): line.rsplit(" ", 1)[-1] for line in lines}


def test_labels_go_from_a_table_to_sound_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, corpus, shards = tmp_path / "ratings.tsv", str(tmp_path / "c"), str(tmp_path / "s")
    rows = [f"{number}\t{row['text_a']}\t{row['label']} \n" for number, row in enumerate(REVIEWS)]
    source.write_text(HEADER + "".join([*rows, rows[0], f"9\t{REVIEWS[0]['text_a']}\t0\n", "10\t\t1\n"]))
    tokenizer = str(write_plain(tmp_path / "t"))
    command = ["corpus", "build", "--record", "label", "--input", str(source), "--output", corpus, "--workers", "1"]

    assert cli.main(command) == 0
    told = capsys.readouterr()

    found = figures(told.out)
    assert (found["labels"], found["form: nsmc"]) == (f"{len(REVIEWS) + 1}", f"{len(REVIEWS) + 2}")
    assert (found["dropped: duplicate"], found["rejected: empty_text"]) == ("1", "1")
    assert found["texts of before with another label (모순된 라벨), kept"] == "1"
    assert found["labels with spaces around them, taken off"] == f"{len(REVIEWS) + 1}"
    assert told.out.splitlines()[-1] == f"next: dure shards build --corpus {corpus} --tokenizer DIR --output DIR"
    assert "1 rejected: " in told.err

    command = ["shards", "build", "--corpus", corpus, "--tokenizer", tokenizer, "--output", shards, "--workers", "1"]
    assert cli.main([*command, "heldout_fraction=0", "max_tokens=30", "too_long=cut", "labels=[1,0]"]) == 0
    found = figures(capsys.readouterr().out)
    assert (found["train examples"], found["train label 1"], found["train label 0"]) == ("7", "3", "4")
    assert (found["train rows cut"], found["frame"], found["sequences an example"]) == ("3", "plain", "1")
    assert cli.main(["shards", "verify", shards]) == 0
    assert capsys.readouterr().out == f"{shards}: sound (정상)\n"
    assert cli.main(["shards", "inspect", shards, "--rows", "1"]) == 0
    assert "class 0: 1" in capsys.readouterr().out


def test_pairs_are_refused_and_told_by_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = [dict(zip(("query", "positive", "negative"), row.values(), strict=True)) for row in TRIPLETS]
    items[2]["negative"] = ""
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
    corpus, tokenizer = str(tmp_path / "c"), str(write_plain(tmp_path / "t"))
    assert (
        cli.main(["corpus", "build", "--record", "pair", "--input", str(source), "--output", corpus, "--workers", "1"])
        == 0
    )
    assert figures(capsys.readouterr().out)["form: query_triplet"] == "6"

    command = ["shards", "build", "--corpus", corpus, "--tokenizer", tokenizer, "--workers", "1", "heldout_fraction=0"]
    assert cli.main([*command, "--output", str(tmp_path / "refused")]) != 0
    assert "of the pair rows, 1 have no third text (text_c)" in capsys.readouterr().err
    assert cli.main([*command, "--output", str(tmp_path / "s"), "drop_faulty_rows=true"]) == 0
    found = figures(capsys.readouterr().out)
    assert (found["train examples"], found["sequences an example"]) == ("5", "3")
    assert (found["train rows without a text that others have"], found["train rows with a score"]) == ("1", "0")


def test_a_key_of_another_record_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("text,label\n가,1\n")
    override = f"inputs=[{{path: {tmp_path / 'a.csv'}, columns: {{text_a: text, text_b: label}}}}]"

    code = cli.main(["corpus", "build", "--record", "label", "--output", str(tmp_path / "c"), override])

    assert code == 2
    assert "columns names text_a, text_b, but record is label, which needs text_a and label" in capsys.readouterr().err
