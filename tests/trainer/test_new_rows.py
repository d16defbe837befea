"""Law 11 on modules: new rows beside an embedding and a head move nothing that was there, tied or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from data_pipeline.config import ConfigError, validate
from data_pipeline.tokenizer.extend_descent import NewToken
from trainer.errors import RunError
from trainer.new_rows import (
    RowsPlan,
    bypassed,
    fold,
    install,
    is_tied,
    plan_of,
    plan_rows,
    role_of,
    zeros,
)
from trainer.new_rows_config import STARTS, NewRowsConfig, short_phases
from trainer.new_rows_init import starting_values
from trainer.new_rows_phases import Phases, check_phases, place_of
from trainer.new_rows_proof import Proof, prove_old_tokens
from trainer.resilience import StepPolicy, StepPolicyConfig
from trainer.schedule import OptimizerConfig, ScheduleConfig, parameter_groups, set_learning_rate

OLD, WIDTH = 20, 8
TOKENS = [NewToken(20, "가격표", (3, 4)), NewToken(21, "벽체", (5, 6, 7)), NewToken(22, "[x]", (9,))]


def make(kind: str) -> Any:
    """A causal LM of 20 rows: untied, tied, or with an embedding that scales; or a masked one with a biased head."""
    import transformers

    torch.manual_seed(1)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    if kind == "bert":
        config = transformers.BertConfig(vocab_size=OLD, max_position_embeddings=32, **sizes)
        model: Any = transformers.BertForMaskedLM(config)
        nn.init.normal_(model.cls.predictions.bias)
    elif kind == "scaled":
        more = {"num_key_value_heads": 1, "head_dim": 4, "layer_types": ["full_attention"]}
        model = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(vocab_size=OLD, **sizes, **more))
    else:
        described = transformers.LlamaConfig(vocab_size=OLD, tie_word_embeddings=kind == "tied", **sizes)
        model = transformers.LlamaForCausalLM(described)
    return model.eval()


def plan_for(*, base_rows: int = OLD, multiple: int = 8) -> RowsPlan:
    return plan_rows(first=20, num_tokens=3, base_rows=base_rows, multiple=multiple, needs_pad=False)


def extend(model: Any, *, init: str = "mean_of_subtokens", output_init: str | None = None) -> RowsPlan:
    plan = plan_for()
    values = starting_values(
        model, plan, TOKENS, init=init, output_init=output_init or init, token_id={"[CLS]": 2}.get, seed=1
    )
    install(model, plan, values, dtype=torch.float32)
    return plan


OLD_IDS = torch.tensor([[1, 5, 9, 2, 19, 0]])
NEW_IDS = torch.tensor([[1, 20, 9, 22, 21, 0]])


@pytest.mark.parametrize("kind", ["untied", "tied", "scaled", "bert"])
def test_old_tokens_have_their_logits_to_the_bit(kind: str) -> None:
    model = make(kind)
    before = model(OLD_IDS).logits
    was_tied = is_tied(model)

    plan = extend(model)
    after = model(OLD_IDS).logits

    assert was_tied == (kind != "untied")
    assert after.shape[-1] == plan.total == 24
    assert torch.equal(after[..., :OLD], before)
    with bypassed(model):
        assert torch.equal(model(OLD_IDS).logits, before)
    assert plan_of(model) == plan


def test_an_old_token_that_is_disturbed_is_found() -> None:
    model = make("untied")
    extend(model)
    rows = np.arange(30, dtype=np.int64).reshape(6, 5) % OLD

    def prove() -> Proof:
        return prove_old_tokens(
            model, model, rows, first=OLD, logits=lambda module, ids: module(torch.from_numpy(ids)).logits
        )

    assert str(prove()) == "0 of 600 logits of old tokens over 6 texts moved"
    embedding = model.get_input_embeddings()
    embedding.register_forward_hook(lambda module, _, out: out if module.is_bypassed else out * 1.001)
    assert prove().num_moved > 500
    assert "moved, by up to" in str(prove())


@pytest.mark.parametrize("kind", ["untied", "tied", "scaled", "bert"])
def test_folded_it_is_a_plain_model_with_the_same_logits(kind: str) -> None:
    model = make(kind)
    old_weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    old_kind = type(model.get_input_embeddings())
    plan = extend(model)
    for parameter in model.parameters():
        if role_of(parameter) != "model":
            nn.init.normal_(parameter)
    expected = model(NEW_IDS).logits

    fold(model, plan)

    assert type(model.get_input_embeddings()) is old_kind
    assert is_tied(model) == (kind != "untied")
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == 24
    torch.testing.assert_close(model(NEW_IDS).logits, expected, rtol=1e-6, atol=1e-6)
    for name, old in old_weights.items():
        new = model.state_dict()[name]
        assert torch.equal(new[: len(old)] if old.dim() else new, old), name


def test_free_rows_are_taken_first() -> None:
    model = make("untied")
    before = model(OLD_IDS).logits
    plan = plan_rows(first=15, num_tokens=3, base_rows=OLD, multiple=8, needs_pad=True)

    install(model, plan, zeros(model, plan), dtype=torch.float32)
    after = model(OLD_IDS.clamp(max=14)).logits

    assert plan == RowsPlan(15, 3, 3, OLD)
    assert after.shape == before.shape
    assert not after[..., 15:18].any()
    fold(model, plan)
    assert not model.get_input_embeddings().weight[15:18].any()
    assert model.get_input_embeddings().weight[18:].all()


def test_a_row_copied_from_cls_does_what_cls_does() -> None:
    model = make("bert")
    extend(model, init="copy:[CLS]")
    with_cls, with_new = (torch.tensor([[1, each, 9, 4]]) for each in (2, 21))

    one, two = model(with_cls), model(with_new)

    assert torch.equal(one.logits, two.logits)
    assert torch.equal(one.logits[..., 2], one.logits[..., 21])


def test_each_start_is_what_its_name_says() -> None:
    model = make("untied")
    weight, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight

    def starts(name: str) -> Any:
        return starting_values(
            model, plan_for(), TOKENS, init=name, output_init=name, token_id={"[CLS]": 2}.get, seed=1
        )

    assert torch.allclose(starts("mean_of_subtokens").input[0], (weight[3] + weight[4]) / 2)
    assert torch.equal(starts("first_subtoken").output[1], head[5])
    assert torch.allclose(starts("mean_of_all").output[2], head.mean(0), atol=1e-7)
    assert torch.equal(starts("copy:[CLS]").input[:3], weight[2].expand(3, -1))
    assert torch.equal(starts("random").input, starts("random").input)
    assert not torch.equal(starts("random").input, starts("random").output)
    assert 0.01 < float(starts("random").input[:3].std()) < 0.04
    assert torch.allclose(starts("random").input[3:], weight.mean(0), atol=1e-7), "what pads begins as the mean"
    with pytest.raises(RunError, match=r"'copy:\[SEP\]', but the model's tokenizer has no token '\[SEP\]'"):
        starts("copy:[SEP]")
    assert set(STARTS) == {"mean_of_subtokens", "first_subtoken", "mean_of_all", "random", "copy:TOKEN"}


def test_a_tied_model_begins_in_one_way() -> None:
    with pytest.raises(RunError, match="output_init: 'random', but the model's head is its embedding"):
        extend(make("tied"), init="mean_of_all", output_init="random")


def test_new_rows_get_gradients_and_old_rows_none_from_new_places() -> None:
    model = make("untied")
    plan = extend(model)
    model(NEW_IDS).logits.square().sum().backward()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()

    assert embedding.rows.grad[:3].any(dim=1).all()
    assert head.rows.grad.any(dim=1).all()
    used = sorted(int(number) for number in embedding.base.weight.grad.any(dim=1).nonzero())
    assert used == [0, 1, 9]
    assert plan.num_rows == 4


def test_only_plain_heads_and_embeddings_get_rows() -> None:
    model = make("untied")
    plan, values = plan_for(), zeros(model, plan_for())
    with pytest.raises(RunError, match="the model's head is a _Head"):

        class _Head(nn.Linear):
            pass

        model.lm_head = _Head(WIDTH, OLD)
        install(model, plan, values, dtype=torch.float32)
    with pytest.raises(RunError, match="the model's embedding is a _Other"):

        class _Other(nn.Embedding):
            pass

        model.model.embed_tokens = _Other(OLD, WIDTH)
        install(model, plan, values, dtype=torch.float32)


PHASES = [
    {"train": "input", "steps": 3, "schedule": {"warmup_steps": 1, "peak_lr": 0.5, "kind": "wsd"}},
    {"train": "output", "steps": 2},
    {"train": "both", "steps": 2},
    {"train": "all", "steps": 3},
]


def rows_config(**keys: Any) -> NewRowsConfig:
    return NewRowsConfig.model_validate({"phases": PHASES} | keys)


class FakeEngine:
    """What a phase needs of an engine, without one: a model and its optimizer."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(parameter_groups(model, OptimizerConfig()), lr=0.0)

    def update(self, lr: float) -> float:
        self.model(NEW_IDS).logits.square().mean().backward()
        norm = nn.utils.get_total_norm([each.grad for each in self.model.parameters() if each.grad is not None])
        set_learning_rate(self.optimizer.param_groups, lr)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm)


