"""Answers: a batch says what its rows say alone, a seed and a row number fix a sample, and limits hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from trainer.errors import RunError
from trainer.generate import Answer, Sampling, choose, cut_off, generate_answers, penalized, stream_ids
from trainer.model import Vocabulary, make_model
from trainer.model_config import ModelConfig

CPU = torch.device("cpu")
VOCABULARY = Vocabulary(size=97, eos_id=0, pad_id=1)
ARCHITECTURES = ["llama", "gpt_neox"]
GREEDY = Sampling(max_new_tokens=12)
SAMPLED = Sampling(max_new_tokens=12, temperature=1.2, top_p=0.9, top_k=40, repetition_penalty=1.1, seed=5)

models: dict[str, torch.nn.Module] = {}


def model_of(architecture: str = "llama") -> torch.nn.Module:
    """A model whose answers differ from prompt to prompt, and sometimes end."""
    if architecture not in models:
        sizes: dict[str, Any] = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_positions": 64}
        config = ModelConfig(architecture=architecture, **sizes, initializer_range=0.3, pad_vocab_to_multiple=1)
        model = make_model(config, vocabulary=VOCABULARY, kernel="sdpa", dtype=torch.float32, seed=3)
        models[architecture] = model.eval()
    return models[architecture]


def prompts_of(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(2, 97, length).tolist() for length in lengths]


def answers_of(prompts: list[list[int]], sampling: Sampling = GREEDY, **arguments: Any) -> list[Answer]:
    model = arguments.pop("model", None) or model_of()
    given_arguments = {"eos_ids": {0}, "pad_id": 1, "batch_size": 4, "device": CPU} | arguments
    return generate_answers(model, prompts, sampling=sampling, **given_arguments)


MANY = prompts_of(3, 17, 9, 1, 30, 9, 2, 12, 5, 24, 7)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_answers_of_a_batch_equal_those_one_by_one(architecture: str) -> None:
    model = model_of(architecture)

    alone = [answers_of([prompt], model=model, batch_size=1)[0] for prompt in MANY]

    for batch_size in (2, 4, 11):
        assert answers_of(MANY, model=model, batch_size=batch_size) == alone
    assert len({answer.ids for answer in alone}) == len(MANY)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_answers_are_those_of_transformers(architecture: str) -> None:
    model = model_of(architecture)
    for prompt, ours in zip(MANY, answers_of(MANY, model=model), strict=True):
        theirs = model.generate(  # type: ignore[operator]
            torch.tensor([prompt]), do_sample=False, max_new_tokens=12, eos_token_id=0, pad_token_id=1
        )[0, len(prompt) :].tolist()
        assert [*ours.ids, *([0] if ours.ended else [])] == theirs


def test_an_answer_ends_at_the_first_eos_and_does_not_hold_it() -> None:
    unending = answers_of(MANY, eos_ids=())
    stop_at = unending[0].ids[3]

    ended = answers_of(MANY, eos_ids={stop_at})

    assert all(len(answer.ids) == 12 and not answer.ended for answer in unending)
    for whole, cut in zip(unending, ended, strict=True):
        has_it = stop_at in whole.ids
        expected = whole.ids[: whole.ids.index(stop_at)] if has_it else whole.ids
        assert cut == Answer(ids=expected, ended=has_it)
    assert ended[0].ended and len(ended[0].ids) <= 3


def test_a_sample_is_a_function_of_seed_and_row() -> None:
    one_batch = answers_of(MANY, SAMPLED, batch_size=11)

    assert answers_of(MANY, SAMPLED, batch_size=1) == one_batch
    later = answers_of(MANY[4:6], SAMPLED, rows=[4, 5])
    assert later == one_batch[4:6]
    assert answers_of(MANY[4:6], SAMPLED) != later
    other_seed = Sampling(**{**vars(SAMPLED), "seed": 6})
    assert answers_of(MANY, other_seed) != one_batch


def test_equal_prompts_get_samples_of_their_own() -> None:
    same = [MANY[4]] * 8

    assert len({answer.ids for answer in answers_of(same, SAMPLED)}) > 1
    assert len({answer.ids for answer in answers_of(same)}) == 1


def test_generation_changes_neither_mode_nor_the_generators_of_torch() -> None:
    model = model_of()
    model.train()
    state = torch.get_rng_state()

    answers_of(MANY, SAMPLED)

    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    model.eval()


def test_streamed_ids_are_the_answer() -> None:
    model = model_of()
    for prompt, whole in zip(MANY, answers_of(MANY, SAMPLED), strict=True):
        row = MANY.index(prompt)
        ids = list(stream_ids(model, prompt, eos_ids={0}, pad_id=1, sampling=SAMPLED, device=CPU, row=row))
        assert tuple(ids) == (*whole.ids, *([0] if whole.ended else []))


def test_a_stop_returns_nothing_at_once() -> None:
    calls: list[int] = []

    answers = answers_of(MANY, stop_requested=lambda: len(calls) >= 1, on_batch=calls.append)

    assert answers == []
    assert calls == [4]


def test_an_answer_is_cut_where_the_positions_end() -> None:
    lengths = [len(answer.ids) for answer in answers_of(prompts_of(30, 25), eos_ids=(), max_positions=32)]

    assert lengths == [2, 7]


def test_a_prompt_without_room_or_without_tokens_is_refused_by_its_row() -> None:
    with pytest.raises(RunError, match="row 1: the prompt has 32 tokens, but the model has 32 positions; shorten"):
        answers_of(prompts_of(3, 32), max_positions=32)
    with pytest.raises(RunError, match="row 7: the prompt has no token; give it a text"):
        answers_of([[]], rows=[7])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("repetition_penalty", 0.0),
    ],
)
def test_senseless_sampling_is_refused(name: str, value: float) -> None:
    with pytest.raises(RunError, match=f"sampling.{name}: {value} was given; it must be "):
        Sampling(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.8), (7, 0.5), (1, 1.0), (0, 1e-6)])
def test_what_may_be_said_is_what_transformers_allows(top_k: int, top_p: float) -> None:
    logits = torch.randn(16, 50, generator=torch.Generator().manual_seed(1)) * 3
    ids = torch.randint(0, 50, (16, 9), generator=torch.Generator().manual_seed(2))
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(ids, logits)  # type: ignore[arg-type]
    theirs = TemperatureLogitsWarper(0.7)(ids, theirs)  # type: ignore[arg-type]
    theirs = TopKLogitsWarper(top_k)(ids, theirs) if top_k else theirs  # type: ignore[arg-type]
    theirs = TopPLogitsWarper(top_p)(ids, theirs) if top_p < 1 else theirs  # type: ignore[arg-type]

    seen = torch.zeros(16, 50, dtype=torch.bool).scatter(1, ids, True)
    ours = cut_off(penalized(logits, seen, 1.3) / 0.7, top_k=top_k, top_p=top_p)

    assert torch.equal(ours.isinf(), theirs.isinf())
    assert torch.allclose(ours[~ours.isinf()], theirs[~theirs.isinf()])


def test_the_penalty_counts_prompt_and_answer_but_no_padding() -> None:
    penalty = Sampling(max_new_tokens=12, repetition_penalty=1.5)
    alone = [answers_of([prompt], penalty, batch_size=1, pad_id=pad)[0] for prompt in MANY for pad in (1, 50)]

    assert [answer for answer in answers_of(MANY, penalty, pad_id=50) for _ in range(2)] == alone
    assert alone[::2] != answers_of(MANY)


def test_draws_fall_where_the_probabilities_say() -> None:
    probabilities = torch.tensor([0.0, 0.5, 0.125, 0.0, 0.375, 0.0])
    draws = torch.linspace(0, 1, 8001, dtype=torch.float64)[:-1]

    chosen = choose(probabilities.log().expand(8000, 6), draws, Sampling(temperature=1.0))

    assert torch.bincount(chosen, minlength=6).tolist() == pytest.approx([0, 4000, 1000, 0, 3000, 0], abs=1)


@settings(max_examples=50, deadline=None)
@given(
    logits=st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=8),
    draw=st.floats(0, 1, exclude_max=True),
    top_k=st.integers(0, 9),
    top_p=st.floats(0.01, 1),
)
def test_what_is_cut_off_is_never_said(logits: list[float], draw: float, top_k: int, top_p: float) -> None:
    sampling = Sampling(temperature=1.0, top_k=top_k, top_p=top_p)

    chosen = choose(torch.tensor([logits]), torch.tensor([draw], dtype=torch.float64), sampling)

    kept = cut_off(torch.tensor([logits]), top_k=top_k, top_p=top_p)[0]
    assert kept[chosen.item()] > -torch.inf  # type: ignore[index]
