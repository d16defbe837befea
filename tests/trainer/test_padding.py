"""What fills a row's end: the tokenizer's pad token, a free row of the embedding, or EOS; no loss knows which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.stage import read_manifest, write_manifest
from data_pipeline.stream.batch import NO_TARGET
from tests.trainer.tiny_run import VOCAB_SIZE, make_shards, tiny_config
from trainer.gate import check_first_batches
from trainer.model import Vocabulary, describe, make_model
from trainer.model_config import ModelConfig
from trainer.ranks import Ranks
from trainer.setup import Run, set_up
from trainer.step import Updater

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
EOS, PAD = 0, 1
NO_PAD = Vocabulary(size=VOCAB_SIZE, eos_id=EOS, pad_id=EOS)
OWN_PAD = Vocabulary(size=VOCAB_SIZE, eos_id=EOS, pad_id=PAD)
SHAPE = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_positions": 64}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("padding") / "shards")


@pytest.fixture(scope="module")
def padless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of a tokenizer without a pad token."""
    folder = make_shards(tmp_path_factory.mktemp("padless") / "shards")
    manifest = read_manifest(folder, kind="shards")
    write_manifest(folder, manifest | {"tokenizer": manifest["tokenizer"] | {"pad_id": None}, "pad_is_eos": True})
    return folder


def run_of(folder: Path, shards: Path, **model: Any) -> Run:
    return set_up(tiny_config(folder, shards, data={"seq_len": 48, "packing": "best_fit"}, model=model), ALONE)


def padding_of(run: Run) -> set[int]:
    """The ids that fill the rows of the first step, which no document follows."""
    [batch] = run.stream.batches(dp_rank=0, dp_world_size=1, micro_batch_sequences=10)
    filled = set()
    for inputs, labels in zip(batch.input_ids, batch.labels, strict=True):
        targets = np.flatnonzero(labels != NO_TARGET)
        filled |= set(inputs[targets[-1] + 1 :].tolist())
    return filled


@pytest.mark.parametrize(
    ("size", "own_pad", "rows", "pad"),
    [
        (30_003, None, 30_080, 30_003),  # polyglot-ko
        (30_003, 2, 30_080, 2),
        (30_003, None, 30_003, 0),
        (30_003, None, 30_000, 0),
    ],
)
def test_for_want_of_a_pad_token_the_first_free_row_pads_and_eos_only_without_one(
    size: int, own_pad: int | None, rows: int, pad: int
) -> None:
    vocabulary = Vocabulary(size=size, eos_id=0, pad_id=0 if own_pad is None else own_pad)

    assert vocabulary.in_rows(rows).pad_id == pad
    assert vocabulary.in_rows(rows).in_rows(rows) == vocabulary.in_rows(rows)


@pytest.mark.parametrize(("multiple", "pad"), [(1, EOS), (64, VOCAB_SIZE)])
def test_a_run_without_a_pad_token_pads_training_and_evaluation_with_the_free_row(
    padless: Path, tmp_path: Path, multiple: int, pad: int
) -> None:
    run = run_of(tmp_path, padless, pad_vocab_to_multiple=multiple)

    assert run.vocabulary.pad_id == pad
    assert padding_of(run) == {pad}
    heldout = list(run.heldout.batches(dp_rank=0, dp_world_size=1, micro_batch_sequences=4))
    assert any((batch.input_ids[:, -1] == pad).any() for batch in heldout)
    lines = {check.name: check for check in check_first_batches(run)}
    assert all(check.is_ok for check in lines.values())
    told = {
        EOS: "EOS (id 0): no pad token, no free row (97 tokens, 97 rows)",
        VOCAB_SIZE: "id 97: no pad token, so a free row (97 tokens, 128 rows)",
    }
    assert lines["pad has a row"].value == told[pad]
    assert "highest id seen 96" in lines["vocabulary fits the model"].value


