"""Encoders: law 4 in both directions, their positions, their heads, and the loss of masked places."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from data_pipeline.config import validate
from data_pipeline.stream.batch import NO_TARGET, Batch, padding_batch
from trainer.config import TrainConfig
from trainer.errors import RunError
from trainer.model import (
    Reading,
    Vocabulary,
    check_documents_apart,
    count_parameters,
    flops_per_token,
    make_model,
    packed_inputs,
    reading_of,
)
from trainer.model_config import ModelConfig
from trainer.objectives.masked_lm import MaskedLM, lm_head
from trainer.objectives.masks import Masks
from trainer.ranks import Ranks
from trainer.setup import check_positions
from trainer.stage_configs import MlmConfig
from trainer.stages import Head

CPU = torch.device("cpu")
VOCABULARY = Vocabulary(size=97, eos_id=0, pad_id=1)
ARCHITECTURES = ["bert", "roberta"]
LONE = Ranks(rank=0, world_size=1, local_rank=0, device=CPU)


def tiny(architecture: str = "bert", **changes: Any) -> ModelConfig:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_positions": 64, "pad_vocab_to_multiple": 8}
    return ModelConfig.model_validate({"architecture": architecture, **sizes, **changes})


def model_of(config: ModelConfig, *, seed: int = 3, head: Head = "masked_lm") -> Any:
    return make_model(config, vocabulary=VOCABULARY, kernel="sdpa", dtype=torch.float32, seed=seed, head=head)


def some_rows(num_rows: int = 3, *, seq_len: int = 20) -> Batch:
    """Two pieces a row and padding; every fourth id or so is asked for."""
    generator = np.random.default_rng(num_rows)
    ids = generator.integers(5, 97, (num_rows, seq_len))
    ids[:, -3:] = VOCABULARY.pad_id
    positions = np.tile(np.concatenate([np.arange(9), np.arange(seq_len - 12), np.arange(3)]), (num_rows, 1))
    labels = np.where(generator.random(ids.shape) < 0.25, ids, NO_TARGET)
    labels[:, -3:] = NO_TARGET
    return Batch(ids, labels, positions, np.arange(num_rows), int((labels != NO_TARGET).sum()))


def objective_of(model: nn.Module, **changes: Any) -> MaskedLM:
    everything = np.ones(VOCABULARY.size, bool)
    masks = Masks(MlmConfig(), seed=0, mask_id=2, ordinary_ids=np.arange(5, 97), is_ordinary=everything)
    fields = {"kernel": "sdpa", "device": CPU, "reading": reading_of(model), "head": lm_head(model), "masks": masks}
    return MaskedLM(**fields | changes)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_new_encoder_has_the_published_parts(architecture: str) -> None:
    model = model_of(tiny(architecture))
    first = 0 if architecture == "bert" else VOCABULARY.pad_id + 1

    assert type(model).__name__ == {"bert": "BertForMaskedLM", "roberta": "RobertaForMaskedLM"}[architecture]
    assert model.config.max_position_embeddings == 64 + first
    assert model.config.type_vocab_size == {"bert": 2, "roberta": 1}[architecture]
    assert model.config.pad_token_id == VOCABULARY.pad_id
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight.shape == (104, 32)
    assert reading_of(model) == Reading(both_ways=True, first_position=first)
    assert reading_of(model_of(ModelConfig(hidden_size=32, num_heads=2), head="causal_lm")) == Reading()


def test_every_token_but_the_padding_learns_where_eos_must_pad() -> None:
    without_pad = Vocabulary(size=96, eos_id=3, pad_id=3)  # and no row is free

    model = make_model(tiny(), vocabulary=without_pad, kernel="sdpa", dtype=torch.float32, seed=0, head="masked_lm")

    assert model.get_input_embeddings().padding_idx is None  # type: ignore[operator, union-attr]
    assert model_of(tiny()).get_input_embeddings().padding_idx == VOCABULARY.pad_id


def test_a_roberta_whose_positions_would_begin_behind_thousands_is_refused() -> None:
    with pytest.raises(RunError, match=r"roberta counts positions from its pad id on, which is 32,000: so many rows"):
        make_model(
            tiny("roberta"),
            vocabulary=Vocabulary(size=32_000, eos_id=0, pad_id=32_000),
            kernel="sdpa",
            dtype=torch.float32,
            seed=0,
            head="masked_lm",
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_law_4_a_piece_is_read_as_if_it_were_alone(architecture: str) -> None:
    model, batch = model_of(tiny(architecture)).eval(), some_rows()
    reading = reading_of(model)
    with torch.no_grad():
        packed = model(**packed_inputs(batch, kernel="sdpa", device=CPU, reading=reading)).logits
        for start, end in ((0, 9), (9, 17)):
            # As transformers runs it by itself: no mask, and positions of its own.
            alone = model(input_ids=torch.from_numpy(batch.input_ids[:, start:end])).logits

            assert torch.allclose(packed[:, start:end], alone, atol=1e-6)
    check_documents_apart(model, kernel="sdpa", device=CPU, vocab_size=97)


@pytest.mark.parametrize("leak", ["everything", "forwards", "backwards"])
def test_the_probe_finds_an_encoder_that_reads_across_documents(leak: str) -> None:
    model = model_of(tiny()).eval()
    forward = model.forward

    def leaking(**inputs: Any) -> Any:
        mask = inputs["attention_mask"].clone()
        sees = torch.ones_like(mask)
        mask |= {"everything": sees, "forwards": sees.tril(), "backwards": sees.triu()}[leak]
        return forward(**inputs | {"attention_mask": mask})

    model.forward = leaking

    changed, moved = (2, 1) if leak == "backwards" else (1, 2)
    with pytest.raises(RunError, match=f"a change in document {changed} moved document {moved}'s logits by"):
        check_documents_apart(model, kernel="sdpa", device=CPU, vocab_size=97)


def test_flash_attention_gets_an_encoders_positions_and_all_boundaries() -> None:
    batch = some_rows(2)
    reading = Reading(both_ways=True, first_position=2)

    inputs = packed_inputs(batch, kernel="flash_attention_2", device=CPU, reading=reading)

    assert inputs["attention_mask"] is None and "use_cache" not in inputs
    assert inputs["input_ids"].shape == (1, 40)
    assert inputs["cu_seq_lens_q"].tolist() == [0, 9, 17, 20, 29, 37, 40]
    assert inputs["position_ids"][0, :11].tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10, 2, 3]


def varlen(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor,
    cu_seq_lens_k: torch.Tensor,
    max_length_q: int,
    max_length_k: int,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What flash-attn's varlen kernel computes of these arguments: each segment by itself, both ways."""
    assert attention_mask is None and module.is_causal is False
    lengths = cu_seq_lens_q.diff().tolist()
    assert torch.equal(cu_seq_lens_q, cu_seq_lens_k) and max_length_q == max_length_k == max(lengths)
    parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    out = torch.cat([functional.scaled_dot_product_attention(*part) for part in parts], dim=2)
    return out.transpose(1, 2).contiguous(), None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_boundaries_reach_the_kernel_of_every_layer(architecture: str) -> None:
    from transformers import AttentionInterface

    AttentionInterface.register("varlen", varlen)
    model, batch = model_of(tiny(architecture)).eval(), some_rows()
    places = np.flatnonzero(batch.labels.reshape(-1) != NO_TARGET)
    with torch.no_grad():
        masked = objective_of(model).logits(model, batch, places=places)
        model.set_attn_implementation("varlen")
        flat = objective_of(model, kernel="flash_attention_2").logits(model, batch, places=places)

    assert torch.allclose(flat, masked, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_of_the_masked_places_alone_are_those_of_all(architecture: str) -> None:
    model, batch = model_of(tiny(architecture)), some_rows()
    whole, part = copy.deepcopy(model), model
    inputs = packed_inputs(batch, kernel="sdpa", device=CPU, reading=reading_of(whole))
    labels = torch.from_numpy(batch.labels)
    logits = whole(**inputs).logits.flatten(0, 1)
    full = functional.cross_entropy(logits, labels.flatten(), ignore_index=NO_TARGET, reduction="sum")

    outcome = objective_of(part).outcome(part, batch)
    full.backward()
    outcome.loss.backward()

    # float32 sums of fewer rows, in another order.
    assert outcome.loss.item() == pytest.approx(full.item(), rel=1e-6)
    for (name, ours), theirs in zip(part.named_parameters(), whole.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-5), name
    right = (logits.argmax(-1) == labels.flatten())[labels.flatten() != NO_TARGET].sum()
    assert outcome.sums["masked_accuracy"].item() == right.item()
    assert part(**inputs).logits.shape == (3, 20, 104), "the head still sees the masked places alone"


def test_a_head_that_is_not_known_computes_all_places() -> None:
    model, batch = model_of(tiny()).eval(), some_rows()

    known, unknown = (objective_of(model, head=head)(model, batch) for head in (lm_head(model), None))

    assert unknown.item() == pytest.approx(known.item(), rel=1e-6)


def test_the_head_sees_a_sixth_of_the_places() -> None:
    model, batch = model_of(tiny()), some_rows()
    seen: list[tuple[int, ...]] = []
    model.cls.register_forward_hook(lambda _, inputs, output: seen.append(tuple(output.shape)))

    objective_of(model)(model, batch)

    assert seen == [(batch.num_targets, 104)]
    assert batch.num_targets < 0.4 * batch.num_inputs


def test_the_head_is_itself_again_after_an_error() -> None:
    model, batch = model_of(tiny()), some_rows()

    def failing(**inputs: Any) -> Any:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        objective_of(model)(failing, batch)  # type: ignore[arg-type]

    assert not model.cls._forward_pre_hooks


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_without_targets_has_loss_zero_and_joins_every_gradient(architecture: str) -> None:
    model = model_of(tiny(architecture))
    objective = objective_of(model)
    (batch,) = objective.prepare([padding_batch(seq_len=12, pad_id=1)], is_training=True)
    shapes: list[tuple[int, ...]] = []
    lm_head(model).register_forward_hook(lambda _, inputs, output: shapes.append(tuple(output.shape)))  # type: ignore[union-attr]

    loss = objective(model, batch)
    loss.backward()

    assert loss.item() == 0.0 and objective.weight(batch) == 0.0
    assert shapes == [(1, 104)], "a kernel need not bear a matrix without rows"
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_an_evaluation_tells_accuracy_and_perplexity_of_the_masked_tokens() -> None:
    model = model_of(tiny()).eval()
    objective = objective_of(model)
    scorer = objective.scorer(num_bytes=0)
    loss_sum, num_targets, num_right = 0.0, 0, 0.0
    with torch.no_grad():
        for batch in (some_rows(2), some_rows(3), padding_batch(seq_len=8, pad_id=1)):
            outcome = objective.outcome(model, batch)
            scorer.add(batch, outcome)
            loss_sum, num_targets = loss_sum + outcome.loss.item(), num_targets + batch.num_targets
            num_right += outcome.sums["masked_accuracy"].item()

    figures = scorer.figures(LONE, loss_sum=loss_sum, num_targets=num_targets)

    assert figures == {
        "masked_accuracy": num_right / num_targets,
        "masked_perplexity": pytest.approx(np.exp(loss_sum / num_targets)),
    }
    assert objective.figures({"masked_accuracy": 3.0}, num_targets=12) == {"masked_accuracy": 0.25}
    assert scorer.figures(LONE, loss_sum=1e6, num_targets=1)["masked_perplexity"] == float("inf")


def test_flops_count_the_head_for_the_masked_places_only() -> None:
    # BERT by hand: 2 layers of q, k, v, o (32x32) and two 32x128 matrices with their biases and two norms.
    model = model_of(tiny())
    layers = 2 * (4 * 33 * 32 + 33 * 128 + 129 * 32 + 4 * 32)
    transform, biases = 33 * 32 + 64, 104
    lookups = (64 + 2) * 32 + 64  # positions, types and their norm
    head = 104 * 32

    assert count_parameters(model).total == layers + transform + biases + lookups + head
    whole = flops_per_token(model, seq_len=16)
    assert whole == 6 * (layers + transform + biases + lookups + head) + 12 * 2 * 32 * 16
    assert flops_per_token(model, seq_len=16, head_share=0.15) == pytest.approx(whole - 0.85 * 6 * head)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_encoder_alone_gets_a_new_head_from_the_seed(tmp_path: Path, architecture: str) -> None:
    from transformers import AutoModel

    whole = model_of(tiny(architecture))
    whole.save_pretrained(tmp_path / "whole")
    AutoModel.from_pretrained(tmp_path / "whole", add_pooling_layer=False).save_pretrained(tmp_path / "body")

    one, same, other = (model_of(tiny(**{"from": str(tmp_path / "body")}), seed=seed) for seed in (5, 5, 6))

    def flat(head: nn.Module | None) -> torch.Tensor:
        assert head is not None
        return torch.cat([each.detach().flatten() for each in head.parameters()])

    body = dict(whole.base_model.named_parameters())
    assert all(torch.equal(body[name], found) for name, found in one.base_model.named_parameters())
    assert one.get_output_embeddings().weight is one.get_input_embeddings().weight
    weights = [flat(lm_head(model)) for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.isfinite(weights[0]).all()


def test_a_pretrained_bert_comes_with_its_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As google's checkpoints are: with a second head, for the next sentence, and a pooler."""
    from transformers import BertConfig, BertForPreTraining

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    published = BertForPreTraining(BertConfig(vocab_size=97, pad_token_id=1, **sizes))
    published.save_pretrained(tmp_path)

    model = model_of(tiny(**{"from": str(tmp_path)})).eval()

    ids = torch.arange(5, 15)[None]
    assert torch.equal(model(ids).logits, published.eval()(ids).prediction_logits)
    assert "new weights" not in capsys.readouterr().out


def test_a_loaded_roberta_has_fewer_positions_than_rows_of_them(tmp_path: Path) -> None:
    model_of(tiny("roberta")).save_pretrained(tmp_path)
    model = model_of(tiny(**{"from": str(tmp_path)}))
    tree = {"run": {"name": "r"}, "model": {"from": str(tmp_path)}, "data": {"shards": "s", "seq_len": 64}}
    tree |= {"stage": "mlm", "train": {"max_steps": 1, "global_batch_sequences": 1, "micro_batch_sequences": 1}}
    config = validate(tree, TrainConfig, where="test")
    longer = config.model_copy(update={"data": config.data.model_copy(update={"seq_len": 65})})

    check_positions(model, config)

    with pytest.raises(RunError, match=r"data.seq_len: 65, but .* was made for 64 positions; make rows shorter"):
        check_positions(model, longer)


def test_shares_of_more_than_all_are_refused() -> None:
    with pytest.raises(ValueError, match=r"masked_share 0.8 and random_share 0.3 are together more than 1"):
        MlmConfig(random_share=0.3)


def test_a_causal_model_is_no_masked_one(tmp_path: Path) -> None:
    model_of(ModelConfig(hidden_size=32, num_layers=1, num_heads=2), head="causal_lm").save_pretrained(tmp_path)

    with pytest.raises(RunError, match=r"model.from: .* is a folder without a loadable model: Unrecognized config"):
        model_of(tiny(**{"from": str(tmp_path)}))
