"""`stage: mlm` as whole runs: equal to transformers' Trainer, alike under every engine, and with an adapter."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.stream.batch import Batch
from tests.trainer.small_world import NO_ANSWERS, TINY_BERT, SmallWorld
from tests.trainer.tiny_run import REPO, environment, lines_of, losses_of, tiny_config, write_config
from trainer.config import TrainConfig
from trainer.engine import PlainEngine
from trainer.model import packed_inputs, read_vocabulary, reading_of
from trainer.objectives.choose import make_objective
from trainer.ranks import Ranks
from trainer.resilience import StepPolicy
from trainer.schedule import learning_rate
from trainer.setup import make_trainable_model
from trainer.sources import open_stream
from trainer.step import Updater

pytestmark = pytest.mark.stages

STEPS, ROWS = 6, 8
LONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
ENGINES: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    **{f"zero-{stage}": {"kind": "deepspeed", "zero_stage": stage} for stage in (1, 2, 3)},
}
Case = tuple[int, str, str, str]  # ranks, engine, precision, and what is special about it
REFERENCE: Case = (1, "none", "fp32", "")
CASES: list[Case] = [REFERENCE, *((2, engine, "fp32", "") for engine in ENGINES)]
CASES += [(2, "zero-3", "fp32", "checkpointing"), (2, "none", "bf16", ""), (2, "zero-2", "bf16", "")]
CASES += [(1, "none", "fp32", "lora"), (2, "zero-3", "fp32", "lora"), (2, "zero-3", "fp32", "loaded")]
CASES += [(1, "none", "fp32", "loaded")]


def name_of(case: Case) -> str:
    return "-".join(str(part) for part in case if part)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return SmallWorld(tmp_path_factory.mktemp("mlm"))


def mlm_config(folder: Path, world: SmallWorld, **sections: Any) -> TrainConfig:
    """Packed rows of short documents, ragged micro-batches, and a step that is clipped at first."""
    settled: dict[str, Any] = {
        "stage": "mlm",
        "mlm": {"whole_words": True},
        "model": TINY_BERT | {"dropout": 0.0},
        "data": {"seq_len": 64},
        "train": {"max_steps": STEPS, "global_batch_sequences": ROWS, "micro_batch_sequences": 3},
        "evaluation": NO_ANSWERS,
        # A base of new weights knows nothing: guessing has ln 420 = 6.04 nats.
        "gate": {"max_first_loss": 7.0},
    }
    for key, keys in sections.items():
        settled[key] = settled.get(key, {}) | keys if isinstance(keys, dict) else keys
    return tiny_config(folder, world.shards, **settled)


@pytest.fixture(scope="module")
def runs(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlm-runs")
    for ranks in (1, 2):
        plan = []
        for case in (case for case in CASES if case[0] == ranks):
            _, engine, precision, special = case
            sections: dict[str, Any] = {"run": {"name": name_of(case)}, "engine": ENGINES[engine]}
            sections["train"] = {"precision": precision, "gradient_checkpointing": special == "checkpointing"}
            if special in ("lora", "loaded"):
                sections["model"] = {"from": str(world.bert)}
            if special == "lora":
                sections["adapter"] = {"rank": 4, "alpha": 8}
            config = mlm_config(folder / "runs", world, **sections)
            plan.append({"config": str(write_config(folder / f"{name_of(case)}.yaml", config))})
        path = folder / f"plan-{ranks}.json"
        path.write_text(json.dumps(plan))
        worker = [str(REPO / "tests/trainer/run_worker.py"), str(path)]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *worker]
        done = subprocess.run(launcher, cwd=REPO, env=environment(), capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder / "runs"


def difference(runs: Path, one: Case, other: Case) -> float:
    """The largest relative difference of two runs' losses and gradient norms."""
    found = [
        np.array([[line["loss"], line["grad_norm"]] for line in lines_of(runs / name_of(case) / "metrics.jsonl")])
        for case in (one, other)
    ]
    assert found[0].shape == found[1].shape == (STEPS, 2)
    return float(np.max(np.abs(found[0] - found[1]) / found[0]))


def same_start(case: Case) -> Case:
    return (1, "none", "fp32", case[3] if case[3] in ("lora", "loaded") else "")


@pytest.mark.parametrize("case", [case for case in CASES if case[2] == "fp32" and case[0] == 2], ids=name_of)
def test_law_6_masks_and_updates_do_not_depend_on_ranks_or_engine(runs: Path, case: Case) -> None:
    # float32 sums in another order; masks of other rows would differ in the second digit.
    assert difference(runs, same_start(case), case) < 1e-5


@pytest.mark.parametrize("case", [case for case in CASES if case[2] == "bf16"], ids=name_of)
def test_a_bf16_run_comes_near_the_fp32_one(runs: Path, case: Case) -> None:
    losses, expected = (losses_of(runs / name_of(each)) for each in (case, REFERENCE))

    # bf16 keeps 8 bits.
    assert all(abs(losses[step] / expected[step] - 1) < 8e-3 for step in expected)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_each_run_learns_and_tells_its_figures(runs: Path, case: Case) -> None:
    run = runs / name_of(case)
    metrics, evaluations = lines_of(run / "metrics.jsonl"), lines_of(run / "evaluations.jsonl")

    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert all(0 <= line["masked_accuracy"] <= 1 for line in metrics)
    assert evaluations[-1]["masked_perplexity"] == pytest.approx(np.exp(evaluations[-1]["loss"]))
    assert evaluations[-1]["num_targets"] > 0


