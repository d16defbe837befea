"""`dure config show` prints the resolved tree, by the class that the keys of the file tell."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from data_pipeline.config import ConfigError
from launch import cli
from launch.verb_config import kind_of

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "key", "default"),
    [
        ("inputs: [in]\noutput: out\n", "min_text_share", 0.02),
        ("corpus: c\noutput: out\n", "vocab_size", 32_000),
        ("corpus: c\ntokenizer: t\noutput: out\n", "heldout_fraction", 0.01),
    ],
)
def test_defaults_are_shown_by_the_class_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, key: str, default: float
) -> None:
    (tmp_path / "a.yaml").write_text(text)

    assert cli.main(["config", "show", str(tmp_path / "a.yaml")]) == 0

    assert YAML(typ="safe", pure=True).load(capsys.readouterr().out)[key] == default


def test_a_run_is_shown_with_its_parents_and_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "show", str(REPO / "configs" / "debug.yaml"), "train.max_steps=7"]) == 0

    tree = YAML(typ="safe", pure=True).load(capsys.readouterr().out)
    assert tree["run"]["name"] == "debug"
    assert tree["train"]["max_steps"] == 7
    assert tree["train"]["optimizer"]["beta2"] == 0.95  # from configs/base/pretrain.yaml


def test_what_is_shown_is_a_config_that_shows_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["config", "show", str(REPO / "configs" / "debug.yaml")])
    shown = capsys.readouterr().out
    (tmp_path / "resolved.yaml").write_text(shown, encoding="utf-8")

    cli.main(["config", "show", str(tmp_path / "resolved.yaml")])

    assert capsys.readouterr().out == shown


def test_keys_that_tell_nothing_ask_for_the_kind() -> None:
    with pytest.raises(ConfigError, match=r"^a.yaml: its keys \(output\) tell no kind of config; give --kind train\|"):
        kind_of({"output": "x"}, where="a.yaml")


def test_the_kind_may_be_given_and_a_mistyped_one_is_recognised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("output: out\n")

    assert cli.main(["config", "show", str(path), "--kind", "tokenizer", "corpus=c"]) == 0
    assert "corpus: c\n" in capsys.readouterr().out
    assert cli.main(["config", "show", str(path), "--kind", "tokeniser"]) == 2
    assert "did you mean 'tokenizer'?" in capsys.readouterr().err
