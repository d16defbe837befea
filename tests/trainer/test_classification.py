"""`stage: classify`: its loss and figures, its head, what padding may not do, and Hugging Face's Trainer beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional

from data_pipeline.shards.format import read_shards
from data_pipeline.stream.examples import ExampleBatch, ExampleRows
from tests.data_pipeline.shards.example_folders import build, stage_of, write_bert, write_roberta
from tests.trainer.small_world import NLI, TINY_BERT, SmallWorld, small_world
from tests.trainer.test_resume import DONE, ENGINES, work
from tests.trainer.tiny_run import losses_of, tiny_config, write_config
from trainer.config import TrainConfig
from trainer.errors import RunError
from trainer.model import Vocabulary, make_model
from trainer.model_config import ModelConfig
from trainer.objectives.choose import make_objective
from trainer.objectives.classification import Classification, classification_figures
from trainer.ranks import Ranks
from trainer.sources import open_source, open_stream

CPU = torch.device("cpu")
ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=CPU)
LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "max_positions": 128,
    "initializer_range": 0.2,
}
BERT = TINY_BERT | {"initializer_range": 0.2}
MODELS: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "roberta": BERT | {"architecture": "roberta"},
    "llama": LLAMA,
    "gpt_neox": LLAMA | {"architecture": "gpt_neox"},
}
VOCABULARY = Vocabulary(size=97, eos_id=0, pad_id=1)
SEP = 4


def built(name: str, *, vocabulary: Vocabulary = VOCABULARY, seed: int = 1, **keys: Any) -> Any:
    config = ModelConfig.model_validate({"pad_vocab_to_multiple": 1, **MODELS[name], **keys})
    options: dict[str, Any] = {"kernel": "sdpa", "dtype": torch.float32, "head": "classifier", "labels": NLI}
    return make_model(config, vocabulary=vocabulary, seed=seed, **options).eval()


def examples(lengths: list[int], *, width: int, pad_id: int, seed: int = 3) -> ExampleBatch:
    """Examples of those lengths, each a function of its place and `seed` alone, padded to `width`."""
    ids = np.full((len(lengths), width), pad_id, np.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = np.random.default_rng([seed, row]).integers(6, 90, length)
        ids[row, length // 2] = ids[row, length - 1] = SEP
    numbers = np.arange(len(lengths), dtype=np.float64) % 3
    return ExampleBatch(ids, np.array(lengths), numbers, np.arange(len(lengths)), num_targets=len(lengths))


def one_by_one(batch: ExampleBatch) -> Iterator[ExampleBatch]:
    for row in range(len(batch.row_ids)):
        length = int(batch.lengths[row])
        values, ids = batch.values[row : row + 1], batch.row_ids[row : row + 1]
        yield ExampleBatch(batch.input_ids[row : row + 1, :length], batch.lengths[row : row + 1], values, ids, 1)


def test_figures_are_those_of_the_confusion_matrix() -> None:
    figures = classification_figures(np.array([[6, 2], [1, 3]]), labels=("bad", "good"))

    assert figures["accuracy"] == pytest.approx(9 / 12)
    assert figures["binary_f1"] == pytest.approx(6 / 9)
    assert figures["macro_f1"] == pytest.approx((12 / 15 + 6 / 9) / 2)
    assert figures["confusion"] == [[6, 2], [1, 3]]


def test_a_class_that_is_neither_there_nor_predicted_has_f1_zero() -> None:
    figures = classification_figures(np.array([[4, 0, 0], [1, 3, 0], [0, 0, 0]]), labels=("a", "b", "c"))

    assert figures["macro_f1"] == pytest.approx((8 / 9 + 6 / 7) / 3)
    assert "binary_f1" not in figures


def test_a_weighted_loss_is_torchs_and_does_not_depend_on_its_split() -> None:
    model, batch = built("bert"), examples([9, 4, 12, 7], width=12, pad_id=1)
    weights = (0.5, 2.0, 1.25)
    objective = Classification(device=CPU, labels=NLI, weights=weights, sep_id=SEP)

    parts = list(one_by_one(batch))
    whole = objective(model, batch) / objective.weight(batch)
    split = torch.stack([objective(model, part) for part in parts]).sum() / sum(map(objective.weight, parts))
    numbers = torch.from_numpy(batch.values.astype(np.int64))
    expected = functional.cross_entropy(objective.logits(model, batch), numbers, weight=torch.tensor(weights))

    assert whole.item() == pytest.approx(expected.item(), rel=1e-6)
    assert split.item() == pytest.approx(expected.item(), rel=1e-5)
    unweighted = dataclasses.replace(objective, weights=None)(model, batch) / 4
    assert whole.item() != pytest.approx(unweighted.item(), rel=1e-3)


def test_an_example_of_padding_alone_counts_for_nothing_and_joins_every_parameter() -> None:
    model = built("bert")
    objective = Classification(device=CPU, labels=NLI, weights=(1.0, 2.0, 3.0), sep_id=SEP)
    nothing = ExampleBatch(np.full((1, 1), 1), np.ones(1, np.int64), np.full(1, np.nan), np.full(1, -1), num_targets=0)

    outcome = objective.outcome(model, nothing)
    outcome.loss.backward()

    assert objective.weight(nothing) == 0 and float(outcome.loss) == 0
    assert float(outcome.sums["accuracy"]) == 0
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "position" not in name)


@pytest.mark.parametrize("name", MODELS)
def test_what_pads_an_example_moves_none_of_its_logits(name: str) -> None:
    model, lengths = built(name), [9, 4, 12, 7]
    objective = Classification(device=CPU, labels=NLI, sep_id=SEP)
    with torch.no_grad():
        together = objective.logits(model, examples(lengths, width=30, pad_id=VOCABULARY.pad_id))
        alone = [objective.logits(model, each) for each in one_by_one(examples(lengths, width=12, pad_id=1))]

    # float32: sums over masked places in another order.
    assert float((together - torch.cat(alone)).abs().max()) < 1e-5
    assert float((together[0] - together[1]).abs().max()) > 1e-2


def test_the_last_token_is_what_a_llama_classifies_by() -> None:
    model = built("llama")
    objective = Classification(device=CPU, labels=NLI, sep_id=SEP)
    batch = examples([9, 4], width=12, pad_id=VOCABULARY.pad_id)
    with torch.no_grad():
        states = model.model(input_ids=torch.from_numpy(batch.input_ids[:1, :9])).last_hidden_state
        expected = model.score(states[0, 8])

        assert float((objective.logits(model, batch)[0] - expected).abs().max()) < 1e-5


def test_without_a_pad_token_padding_moves_nothing_either() -> None:
    # Neither a pad token nor a free row: EOS pads, and what is pooled is the last token before it.
    vocabulary = Vocabulary(size=97, eos_id=0, pad_id=0)
    model = built("llama", vocabulary=vocabulary)
    objective = Classification(device=CPU, labels=NLI)
    with torch.no_grad():
        wide, tight = (objective.logits(model, examples([9, 4], width=width, pad_id=0)) for width in (30, 9))

    assert float((wide - tight).abs().max()) < 1e-5


def test_a_new_head_is_a_pure_function_of_the_seed() -> None:
    first, again, other = built("bert"), built("bert"), built("bert", seed=2)

    for name in ("classifier.weight", "bert.pooler.dense.weight"):
        assert torch.equal(first.get_parameter(name), again.get_parameter(name))
        assert not torch.equal(first.get_parameter(name), other.get_parameter(name))
    assert first.config.id2label == dict(enumerate(NLI))
    assert first.config.label2id == {label: number for number, label in enumerate(NLI)}


@pytest.fixture(scope="module")
def world() -> SmallWorld:
    return small_world()


def config_of(world: SmallWorld, folder: Path, shards: Path, **sections: Any) -> TrainConfig:
    """12 steps of 10 examples without dropout, every epoch evaluated."""
    tree: dict[str, Any] = {"stage": "classify", "data": {"seq_len": 96}, "gate": {"max_first_loss": 20.0}}
    tree["model"] = {"from": str(world.bert)}
    return tiny_config(folder, shards, **(tree | sections))


def objective_of(config: TrainConfig, model: Any) -> Classification:
    source = open_source(config, build=True)
    found = make_objective(config, ALONE, source=source, model=model, kernel="sdpa")
    assert isinstance(found, Classification)
    return found


@pytest.mark.stages
def test_balanced_weights_are_the_inverse_of_how_often_a_class_is(world: SmallWorld, tmp_path: Path) -> None:
    config = config_of(world, tmp_path, world.review_shards, classify={"class_weights": "balanced"})
    rows = ExampleRows(read_shards(world.review_shards, split="train"), seq_len=96)
    counts = np.bincount(rows.values().astype(int))

    weights = objective_of(config, built("bert")).weights

    assert weights == pytest.approx((counts.sum() / (2 * counts)).tolist())
    assert counts[0] > 1.5 * counts[1]


@pytest.mark.stages
def test_another_number_of_weights_than_classes_is_refused(world: SmallWorld, tmp_path: Path) -> None:
    config = config_of(world, tmp_path, world.premise_shards, classify={"class_weights": [1.0, 2.0]})

    with pytest.raises(RunError, match=r"classify.class_weights: 2 weights, but .* has 3 classes"):
        objective_of(config, built("bert"))


@pytest.mark.stages
def test_a_head_on_a_masked_lm_is_new_and_the_body_is_not(world: SmallWorld) -> None:
    def from_mlm(seed: int) -> Any:
        config = ModelConfig.model_validate({"from": str(world.bert)})
        options: dict[str, Any] = {"kernel": "sdpa", "dtype": torch.float32, "head": "classifier", "labels": NLI}
        return make_model(config, vocabulary=Vocabulary(420, 0, 1), seed=seed, **options)

    first, again, other = from_mlm(1), from_mlm(1), from_mlm(2)

    new = {name for name, one in first.named_parameters() if not torch.equal(one, other.get_parameter(name))}
    assert new == {"classifier.weight", "bert.pooler.dense.weight"}  # biases begin at zero
    assert all(torch.equal(one, again.get_parameter(name)) for name, one in first.named_parameters())


@dataclasses.dataclass(frozen=True)
class Beside:
    """What is trained by both: rows of a small world, framed as Hugging Face reads the tokenizer."""

    rows: str
    write_tokenizer: Callable[[Path, Sequence[str]], Path]
    model: str
    class_weights: str = "none"


def klue_shaped(folder: Path, texts: Sequence[str]) -> Path:
    """WordPiece in BERT's frame, as klue/bert-base has it; its words are single letters."""
    letters = sorted({letter for text in texts for letter in text})
    return write_bert(folder, vocabulary=[spelled for letter in letters for spelled in (letter, f"##{letter}")])