def moved_by(model: Any, before: dict[str, torch.Tensor]) -> set[str]:
    return {role_of(each) for name, each in model.named_parameters() if not torch.equal(each.detach(), before[name])}


def test_only_what_a_phase_names_moves() -> None:
    model = make("untied")
    extend(model)
    engine = FakeEngine(model)
    phases = Phases(rows_config(), engine, schedule=ScheduleConfig(warmup_steps=0, peak_lr=0.1))
    seen = []
    for number in range(10):
        before = {name: each.detach().clone() for name, each in model.named_parameters()}
        place = phases.begin_update(number)
        engine.update(place.lr)
        seen.append(moved_by(model, before))

    everything = {"input", "output", "model"}
    assert seen == [*[{"input"}] * 3, *[{"output"}] * 2, *[{"input", "output"}] * 2, *[everything] * 3]


def test_the_norm_holds_only_what_moves() -> None:
    model = make("untied")
    extend(model)
    engine = FakeEngine(model)
    phases = Phases(rows_config(), engine, schedule=ScheduleConfig(warmup_steps=0, peak_lr=0.0001))
    norms = []
    for number in (0, 7):
        phases.begin_update(number)
        norms.append(engine.update(0.0))

    phases.begin_update(0)
    model(NEW_IDS).logits.square().mean().backward()
    assert norms[0] == pytest.approx(float(model.get_input_embeddings().rows.grad.norm()), rel=1e-6)
    assert norms[0] < norms[1]