def test_every_evaluation_asks_for_the_same_tokens(runs: Path) -> None:
    counts = {lines_of(runs / name_of(case) / "evaluations.jsonl")[-1]["num_targets"] for case in CASES}

    assert len(counts) == 1


def prepared_steps(config: TrainConfig, world: SmallWorld) -> Iterator[tuple[Updater, list[Batch]]]:
    """The run's own rows, stepped by its own parts; what each step trained on."""
    vocabulary = read_vocabulary(world.shards)
    model = make_trainable_model(config, LONE, vocabulary=vocabulary, kernel="sdpa")
    stream = open_stream(config, LONE)
    stream.rows.pad_with(vocabulary.pad_id)
    engine = PlainEngine(config, model=model, ranks=LONE)
    objective = make_objective(config, LONE, source=stream.rows, model=engine.model, kernel="sdpa")
    policy = StepPolicy(config.policy)
    updater = Updater(engine, objective, policy, LONE, seed=config.seed, stop_requested=lambda: False)
    for _ in range(STEPS):
        batches = stream.batches(dp_rank=0, dp_world_size=1, micro_batch_sequences=ROWS)
        yield updater, [batch for batch in batches if isinstance(batch, Batch)]
        stream.advance()


def test_losses_and_weights_equal_hugging_faces_trainer(world: SmallWorld, tmp_path: Path) -> None:
    micro = {"micro_batch_sequences": ROWS, "max_grad_norm": 0.5}
    config = mlm_config(tmp_path, world, model={"from": str(world.bert)}, train=micro)
    ours, rows = [], []
    for number, (updater, batches) in enumerate(prepared_steps(config, world)):
        (prepared,) = updater.objective.prepare(batches, is_training=True)
        assert isinstance(prepared, Batch)
        rows.append(prepared)
        lr = learning_rate(config.train.schedule, step=number, max_steps=STEPS)
        ours.append(updater.step(batches, number=number, lr=lr).loss)

    losses, weights = train_with_hugging_face(rows, config, world, tmp_path)

    assert np.max(np.abs(np.array(ours) - losses) / losses) < 1e-4
    scale = max(float(tensor.abs().max()) for tensor in weights.values())
    found = {name: tensor.detach() for name, tensor in updater.engine.model.named_parameters()}
    assert max(float((weights[name] - found[name]).abs().max()) for name in weights) / scale < 1e-4
    assert losses[-1] < losses[0]


def train_with_hugging_face(
    batches: list[Batch], config: TrainConfig, world: SmallWorld, folder: Path
) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """The same masked rows under transformers' Trainer, whose own model computes its own loss over all places."""
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForMaskedLM, Trainer, TrainingArguments

    model = AutoModelForMaskedLM.from_pretrained(world.bert, attn_implementation="sdpa")
    rows: list[dict[str, torch.Tensor]] = []
    for batch in batches:
        inputs = packed_inputs(batch, kernel="sdpa", device=torch.device("cpu"), reading=reading_of(model))
        inputs["labels"] = torch.from_numpy(batch.labels)
        rows += [{name: tensor[row] for name, tensor in inputs.items()} for row in range(len(batch.row_ids))]

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
            return SequentialSampler(rows)

    optimizer, schedule = config.train.optimizer, config.train.schedule
    arguments = TrainingArguments(
        output_dir=str(folder / "hf"),
        max_steps=STEPS,
        per_device_train_batch_size=ROWS,
        learning_rate=schedule.peak_lr,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        adam_epsilon=optimizer.eps,
        max_grad_norm=config.train.max_grad_norm,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    trainer = InOrder(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=lambda items: {name: torch.stack([item[name] for item in items]) for name in items[0]},
    )
    trainer.create_optimizer()
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
        trainer.optimizer,
        lambda step: learning_rate(schedule, step=min(step, STEPS - 1), max_steps=STEPS) / schedule.peak_lr,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return np.array(losses), {name: tensor.detach() for name, tensor in model.named_parameters()}


def test_masks_have_the_shares_of_transformers_own_collator(world: SmallWorld, tmp_path: Path) -> None:
    """Its formula and ours choose the same share of the same tokens, and treat them alike."""
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    tokenizer = AutoTokenizer.from_pretrained(world.bert)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, seed=1)
    config = mlm_config(tmp_path, world, mlm={"whole_words": False}, train={"micro_batch_sequences": ROWS})
    figures = np.zeros((2, 3))  # ours, theirs: chosen, masked, kept; of the same maskable tokens
    num_maskable = 0
    for updater, (batch,) in prepared_steps(config, world):
        for epoch in range(20):
            raw = Batch(**{**vars(batch), "epochs": np.full(ROWS, epoch)})
            (prepared,) = updater.objective.prepare([raw], is_training=True)
            assert isinstance(prepared, Batch)
            theirs = collator([{"input_ids": row.tolist()} for row in batch.input_ids])
            for number, (ids, labels) in enumerate(
                ((prepared.input_ids, prepared.labels), (theirs["input_ids"].numpy(), theirs["labels"].numpy()))
            ):
                chosen = labels != -100
                seen, was = ids[chosen], batch.input_ids[chosen]
                figures[number] += chosen.sum(), (seen == tokenizer.mask_token_id).sum(), (seen == was).sum()
            num_maskable += int((batch.labels != -100).sum())

    ours, others = figures
    # 50,000 tokens: the standard error of a share of 15 % is 0.002, of 80 % of those 0.005.
    assert ours[0] / num_maskable == pytest.approx(others[0] / num_maskable, abs=0.01)
    assert ours[1] / ours[0] == pytest.approx(others[1] / others[0], abs=0.02)
    assert ours[2] / ours[0] == pytest.approx(others[2] / others[0], abs=0.02)
