"""Whole runs of the online stages, small: the gate, what stands in the run folder, what is exported, a reward model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from launch.verb_evaluate import evaluate_saved
from tests.trainer.small_world import SmallWorld, small_world
from tests.trainer.stage_cases import CASES
from tests.trainer.tiny_run import REPO, lines_of
from trainer import checkpoint
from trainer.config import TrainConfig
from trainer.debug import debug_run
from trainer.errors import RunError, TrainingStopped
from trainer.export import ExportOptions, export
from trainer.gate import check_first_batches
from trainer.generate import Answer
from trainer.ranks import Ranks
from trainer.resilience import StopFlag
from trainer.rewards import ModelJudge, Texts, open_judge
from trainer.rollout import Sample
from trainer.run import run_in_group
from trainer.saved import find_saved
from trainer.setup import Run, set_up
from trainer.value_head import value_head_of

pytestmark = pytest.mark.stages

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
FUNCTIONS = f"{REPO}/tests/trainer/reward_functions.py"
SHORT = {"max_steps": 2, "global_batch_sequences": 4}


@pytest.fixture(scope="module")
def world() -> SmallWorld:
    return small_world()


def config_of(world: SmallWorld, folder: Path, stage: str, reward: dict[str, Any], **sections: Any) -> TrainConfig:
    choices = CASES[stage].sections[stage] | {"reward": reward}
    config = CASES[stage].config(folder, world, train=SHORT, **sections)
    return config.model_copy(update={stage: type(getattr(config, stage)).model_validate(choices)})


def checks_of(run: Run) -> dict[str, Any]:
    return {check.name: check for check in check_first_batches(run)}


def test_the_gate_tells_of_prompts_and_rewards(world: SmallWorld, tmp_path: Path) -> None:
    run = set_up(config_of(world, tmp_path, "grpo", {"function": f"{FUNCTIONS}:round_shapes"}), ALONE)

    found = checks_of(run)

    assert all(check.is_ok for check in found.values())
    assert found["several prompts"].value == "16 different in 16"
    assert "of 8 answers" in found["rewards tell apart"].value
    assert found["begins at its reference"].value == "KL 0.0e+00 nats a token"
    assert found["answers end"].value.startswith("0 % of 8 in 8 tokens on average: none: raise max_new_tokens")


def test_the_gate_tells_of_rewards_that_are_all_equal(world: SmallWorld, tmp_path: Path) -> None:
    run = set_up(config_of(world, tmp_path, "grpo", {"function": f"{FUNCTIONS}:is_equal"}), ALONE)

    found = checks_of(run)["rewards tell apart"]

    assert found.is_ok and found.value.startswith("all 8 are 0.5: nothing is learnt until some differ")


def test_a_policy_that_is_not_its_reference_is_refused(world: SmallWorld, tmp_path: Path) -> None:
    run = set_up(config_of(world, tmp_path, "grpo", {"function": f"{FUNCTIONS}:round_shapes"}), ALONE)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in run.engine.model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)

    assert not checks_of(run)["begins at its reference"].is_ok


@pytest.mark.parametrize("name", ["always_nan", "raises", "too_few"])
def test_the_gate_refuses_a_reward_that_cant_be_used(world: SmallWorld, tmp_path: Path, name: str) -> None:
    config = config_of(world, tmp_path, "ppo", {"function": f"{FUNCTIONS}:{name}"})

    with pytest.raises(RunError, match=rf"ppo\.reward\.function: .*:{name} (returned|raised)"):
        run_in_group(config, ALONE, stop=StopFlag())

    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


FAILS_LATER = """
asked = []

def fails_later(prompts, answers, references):
    asked.append(1)
    if len(asked) > 2:
        raise ValueError("다 썼다")
    return [len(answer) / 10 for answer in answers]
