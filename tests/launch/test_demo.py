"""The demo's own decisions: where it works, what it refuses, what it asks; its parts are tested as the verbs' own."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.cli import main
from launch.demo import _default_root
from launch.demo_ask import Asking, _compared
from launch.demo_preference import _figures, _others, _verdict
from tests.data_pipeline.stream.answer_shards import EOS, make_answer_shards, preference_rows

REPO = Path(__file__).parents[2]


def test_a_folder_is_named_after_every_source_of_the_user() -> None:
    assert _default_root(None, None, None, seed=1) == "runs/demo"
    assert _default_root(None, None, None, seed=2) == "runs/demo-seed-2"
    assert _default_root("a/내 글", "b/rows.jsonl", "pairs.csv", seed=1) == "runs/demo-내 글-rows-pairs"
    assert _default_root(None, None, "pairs.csv", seed=1) == "runs/demo-pairs"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--dpo", "--corpus", "texts"], "--dpo: beside --corpus texts nothing is tuned; give --sft ROWS too"),
        (["--preference", "p.csv", "--corpus", "texts"], "--preference: beside --corpus texts nothing is tuned"),
        (["--dpo", "--sft", "rows"], "not about --sft rows; give --preference ROWS too"),
    ],
)
def test_preferences_without_what_they_need_are_refused_before_any_work(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPO)

    assert main(["demo", *words, "--output", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_held_out_pairs_are_asked_by_their_prompt_and_both_answers_are_known(tmp_path: Path) -> None:
    make_answer_shards(tmp_path / "shards", "preference", num_heldout=20)
    made = {
        (tuple(prompt), tuple(chosen), tuple(rejected))
        for ((prompt, chosen), (_, rejected)), _ in preference_rows(20, seed=1)
    }

    asked, rejected = _compared(Asking("model", "output", str(tmp_path / "shards"), 12, seq_len=64, max_new_tokens=8))

    assert len(asked) == len(rejected) == 12
    found = {
        (question.prompt, (*question.expected, EOS), (*other, EOS))
        for question, other in zip(asked, rejected, strict=True)
    }
    assert len(found) > 6
    assert found <= made


def line(answer: str, *, expected: str = "산다.", rejected: str = "살아요.") -> dict[str, object]:
    is_exact = answer == expected
    return {"answer": answer, "expected": expected, "rejected": rejected, "ended": True, "is_exact": is_exact}


def test_answers_are_counted_as_chosen_as_rejected_and_by_their_manner() -> None:
    lines = [line("산다."), line("살아요. "), line("간다."), line("부산")]

    assert _figures(lines, is_made=True) == {
        "num_rows": 4,
        "chosen_share": 0.25,
        "rejected_share": 0.25,
        "written_share": 0.5,
        "ended_share": 1.0,
    }
    assert "written_share" not in _figures(lines, is_made=False)


def test_other_questions_are_those_whose_answers_the_made_rows_say_nothing_about() -> None:
    before = [line("부산", expected="부산"), line("사과", expected="배"), line("살아요.", expected="살아요.")]
    after = [line("강릉", expected="부산"), line("배", expected="배"), line("산다.", expected="살아요.")]

    assert _others(before, after, is_made=True) == {"num_rows": 2, "before": 0.5, "after": 0.5}
    assert _others(before, after, is_made=False) == {"num_rows": 3, "before": 2 / 3, "after": 1 / 3}


def test_made_preferences_that_are_not_learned_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    good = {"num_rows": 9, "chosen_share": 0.5, "written_share": 1.0, "ended_share": 1.0, "num_same_as_tuned": 9}
    asked = {"before": good | {"chosen_share": 0.0}, "after": good, "exported": good}

    assert _verdict({"after": {"accuracy": 1.0}}, asked) == 0
    assert capsys.readouterr().err == ""
    bad = asked | {
        "after": good | {"chosen_share": 0.0, "written_share": 0.1},
        "exported": good | {"num_same_as_tuned": 8},
    }
    assert _verdict({"after": {"accuracy": 0.5}}, bad) == 1
    told = capsys.readouterr().err
    for fault in (
        "accuracy over held-out pairs: 50.0%, 90% is the least",
        "written answers: 10.0%",
        "no more answers",
        "the merged model answers otherwise",
    ):
        assert fault in told
