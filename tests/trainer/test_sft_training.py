"""`stage: sft` as a whole: the losses of trl's SFTTrainer, packing that changes no gradient, and awkward tokenizers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.stage import StageError
from data_pipeline.stream.batch import NO_TARGET, Batch
from data_pipeline.stream.rows import open_rows
from data_pipeline.stream.stream import Stream
from tests.trainer.small_world import NO_ANSWERS, SmallWorld
from tests.trainer.tiny_run import losses_of, tiny_config
from tests.trainer.tiny_sft import MODEL, make_base, sft_config
from trainer.adapter import peft_config
from trainer.base import pin_base
from trainer.config import TrainConfig
from trainer.conversation import open_speaker
from trainer.errors import RunError
from trainer.export import ExportOptions, export
from trainer.model import read_vocabulary
from trainer.objectives.causal_lm import CausalLM
from trainer.ranks import Ranks
from trainer.resilience import StopFlag
from trainer.run import run_in_group
from trainer.saved import find_saved
from trainer.schedule import learning_rate
from trainer.setup import make_trainable_model, set_up

pytestmark = pytest.mark.stages

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
STEPS = 8


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return SmallWorld(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def base(world: SmallWorld) -> Path:
    return make_base(world)


def config_of(folder: Path, world: SmallWorld, base: Path, tuning: str) -> TrainConfig:
    """Without dropout, and so that some steps are clipped; its base is a folder that anyone can load."""
    adapter = {} if tuning == "full" else {"adapter": {"rank": 8, "dropout": 0.0}}
    schedule = {"warmup_steps": 2, "peak_lr": 1e-3}
    train = {"max_steps": STEPS, "schedule": schedule, "optimizer": {"kind": "adamw"}, "max_grad_norm": 0.5}
    config = sft_config(folder, world, base, tuning, train=train, **adapter)
    folder.mkdir(exist_ok=True)
    return pin_base(config, folder, ALONE)


def model_of(config: TrainConfig) -> Any:
    vocabulary = read_vocabulary(Path(config.data.shards))
    return make_trainable_model(config, ALONE, vocabulary=vocabulary, kernel="sdpa")


def stream_of(config: TrainConfig) -> Stream:
    data, steps = config.data, config.train
    rows = open_rows(Path(data.shards), split="train", seq_len=data.seq_len, packing="best_fit")
    return Stream(rows, seed=config.seed, global_batch_sequences=steps.global_batch_sequences)


def step_batch(stream: Stream) -> Batch:
    """The whole current step as one batch."""
    [batch] = stream.batches(dp_rank=0, dp_world_size=1, micro_batch_sequences=stream.global_batch_sequences)
    return batch


def documents_of(batch: Batch) -> list[Batch]:
    """Each packed document as a row of its own, without padding."""
    found = []
    for row in range(len(batch.input_ids)):
        starts = [*np.flatnonzero(batch.position_ids[row] == 0), batch.position_ids.shape[1]]
        for start, end in zip(starts, starts[1:], strict=False):
            arrays = (batch.input_ids, batch.labels, batch.position_ids)
            ids, labels, positions = (np.ascontiguousarray(array[row : row + 1, start:end]) for array in arrays)
            if (num_targets := int((labels != NO_TARGET).sum())) > 0:
                found.append(Batch(ids, labels, positions, np.zeros(1, np.int64), num_targets))
    return found


@pytest.mark.parametrize("tuning", ["full", "lora", "qlora"])
def test_losses_equal_trls_sft_trainer(world: SmallWorld, base: Path, tmp_path: Path, tuning: str) -> None:
    config = config_of(tmp_path / "runs", world, base, tuning)
    theirs = train_with_trl(config, tmp_path)

    assert run_in_group(config, ALONE, stop=StopFlag()) == 0

    ours = np.array(list(losses_of(tmp_path / "runs/run").values()))
    assert ours[-1] < ours[0] - 0.01
    assert np.max(np.abs(ours - theirs) / ours) < 1e-4


def train_with_trl(config: TrainConfig, folder: Path) -> np.ndarray:
    """The same documents, step by step, under trl: its labels from completion masks, padding-free in one flat row."""
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    stream, examples, steps = stream_of(config), [], []
    for _ in range(STEPS):
        documents = documents_of(step_batch(stream))
        steps.append(list(range(len(examples), len(examples) + len(documents))))
        examples += [example_of(document) for document in documents]
        stream.advance()
    assert any(len(step) > config.train.global_batch_sequences for step in steps), "rows hold several documents"

    class InOrder(SFTTrainer):
        def get_train_dataloader(self) -> DataLoader:
            return DataLoader(self.train_dataset, batch_sampler=steps, collate_fn=self.data_collator)

    optimizer, peak = config.train.optimizer, config.train.schedule.peak_lr
    arguments = SFTConfig(
        output_dir=str(folder / "trl"),
        max_steps=STEPS,
        per_device_train_batch_size=1,
        learning_rate=peak,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        adam_epsilon=optimizer.eps,
        max_grad_norm=config.train.max_grad_norm,
        completion_only_loss=True,
        padding_free=True,
        max_length=None,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = InOrder(
        model=as_peft_has_it(config),
        args=arguments,
        train_dataset=Dataset.from_list(examples),
        processing_class=AutoTokenizer.from_pretrained(world_tokenizer(config)),
    )
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:  # trl trains the adapters of a 4-bit base in bf16, whatever the precision
            parameter.data = parameter.data.float()
    trainer.create_optimizer()
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
        trainer.optimizer,
        lambda step: learning_rate(config.train.schedule, step=min(step, STEPS - 1), max_steps=STEPS) / peak,
    )
    trainer.train()
    return np.array([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


def as_peft_has_it(config: TrainConfig) -> Any:
    """Our model; an adapter as peft wraps its base by itself, with our first values, for trl takes no other."""
    from peft import get_peft_model

    ours = model_of(config)
    if config.adapter is None:
        return ours
    base = model_of(config.model_copy(update={"adapter": None}))
    wrapped = get_peft_model(base, peft_config(config.adapter, base))
    values = {name: parameter for name, parameter in ours.named_parameters() if parameter.requires_grad}
    theirs = {name: parameter for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert {f"base_model.model.{name}" for name in values} == set(theirs)
    for name, value in values.items():
        theirs[f"base_model.model.{name}"].data = value.detach().clone()
    return wrapped


def example_of(document: Batch) -> dict[str, list[int]]:
    """The ids of a document with its EOS, and which of them are targets."""
    ids = [*document.input_ids[0].tolist(), int(document.labels[0, -1])]
    return {"input_ids": ids, "completion_mask": [0, *(document.labels[0] != NO_TARGET).astype(int).tolist()]}


def world_tokenizer(config: TrainConfig) -> Path:
    return Path(config.data.shards) / "tokenizer"


@pytest.mark.parametrize("tuning", ["full", "qlora"])
def test_rows_one_by_one_and_rows_packed_give_the_same_gradient(
    world: SmallWorld, base: Path, tmp_path: Path, tuning: str
) -> None:
    config = config_of(tmp_path, world, base, tuning)
    model, batch = model_of(config), step_batch(stream_of(config))
    objective = CausalLM(kernel="sdpa", device=ALONE.device)
    documents = documents_of(batch)

    packed = gradient(model, objective, [batch])
    alone = gradient(model, objective, documents)

    assert len(documents) > len(batch.input_ids)
    assert sum(document.num_targets for document in documents) == batch.num_targets
    assert packed.norm() > 0.1
    assert float((packed - alone).norm() / packed.norm()) < 1e-5


def gradient(model: Any, objective: CausalLM, batches: list[Batch]) -> torch.Tensor:
    """The flat gradient of the mean loss over all targets of `batches`."""
    model.zero_grad()
    # B is zero at first, and so A's gradient: some value lets every adapter's matrix have one.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.sin(torch.arange(parameter.numel())).view_as(parameter) / 10)
    num_targets = sum(batch.num_targets for batch in batches)
    for batch in batches:
        (objective(model, batch) / num_targets).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.requires_grad])


def without_pad(tokenizer: Path, folder: Path, *, pad: str | None) -> Path:
    """A copy of a tokenizer whose settings name `pad` as its pad token, or none."""
    shutil.copytree(tokenizer, folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            settings = json.loads((folder / name).read_text())
            settings.pop("pad_token", None)
            (folder / name).write_text(json.dumps(settings | ({"pad_token": pad} if pad else {})))
    return folder


@pytest.mark.parametrize("pad", [None, "<|endoftext|>"])
def test_without_a_pad_token_and_without_a_free_row_eos_stays_a_target_and_padding_never_is(
    world: SmallWorld, tmp_path: Path, pad: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = SmallWorld(tmp_path)
    odd.__dict__["tokenizer"] = without_pad(world.tokenizer, tmp_path / "tokenizer", pad=pad)
    config = sft_config(tmp_path / "runs", odd, make_base(odd), "lora", train={"max_steps": 2})

    assert run_in_group(config, ALONE, stop=StopFlag()) == 0

    rows = open_rows(odd.instruction_shards, split="train", seq_len=config.data.seq_len, packing="best_fit")
    assert rows.shards.pad_is_eos
    told = capsys.readouterr().out
    assert "(pad is EOS)" in told and "no pad token, no free row (420 tokens, 420 rows)" in told
    batch = step_batch(stream_of(config))
    eos_targets = (batch.labels == rows.shards.eos_id).sum()
    assert eos_targets == len(documents_of(batch))
    is_padding = (batch.input_ids == rows.shards.eos_id) & (batch.labels == NO_TARGET)
    assert is_padding.sum() > 0
    model = model_of(pin_base(config, tmp_path / "runs/run", ALONE))
    embedding = model.get_input_embeddings()
    assert embedding.padding_idx is None or embedding.padding_idx != rows.shards.eos_id


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_without_a_pad_token_a_free_row_pads_training_answers_chat_and_export(
    world: SmallWorld, tmp_path: Path, tuning: str, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = SmallWorld(tmp_path)
    odd.__dict__["tokenizer"] = without_pad(world.tokenizer, tmp_path / "tokenizer", pad=None)
    shape = MODEL | {"pad_vocab_to_multiple": 64}
    base = odd.train("base", odd.shards, model=shape, train={"max_steps": 4}, evaluation=NO_ANSWERS)
    config = sft_config(tmp_path / "runs", odd, base, tuning, train={"max_steps": 2})

    assert run_in_group(config, ALONE, stop=StopFlag()) == 0
    saved = find_saved(tmp_path / "runs/run")
    export(saved, tmp_path / "exported", ExportOptions())

    row = 420  # of 448
    told = capsys.readouterr().out
    assert told.count("id 420: no pad token, so a free row (420 tokens, 448 rows)") == 2  # the base's gate, and ours
    assert open_speaker(saved).pad_id == row
    files = ["generation_config.json", *(["config.json"] if tuning == "full" else [])]
    pads = [json.loads((tmp_path / "exported" / file).read_text())["pad_token_id"] for file in files]
    assert pads == [row] * len(files)
    kept = (tmp_path / "exported/tokenizer.json").read_bytes()
    assert kept == (odd.tokenizer / "tokenizer.json").read_bytes()
    exported_base = Path(pin_base(config, tmp_path / "runs/run", ALONE).model.source or "")
    assert json.loads((exported_base / "config.json").read_text())["pad_token_id"] == row


@pytest.mark.parametrize(
    ("stage", "shards", "message"),
    [
        (
            "sft",
            "shards",
            "stage: 'sft' trains on 'instruction' records, but .* holds 'document' records; set stage to",
        ),
        ("pretrain", "instruction_shards", "stage: 'pretrain' trains on 'document' records, but .* 'instruction'"),
    ],
)
def test_a_stage_and_shards_that_disagree_are_refused_with_both_values(
    world: SmallWorld, tmp_path: Path, stage: str, shards: str, message: str
) -> None:
    config = tiny_config(tmp_path, getattr(world, shards), stage=stage)

    with pytest.raises(RunError, match=message):
        set_up(config, ALONE)


def test_a_row_longer_than_the_window_is_refused_or_dropped_with_a_count(
    world: SmallWorld, base: Path, tmp_path: Path
) -> None:
    def config(**data: Any) -> TrainConfig:
        return sft_config(tmp_path, world, base, "full", data=data, train={"global_batch_sequences": 2})

    documents = documents_of(step_batch(stream_of(config())))
    seq_len = max(document.input_ids.shape[1] for document in documents) - 1

    with pytest.raises(StageError, match=rf"longer than .*{seq_len}"):
        stream_of(config(seq_len=seq_len))
    run = set_up(pin_base(config(seq_len=seq_len, too_long="drop"), tmp_path, ALONE), ALONE)

    counts = run.stream.rows.counts
    assert 0 < counts.num_documents_too_long < run.stream.rows.shards.num_documents