"""


def test_law_8_a_reward_that_fails_later_refuses_steps_and_then_ends_the_run(world: SmallWorld, tmp_path: Path) -> None:
    (tmp_path / "later.py").write_text(FAILS_LATER)
    reward = {"function": f"{tmp_path}/later.py:fails_later"}
    config = config_of(world, tmp_path, "grpo", reward, policy={"max_consecutive_skips": 1})
    config = config.model_copy(update={"train": config.train.model_copy(update={"max_steps": 6})})

    with pytest.raises(TrainingStopped, match="2 updates in a row were refused.*raised ValueError: 다 썼다 at row"):
        run_in_group(config, ALONE, stop=StopFlag())

    # The gate asked first, then step 1 was made.
    events = [event for event in lines_of(tmp_path / "run/events.jsonl") if event["kind"] == "skipped_step"]
    assert [event["step"] for event in events] == [1, 2]
    assert all("later.py:fails_later raised ValueError" in event["detail"]["reason"] for event in events)
    assert checkpoint.step_of(checkpoint.find_complete(tmp_path / "run/checkpoints")[0]) == 3


def test_a_run_keeps_held_out_answers_its_kl_weight_and_no_value_head_in_its_export(
    world: SmallWorld, tmp_path: Path
) -> None:
    config = config_of(world, tmp_path, "ppo", {"function": f"{FUNCTIONS}:overlap"})
    assert run_in_group(config, ALONE, stop=StopFlag()) == 0
    run = tmp_path / "run"

    (samples,) = (run / "answers").glob("step-*.jsonl")
    lines = lines_of(samples)
    assert len(lines) == 2
    assert set(lines[0]) == {"step", "row", "prompt", "answer", "expected", "reward", "ended"}
    assert lines[0]["prompt"].startswith("### 질문: ") and lines[0]["expected"].endswith("에 산다.")
    state = checkpoint.read_state(checkpoint.find_complete(run / "checkpoints")[0])
    assert state["objective"]["kl_weight"] != config.ppo.kl_weight  # type: ignore[union-attr]
    saved = safetensors.torch.load_file(run / "checkpoints/step-00000002/model.safetensors")
    assert {"value_head.weight", "value_head.bias"} < set(saved)
    assert all(torch.any(saved[name] != 0) for name in ("value_head.weight", "value_head.bias"))
    manifest = export(find_saved(run), tmp_path / "exported", ExportOptions())
    written = safetensors.torch.load_file(tmp_path / "exported/adapter_model.safetensors")
    assert manifest["what"] == "adapter" and not [name for name in written if "value_head" in name]
    again = evaluate_saved(str(run))
    last = lines_of(run / "evaluations.jsonl")[-1]
    assert again["num_documents"] == 23  # all that are held out; the run looked at 20 of them
    assert {"reward", "kl", "answer_length", "ended_share"} <= set(again) & set(last)


def test_another_engine_restores_the_value_head_too(world: SmallWorld, tmp_path: Path) -> None:
    from trainer.setup import restore

    config = config_of(world, tmp_path, "ppo", {"function": f"{FUNCTIONS}:round_shapes"})
    assert run_in_group(config, ALONE, stop=StopFlag()) == 0
    folder = checkpoint.find_complete(tmp_path / "run/checkpoints")[0]

    fresh = set_up(config, ALONE)
    restore(fresh, folder)

    head = value_head_of(fresh.engine.model)
    saved = safetensors.torch.load_file(folder / "model.safetensors")
    assert head is not None and torch.equal(head.weight.detach(), saved["value_head.weight"])
    assert fresh.objective.state_dict() == checkpoint.read_state(folder)["objective"]


@pytest.fixture
def reward_model(world: SmallWorld, tmp_path: Path) -> Path:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_positions": 128}
    made = world.untrained("reward-model", head="classifier", labels=("reward",), **sizes)
    return Path(shutil.copytree(made, tmp_path / "reward-model"))


def opened(world: SmallWorld, reward_model: Path) -> ModelJudge:
    from trainer.policy_config import RewardSourceConfig

    shards = world.prompt_shards
    judge = open_judge(
        RewardSourceConfig(model=str(reward_model)),
        where="ppo.reward",
        shards=shards,
        texts=Texts.of_shards(shards),
        ranks=ALONE,
        batch_size=2,
    )
    assert isinstance(judge, ModelJudge)
    return judge


def test_a_reward_model_judges_each_answer_by_itself(world: SmallWorld, reward_model: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    judge = opened(world, reward_model)
    samples = [
        Sample(
            row=row, group=row, prompt=(9, 10, 11), reference=None, answer=Answer(tuple(range(20, 20 + row)), row != 2)
        )
        for row in range(1, 6)
    ]

    found = judge(samples)

    direct = AutoModelForSequenceClassification.from_pretrained(reward_model).eval()
    for sample, reward in zip(samples, found, strict=True):
        ids = [*sample.prompt, *sample.answer.ids, *([judge.eos_id] if sample.answer.ended else [])]
        with torch.no_grad():
            assert reward == pytest.approx(float(direct(input_ids=torch.tensor([ids])).logits), abs=1e-5)


def test_a_model_that_is_no_reward_model_is_refused(world: SmallWorld, reward_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"ppo\.reward\.model: .* is a causal lm; name a run of stage 'reward'"):
        opened(world, world.llama)
    sizes = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "max_positions": 128}
    two = world.untrained("two-labels", head="classifier", labels=("나쁨", "좋음"), **sizes)
    with pytest.raises(RunError, match="has 2 labels, a reward is one number"):
        opened(world, two)


def test_a_run_learns_from_a_reward_model(world: SmallWorld, reward_model: Path, tmp_path: Path) -> None:
    config = config_of(world, tmp_path, "grpo", {"model": str(reward_model)})

    assert run_in_group(config, ALONE, stop=StopFlag()) == 0

    assert len({line["reward"] for line in lines_of(tmp_path / "run/metrics.jsonl")}) == 2
    state = checkpoint.read_state(tmp_path / "run/checkpoints/step-00000002")
    assert len(state["objective"]["reward"]) == 64


def test_a_debug_run_tries_a_rollout(world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(world, tmp_path, "ppo", {"function": f"{FUNCTIONS}:round_shapes"})

    assert debug_run(config, ALONE, stop=StopFlag()) == 0

    told = capsys.readouterr().out
    assert "two passes agree" in told and "rewards tell apart" in told
