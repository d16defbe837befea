"""Preference tuning on the page: figures before and after, answers side by side, a talk; and runs of other stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.report import SECTIONS
from launch.report_preference import ANCHOR
from tests.launch.report_runs import HOSTILE, evaluation_line, make_run, step_line
from tests.launch.test_report import TEMPLATE, report

SHARES = {"chosen_share": 0.02, "rejected_share": 0.51, "written_share": 0.03, "ended_share": 1.0}
TUNED = {"chosen_share": 0.487, "rejected_share": 0.0, "written_share": 0.99, "ended_share": 0.98}


def pair_figures(step: int) -> dict[str, Any]:
    """What a step of DPO tells beside its loss."""
    return {"loss": 0.6931 / (1 + step), "margin": step / 25, "accuracy": 1 - 0.5 / (1 + step), "log_ratio": -step / 10}


def dpo_run(folder: Path, *, name: str = "dpo", **sections: Any) -> Path:
    lines = [step_line(step, **pair_figures(step), entropy=0.5, tokens=16 * step) for step in range(5, 101, 5)]
    told = [
        evaluation_line(step, **pair_figures(step), chosen_length=12.5, rejected_length=9.25) for step in (0, 50, 100)
    ]
    evaluations = [{key: value for key, value in line.items() if key != "bits_per_byte"} for line in told]
    sections = {"model": {"from": "base"}} | sections
    run = make_run(folder, name=name, steps=lines, evaluations=evaluations, stage="dpo", **sections)
    (run / "template.yaml").write_text(TEMPLATE, encoding="utf-8")
    return run


def told(text: str = "서준 씨는 부산에 산다.") -> dict[str, Any]:
    """As the demo tells it."""
    row = {
        "prompt": "### 질문: 어디에 사나요?\n\n### 맥락: 서준 씨는 부산에 산다.\n\n### 답변:",
        "expected": "서준 씨는 부산에 산다.",
        "rejected": "서준 씨는 부산에 살아요.",
        "before": "서준 씨는 부산에 살아요.",
        "answer": text,
        "is_exact": True,
        "ended": True,
    }
    return {
        "evaluated": {
            "before": {"loss": 0.6931, "margin": 0.0, "accuracy": 0.5},
            "after": {"loss": 0.1234, "margin": 2.5, "accuracy": 0.987},
        },
        "asked": {
            "before": {"num_rows": 300, **SHARES},
            "after": {"num_rows": 300, **TUNED},
            "others": {"num_rows": 180, "before": 0.61, "after": 0.59},
        },
        "answers": [row, row | {"answer": "부산", "is_exact": False}],
        "talk": [{"role": "user", "content": "소는 무엇을 먹나요?"}, {"role": "assistant", "content": text}],
    }


def test_pairs_have_a_part_of_their_own_from_the_run_alone(tmp_path: Path) -> None:
    page = report(tmp_path, dpo_run(tmp_path, model={"from": "runs/demo/sft"}, adapter={"kind": "lora", "rank": 8}))

    anchors = [part["id"] for part in page.of("section")]
    assert anchors == [SECTIONS[0][0], SECTIONS[1][0], ANCHOR, *(anchor for anchor, _, _ in SECTIONS[2:])]
    assert [link["href"] for link in page.of("a")] == [f"#{anchor}" for anchor in anchors]
    assert "sft 위에 LoRA r=8 선호 학습(DPO)을 100단계 진행했습니다" in page.text
    assert "LoRA r=8 preference tuning (DPO) of sft, 100 steps" in page.text
    assert "고른 답이 앞선 쌍 pairs whose chosen answer is ahead 99.5 % 학습 전 before 50.0 %" in page.text
    assert "마진 margin of the chosen answer 4.0000 학습 전 before 0.0000" in page.text
    assert "tokens of an answer 고른 답 chosen 12.5 · 버린 답 rejected 9.2" in page.text
    assert "held-out pairs 40" in page.text
    assert "만들어 낸 쌍" not in page.text
    assert "document" not in page.text.partition("데이터 Data")[0]


def test_curves_of_pairs_tell_accuracy_margin_and_what_they_cost(tmp_path: Path) -> None:
    page = report(tmp_path, dpo_run(tmp_path))

    for title in (
        "손실 Loss",
        "쌍 정확도 Pair accuracy",
        "마진 Margin",
        "기준 대비 로그 비 Log ratio",
        "엔트로피 Entropy",
    ):
        assert title in page.text
    assert "nats/pair" in page.text
    assert len(page.of("svg")) == 9


def test_rows_of_pairs_are_not_counted_as_tokens(tmp_path: Path) -> None:
    first = make_run(tmp_path, name="first", steps=[step_line(100, tokens=9000)])

    page = report(tmp_path, first, dpo_run(tmp_path, model={"from": str(first)}))

    assert "target tokens 9,000" in page.text


def test_what_the_demo_tells_stands_beside_the_figures_of_the_run(tmp_path: Path) -> None:
    text = report(tmp_path, dpo_run(tmp_path), preference=told()).text

    assert "고른 답이 앞선 쌍 pairs whose chosen answer is ahead 98.7 % 학습 전 before 50.0 %" in text
    assert "고른 답과 같음 answers equal to the chosen one 48.7 % 학습 전 before 2.0 %" in text
    assert "만들어 낸 쌍은 같은 답을 글로 쓰듯" in text
    assert "other questions, whose answers were to stay 180" in text
    for shown in (
        "answers equal to the chosen one 2.0 % 48.7 %",
        "answers equal to the rejected one 51.0 % 0.0 %",
        "answers as one writes 3.0 % 99.0 %",
        "other questions right 61.0 % 59.0 %",
    ):
        assert shown in text
    assert "질문 prompt 어디에 사나요? 서준 씨는 부산에 산다. 학습 전 before 서준 씨는 부산에 살아요." in text
    assert (
        "학습 후 after 부산 고른 답 chosen: 서준 씨는 부산에 산다. 버린 답 rejected: 서준 씨는 부산에 살아요." in text
    )
    assert (text.count("✓ 고른 답과 같음"), text.count("✗ 고른 답과 다름")) == (1, 1)
    assert "질문 question 소는 무엇을 먹나요? 모델 model 서준 씨는 부산에 산다." in text


def test_what_is_told_of_preferences_is_text_whatever_it_holds(tmp_path: Path) -> None:
    page = report(tmp_path, dpo_run(tmp_path), preference=told(HOSTILE))

    assert page.of("img") == page.of("script") == []
    assert page.text.count('alert("두레")') == 2


def test_of_three_runs_each_has_a_block_of_charts(tmp_path: Path) -> None:
    first = make_run(tmp_path, name="pretrain")
    second = make_run(tmp_path, name="sft", stage="sft", model={"from": str(first)})
    third = dpo_run(tmp_path, model={"from": str(second)})

    page = report(tmp_path, first, second, third, preference=told())

    assert [part["class"] for part in page.of("div") if part.get("class") == "of-run"] == ["of-run"] * 3
    assert len(page.of("svg")) == 6 + 6 + 9
    assert "pretrain → sft → dpo" in page.text


@pytest.mark.parametrize(
    ("stage", "sections", "figure", "shown"),
    [
        ("classify", {}, "accuracy", "분류 학습"),
        ("grpo", {"grpo": {"kl_weight": 0, "reward": {"function": "score.py:score"}}}, "reward", "보상 reward"),
    ],
)
def test_other_stages_are_not_called_pretraining_or_documents(
    tmp_path: Path, stage: str, sections: dict[str, Any], figure: str, shown: str
) -> None:
    lines = [{"step": step, "loss": 2.0, figure: 0.5 + step / 400, "num_documents": 9} for step in (50, 100)]

    text = report(tmp_path, make_run(tmp_path, evaluations=lines, stage=stage, **sections)).text

    assert shown in text
    assert "사전학습했습니다" not in text