def roberta_shaped(folder: Path, texts: Sequence[str]) -> Path:
    return write_roberta(folder)


BESIDE = {
    "bert-pairs": Beside("premises", klue_shaped, "bert"),
    "roberta-weighted": Beside("reviews", roberta_shaped, "roberta", class_weights="balanced"),
    "roberta-pairs": Beside("premises", roberta_shaped, "roberta"),
}


@pytest.mark.stages
@pytest.mark.parametrize("name", BESIDE)
def test_losses_equal_hugging_faces_trainer_over_its_own_tokenizers_batches(
    world: SmallWorld, tmp_path: Path, name: str
) -> None:
    case = BESIDE[name]
    corpus: Path = getattr(world, case.rows)
    records = {row["id"]: row for row in pq.read_table(corpus / "data").to_pylist()}
    texts = [row[key] for row in records.values() for key in ("text_a", "text_b") if row[key]]
    tokenizer, shards = case.write_tokenizer(tmp_path / "tokenizer", texts), tmp_path / "shards"
    build(stage_of(corpus, tokenizer, shards, heldout_fraction=0.2))
    sections: dict[str, Any] = {
        "model": MODELS[case.model] | {"max_positions": 256, "dropout": 0.0, "pad_vocab_to_multiple": 1},
        # As the rows come, so that there is padding to be read wrongly.
        "data": {"seq_len": 256, "group_by_length": False},
        "classify": {"class_weights": case.class_weights},
        "gate": {"max_first_loss": 20.0},
    }
    run = world.train(f"against-trainer-{name}", shards, stage="classify", **sections)
    config = config_of(world, tmp_path, shards, **sections)

    ours = losses_of(run)
    theirs = train_with_hugging_face(config, tmp_path / "trainer", tokenizer=tokenizer, records=records)

    assert len(ours) == 12
    # 1e-4: the project's bar for equal work; float32 sums in another order over 12 updates.
    assert list(ours.values()) == pytest.approx(theirs, rel=1e-4)
    assert min(ours.values()) < ours[1]