def test_the_tokenizers_own_pad_token_is_taken_though_rows_are_free(shards: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, shards, pad_vocab_to_multiple=64)

    assert run.vocabulary.pad_id == PAD
    assert padding_of(run) == {PAD}
    lines = {check.name: check.value for check in check_first_batches(run)}
    assert lines["pad has a row"] == "id 1: the tokenizer's own"


def trained(run: Run, *, steps: int = 3) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of some updates, and the weights after them."""
    updater = Updater(run.engine, run.objective, run.policy, ALONE, seed=0, stop_requested=lambda: False)
    losses = []
    for number in range(1, steps + 1):
        micro_batches = run.stream.batches(dp_rank=0, dp_world_size=1, micro_batch_sequences=4)
        losses.append(updater.step(micro_batches, number=number, lr=1e-2).loss)
        run.stream.advance()
    return losses, {name: tensor.detach().clone() for name, tensor in run.engine.model.named_parameters()}


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_no_loss_and_no_weight_of_a_token_depends_on_the_id_that_pads(
    padless: Path, tmp_path: Path, architecture: str
) -> None:
    losses, weights = trained(run_of(tmp_path / "a", padless, architecture=architecture, pad_vocab_to_multiple=64))
    for pad in (EOS, 50):
        run = run_of(tmp_path / f"{pad}", padless, architecture=architecture, pad_vocab_to_multiple=64)
        run.stream.rows.pad_with(pad)
        assert padding_of(run) == {pad}

        again, other = trained(run)

        assert again == losses
        assert all(torch.equal(other[name], weights[name]) for name in weights)


def test_what_pads_is_no_part_of_the_state_so_that_a_resume_may_pad_with_another_id(
    padless: Path, tmp_path: Path
) -> None:
    run = run_of(tmp_path, padless, pad_vocab_to_multiple=64)
    before = run.state_dict()

    run.stream.rows.pad_with(EOS)

    assert run.state_dict() == before


@pytest.mark.parametrize(
    ("vocabulary", "multiple", "pad"), [(NO_PAD, 64, VOCAB_SIZE), (NO_PAD, 1, None), (OWN_PAD, 64, PAD)]
)
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_a_new_model_names_the_row_that_pads(
    architecture: str, vocabulary: Vocabulary, multiple: int, pad: int | None
) -> None:
    config = ModelConfig.model_validate(SHAPE | {"architecture": architecture, "pad_vocab_to_multiple": multiple})

    assert describe(config, vocabulary=vocabulary).pad_token_id == pad


@pytest.mark.parametrize(
    ("vocabulary", "named", "learns"),
    [
        (NO_PAD, EOS, True),  # Llama-2 and many a fine-tune: pad = eos
        (NO_PAD, 5, True),  # the unknown token, say
        (NO_PAD, VOCAB_SIZE, False),  # the free row: no token's
        (OWN_PAD, PAD, False),
        (OWN_PAD, 5, True),
        (Vocabulary(size=VOCAB_SIZE + 1, eos_id=EOS, pad_id=EOS), VOCAB_SIZE, True),  # the tokenizer grew since
    ],
)
def test_a_token_that_a_base_calls_padding_learns_all_the_same(
    tmp_path: Path, vocabulary: Vocabulary, named: int, learns: bool
) -> None:
    shape = ModelConfig.model_validate(SHAPE | {"pad_vocab_to_multiple": 64})
    arguments: dict[str, Any] = {"kernel": "sdpa", "dtype": torch.float32, "seed": 0}
    model: Any = make_model(shape, vocabulary=NO_PAD, **arguments)
    model.config.pad_token_id = named
    model.save_pretrained(tmp_path)

    base: Any = make_model(ModelConfig.model_validate({"from": str(tmp_path)}), vocabulary=vocabulary, **arguments)
    ids = torch.tensor([[7, named, 8, named, 9]])
    base(input_ids=ids, labels=ids).loss.backward()

    # The embedding alone: the head has a row of its own.
    assert bool(base.get_input_embeddings().weight.grad[named].any()) is learns
