"""Preference stages as they train: beside trl on equal rows and weights, against the reference that they begin on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model

from data_pipeline import disk
from data_pipeline.stream.batch import NO_ROW
from data_pipeline.stream.examples import ExampleBatch
from tests.data_pipeline.stream.answer_shards import PAD, make_answer_shards
from tests.trainer.tiny_run import lines_of, losses_of, tiny_config
from trainer import reference_table
from trainer.adapter import peft_config
from trainer.config import TrainConfig
from trainer.errors import RunError
from trainer.model import make_model, read_vocabulary
from trainer.objectives.choose import make_objective
from trainer.objectives.kto import Kto
from trainer.objectives.log_probs import answer_log_probs
from trainer.ranks import Ranks
from trainer.reference import FOLDER_NAME, Reference, without_adapter
from trainer.resilience import StopFlag
from trainer.run import run_in_group
from trainer.schedule import learning_rate
from trainer.setup import make_trainable_model
from trainer.sources import open_source, open_stream
from trainer.stages import STAGES

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
STEPS = 4
LORA = {"adapter": {"rank": 4, "dropout": 0.0}}

pytestmark = pytest.mark.stages


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of pairs and of feedback, and a base of new weights that knows their ids."""
    folder = tmp_path_factory.mktemp("answers")
    make_answer_shards(folder / "preference", "preference")
    make_answer_shards(folder / "feedback", "feedback")
    config = tiny_config(folder, folder / "preference", model={"dropout": 0.0, "initializer_range": 0.3})
    options: dict[str, Any] = {"kernel": "sdpa", "dtype": torch.float32, "seed": 5}
    base: Any = make_model(config.model, vocabulary=read_vocabulary(folder / "preference"), **options)
    base.save_pretrained(folder / "base")
    return folder


def config_of(place: Path, folder: Path, stage: str, **sections: Any) -> TrainConfig:
    """STEPS steps of 6 rows without dropout, from the base."""
    tree: dict[str, Any] = {
        "stage": stage,
        "model": {"from": str(place / "base")},
        "data": {"seq_len": 48, "group_by_length": False},
        "train": {"max_steps": STEPS, "global_batch_sequences": 6, "micro_batch_sequences": 6},
    }
    for section, keys in sections.items():
        tree[section] = tree.get(section, {}) | keys
    return tiny_config(folder, place / STAGES[stage].record, **tree)  # type: ignore[index]


def model_of(config: TrainConfig) -> Any:
    return make_trainable_model(config, ALONE, vocabulary=read_vocabulary(Path(config.data.shards)), kernel="sdpa")


def objective_of(config: TrainConfig, model: Any) -> Any:
    return make_objective(config, ALONE, source=open_source(config, build=True), model=model, kernel="sdpa")


def steps_of(config: TrainConfig) -> list[ExampleBatch]:
    """Each step as one batch."""
    stream, found = open_stream(config, ALONE), []
    for _ in range(config.train.last_step):
        [batch] = stream.batches(dp_rank=0, dp_world_size=1, micro_batch_sequences=stream.global_batch_sequences)
        assert isinstance(batch, ExampleBatch)
        found.append(batch)
        stream.advance()
    return found


@pytest.mark.parametrize("stage", ["dpo", "dpo-ipo", "kto", "reward"])
def test_losses_equal_trls(place: Path, tmp_path: Path, stage: str) -> None:
    """Adapters beside the same base, the same rows in the same steps, clipped alike."""
    name, _, loss = stage.partition("-")
    choices = {"dpo": {"beta": 0.3} | ({"loss": loss} if loss else {}), "kto": {"beta": 0.3}}.get(name, {})
    more = {name: choices} if choices else {}
    config = config_of(place, tmp_path, name, **LORA, **more)
    theirs = _train_with_trl(config, tmp_path)

    assert run_in_group(config, ALONE, stop=StopFlag()) == 0

    ours = np.array(list(losses_of(tmp_path / "run").values()))
    assert np.ptp(ours) > 1e-3
    assert np.max(np.abs(ours - theirs) / ours) < 1e-4


