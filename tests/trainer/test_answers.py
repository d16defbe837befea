"""Answers to held-out instructions: which are asked, how they are judged, and that training does not feel them."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.config import ConfigError
from data_pipeline.shards.format import template_of, tokenizer_folder
from data_pipeline.templates import encode_prompt
from data_pipeline.tokenizer.encode import Encoder
from tests.trainer.small_world import SmallWorld
from tests.trainer.tiny_run import REPO, environment, lines_of, losses_of, tiny_config, write_config
from trainer.answers import Question, answer_heldout, heldout_questions, summarize, told, write_samples
from trainer.generate import Answer
from trainer.ranks import Ranks
from trainer.resilience import StopFlag
from trainer.run import run_in_group
from trainer.setup import Run, set_up

pytestmark = pytest.mark.stages

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
SEQ_LEN = 64
EOS = 0
# Enough to learn thirty rows by heart.
LEARNING = {
    "train": {"max_steps": 60, "schedule": {"kind": "wsd", "warmup_steps": 2, "peak_lr": 1e-2}},
    "model": {"hidden_size": 64, "dropout": 0.0},
    "evaluation": {"every_steps": 30, "answers": {"num_rows": 6, "num_shown": 2, "max_new_tokens": 12}},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return SmallWorld(tmp_path_factory.mktemp("world"))


def config_of(folder: Path, shards: Path, **sections: Any) -> Any:
    return tiny_config(folder, shards, stage="sft", **{"data": {"seq_len": SEQ_LEN}} | sections)


def a_run(world: SmallWorld, folder: Path, **answers: Any) -> Run:
    return set_up(config_of(folder, world.instruction_shards, evaluation={"answers": answers}), ALONE)


def ids_of(encoder: Encoder, text: str) -> tuple[int, ...]:
    return tuple(encoder.encode_batch([text])[0].tolist())


def test_a_question_is_what_chat_will_ask_and_its_answer_what_the_row_holds(world: SmallWorld) -> None:
    shards = world.instruction_shards
    encoder, template = Encoder(tokenizer_folder(shards)), template_of(shards)
    assert template is not None
    rows = lines_of(world.root / "instructions.jsonl")

    for question in heldout_questions(shards, num_rows=5, seq_len=SEQ_LEN):
        text = encoder.tokenizer.decode(list(question.prompt), skip_special_tokens=False)
        asked = text.removeprefix("### 질문: ").removesuffix("\n\n### 답변:")
        answer = template.answer_text(encoder.tokenizer.decode(list(question.expected), skip_special_tokens=False))

        assert list(question.prompt) == encode_prompt([{"role": "user", "content": asked}], template, encoder)
        assert {"instruction": asked, "output": answer} in rows
        assert EOS not in question.expected


def test_the_same_questions_are_asked_each_time_and_fewer_are_their_beginning(world: SmallWorld) -> None:
    shards = world.instruction_shards
    many = heldout_questions(shards, num_rows=1000, seq_len=SEQ_LEN)

    assert heldout_questions(shards, num_rows=1000, seq_len=SEQ_LEN) == many
    assert heldout_questions(shards, num_rows=4, seq_len=SEQ_LEN) == many[:4]
    assert len({question.prompt + question.expected for question in many}) == len(many)


def test_a_row_longer_than_a_row_of_training_is_not_asked(world: SmallWorld) -> None:
    shards = world.instruction_shards
    lengths = [len(q.prompt) + len(q.expected) for q in heldout_questions(shards, num_rows=1000, seq_len=SEQ_LEN)]

    assert len(heldout_questions(shards, num_rows=1000, seq_len=max(lengths))) == len(lengths)
    assert len(heldout_questions(shards, num_rows=1000, seq_len=max(lengths) - 1)) < len(lengths)


@pytest.mark.parametrize(
    ("said", "ended", "is_exact"),
    [
        ("산에 산다.", True, True),
        ("  산에 산다.\n", True, True),
        (unicodedata.normalize("NFD", "산에 산다."), True, True),
        ("산에 산다", True, False),
        ("산에 산다.", False, False),  # cut at the limit: it would have gone on
    ],
)
def test_an_answer_is_exact_in_nfc_without_outer_white_space_and_ended(
    world: SmallWorld, said: str, ended: bool, is_exact: bool
) -> None:
    shards = world.instruction_shards
    encoder, template = Encoder(tokenizer_folder(shards)), template_of(shards)
    assert template is not None
    question = Question(prompt=ids_of(encoder, "### 질문: 여우는?"), expected=ids_of(encoder, " 산에 산다."))
    answer = Answer(ids=ids_of(encoder, f" {said}"), ended=ended)

    lines = told([question], [answer], encoder=encoder, template=template, step=7)

    assert lines[0]["is_exact"] is is_exact
    assert (lines[0]["step"], lines[0]["prompt"], lines[0]["expected"]) == (7, "### 질문: 여우는?", "산에 산다.")
    assert summarize(lines).as_dict() == {
        "num_answers": 1,
        "exact_match": float(is_exact),
        "ended_share": float(ended),
    }


def test_samples_that_are_written_again_take_the_place_of_the_old_ones(tmp_path: Path) -> None:
    for answer in ("첫째", "둘째"):
        write_samples(tmp_path, [{"step": 30, "answer": answer}], step=30)

    assert lines_of(tmp_path / "answers/step-00000030.jsonl") == [{"step": 30, "answer": "둘째"}]
    assert [path.name for path in (tmp_path / "answers").iterdir()] == ["step-00000030.jsonl"]


def test_a_stop_leaves_no_figures_and_no_samples(world: SmallWorld, tmp_path: Path) -> None:
    run = a_run(world, tmp_path, num_rows=4, max_new_tokens=8, micro_batch_sequences=1)
    asked = iter([False] * 3 + [True] * 1000)

    assert answer_heldout(run, folder=tmp_path, stop_requested=lambda: next(asked)) is None
    assert not (tmp_path / "answers").exists()
    assert run.engine.module.training


def test_answering_changes_neither_weights_nor_mode_nor_randomness(world: SmallWorld, tmp_path: Path) -> None:
    run = a_run(world, tmp_path, num_rows=4, max_new_tokens=8)
    before = {name: tensor.detach().clone() for name, tensor in run.engine.model.named_parameters()}
    torch.manual_seed(5)
    state = torch.get_rng_state()

    figures = answer_heldout(run, folder=tmp_path, stop_requested=lambda: False)

    assert figures is not None and figures.num_answers == 4
    assert torch.equal(torch.get_rng_state(), state)
    assert run.engine.module.training and run.stream.next_row == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.engine.model.named_parameters())


def test_training_goes_on_the_same_to_the_bit_with_and_without_answers(world: SmallWorld, tmp_path: Path) -> None:
    for name, num_rows in (("asked", 6), ("silent", 0)):
        sections = {"run": {"name": name}, "evaluation": {"every_steps": 3, "answers": {"num_rows": num_rows}}}
        run_in_group(config_of(tmp_path, world.instruction_shards, **sections), ALONE, stop=StopFlag())

    assert losses_of(tmp_path / "asked") == losses_of(tmp_path / "silent")
    assert len(list((tmp_path / "asked/answers").iterdir())) == 4
    assert not (tmp_path / "silent/answers").exists()


@pytest.fixture(scope="module")
def learnt(world: SmallWorld) -> Path:
    run_in_group(config_of(world.root, world.instruction_shards, **LEARNING), ALONE, stop=StopFlag())
    return world.root / "run"


def test_a_model_that_learnt_its_form_ends_its_answers_and_is_told_so(learnt: Path) -> None:
    first, last = lines_of(learnt / "evaluations.jsonl")
    samples = lines_of(learnt / "answers/step-00000060.jsonl")
    assert (first["num_answers"], last["num_answers"]) == (6, 6)
    assert last["ended_share"] == 1.0 and last["loss"] < first["loss"]
    assert len(samples) == 2
    assert all(line["ended"] and line["answer"].endswith("에 산다.") for line in samples)


@pytest.mark.parametrize("engine", [{"kind": "none"}, {"kind": "deepspeed", "zero_stage": 3}], ids=["ddp", "zero-3"])
def test_two_ranks_answer_as_one_does(learnt: Path, world: SmallWorld, tmp_path: Path, engine: dict[str, Any]) -> None:
    """From equal weights, hardly moved: five questions for two ranks, one at a time, so that one rank has more."""
    answers = {"num_rows": 5, "num_shown": 5, "max_new_tokens": 12, "micro_batch_sequences": 1}
    sections = {
        "model": {"from": str(learnt)},
        "train": {"max_steps": 1, "schedule": {"warmup_steps": 0, "peak_lr": 1e-9}},
        "evaluation": {"answers": answers},
    }
    config = config_of(tmp_path, world.instruction_shards, **sections, run={"name": "alone"})
    run_in_group(config, ALONE, stop=StopFlag())
    config = config_of(tmp_path, world.instruction_shards, **sections, run={"name": "two"}, engine=engine)
    path = write_config(tmp_path / "two.yaml", config)
    command = [sys.executable, "-m", "launch.cli", "train", str(path), "--cpu-ranks", "2"]
    done = subprocess.run(command, cwd=REPO, env=environment(), capture_output=True, text=True, timeout=500)

    assert done.returncode == 0, done.stdout + done.stderr
    lines = [lines_of(tmp_path / name / "answers/step-00000001.jsonl") for name in ("alone", "two")]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 5 and any(line["ended"] for line in lines[0])
    assert done.stdout.count("gate: the first") == 1


def test_answers_without_a_token_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="evaluation.answers.max_new_tokens"):
        tiny_config(tmp_path, tmp_path, evaluation={"answers": {"max_new_tokens": 0}})
