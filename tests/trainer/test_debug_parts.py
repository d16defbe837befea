"""The parts of a debug run: the config that it makes, what it prints, and the faults that it names."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from data_pipeline.config import load, read_tree, to_tree
from data_pipeline.stream.batch import NO_TARGET, Batch
from data_pipeline.stream.examples import ExampleBatch
from launch.verb_config import class_of, kind_of
from tests.trainer.tiny_run import tiny_config
from trainer.config import TrainConfig
from trainer.debug_base import shrink
from trainer.debug_batch import show_batch
from trainer.debug_checks import (
    DebugFault,
    FiniteWatch,
    LookingPolicy,
    Moves,
    Overfit,
    anomalies_named,
    check_gradients,
    check_overfit,
    check_weights,
    one_batch,
    sparkline,
)
from trainer.debug_config import RESULT_NAME, DebugConfig, as_debug, begin_anew, debug_folder
from trainer.errors import RunError
from trainer.initial_weights import new_model
from trainer.resilience import StepPolicyConfig
from trainer.run_folder import changed_keys, check_config
from trainer.run_lock import held

REPO = Path(__file__).parents[2]
EOS, PAD = 0, 1


def run_configs() -> list[Path]:
    paths = [
        path for path in sorted((REPO / "configs").rglob("*.yaml")) if path.parent.name not in ("base", "pipelines")
    ]
    return [path for path in paths if class_of(kind_of(read_tree(path, []), where=path.name)) is TrainConfig]


@pytest.mark.parametrize("path", run_configs(), ids=lambda path: path.name)
def test_every_config_has_a_debug_run(path: Path) -> None:
    config = load(path, [], TrainConfig)

    small = as_debug(config, on_cpu=True)

    assert small.engine.kind == "none"
    assert small.run.expected_ranks is None
    assert small.train.precision == "fp32"
    assert small.train.max_steps <= config.debug.max_steps
    assert small.data == config.data
    assert small.adapter == config.adapter
    assert small.train.optimizer == config.train.optimizer
    assert Path(small.run.folder) / small.run.name == debug_folder(config) != Path(config.run.folder) / config.run.name


def test_a_model_is_made_smaller_and_never_larger(tmp_path: Path) -> None:
    large = {
        "hidden_size": 2048,
        "num_layers": 24,
        "num_heads": 16,
        "num_key_value_heads": 4,
        "intermediate_size": 5632,
    }
    tiny = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_key_value_heads": 1}

    smaller = as_debug(tiny_config(tmp_path, tmp_path, model=large)).model
    same = as_debug(tiny_config(tmp_path, tmp_path, model=tiny)).model

    assert (smaller.hidden_size, smaller.num_layers, smaller.num_heads, smaller.num_key_value_heads) == (64, 2, 2, 1)
    assert smaller.intermediate_size == 256
    assert (same.hidden_size, same.num_layers, same.num_heads, same.num_key_value_heads) == (32, 1, 2, 1)


def test_the_real_model_is_kept_where_the_config_says_so(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path, debug={"shrink": False}, model={"hidden_size": 512, "num_heads": 8})

    assert as_debug(config).model == config.model


def test_debug_keys_may_differ_when_a_run_goes_on(tmp_path: Path) -> None:
    before, now = (to_tree(tiny_config(tmp_path, tmp_path, debug={"max_steps": steps})) for steps in (5, 9))

    assert check_config(before, now, where=tmp_path) == changed_keys(before, now) == {"debug.max_steps": [5, 9]}


def test_a_try_begins_anew_and_only_in_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "run-debug"
    begin_anew(folder)
    (folder / "metrics.jsonl").write_text("old")
    (folder / "checkpoints" / "step-1").mkdir(parents=True)

    begin_anew(folder)

    assert [path.name for path in folder.iterdir()] == [RESULT_NAME]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.yaml").write_text("mine")
    with pytest.raises(RunError, match=r"holds no debug.json, so it is not what an earlier `--debug` left"):
        begin_anew(foreign)
    assert (foreign / "config.yaml").read_text() == "mine"


def test_a_folder_in_which_another_try_works_is_left_alone(tmp_path: Path) -> None:
    begin_anew(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("its own")

    with held(tmp_path), pytest.raises(RunError, match="another process works in this run folder"):
        begin_anew(tmp_path)

    assert (tmp_path / "metrics.jsonl").exists()


def batch_of(labels: list[list[int]], positions: list[list[int]], inputs: list[list[int]]) -> Batch:
    arrays = [np.array(rows, np.int64) for rows in (inputs, labels, positions)]
    count = int((arrays[1] != NO_TARGET).sum())
    return Batch(*arrays, row_ids=np.arange(len(labels)) + 7, num_targets=count)


def two_rows() -> Batch:
    """An answer of 12, 13 and EOS after a question of 10 and 11, then padding; and a row that is masked."""
    no = NO_TARGET
    return batch_of(
        labels=[[no, 12, 13, EOS, no, no], [no] * 6],
        positions=[[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 4, 5]],
        inputs=[[10, 11, 12, 13, PAD, PAD], [10, 11, 12, 13, 14, 15]],
    )


def test_the_first_batch_is_shown_with_its_targets_marked() -> None:
    text = show_batch(two_rows(), None, num_rows=2, eos_id=EOS, pad_id=PAD, colour=False)

    assert text.splitlines() == [
        "the first batch: 2 rows of 6, 3 targets (25.0%); targets stand in ⟦ ⟧, the rest is read only",
        "row 0 (number 7 of all): 1 documents, 3 targets, 2 padding",
        "  [    0 –     3] 3 targets of 4",
        "     [10, 11] ⟦ [12, 13]  [0] ⟧",
        "row 1 (number 8 of all): 1 documents, 0 targets, 0 padding   <- NOTHING IN THIS ROW IS LEARNT "
        "(학습 대상 없음)",
        "  [    0 –     5] 0 targets of 6",
        "     [10, 11, 12, 13, 14, 15] ",
    ]


def test_targets_are_green_and_their_eos_stands_on_green() -> None:
    text = show_batch(two_rows(), None, num_rows=1, eos_id=EOS, pad_id=PAD, colour=True)

    assert " [10, 11] \x1b[32m [12, 13] \x1b[0m\x1b[30;42m [0] \x1b[0m" in text


def test_a_long_document_is_shown_from_both_ends() -> None:
    ids = list(range(2, 1002))
    batch = batch_of([[*ids[1:], EOS]], [list(range(1000))], [ids])

    text = show_batch(batch, None, num_rows=1, eos_id=EOS, pad_id=PAD, colour=False)

    assert "[2] ⟦ [3, 4," in text
    assert " … 761 ids … " in text
    assert text.endswith("1000, 1001]  [0] ⟧")


def test_one_batch_is_the_window_with_most_targets_and_keeps_its_packing() -> None:
    one = one_batch(two_rows(), max_tokens=3)

    assert isinstance(one, Batch)
    assert one.input_ids.shape == (1, 3)
    assert one.num_targets == 3 == int((one.labels != NO_TARGET).sum())
    assert one.position_ids[0, 0] == 0


def test_one_batch_of_examples_is_the_first_ones() -> None:
    ids = np.array([[5, 6, 7], [5, 1, 1], [8, 9, 1]])
    batch = ExampleBatch(ids, np.array([3, 1, 2]), np.array([0.0, 1.0, 1.0]), np.arange(3), num_targets=3)

    one = one_batch(batch, max_tokens=4)

    assert isinstance(one, ExampleBatch)
    assert one.input_ids.tolist() == [[5, 6, 7], [5, 1, 1]]
    assert one.num_targets == 2


def test_examples_are_shown_with_their_class_and_without_their_padding() -> None:
    ids = np.array([[5, 6, 7], [5, 1, 1]])
    batch = ExampleBatch(ids, np.array([3, 1]), np.array([1.0, np.nan]), np.arange(2), num_targets=2)

    text = show_batch(batch, None, num_rows=2, eos_id=EOS, pad_id=PAD, colour=False, labels=("부정", "긍정"))

    assert "example 0 of all: ⟦긍정⟧" in text and "[5, 6, 7]" in text
    assert "example 1 of all: ⟦no score⟧" in text and " [5] " in text
    assert "2 of 6 places are padding" in text


def test_a_masked_row_is_shown_as_the_text_it_was() -> None:
    batch = Batch(np.array([[4, 3, 6]]), np.array([[NO_TARGET, 5, NO_TARGET]]), np.arange(3)[None], np.zeros(1, int), 1)

    text = show_batch(batch, None, num_rows=1, eos_id=EOS, pad_id=PAD, colour=False, is_masked=True)

    assert "[4] ⟦ [5] ⟧ [6]" in text


def described(kind: str) -> Any:
    from transformers import Gemma3TextConfig, GPTNeoXConfig, LlamaConfig, Qwen3Config

    sizes = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048}
    grouped = sizes | {"num_key_value_heads": 4, "vocab_size": 97}
    return {
        "llama": lambda: LlamaConfig(**grouped),
        "qwen3": lambda: Qwen3Config(**grouped, head_dim=128),
        "gemma3": lambda: Gemma3TextConfig(**grouped, head_dim=128, sliding_window=16),
        "gpt_neox": lambda: GPTNeoXConfig(**sizes, vocab_size=97),
    }[kind]()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "gpt_neox"])
def test_an_architecture_is_made_small_and_still_runs(kind: str) -> None:
    small = described(kind)
    shrink(small, DebugConfig())

    model = new_model(small, kernel="sdpa", seed=1)
    logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits

    assert logits.shape == (1, 3, 97)
    assert small.num_hidden_layers == 2
    assert sum(parameter.numel() for parameter in model.parameters()) < 500_000


def small_llama() -> nn.Module:
    small = described("llama")
    shrink(small, DebugConfig())
    return new_model(small, kernel="sdpa", seed=1)


def test_a_nan_among_the_weights_is_named_before_the_first_batch() -> None:
    model = small_llama()
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 5] = torch.nan

    with pytest.raises(DebugFault, match=r"weights: model.layers.1.mlp.up_proj.weight holds 1 NaN and 0 infinite of"):
        check_weights(model)
    check_weights(small_llama())


def test_the_module_where_a_value_overflows_is_named() -> None:
    model = small_llama()
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.gate_proj.weight").fill_(1e30)
        model.get_parameter("model.layers.0.mlp.up_proj.weight").fill_(1e30)
    watch = FiniteWatch(model)

    with pytest.raises(
        DebugFault, match=r"forward: model.layers.0.mlp.down_proj \(Linear\) gives .*already not finite"
    ):
        model(input_ids=torch.tensor([[5, 6, 7]]))

    watch.close()
    model(input_ids=torch.tensor([[5, 6, 7]]))


def test_a_derivative_that_is_nan_is_named_with_its_line() -> None:
    weight = nn.Parameter(torch.zeros(3))

    def planted() -> torch.Tensor:
        return (weight.abs().sqrt() * 0).sum()  # finite, and 0 times infinity backwards

    with pytest.raises(DebugFault, match=r"backward: SqrtBackward0 gives NaN.*in planted: `return \(weight"):  # noqa: SIM117
        with anomalies_named():
            planted().backward()
    assert not torch.is_anomaly_enabled()


class Branches(nn.Module):
    """One weight that the loss reaches, one that it does not, one that stands behind a zero."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.dead = (nn.Parameter(torch.ones(2)) for _ in range(3))