def _train_with_trl(config: TrainConfig, folder: Path) -> np.ndarray:
    import trl
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers import PreTrainedTokenizerFast

    model = _as_peft_has_it(config)
    rows, num_rows = _rows_for_trl(config, model), config.train.global_batch_sequences
    steps = [list(range(start, start + num_rows)) for start in range(0, len(rows), num_rows)]
    kind = {"dpo": trl.DPOTrainer, "kto": trl.KTOTrainer, "reward": trl.RewardTrainer}[config.stage]

    class InOrder(kind):  # type: ignore[misc, valid-type]
        def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
            return dataset

        def get_train_dataloader(self) -> DataLoader:
            return DataLoader(self.train_dataset, batch_sampler=steps, collate_fn=self.data_collator)

    optimizer, peak = config.train.optimizer, config.train.schedule.peak_lr
    more: dict[str, Any] = {}
    if config.dpo is not None:
        more = {"beta": config.dpo.beta, "loss_type": config.dpo.loss}
    if config.kto is not None:
        more = {"beta": config.kto.beta}
    arguments = {"dpo": trl.DPOConfig, "kto": trl.KTOConfig, "reward": trl.RewardConfig}[config.stage](
        output_dir=str(folder / "trl"),
        max_steps=STEPS,
        per_device_train_batch_size=num_rows,
        learning_rate=peak,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        adam_epsilon=optimizer.eps,
        max_grad_norm=config.train.max_grad_norm,
        max_length=None,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        **more,
    )
    trainer = InOrder(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=_tokenizer(), eos_token="0", pad_token=str(PAD)),
    )
    trainer.lr_scheduler = None
    trainer.create_optimizer()
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
        trainer.optimizer,
        lambda step: learning_rate(config.train.schedule, step=min(step, STEPS - 1), max_steps=STEPS) / peak,
    )
    trainer.train()
    return np.array([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


def _as_peft_has_it(config: TrainConfig) -> Any:
    """Our model with its adapter as peft wraps it by itself, for trl takes no other."""
    ours = model_of(config)
    assert config.adapter is not None
    base = model_of(config.model_copy(update={"adapter": None}))
    head = STAGES[config.stage].head
    described = peft_config(config.adapter, base, head=head)
    if head == "classifier":
        described.modules_to_save = ["score"]
    wrapped = get_peft_model(base, described)
    theirs = {name.replace(".default", ""): each for name, each in wrapped.named_parameters() if each.requires_grad}
    values = {name.replace(".default", ""): each for name, each in ours.named_parameters() if each.requires_grad}
    for name, value in values.items():
        place = f"base_model.model.{name}"
        place = place if place in theirs else place.replace("score.", "score.modules_to_save.")
        theirs.pop(place).data = value.detach().clone()
    assert not theirs
    return wrapped


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({str(number): number for number in range(97)}, unk_token="2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def _rows_for_trl(config: TrainConfig, model: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    objective = objective_of(config, model_of(config)) if config.stage == "kto" else None
    for batch in steps_of(config):
        if objective is not None:
            [batch] = objective.prepare([batch], is_training=True)
        assert batch.answers is not None
        texts = [ids[:length].tolist() for ids, length in zip(batch.input_ids, batch.lengths, strict=True)]
        spans = batch.answers.tolist()
        parts = [(ids[:start], ids[start:end]) for ids, (start, end) in zip(texts, spans, strict=True)]
        for row, (first, second) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
            if config.stage == "kto":
                label = bool(batch.values[row])
                rows.append(
                    {"prompt_ids": first[0], "completion_ids": first[1], "KL_completion_ids": second[1], "label": label}
                )
            elif config.stage == "reward":
                rows.append({"chosen_ids": texts[2 * row], "rejected_ids": texts[2 * row + 1]})
            else:
                rows.append({"prompt_ids": first[0], "chosen_ids": first[1], "rejected_ids": second[1]})
    return rows


@pytest.mark.parametrize("stage", ["orpo", "cpo"])
def test_a_step_of_orpo_and_cpo_is_trls_but_for_the_nats_of_the_prompt(place: Path, tmp_path: Path, stage: str) -> None:
    """trl adds the mean nats of all chosen ids of a batch, ORPO's with the prompts' (orpo_trainer.py, line 799), which
    the paper's equation 2 has not. Ours is the mean over rows of each answer's mean (equations 3 and 6), so that no
    row's weight depends on its batch.
    """
    config = config_of(place, tmp_path, stage)
    model, [batch, *_] = model_of(config), steps_of(config)
    objective = objective_of(config, model)
    loss = float(objective(model, batch).detach()) / batch.num_targets

    theirs, nats = _trls_metrics(stage, config, model, batch)

    averages = answer_log_probs(model, batch, head=model.get_output_embeddings(), device=ALONE.device).averages
    assert loss == pytest.approx(theirs - nats - float(averages[::2].mean()), rel=1e-4)
    assert loss > 1.0


def _trls_metrics(stage: str, config: TrainConfig, model: Any, batch: ExampleBatch) -> tuple[float, float]:
    """trl's loss of a batch, and what its nats of the chosen texts have a part in it."""
    import importlib
    from types import SimpleNamespace

    kind = getattr(importlib.import_module(f"trl.experimental.{stage}.{stage}_trainer"), f"{stage.upper()}Trainer")
    assert batch.answers is not None
    ids = torch.from_numpy(batch.input_ids)
    mask = torch.arange(ids.shape[1])[None] < torch.from_numpy(batch.lengths)[:, None]
    is_answer = mask & (torch.arange(ids.shape[1])[None] >= torch.from_numpy(batch.answers[:, :1]))
    tensors: dict[str, torch.Tensor] = {}
    for number, side in enumerate(("chosen", "rejected")):
        tensors[f"{side}_input_ids"] = ids[number::2]
        tensors[f"{side}_attention_mask"] = mask[number::2].long()
        tensors[f"{side}_labels"] = torch.where(is_answer, ids, -100)[number::2]
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda value: value),
        is_encoder_decoder=False,
        padding_value=PAD,
        pad_token_id=PAD,
        aux_loss_enabled=False,
        beta=config.orpo.odds_weight if config.orpo is not None else 0.1,
        loss_type="sigmoid",
        label_smoothing=0.0,
        cpo_alpha=1.0,
        alpha=0.0,
        concatenated_inputs=kind.concatenated_inputs,
        get_batch_logps=kind.get_batch_logps,
    )
    for name in ("concatenated_forward", "cpo_loss", "odds_ratio_loss"):
        if hasattr(kind, name):
            setattr(trainer, name, getattr(kind, name).__get__(trainer))
    loss, metrics = kind.get_batch_loss_metrics(trainer, model, tensors)
    return float(loss.detach()), float(metrics["nll_loss"])


def test_the_reference_is_the_base_whether_on_the_fly_or_from_its_table(place: Path, tmp_path: Path) -> None:
    found = {}
    for kind in ("on_the_fly", "precomputed"):
        for size in (6, 1):
            config = config_of(
                place,
                tmp_path / f"{kind}-{size}",
                "dpo",
                **LORA,
                dpo={"reference": kind},
                train={"micro_batch_sequences": size},
            )
            assert run_in_group(config, ALONE, stop=StopFlag()) == 0
            found[kind, size] = list(losses_of(tmp_path / f"{kind}-{size}/run").values())

    alone = found["on_the_fly", 6]
    assert alone[0] == pytest.approx(np.log(2), abs=1e-6) and abs(alone[-1] - alone[0]) > 1e-3
    for losses in found.values():
        assert losses == pytest.approx(alone, rel=1e-5)
    tables = list((tmp_path / "precomputed-6/run" / FOLDER_NAME).glob("*/table.json"))
    assert sorted(disk.read_object(path)["rows"] for path in tables) == [24, 30], "4 steps of 6, and all held-out rows"
    assert not (tmp_path / "on_the_fly-6/run" / FOLDER_NAME).exists()


def test_the_base_without_its_adapter_is_the_base_to_the_bit(place: Path, tmp_path: Path) -> None:
    config = config_of(place, tmp_path, "dpo", **LORA)
    base, tuned = model_of(config.model_copy(update={"adapter": None})), model_of(config)
    [batch, *_] = steps_of(config)

    def sums(model: Any) -> torch.Tensor:
        return answer_log_probs(model, batch, head=model.get_output_embeddings(), device=ALONE.device).sums.detach()

    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    trainable = {name for name, each in tuned.named_parameters() if each.requires_grad}
    with without_adapter(tuned):
        of_reference = sums(tuned)

    assert torch.equal(of_reference, sums(base))
    assert not torch.allclose(sums(tuned), sums(base), atol=1e-2)
    assert tuned.training and trainable == {name for name, each in tuned.named_parameters() if each.requires_grad}


def test_a_tuning_of_all_weights_keeps_what_its_beginning_says(place: Path, tmp_path: Path) -> None:
    """The table is made once; a resume reads it, and one that lost it or finds it damaged makes it of model.from."""
    config = config_of(place, tmp_path, "dpo", checkpoint={"every_steps": 2})
    assert run_in_group(config, ALONE, stop=StopFlag()) == 0
    whole = losses_of(tmp_path / "run")
    files = sorted((tmp_path / "run" / FOLDER_NAME).glob("*/values.bin"))
    contents = [path.read_bytes() for path in files]
    assert len(files) == 2
    assert whole[1] == pytest.approx(np.log(2), abs=1e-6) and abs(whole[4] - whole[1]) > 1e-3
    for damage in (lambda path: shutil.rmtree(path.parent), _flip_a_byte, _cut_short):
        for path in files:
            damage(path)
        shutil.rmtree(tmp_path / "run/checkpoints/step-00000004")

        assert run_in_group(config, ALONE, stop=StopFlag()) == 0

        assert losses_of(tmp_path / "run") == whole
        assert [path.read_bytes() for path in files] == contents


def _flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[6] ^= 1
    path.write_bytes(bytes(data))


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def test_law_12_a_stop_while_the_reference_speaks_is_heard_at_once_and_what_is_done_stays(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_table, "PART_ROWS", 10)
    config = config_of(place, tmp_path, "dpo", evaluation={"micro_batch_sequences": 2})
    model = model_of(config)
    objective = objective_of(config, model)
    spoken: list[int] = []

    def compute(*, until: int) -> bool:
        return bool(
            objective.before_training(
                model,
                tmp_path,
                micro_batch_sequences=2,
                stop_requested=lambda: len(spoken) >= until,
                on_batch=lambda: spoken.append(1),
            )
        )

    assert not compute(until=8) and len(spoken) == 8
    parts = sorted(path.name for path in (tmp_path / FOLDER_NAME).glob("*/part-*"))
    assert parts == ["part-00000"], "the part that was cut off is not there"
    assert compute(until=1000)
    assert len(spoken) == 8 + (24 - 10 + 30) // 2
    assert not list((tmp_path / FOLDER_NAME).glob("*/part-*"))


def test_a_table_of_another_model_is_found_before_step_1(place: Path, tmp_path: Path) -> None:
    """Whole by its own hash, and wrong."""
    config = config_of(place, tmp_path, "kto")
    assert run_in_group(config, ALONE, stop=StopFlag()) == 0
    for path in (tmp_path / "run" / FOLDER_NAME).glob("*/values.bin"):
        path.write_bytes((np.frombuffer(path.read_bytes()) * 1.5).tobytes())
        told = disk.read_object(path.with_name("table.json"))
        disk.write_json(path.with_name("table.json"), told | {"sha256": disk.sha256_of(path)})
    shutil.rmtree(tmp_path / "run/checkpoints")

    with pytest.raises(RunError, match=r"gate: begins as its reference: ln p of an answer is .* of itself apart"):
        run_in_group(config, ALONE, stop=StopFlag())


def test_a_second_copy_of_all_weights_is_not_held(place: Path, tmp_path: Path) -> None:
    config = config_of(place, tmp_path, "dpo", dpo={"reference": "on_the_fly"})

    with pytest.raises(
        RunError, match=r"dpo.reference: 'on_the_fly' is the base without its adapter, but every weight"
    ):
        Reference.make(_setting(config), kind="on_the_fly")


def _setting(config: TrainConfig) -> Any:
    from trainer.objectives.choose import Setting

    return Setting(config, ALONE, open_source(config, build=True), model_of(config), "sdpa")


def test_ktos_distance_is_one_number_a_step_whatever_its_split(place: Path, tmp_path: Path) -> None:
    """And is measured on answers of other prompts, the same ones each time."""
    losses = []
    for size in (6, 1):
        folder = tmp_path / str(size)
        config = config_of(place, folder, "kto", **LORA, kto={"beta": 0.5}, train={"micro_batch_sequences": size})
        assert run_in_group(config, ALONE, stop=StopFlag()) == 0
        losses.append(list(losses_of(folder / "run").values()))
        lines = lines_of(folder / "run/metrics.jsonl")
        assert lines[0]["kl"] == pytest.approx(0, abs=1e-5) and lines[-1]["kl"] > 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)

    objective = objective_of(config, model_of(config))
    assert isinstance(objective, Kto)
    [batch, *_] = steps_of(config)
    [prepared], [again] = (objective.prepare([batch], is_training=True) for _ in range(2))
    assert np.array_equal(prepared.input_ids, again.input_ids)
    starts, ends = prepared.answers.T
    for row in range(len(batch.row_ids)):
        own, other = 2 * row, 2 * row + 1
        assert starts[own] == starts[other]
        assert np.array_equal(prepared.input_ids[own, : starts[own]], prepared.input_ids[other, : starts[own]])
        texts = [prepared.input_ids[place, starts[place] : ends[place]].tolist() for place in (own, other)]
        assert texts[0] != texts[1]
    rows = open_source(config, build=True)
    for number in range(rows.num_rows):  # two of each prompt stand side by side
        one = rows.gather(np.array([number]))
        prompt = one.input_ids[0, : one.answers[0, 0]]
        other = objective.other_row(number, prompt, is_training=True)
        assert not np.array_equal(other.input_ids[0, : other.answers[0, 0]], prompt)
    empty = objective.expand(open_source(config, build=True).padding(), True)
    assert empty.row_ids.tolist() == [NO_ROW] and empty.answers.tolist() == [[0, 0], [0, 0]]