def test_moments_begin_anew_with_each_phase_and_not_inside_one() -> None:
    model = make("untied")
    extend(model)
    engine = FakeEngine(model)
    phases = Phases(rows_config(), engine, schedule=ScheduleConfig(warmup_steps=0, peak_lr=0.1))
    rows = model.get_input_embeddings().rows
    steps = []
    for number in range(5):
        engine.update(phases.begin_update(number).lr)
        steps.append(int(engine.optimizer.state[rows]["step"]))

    assert steps == [1, 2, 3, 1, 2]


def test_a_phase_is_not_a_spike_beside_the_one_before() -> None:
    config = StepPolicyConfig(refuse_spikes=True, spike_window=2, spike_warmup_steps=0)
    policy = StepPolicy(config)
    assert all(policy.accepts(1.0, 1.0).accepted for _ in range(2))
    assert not policy.accepts(1.0, 100.0).accepted

    policy.begin_phase()

    assert policy.accepts(1.0, 100.0).accepted


def test_places_are_a_pure_function_of_the_update() -> None:
    config = rows_config()
    places = [
        place_of(number, phases=config.phases, schedule=ScheduleConfig(warmup_steps=2, peak_lr=1.0, min_lr_ratio=0.0))
        for number in range(10)
    ]

    assert [place.phase for place in places] == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert [place.step for place in places] == [0, 1, 2, 0, 1, 0, 1, 0, 1, 2]
    assert [place.lr for place in places[:5]] == pytest.approx([0.5, 0.5, 0.5, 0.5, 1.0])
    assert places[9].lr == pytest.approx(0.0)


def test_a_phase_that_would_move_nothing_is_refused() -> None:
    tied = make("tied")
    extend(tied)
    with pytest.raises(RunError, match=r"phases\.0\.train: 'input' moves nothing in this model: its head"):
        check_phases(rows_config(), tied)


def test_a_try_goes_through_every_phase() -> None:
    short = short_phases(rows_config().phases, steps=9, schedule=ScheduleConfig(warmup_steps=100, peak_lr=0.1))

    assert [(phase.train, phase.steps) for phase in short] == [("input", 2), ("output", 2), ("both", 2), ("all", 3)]
    made = rows_config(phases=[phase.model_dump() for phase in short])
    assert list(made.faults(max_steps=9, schedule=ScheduleConfig(), has_adapter=False)) == []
    assert len(short_phases(short, steps=2, schedule=ScheduleConfig())) == 2


def test_a_config_that_contradicts_itself_is_refused() -> None:
    from trainer.config import TrainConfig

    def config(**sections: Any) -> TrainConfig:
        tree: dict[str, Any] = {
            "run": {"name": "run"},
            "model": {"from": "base"},
            "data": {"shards": "unused", "seq_len": 32},
            "train": {"max_steps": 10, "global_batch_sequences": 2, "micro_batch_sequences": 1},
            "new_rows": {"phases": PHASES},
        }
        tree["train"]["schedule"] = {"warmup_steps": 0}
        for name, keys in sections.items():
            tree[name] = tree.get(name, {}) | keys
        return validate(tree, TrainConfig, where="test")

    assert config().new_rows is not None
    with pytest.raises(ConfigError, match=r"10 steps in all, but train\.max_steps is 11; make them equal"):
        config(train={"max_steps": 11})
    with pytest.raises(ConfigError, match=r"phases\.1: warm-up and decay of its schedule take 9 steps, but it has 2"):
        config(train={"schedule": {"warmup_steps": 9}})
    with pytest.raises(ConfigError, match="'adapter', but the run has none"):
        config(new_rows={"phases": [{"train": "adapter", "steps": 10}]})
    with pytest.raises(ConfigError, match="a new model has a row for every token"):
        config(model={"from": None})
    with pytest.raises(ConfigError, match=r"'mean' is no way to begin a row; choose among mean_of_subtokens"):
        config(new_rows={"init": "mean"})
    with pytest.raises(ConfigError, match="'copy:' is no way"):
        config(new_rows={"output_init": "copy:"})
