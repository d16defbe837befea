"""Sentence embeddings without a run: the contrast of a step whatever its split, its negatives, and the figures."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from data_pipeline.stream.batch import NO_ROW
from data_pipeline.stream.examples import ExampleBatch
from trainer.config import TrainConfig, unread_keys
from trainer.debug_config import as_debug
from trainer.model import Vocabulary, make_model
from trainer.model_config import ModelConfig
from trainer.objectives import embedding_scores
from trainer.objectives.embedding import Embedding
from trainer.objectives.embedding_scores import average_ranks, correlation
from trainer.objectives.in_batch import Units, contrast
from trainer.objectives.objective import Objective, Outcome
from trainer.pooling import pooled
from trainer.ranks import Ranks
from trainer.stage_configs import EmbedConfig

CPU = torch.device("cpu")
LONE = Ranks(rank=0, world_size=1, local_rank=0, device=CPU)
VOCABULARY = Vocabulary(size=97, eos_id=0, pad_id=1)
# Sums in another order, in float32.
NEAR = 1e-5


def encoder(*, dropout: float = 0.0, seed: int = 3) -> nn.Module:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_positions": 64, "initializer_range": 0.2}
    config = ModelConfig.model_validate({"architecture": "bert", "dropout": dropout, **sizes})
    made = make_model(config, vocabulary=VOCABULARY, kernel="sdpa", dtype=torch.float32, seed=seed, head="encoder")
    return made.train()


def objective(*, group_size: int = 8, **keys: Any) -> Embedding:
    return Embedding(EmbedConfig.model_validate(keys), ranks=LONE, group_size=group_size)


def some_examples(num: int, *, each: int = 2, seed: int = 0) -> ExampleBatch:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(3, 15, num * each)
    return batch_of(
        [generator.integers(5, 97, length) for length in lengths], each=each, values=generator.uniform(-1, 1, num)
    )


def batch_of(
    sequences: list[NDArray[np.int64]], *, each: int, values: NDArray[np.float64] | None = None, first: int = 0
) -> ExampleBatch:
    lengths = np.array([len(ids) for ids in sequences])
    ids = np.full((len(sequences), lengths.max()), VOCABULARY.pad_id)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
    num = len(sequences) // each
    found = np.full(num, np.nan) if values is None else values
    return ExampleBatch(ids, lengths, found, np.arange(first, first + num), num)


def cut(batch: ExampleBatch, *sizes: int) -> list[ExampleBatch]:
    """The examples in micro-batches of those sizes, padded to the longest of each."""
    parts, start, each = [], 0, batch.num_sequences
    for size in sizes:
        rows = range(start * each, (start + size) * each)
        sequences = [batch.input_ids[row, : batch.lengths[row]] for row in rows]
        parts.append(batch_of(sequences, each=each, values=batch.values[start : start + size], first=start))
        start += size
    return parts


def padding(each: int) -> ExampleBatch:
    ones = np.ones(each, np.int64)
    return ExampleBatch(ones[:, None], ones, np.full(1, np.nan), np.full(1, NO_ROW), 0)


def learnt(objective: Objective, model: nn.Module, batches: list[ExampleBatch]) -> tuple[float, torch.Tensor, float]:
    """(the loss of a step, its gradient, the sum of the first figure) as `step.py` adds them up."""
    model.zero_grad()
    loss, figure = 0.0, 0.0
    objective.begin_step(model, batches)
    for batch in batches:
        outcome = objective.outcome(model, batch)
        outcome.loss.backward()
        loss += float(outcome.loss.detach())
        figure += sum(float(outcome.sums[name]) for name in objective.sum_names)
    gradients = [parameter.grad for parameter in model.parameters()]
    return loss, torch.cat([found.reshape(-1) for found in gradients if found is not None]), figure


@pytest.mark.parametrize("each", [2, 3])
def test_in_batch_negatives_are_those_of_the_whole_step_however_it_is_split(each: int) -> None:
    model, batch = encoder(), some_examples(8, each=each)
    loss, gradient, num_first = learnt(objective(), model, [batch])

    for parts in (cut(batch, 4, 4), cut(batch, 1, 5, 2), [*cut(batch, 3, 5), padding(each)]):
        other, other_gradient, other_first = learnt(objective(), model, parts)

        assert other == pytest.approx(loss, rel=NEAR)
        assert num_first == other_first
        assert float((gradient - other_gradient).norm() / gradient.norm()) < NEAR
    # Fewer negatives would make it smaller.
    alone, _, _ = learnt(objective(), model, cut(batch, 4))
    assert alone < loss


@pytest.mark.parametrize("keys", [{"loss": "cosine"}, {"loss": "triplet", "margin": 1.0}])
def test_other_losses_do_not_depend_on_their_split_either(keys: dict[str, Any]) -> None:
    each = 2 if keys["loss"] == "cosine" else 3
    model, batch = encoder(), some_examples(8, each=each)
    loss, gradient, figure = learnt(objective(**keys), model, [batch])

    other, other_gradient, other_figure = learnt(objective(**keys), model, [*cut(batch, 3, 5), padding(each)])

    assert other == pytest.approx(loss, rel=NEAR) and loss > 0 and figure == other_figure
    assert float((gradient - other_gradient).norm() / gradient.norm()) < NEAR


@pytest.mark.parametrize("checkpointing", [False, True])
def test_both_passes_of_a_micro_batch_drop_the_same_places(checkpointing: bool) -> None:
    model, parts = encoder(dropout=0.3), cut(some_examples(7), 3, 4)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    torch.manual_seed(5)
    loss, gradient, _ = learnt(objective(temperature=0.1), model, parts)
    drawn = torch.rand(3)

    # The same step as one graph: what a machine without bounds would compute.
    torch.manual_seed(5)
    model.zero_grad()
    vectors = functional.normalize(torch.cat([objective().vectors(model, part) for part in parts]), dim=2)
    logits = vectors[:, 0] @ vectors[:, 1].T / 0.1
    whole = functional.cross_entropy(logits, torch.arange(7), reduction="sum")
    whole.backward()  # type: ignore[no-untyped-call]
    expected = torch.cat([it.grad.reshape(-1) for it in model.parameters() if it.grad is not None])

    assert loss == pytest.approx(float(whole.detach()), rel=NEAR)
    assert float((gradient - expected).norm() / expected.norm()) < NEAR
    assert torch.equal(drawn, torch.rand(3))  # the generator goes on as if there had been one pass


def units(vectors: torch.Tensor, texts: list[list[int]]) -> Units:
    return Units(functional.normalize(vectors, dim=2), torch.tensor(texts))


def test_an_equal_text_is_no_negative() -> None:
    """Of four examples the second answers as the first does, the third asks what the first asks, the fourth has the
    first's answer as a hard negative, and the first's question as its answer."""
    vectors = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(1))
    same = units(vectors, [[1, 2, 3], [4, 2, 5], [1, 6, 7], [8, 1, 2]])

    losses = contrast(same, LONE, temperature=0.5).losses

    anchor, others = same.vectors[0, 0], same.vectors[:, 1:].reshape(8, 8)
    # Positives 0, 2, 4, 6 and hard negatives 1, 3, 5, 7: of the first anchor 2, 4, 6 and 7 are right answers too.
    logits = (others @ anchor / 0.5)[[0, 1, 3, 5]]
    assert float(losses[0]) == pytest.approx(float(logits.logsumexp(0) - logits[0]), rel=NEAR)


def test_the_gradient_of_the_contrast_is_autograds() -> None:
    vectors = torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(2))
    given = units(vectors, [[3 * row, 3 * row + 1, 3 * row + 2] for row in range(6)])
    leaf = given.vectors.clone().requires_grad_()
    candidates = leaf[:, 1:].transpose(0, 1).reshape(12, 8)
    functional.cross_entropy(leaf[:, 0] @ candidates.T / 0.2, torch.arange(6), reduction="sum").backward()  # type: ignore[no-untyped-call]

    assert leaf.grad is not None
    assert torch.allclose(contrast(given, LONE, temperature=0.2).gradients, leaf.grad, atol=1e-5)


def test_anchors_in_chunks_give_what_they_give_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given = units(torch.randn(7, 2, 8), [[2 * row, 2 * row + 1] for row in range(7)])
    whole = contrast(given, LONE, temperature=0.1)
    monkeypatch.setattr("trainer.objectives.in_batch.MAX_LOGITS", 15)  # two anchors at a time

    parts = contrast(given, LONE, temperature=0.1)

    assert torch.allclose(whole.losses, parts.losses) and torch.equal(whole.are_first, parts.are_first)
    assert torch.allclose(whole.gradients, parts.gradients, atol=1e-6)


def test_pooling_reads_no_padding() -> None:
    states = torch.randn(2, 5, 4)
    is_text = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])

    mean, first = (pooled(states.bfloat16(), is_text, pooling=how) for how in ("mean", "cls"))

    held = states.bfloat16().float()
    assert mean.dtype == first.dtype == torch.float32
    assert torch.allclose(mean, torch.stack([held[0, :3].mean(0), held[1].mean(0)]), atol=1e-6)
    assert torch.equal(first, held[:, 0])


def test_equal_texts_do_not_break_a_triplet() -> None:
    """The distance of a vector from itself has no slope: another one, NaN, would spoil the whole step."""
    sequence = np.arange(5, 12)
    batch = batch_of([sequence, sequence, sequence + 1], each=3)

    _, gradient, _ = learnt(objective(loss="triplet"), encoder(), [batch])

    assert torch.isfinite(gradient).all() and gradient.norm() > 0


def scored(
    vectors: torch.Tensor,
    *sizes: int,
    values: NDArray[np.float64] | None = None,
    texts: list[NDArray[np.int64]] | None = None,
    **keys: Any,
) -> dict[str, Any]:
    """The figures of an evaluation whose batches of those sizes have these vectors; all `texts` are others if None."""
    scorer = objective(**keys).scorer(num_bytes=0)
    generator = np.random.default_rng(3)
    num, each, _ = vectors.shape
    whole = batch_of(texts or [generator.integers(5, 97, 9) for _ in range(num * each)], each=each, values=values)
    start = 0
    for part, size in zip(cut(whole, *sizes), sizes, strict=True):
        scorer.add(part, Outcome(torch.zeros(()), {}, vectors[start : start + size]))
        start += size
    scorer.add(padding(each), Outcome(torch.zeros(()), {}, torch.zeros(1, each, vectors.shape[2])))
    return scorer.figures(LONE, loss_sum=0.0, num_targets=num)


def test_recall_is_among_all_held_out_positives() -> None:
    vectors = torch.randn(30, 3, 8, generator=torch.Generator().manual_seed(4))
    vectors[:, 1] += 0.7 * vectors[:, 0]
    unit = functional.normalize(vectors, dim=2)
    cosines = unit[:, 0] @ unit[:, 1].T
    places = 1 + (cosines > cosines.diagonal()[:, None]).sum(1).double()

    found = scored(vectors, 4, 26)

    assert 0 < found["recall_at_1"] < found["recall_at_10"] < 1
    assert found["recall_at_1"] == pytest.approx(float((places == 1).double().mean()))
    assert found["recall_at_10"] == pytest.approx(float((places <= 10).double().mean()))
    assert found["mrr"] == pytest.approx(float((1 / places).mean()))
    assert found["num_candidates"] == 30
    far = (unit[:, 0] * unit[:, 2]).sum(1)
    assert found["triplet_accuracy"] == pytest.approx(float((cosines.diagonal() > far).double().mean()))


def text(number: int) -> NDArray[np.int64]:
    return np.array([2, 5 + number, 3])


def test_an_answer_that_stands_in_many_rows_is_one_candidate() -> None:
    """One question finds a wrong answer nearest, which eleven others have: its own is the second, not the twelfth."""
    right, wrong = functional.normalize(torch.tensor([[1.0, 0.4], [1.0, 0.0]]), dim=1)
    vectors = torch.stack([torch.stack([wrong, right])] + [torch.stack([wrong, wrong])] * 11)
    texts = [text(0), text(50)] + [each for row in range(1, 12) for each in (text(row), text(51))]

    found = scored(vectors, 12, texts=texts)

    assert found["num_candidates"] == 2
    assert found["recall_at_1"] == pytest.approx(11 / 12)
    assert (found["recall_at_10"], found["mrr"]) == (1.0, pytest.approx((11 + 1 / 2) / 12))


def test_what_answers_an_equal_question_is_no_wrong_answer_wherever_else_it_stands() -> None:
    near, nearer = functional.normalize(torch.tensor([[1.0, 0.4], [1.0, 0.1]]), dim=1)
    ask = torch.tensor([1.0, 0.0])
    # The first two rows ask the same; the answer of the second stands under another question too.
    vectors = torch.stack([torch.stack(row) for row in ((ask, near), (ask, nearer), (-ask, nearer))])
    texts = [text(0), text(50), text(0), text(51), text(1), text(51)]

    found = scored(vectors, 3, texts=texts)

    assert found["num_candidates"] == 2
    assert found["mrr"] == pytest.approx((1 + 1 + 1 / 2) / 3), "the third finds what is not its own"


def test_figures_of_retrieval_do_not_depend_on_how_many_are_compared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = torch.randn(40, 2, 8, generator=torch.Generator().manual_seed(7))
    generator = np.random.default_rng(8)
    texts = [text(int(number)) for number in generator.integers(0, 30, 80)]
    at_once = scored(vectors, 40, texts=texts)

    monkeypatch.setattr(embedding_scores, "MAX_LOGITS", 70)

    parts = scored(vectors, 40, texts=texts)
    assert parts["num_candidates"] == at_once["num_candidates"] < 40
    assert [parts[key] for key in ("recall_at_1", "recall_at_10")] == [
        at_once[key] for key in ("recall_at_1", "recall_at_10")
    ]
    assert parts["mrr"] == pytest.approx(at_once["mrr"])


def test_pairs_without_a_score_are_left_out_of_correlations_and_loss_and_counted() -> None:
    generator = np.random.default_rng(9)
    vectors = torch.from_numpy(generator.normal(size=(20, 2, 8)).astype(np.float32))
    scores = generator.uniform(-1, 1, 20)
    partly = scores.copy()
    partly[[3, 11]] = np.nan
    kept = ~np.isnan(partly)

    found = scored(vectors, 7, 13, values=partly, loss="cosine")

    alone = scored(vectors[torch.from_numpy(kept)], 18, values=scores[kept], loss="cosine")
    assert (found["spearman"], found["pearson"]) == pytest.approx((alone["spearman"], alone["pearson"]))
    assert found["num_unscored"] == 2 and "num_unscored" not in alone
    assert np.isnan(scored(vectors, 20, values=np.full(20, np.nan), loss="cosine")["spearman"])
    made, ours = encoder().eval(), objective(loss="cosine")
    batch = some_examples(4)
    lacking = dataclasses.replace(batch, values=np.array([batch.values[0], np.nan, batch.values[2], np.nan]))
    assert (ours.weight(batch), ours.weight(lacking)) == (4, 2)
    each = [
        float(ours(made, part).detach()) for part in (cut(batch, 1, 1, 1, 1)[0], cut(batch, 1, 1, 1, 1)[2], lacking)
    ]
    assert each[2] == pytest.approx(each[0] + each[1], rel=1e-5)


def test_a_held_out_loss_does_not_depend_on_its_batches() -> None:
    vectors = torch.randn(30, 2, 8, generator=torch.Generator().manual_seed(5))

    once, parts = scored(vectors, 30), scored(vectors, 7, 1, 22)

    assert parts["loss"] == pytest.approx(once["loss"], rel=1e-6)
    # Four groups of about eight: an untaught model guesses among the candidates of one.
    flat = scored(torch.ones(32, 2, 8), 32)
    assert flat["loss"] == pytest.approx(np.log(8), rel=1e-5)


@pytest.mark.parametrize("told", [1.0, float("nan")])
def test_a_model_that_says_the_same_of_all_finds_nothing(told: float) -> None:
    found = scored(torch.full((12, 3, 8), told), 12)

    assert (found["recall_at_1"], found["recall_at_10"], found["triplet_accuracy"]) == (0, 0, 0)


def test_correlations_are_those_of_scipy() -> None:
    from scipy import stats  # type: ignore[import-untyped]

    generator = np.random.default_rng(6)
    scores = generator.integers(0, 6, 40) / 5  # many ties
    vectors = torch.from_numpy(generator.normal(size=(40, 2, 8)).astype(np.float32))
    vectors[:, 1] += torch.from_numpy(scores[:, None].astype(np.float32)) * vectors[:, 0]
    cosines = functional.cosine_similarity(vectors[:, 0], vectors[:, 1], dim=1).double().numpy()

    found = scored(vectors, 11, 29, values=scores, loss="cosine")

    assert found["spearman"] == pytest.approx(stats.spearmanr(cosines, scores).statistic, abs=1e-6)
    assert found["pearson"] == pytest.approx(stats.pearsonr(cosines, scores).statistic, abs=1e-6)
    assert list(average_ranks(scores)) == list(stats.rankdata(scores))
    assert np.isnan(correlation(np.ones(3), scores[:3]))


def a_run(*, rows: int, **embed: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "run": {"name": "embed"},
            "stage": "embed",
            "model": {"from": "folder"},
            "embed": embed,
            "data": {"shards": "shards", "seq_len": 64},
            "train": {"max_steps": 1, "global_batch_sequences": rows, "micro_batch_sequences": 1},
        }
    )


def test_keys_of_another_loss_are_said_to_be_unread() -> None:
    lines = unread_keys(a_run(rows=2, loss="cosine", temperature=0.1, margin=1.0, max_score=5))

    assert [line.split(":")[0] for line in lines] == ["embed.temperature", "embed.margin"]
    assert "0.1 is not read: embed.loss is 'cosine'" in lines[0]


def test_a_step_of_one_row_has_no_negatives() -> None:
    a_run(rows=1, loss="triplet")
    with pytest.raises(ValueError, match="is 1, but embed.loss 'in_batch' takes the other rows of a step as negatives"):
        a_run(rows=1)


def test_a_debug_run_keeps_negatives_in_its_small_steps() -> None:
    assert as_debug(a_run(rows=64)).train.global_batch_sequences == 8
    assert as_debug(a_run(rows=64, loss="triplet")).train.global_batch_sequences == 2
    assert as_debug(a_run(rows=4)).train.global_batch_sequences == 4
