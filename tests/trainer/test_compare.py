"""Two models asked the same, their answers judged: by a function, and by a reward model of ours."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.evaluate_compare import COMPARISON_NAME, PAIRS_NAME, compare, comparison_lines, comparison_of, judge_pairs
from launch.evaluate_compare import Pair as ComparePair
from launch.question_rows import QuestionRow
from launch.verb_evaluate import evaluate_saved
from tests.trainer.small_world import ANIMALS, SOURCE, SmallWorld, question, small_world
from tests.trainer.stage_cases import LORA
from tests.trainer.tiny_run import lines_of
from trainer.answer_judge import FunctionOfText, ScoringModel, Written, find_judge, judge_identity, open_judge
from trainer.errors import RunError

LENGTHS = "def score(prompts, answers, references):\n    return [len(answer) for answer in answers]\n"


def pair(row: int, first: str, second: str) -> ComparePair:
    messages: Any = ({"role": "user", "content": f"질문 {row}?", "input": "본문" if row else ""},)
    answers = (
        {"row": row, "answer": first, "ended": True, "expected": "정답"},
        {"row": row, "answer": second, "ended": False},
    )
    return ComparePair(QuestionRow(row, {}, messages), answers)


def test_a_function_is_asked_with_the_rows_texts_and_references() -> None:
    asked: list[Any] = []

    def score(prompts: list[str], answers: list[str], references: list[str | None]) -> list[float]:
        asked.append((prompts, answers, references))
        return [float(len(answer)) for answer in answers]

    judged, num_too_long = judge_pairs(FunctionOfText("f", score), [pair(0, "답", "긴 답"), pair(1, "", "")])

    assert asked == [
        (["질문 0?", "질문 1?\n본문"], ["답", ""], ["정답", "정답"]),
        (["질문 0?", "질문 1?\n본문"], ["긴 답", ""], [None, None]),
    ]
    assert ([one.scores for one in judged], num_too_long) == ([(1.0, 3.0), (0.0, 0.0)], 0)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0, float("nan")], "--judge: f gives row 1 nan for '두'; a score is a finite number"),
        ([1.0], "--judge: f returned 1 scores for 2 answers; return one an answer"),
        (["좋다", "1"], "--judge: f raised ValueError"),
        (None, "--judge: f raised TypeError"),
    ],
)
def test_a_score_that_cannot_be_used_is_named(returned: Any, said: str) -> None:
    judge = FunctionOfText("f", lambda prompts, answers, references: returned)

    with pytest.raises(RunError) as found:
        judge_pairs(judge, [pair(0, "하나", ""), pair(1, "두", "")])

    assert said in str(found.value)


def test_an_answer_that_is_too_long_takes_its_pair_out() -> None:
    class Short:
        name = "short"

        def scores(self, answers: Any) -> list[float | None]:
            return [float(len(one.answer)) if len(one.answer) < 5 else None for one in answers]

    judged, num_too_long = judge_pairs(Short(), [pair(0, "하나", "둘"), pair(1, "하나", "너무나 긴 답")])

    assert ([one.asked.number for one in judged], num_too_long) == ([0], 1)


def test_the_tables_of_a_comparison_are_told_by_length() -> None:
    pairs = [pair(0, "하나하나", "둘둘둘둘"), pair(1, "하나", "둘둘둘둘"), pair(2, "같은 답", "같은 답 ")]
    judged, _ = judge_pairs(FunctionOfText("f", lambda prompts, answers, references: [len(a) for a in answers]), pairs)
    tree = comparison_of(judged) | {"model_a": "a", "model_b": "b", "judge": "f", "prompts": "p", "num_too_long": 2}

    lines = comparison_lines(tree)

    assert lines[0] == "A a: mean score 3.3333, 3.3 characters, 100.0% ended"
    assert [line.split() for line in lines[4:6]] == [
        ["모두", "all", "3", "0", "2", "1", "0.0%", "0.0%", "–", "97.5%"],
        ["길이가", "비슷함", "of", "like", "length", "2", "0", "2", "0", "–", "–"],
    ]
    assert "the longer answer won 100.0% of the pairs of two lengths" in lines[-2]
    assert lines[-1].startswith("2 pairs were too long")


@pytest.fixture(scope="module")
def world() -> SmallWorld:
    return small_world()


def words(*paths: Path, **values: Any) -> Namespace:
    plain = {"max_new_tokens": 12, "temperature": "0", "top_p": "1", "top_k": 0, "repetition_penalty": "1", "seed": 0}
    names = ("prompts", "judge", "output", "template", "quantize")
    return Namespace(paths=[str(path) for path in paths], batch=8, **plain | dict.fromkeys(names) | values)


def write_prompts(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    rows = [{"prompt": question("큰", animal, "산")} for animal in ANIMALS]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


@pytest.mark.stages
def test_two_models_are_compared_by_a_reward_model_and_by_a_function(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, talker, base = write_prompts(tmp_path), world.talker, world.base
    steps = {"max_steps": 4, "schedule": {"warmup_steps": 1, "peak_lr": 1e-3}}
    keys: dict[str, Any] = {"data": {"seq_len": 128}, "gate": {"max_first_loss": 20.0}, **LORA}
    reward = world.train(
        "judge", world.preference_shards, stage="reward", model={"from": str(world.llama)}, train=steps, **keys
    )

    assert compare(words(talker, base, prompts=str(prompts), template="koalpaca", judge=str(reward))) == 0

    (folder,) = (talker / "comparisons").iterdir()
    tree, rows = json.loads((folder / COMPARISON_NAME).read_text()), lines_of(folder / PAIRS_NAME)
    assert re.fullmatch(r"150-base-\d+-prompts", folder.name)
    assert len(rows) == tree["all"]["num_pairs"] == len(ANIMALS)
    assert (
        tree["all"]["wins"]
        == sum(row["result"] == "win" for row in rows)
        == sum(row["score_a"] > row["score_b"] and row["answer_a"].strip() != row["answer_b"].strip() for row in rows)
    )
    assert tree["judge_sha256"] == judge_identity(str(reward)) and len(tree["made_with"]) == 2
    assert "judge (심판)" in capsys.readouterr().out

    # One by one, and as the stage itself scores rows of shards: what shares a batch changes nothing.
    judge = open_judge(str(reward), batch_size=1)
    answers = [Written(row["row"], row["messages"], row["answer_a"], ended=row["ended_a"]) for row in rows]
    assert judge.scores(answers) == pytest.approx([row["score_a"] for row in rows], abs=1e-5)
    check_scores_are_those_of_the_stage(world, judge)

    # Asked again with another judge, no answer is made again.
    function = tmp_path / "judge.py"
    function.write_text(LENGTHS)
    assert compare(words(talker, base, prompts=str(prompts), template="koalpaca", judge=f"{function}:score")) == 0
    assert capsys.readouterr().out.count("answered already (이미 완료)") == 2
    assert json.loads((folder / COMPARISON_NAME).read_text())["longer_won"] == 1.0

    # `dure evaluate` of such a run: the stage's figures over its held-out pairs.
    figures = evaluate_saved(str(reward))
    assert 0 <= figures["accuracy"] <= 1 and figures["num_documents"] == figures["num_targets"] > 0
    assert {"loss", "accuracy", "margin"} <= set(figures["sources"][SOURCE])

    with pytest.raises(RunError, match="takes two models, got 1"):
        compare(words(talker, prompts=str(prompts), template="koalpaca", judge=str(reward)))
    with pytest.raises(RunError, match="--judge: not given"):
        compare(words(talker, base, prompts=str(prompts)))
    with pytest.raises(RunError, match=r"--output: .* is a model folder, which keeps no results"):
        compare(words(world.llama, base, prompts=str(prompts), template="koalpaca", judge=str(reward)))
    with pytest.raises(RunError, match="is a causal lm, which scores nothing"):
        find_judge(str(talker))


def check_scores_are_those_of_the_stage(world: SmallWorld, judge: Any) -> None:
    """Held-out rows of the shards by the objective of the stage, and the same texts by the judge."""
    import pyarrow.parquet as pq

    from data_pipeline.shards.format import read_shards
    from data_pipeline.stream.examples import ExampleRows
    from trainer.model import padded_inputs

    rows = ExampleRows(read_shards(world.preference_shards, split="heldout"), seq_len=128)
    batch = rows.gather(torch.arange(4).numpy())
    with torch.no_grad():
        expected = judge.model(**padded_inputs(batch, device=judge.device)).logits.reshape(-1).tolist()
    records = {row["id"]: row for row in pq.read_table(world.preferences / "data").to_pylist()}
    chosen = [records[rows.record_id(row)] for row in range(4)]
    written = [
        Written(row, record["prompt"], record[name])
        for row, record in enumerate(chosen)
        for name in ("chosen", "rejected")
    ]
    assert judge.scores(written) == pytest.approx(expected, abs=1e-5)


@pytest.mark.stages
def test_a_folder_with_one_output_judges_by_its_chat_template(world: SmallWorld) -> None:
    folder = world.untrained("scorer", head="classifier", labels=("score",), hidden_size=32, num_layers=1, num_heads=2)
    with pytest.raises(RunError, match="nothing there says how an answer is written for it"):
        find_judge(str(folder))
    (folder / "template.yaml").write_text((world.instruction_shards / "template.yaml").read_text())

    judge = open_judge(str(folder), batch_size=2)

    assert isinstance(judge, ScoringModel)
    message: Any = {"role": "user", "content": "누가 사니?", "input": ""}
    scores = judge.scores(
        [Written(0, [message], "곰이 산다."), Written(1, [message], ""), Written(2, [message], "긴 " * 200)]
    )
    assert scores[2] is None or judge.seq_len is None or judge.seq_len > 400
    assert all(score is not None for score in scores[:2])
    three = world.untrained(
        "three", head="classifier", labels=("a", "b", "c"), hidden_size=32, num_layers=1, num_heads=2
    )
    with pytest.raises(RunError, match="has 3 outputs, a score is one number"):
        find_judge(str(three))