def train_with_hugging_face(
    config: TrainConfig, folder: Path, *, tokenizer: Path, records: Mapping[str, Mapping[str, Any]]
) -> list[float]:
    """The same examples in the same steps, from their raw texts by Hugging Face's own tokenizer: its frame, its token
    types, its padding; under Trainer's own schedule and torch's cross entropy."""
    from torch.utils.data import SequentialSampler
    from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

    from trainer.model import read_vocabulary
    from trainer.schedule import learning_rate

    shards = Path(config.data.shards)
    stream = open_stream(config, ALONE)
    assert isinstance(stream.rows, ExampleRows)
    options: dict[str, Any] = {"kernel": "sdpa", "dtype": torch.float32, "head": "classifier"}
    labels = read_shards(shards, split="train").labels
    vocabulary = read_vocabulary(shards)
    model: Any = make_model(config.model, vocabulary=vocabulary, seed=config.seed, labels=labels, **options)
    of_names = {"unk_token": "[UNK]", "pad_token": "[PAD]"} if config.model.architecture == "bert" else {}
    encode = PreTrainedTokenizerFast.from_pretrained(tokenizer, **of_names)
    order = []
    for _ in range(config.train.last_step):
        order += [stream.rows.record_id(row) for row in stream.step_row_ids().tolist()]
        stream.advance()

    def collate(ids: list[str]) -> dict[str, torch.Tensor]:
        rows = [records[each] for each in ids]
        seconds = [row["text_b"] for row in rows] if rows[0]["text_b"] else None
        # As BERT's own tokenizer class does; RoBERTa has one type of tokens.
        has_types = config.model.architecture == "bert"
        told = encode(
            [row["text_a"] for row in rows],
            seconds,
            padding=True,
            return_tensors="pt",
            return_token_type_ids=has_types,
        )
        return {**told, "labels": torch.tensor([labels.index(row["label"]) for row in rows])}

    weights: torch.Tensor | None = None
    if config.classify is not None and config.classify.class_weights == "balanced":
        known = [records[stream.rows.record_id(row)]["label"] for row in range(stream.rows.num_rows)]
        weights = torch.tensor([len(known) / (len(labels) * known.count(label)) for label in labels])

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
            return SequentialSampler(order)

        def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> Any:
            numbers = inputs.pop("labels")
            return functional.cross_entropy(model(**inputs).logits, numbers, weight=weights)

    steps, optimizer = config.train, config.train.optimizer
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps.last_step,
        per_device_train_batch_size=steps.global_batch_sequences,
        learning_rate=steps.schedule.peak_lr,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        adam_epsilon=optimizer.eps,
        max_grad_norm=steps.max_grad_norm,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    trainer = InOrder(model=model, args=arguments, train_dataset=order, data_collator=collate)
    trainer.create_optimizer()
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
        trainer.optimizer,
        lambda step: (
            learning_rate(steps.schedule, step=min(step, steps.last_step - 1), max_steps=steps.last_step)
            / steps.schedule.peak_lr
        ),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.stages
