"""Keep, extend or retrain: each limit decides, on its side only, and the words hold the figures."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from data_pipeline.tokenizer.audit_verdict import LIMITS, judge

TOTAL = {"unk_rate": 0.0, "vocabulary_loss_rate": 0.0, "chars_per_token": 2.0, "round_trip_rate": 1.0}
TERMS = {"num_terms": 200, "broken_share": 0.1, "num_saved": 100, "num_unknown": 0}


def subject(name: str = "ours", **changes: Any) -> dict[str, Any]:
    """A sound tokenizer's figures, with changes by `total__unk_rate` and the like."""
    tree: dict[str, Any] = {
        "name": name,
        "total": {**TOTAL, "num_tokens": 10_000},
        "terms": dict(TERMS),
        "vocabulary": {"num_rows": 32_000},
    }
    for path, value in changes.items():
        part, _, key = path.partition("__")
        if key:
            tree[part][key] = value
        else:
            tree[part] = value
    return copy.deepcopy(tree)


def verdict(one: dict[str, Any], *others: dict[str, Any]) -> str:
    return str(judge(one, others)["verdict"])


def test_a_sound_tokenizer_is_kept() -> None:
    result = judge(subject(), [subject("other", total__num_tokens=9_000)])

    assert result["verdict"] == "keep"
    assert result["english"] == "Keep: 2.00 characters a token, 0.00% unknown, and no figure is beyond its limit."
    assert result["korean"] == "그대로 쓰십시오: 토큰당 2.00자, 모르는 토큰 0.00%, 한계를 넘은 수치가 없습니다."
    assert not any(check["is_beyond"] for check in result["checks"])


@pytest.mark.parametrize(
    ("change", "at_limit", "beyond", "leads_to"),
    [
        ("total__unk_rate", 0.01, 0.0101, "retrain"),
        ("total__vocabulary_loss_rate", 0.01, 0.0101, "retrain"),
        ("total__chars_per_token", 1.2, 1.19, "retrain"),
        ("terms__broken_share", 0.25, 0.26, "extend"),
        ("terms__num_saved", 200, 201, "extend"),
        ("terms__num_unknown", 2, 3, "extend"),
    ],
)
def test_each_limit_decides_on_its_own_side(change: str, at_limit: float, beyond: float, leads_to: str) -> None:
    assert verdict(subject(**{change: at_limit})) == "keep"
    assert verdict(subject(**{change: beyond})) == leads_to


def test_a_measured_tokenizer_of_the_same_size_decides_by_what_it_saves() -> None:
    assert verdict(subject(), subject("new", total__num_tokens=8_500)) == "keep"
    result = judge(subject(), [subject("new", total__num_tokens=8_499), subject("newer", total__num_tokens=8_000)])

    assert result["verdict"] == "retrain"
    assert result["rival"] == "newer"
    assert result["english"] == "Retrain: tokens saved by another of the same size (newer) 20% (limit 15%)."
    assert "같은 크기의 다른 토크나이저가 줄이는 토큰 (newer) 20% (한계 15%)" in result["korean"]


@pytest.mark.parametrize(
    "change",
    [
        {"vocabulary__num_rows": 34_000},
        {"total__round_trip_rate": 0.98},
        {"total__unk_rate": 0.02},
        {"total__vocabulary_loss_rate": 0.02},
    ],
)
def test_one_that_could_not_replace_it_decides_nothing(change: dict[str, Any]) -> None:
    result = judge(subject(), [subject("other", total__num_tokens=5_000, **change)])

    assert (result["verdict"], result["rival"]) == ("keep", None)
    assert "what retraining would save was not judged" in result["english"]


def test_retrain_goes_before_extend_and_names_only_what_decided() -> None:
    result = judge(subject(total__unk_rate=0.03, terms__broken_share=0.9), [])

    assert result["verdict"] == "retrain"
    assert "unknown tokens 3.00% (limit 1.00%)" in result["english"]
    assert "90%" not in result["english"]


def test_extend_says_that_general_text_is_fine_and_by_which_figures() -> None:
    result = judge(subject(terms__broken_share=0.61), [subject("new")])

    assert result["english"] == (
        "Extend: general text is fine (2.00 characters a token, 0.00% unknown), but terms of more than 3 pieces 61% "
        "(limit 25%)."
    )
    assert result["korean"].startswith("확장하십시오: 일반 글은 괜찮지만(토큰당 2.00자, 모르는 토큰 0.00%) 3조각보다")


def test_without_terms_extending_is_not_judged_and_that_is_said() -> None:
    result = judge(subject(terms=None), [subject("new")])

    assert result["verdict"] == "keep"
    assert [check["figure"] for check in result["checks"] if check["leads_to"] == "extend"] == [None] * 3
    assert result["english"].endswith("No terms were given (--terms), so whether to extend was not judged.")
    assert "용어를 주지 않아(--terms)" in result["korean"]


def test_every_limit_has_its_reason_in_both_languages() -> None:
    for limit in LIMITS:
        assert len(limit.reason_korean) > 10
        assert len(limit.reason_english) > 20
        assert limit.leads_to in ("extend", "retrain")
