"""Models, kernels and law 4 (no attention crosses a document) on real transformers models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.stream.batch import Batch
from trainer.errors import RunError
from trainer.model import (
    Vocabulary,
    check_documents_apart,
    choose_attention,
    count_parameters,
    describe,
    flops_per_token,
    make_model,
    packed_inputs,
)
from trainer.model_config import ModelConfig
from trainer.objectives.causal_lm import CausalLM

CPU = torch.device("cpu")
VOCABULARY = Vocabulary(size=97, eos_id=0, pad_id=1)
ARCHITECTURES = ["llama", "gpt_neox"]


def tiny(architecture: str = "llama", **changes: Any) -> ModelConfig:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_positions": 64, "pad_vocab_to_multiple": 8}
    return ModelConfig(architecture=architecture, **sizes | changes)


def model_of(config: ModelConfig, seed: int = 3) -> torch.nn.Module:
    return make_model(config, vocabulary=VOCABULARY, kernel="sdpa", dtype=torch.float32, seed=seed)


def batch_of(ids: np.ndarray, positions: np.ndarray, labels: np.ndarray | None = None) -> Batch:
    labels = np.full_like(ids, -100) if labels is None else labels
    return Batch(ids, labels, positions, np.arange(len(ids)), int((labels != -100).sum()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_law_4_no_attention_crosses_a_document(architecture: str) -> None:
    model = model_of(tiny(architecture)).eval()
    generator = np.random.default_rng(0)
    packed = generator.integers(0, 97, (2, 20))
    positions = np.tile(np.concatenate([np.arange(12), np.arange(8)]), (2, 1))
    with torch.no_grad():
        together = model(**packed_inputs(batch_of(packed, positions), kernel="sdpa", device=CPU)).logits[:, 12:]
        alone_batch = batch_of(packed[:, 12:].copy(), positions[:, 12:].copy())
        alone = model(**packed_inputs(alone_batch, kernel="sdpa", device=CPU)).logits

    # Alone, the kernel sums over other padding: equal to rounding. Perturbed in place, the probe demands equal bits.
    assert torch.allclose(together, alone, atol=1e-6)
    check_documents_apart(model, kernel="sdpa", device=CPU, vocab_size=97)


def test_the_probe_finds_a_model_that_reads_across_documents() -> None:
    model = model_of(tiny()).eval()
    forward = model.forward

    def with_a_full_mask(**inputs: Any) -> Any:
        return forward(**inputs | {"attention_mask": torch.ones_like(inputs["input_ids"])})

    model.forward = with_a_full_mask  # type: ignore[method-assign]

    with pytest.raises(RunError, match="sdpa lets packed documents read each other: .* moved document 2's logits by"):
        check_documents_apart(model, kernel="sdpa", device=CPU, vocab_size=97)


def test_flash_attention_gets_all_four_boundary_arguments() -> None:
    positions = np.array([[0, 1, 2, 0], [0, 0, 1, 2]])

    inputs = packed_inputs(batch_of(np.arange(8).reshape(2, 4), positions), kernel="flash_attention_2", device=CPU)

    assert inputs["input_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 0, 0, 0, 1, 2]]
    assert inputs["cu_seq_lens_q"].tolist() == inputs["cu_seq_lens_k"].tolist() == [0, 3, 4, 5, 8]
    assert inputs["cu_seq_lens_q"].dtype == torch.int32
    assert inputs["max_length_q"] == inputs["max_length_k"] == 3
    assert inputs["attention_mask"] is None and inputs["use_cache"] is False


def test_auto_attention_says_which_kernel_and_why() -> None:
    choice = choose_attention(tiny(attention="auto"), device=CPU, precision="bf16")

    assert (choice.kernel, choice.reason) == ("sdpa", "no CUDA device")


def test_flash_attention_is_refused_where_it_cannot_run() -> None:
    with pytest.raises(RunError, match="flash_attention_2 cannot run here: no CUDA device; use 'auto' or 'sdpa'"):
        choose_attention(tiny(attention="flash_attention_2"), device=CPU, precision="bf16")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_new_model_is_a_pure_function_of_its_seed(architecture: str) -> None:
    one, same, other = (model_of(tiny(architecture), seed=seed) for seed in (3, 3, 4))

    def flat(model: torch.nn.Module) -> torch.Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    assert torch.equal(flat(one), flat(same))
    assert not torch.equal(flat(one), flat(other))


def test_the_vocabulary_is_padded_to_its_multiple() -> None:
    model = model_of(tiny(pad_vocab_to_multiple=64))

    assert model.get_input_embeddings().weight.shape[0] == 128  # type: ignore[operator, union-attr]


@pytest.mark.parametrize("tied", [False, True])
def test_flops_count_each_multiplying_parameter_six_times(tied: bool) -> None:
    # Llama by hand: 2 layers of q, k, v, o (32x32 each) and three 32x384 matrices, two norms; a final norm; the head.
    model = model_of(tiny(intermediate_size=384, tie_embeddings=tied))
    layers = 2 * (4 * 32 * 32 + 3 * 32 * 384 + 2 * 32) + 32
    head = 104 * 32

    assert count_parameters(model).total == layers + head * (1 if tied else 2)
    assert flops_per_token(model, seq_len=16) == 6 * (layers + head) + 12 * 2 * 32 * 16


def test_ko_1b_has_the_size_of_its_name() -> None:
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    from data_pipeline.config import load
    from trainer.config import TrainConfig

    repo = Path(__file__).parents[2]
    for name, low, high in (("ko-125m", 0.10e9, 0.15e9), ("ko-1b", 1.0e9, 1.4e9)):
        config = load(repo / "configs/pretrain" / f"{name}.yaml", [], TrainConfig)
        with init_empty_weights():
            described = describe(config.model, vocabulary=Vocabulary(32_000, 0, 1))
            model = AutoModelForCausalLM.from_config(described)

        assert low < count_parameters(model).total < high


def test_a_model_path_that_does_not_exist_is_named() -> None:
    with pytest.raises(
        RunError, match=r"model.from: '/no/such/model': no such folder; check the path, or give a hub name"
    ):
        model_of(tiny(**{"from": "/no/such/model"}))


def test_a_name_that_no_hub_gives_is_named() -> None:
    with pytest.raises(RunError, match=r"model.from: 'nobody/nothing' is neither a folder here nor a hub model"):
        model_of(tiny(**{"from": "nobody/nothing"}))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is a folder without a loadable model"):
        model_of(tiny(**{"from": str(tmp_path)}))


def test_a_model_with_fewer_rows_than_the_shards_have_tokens_is_refused(tmp_path: Path) -> None:
    model_of(tiny()).save_pretrained(tmp_path)
    config = tiny(**{"from": str(tmp_path)})

    with pytest.raises(RunError, match="has 104 embedding rows, but the shards' tokenizer has 105 tokens"):
        make_model(config, vocabulary=Vocabulary(105, 0, 1), kernel="sdpa", dtype=torch.float32, seed=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_continues_from_a_folder_with_its_weights(tmp_path: Path, architecture: str) -> None:
    original = model_of(tiny(architecture))
    original.save_pretrained(tmp_path)

    loaded = model_of(tiny(**{"from": str(tmp_path)}))

    ours, theirs = dict(original.named_parameters()), dict(loaded.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_loss_is_the_sum_of_negative_log_probabilities_of_the_targets() -> None:
    model = model_of(tiny()).eval()
    generator = np.random.default_rng(1)
    ids, labels = generator.integers(0, 97, (2, 2, 6))
    labels[0, 3:] = -100
    batch = batch_of(ids, np.tile(np.arange(6), (2, 1)), labels)
    objective = CausalLM(kernel="sdpa", device=CPU)
    with torch.no_grad():
        log_probabilities = objective.logits(model, batch).double().log_softmax(-1).reshape(2, 6, -1)
        by_hand = -sum(log_probabilities[b, t, labels[b, t]] for b in range(2) for t in range(6) if labels[b, t] >= 0)

        assert objective(model, batch).item() == pytest.approx(float(by_hand), rel=1e-6)


def test_a_batch_without_targets_has_loss_zero_and_joins_every_gradient() -> None:
    model = model_of(tiny())
    batch = batch_of(np.ones((1, 6), dtype=np.int64), np.arange(6)[None])

    loss = CausalLM(kernel="sdpa", device=CPU)(model, batch)
    loss.backward()

    assert loss.item() == 0.0
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