def test_a_classifier_beside_a_4_bit_base_trains_alike_on_every_engine_and_saves_what_is_trained(
    world: SmallWorld, tmp_path: Path
) -> None:
    base = world.untrained("llama-base", head="causal_lm", **(LLAMA | {"hidden_size": 64}))
    tuning = {"model": {"from": str(base), "quantization": {"compute_dtype": "fp32"}}, "adapter": {"rank": 4}}
    for ranks, engines in ((1, ["none"]), (2, ["none", "zero-3"])):
        plan = []
        for engine in engines:
            sections = tuning | {"run": {"name": f"{engine}-{ranks}"}, "engine": ENGINES[engine]}
            config = config_of(world, tmp_path, world.review_shards, **sections)
            plan.append({"config": str(write_config(tmp_path / f"{engine}-{ranks}.yaml", config))})
        assert [outcome["code"] for outcome in work(tmp_path, plan, ranks=ranks)] == [DONE] * len(plan)

    alone = losses_of(tmp_path / "none-1")
    assert alone[12] < alone[1]
    for name in ("none-2", "zero-3-2"):
        assert losses_of(tmp_path / name) == pytest.approx(alone, rel=1e-5, abs=1e-6), name
    from safetensors import safe_open

    with safe_open(tmp_path / "none-1/checkpoints/step-00000012/model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "score.weight" in names and all("lora_" in name for name in names - {"score.weight"})
    assert not any("score.lora_" in name for name in names)