def test_weights_that_the_loss_does_not_reach_are_named() -> None:
    model = Branches()
    policy = LookingPolicy(StepPolicyConfig(), model)
    (model.used.sum() + 0 * model.dead.sum()).backward()

    policy.accepts(1.0, 1.0)
    check = check_gradients(policy, num_trained=3)

    assert not check.is_ok
    assert check.value == "1 of 3 trained tensors"
    assert "unused, dead got no gradient in 1 steps" in check.advice


def test_a_gradient_that_is_not_finite_is_named_with_its_step() -> None:
    model = Branches()
    (model.used.sum() * torch.inf).backward()

    with pytest.raises(DebugFault, match=r"backward: step 0: the gradient of used holds 0 NaN and 2 infinite of 2"):
        LookingPolicy(StepPolicyConfig(), model).accepts(1.0, float("inf"))


def test_weights_that_stay_are_named_and_a_rate_that_moves_nothing_too() -> None:
    model = Branches()
    moves = Moves(model)
    with torch.no_grad():
        model.used += 0.1
    some = moves.check(model, peak_lr=1e-3)
    with torch.no_grad():
        model.used -= 0.1
        for parameter in model.parameters():
            parameter += 2e-7
    hardly = moves.check(model, peak_lr=1e-12)

    assert not some.is_ok and "unused, dead stayed as they were at train.schedule.peak_lr 0.001" in some.advice
    assert not hardly.is_ok and "peak_lr 1e-12 trains nothing" in hardly.advice


def test_a_loss_that_stays_is_told_from_one_that_falls() -> None:
    stays = check_overfit(Overfit(limit=1.0, entropy=2.0, num_targets=5, losses=[4.0, 3.99, 3.98]))
    falls = check_overfit(Overfit(limit=1.0, entropy=2.0, num_targets=5, losses=[4.0, 2.0, 0.9]))

    assert not stays.is_ok and "stays where it was" in stays.advice
    assert falls.is_ok
    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁"
    assert sparkline([2.0, 2.0]) == "▁▁"


def test_ranks_and_profile_are_refused_where_they_make_no_sense() -> None:
    from launch.verb_train import train

    asked = SimpleNamespace(config="x.yaml", overrides=[], gpus=None, cpu_ranks=2, debug=True, profile=False)
    with pytest.raises(RunError, match=r"--debug: tries a run on one device, but --cpu-ranks asks for 2"):
        train(asked)  # type: ignore[arg-type]
    alone = SimpleNamespace(config="x.yaml", overrides=[], gpus=None, cpu_ranks=None, debug=False, profile=True)
    with pytest.raises(RunError, match=r"--profile: records the steps of a debug run; give --debug too"):
        train(alone)  # type: ignore[arg-type]
