"""The silent-failure gate: each planted fault is refused before step 1, with a line that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from data_pipeline.config import ConfigError
from data_pipeline.stream.batch import Batch, padding_batch
from tests.trainer.tiny_run import make_shards, tiny_config
from trainer.errors import RunError
from trainer.gate import bos_ids, check_first_batches, run_gate, table
from trainer.gate_checks import (
    Check,
    GateConfig,
    Limits,
    ModelRows,
    check_fingerprints,
    check_first_loss,
    check_rows,
    check_vocabulary,
)
from trainer.gate_rows import Seen, SpecialIds, look_at
from trainer.ranks import Ranks
from trainer.setup import Run, set_up

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
EOS, PAD, BOS = 0, 1, 2
IDS = SpecialIds(eos=EOS, pad=PAD, bos=frozenset({BOS}))
PAD_IS_EOS = SpecialIds(eos=EOS, pad=EOS, bos=frozenset({EOS}))
NO = -100


def rows_of(*rows: list[tuple[list[int], list[int]]], pad: int = PAD) -> Batch:
    """Rows of documents: (ids with their EOS, the places that are targets); filled up with padding."""
    seq_len = max(sum(len(ids) - 1 for ids, _ in row) for row in rows) + 3
    batch = [padding_batch(seq_len=seq_len, pad_id=pad) for _ in rows]
    for place, row in enumerate(rows):
        at = 0
        for ids, targets in row:
            length = len(ids) - 1
            batch[place].input_ids[0, at : at + length] = ids[:-1]
            batch[place].labels[0, at : at + length] = [ids[t] if t in targets else NO for t in range(1, len(ids))]
            batch[place].position_ids[0, at : at + length] = np.arange(length)
            at += length
        batch[place].position_ids[0, at:] = np.arange(seq_len - at)
    labels = np.concatenate([row.labels for row in batch])
    return Batch(
        input_ids=np.concatenate([row.input_ids for row in batch]),
        labels=labels,
        position_ids=np.concatenate([row.position_ids for row in batch]),
        row_ids=np.arange(len(rows)),
        num_targets=int((labels != NO).sum()),
    )


SOUND = ([BOS, 10, 11, 12, 20, 21, EOS], [4, 5, 6])


def checks_of(batch: Batch, *, stage: str = "sft", ids: SpecialIds = IDS, eos_share: float = 0.2) -> dict[str, Check]:
    limits = Limits(stage=stage, gate=GateConfig(), ids=ids, eos_share=eos_share)
    return {check.name: check for check in check_rows(look_at(batch, ids), limits)}


def failed(checks: dict[str, Check]) -> list[str]:
    return [name for name, check in checks.items() if not check.is_ok]


def test_counts_of_rows_are_those_by_hand() -> None:
    emptied = ([BOS, 10, 11, EOS], [])
    batch = rows_of([SOUND, SOUND], [emptied])

    seen = look_at(batch, IDS)

    assert seen == Seen(
        num_rows=2,
        num_rows_without_target=1,
        num_inputs=30,
        num_padding=15,
        num_targets=6,
        num_eos_targets=2,
        num_pad_targets=0,
        num_documents=3,
        num_documents_without_target=1,
        num_documents_not_ended=1,
        num_documents_with_more_bos=0,
        highest_id=21,
    )


def test_counts_add_up_over_batches_and_ranks() -> None:
    one, other = rows_of([SOUND, SOUND]), rows_of([([10, 30, EOS], [1, 2])])
    both = look_at(one, IDS) + look_at(other, IDS)

    assert (both.num_rows, both.num_targets, both.highest_id) == (2, 8, 30)
    assert Seen() + both == both


def test_a_rank_without_a_row_adds_nothing() -> None:
    assert look_at(padding_batch(seq_len=8, pad_id=PAD), IDS) == Seen()


def test_sound_rows_pass_every_check() -> None:
    assert failed(checks_of(rows_of([SOUND, SOUND], [SOUND]))) == []


@pytest.mark.parametrize(
    ("row", "name", "value"),
    [
        (([BOS, 10, 20, 21, EOS], [2, 3]), "EOS is a target", "1 of 2 documents end in it"),
        (([BOS, 10, 20, 21, 22], [2, 3, 4]), "EOS is a target", "1 of 2 documents end in it"),  # an answer that was cut
        (([BOS, BOS, 10, 20, EOS], [3, 4]), "BOS once a document", "1 of 2 have more"),
        (([BOS, 10, 20, PAD, EOS], [2, 3, 4]), "padding is no target", "1 of 6 targets"),
    ],
)
def test_one_faulty_document_among_sound_ones_is_found(row: Any, name: str, value: str) -> None:
    checks = checks_of(rows_of([SOUND], [row]))

    assert failed(checks) == [name]
    assert checks[name].value == value


def test_a_document_without_target_is_found() -> None:
    checks = checks_of(rows_of([SOUND, ([BOS, 10, EOS], [])]))

    assert failed(checks) == ["EOS is a target", "no emptied rows"]
    assert checks["no emptied rows"].value == "1 of 2 documents, 0 of 1 rows without target"


def test_padding_that_is_learnt_is_found() -> None:
    batch = rows_of([SOUND])
    batch.labels[0, -3:] = PAD

    assert checks_of(batch)["padding is no target"].value == "3 of 6 targets"
    assert "padding is no target" in failed(checks_of(batch))


def test_where_eos_pads_the_end_of_an_answer_is_right_and_learnt_padding_is_not() -> None:
    batch = rows_of([([10, 11, 20, EOS], [2, 3])], pad=EOS)
    sound = checks_of(batch, ids=PAD_IS_EOS)
    batch.labels[0, -3:] = EOS
    faulty = checks_of(batch, ids=PAD_IS_EOS)

    assert failed(sound) == []
    assert sound["padding is no target"].value == "0 of 2 targets (pad is EOS)"
    assert faulty["padding is no target"].value == "3 of 5 targets (pad is EOS)"
    assert "padding is no target" in failed(faulty)


def test_where_eos_is_bos_a_document_of_several_turns_is_right_and_two_at_its_start_are_not() -> None:
    turns = rows_of([([EOS, 10, 20, EOS, 11, 21, EOS], [2, 3, 5, 6])], pad=EOS)
    doubled = rows_of([([EOS, EOS, 10, 20, 21, EOS], [4, 5])], pad=EOS)

    assert failed(checks_of(turns, ids=PAD_IS_EOS)) == []
    assert failed(checks_of(doubled, ids=PAD_IS_EOS)) == ["BOS once a document"]


@pytest.mark.parametrize(
    ("targets", "advice"),
    [
        (range(1, 301), "questions are targets too"),
        ([300], "hardly anything is learnt"),
    ],
)
def test_a_share_of_targets_outside_its_limits_is_found(targets: list[int], advice: str) -> None:
    checks = checks_of(rows_of([([BOS, *range(10, 309), EOS], list(targets))]))

    assert failed(checks) == ["share of targets"]
    assert checks["share of targets"].limit == "1 to 99 %"
    assert checks["share of targets"].advice.startswith(advice)


def test_in_pretraining_every_token_after_the_first_is_a_target() -> None:
    whole = ([10, 11, 12, EOS], [1, 2, 3])
    masked = ([10, 11, 12, EOS], [2, 3])

    assert failed(checks_of(rows_of([whole, whole]), stage="pretrain")) == []
    assert failed(checks_of(rows_of([whole, masked]), stage="pretrain")) == ["share of targets"]


def test_in_pretraining_eos_is_missed_only_where_some_were_due() -> None:
    piece = rows_of([(list(range(10, 111)), list(range(1, 101)))])

    assert failed(checks_of(piece, stage="pretrain", eos_share=0.01)) == []
    assert failed(checks_of(piece, stage="pretrain", eos_share=0.5)) == ["EOS is a target"]


def test_ids_beyond_the_models_rows_are_found() -> None:
    seen = look_at(rows_of([SOUND]), IDS)

    def names(rows: ModelRows, size: int) -> list[str]:
        return [check.name for check in check_vocabulary(seen, rows, size=size, ids=IDS) if not check.is_ok]

    assert names(ModelRows(embedding=22, head=22), 22) == []
    assert names(ModelRows(embedding=22, head=22), 23) == ["vocabulary fits the model"]
    assert names(ModelRows(embedding=21, head=22), 20) == ["vocabulary fits the model"]
    assert names(ModelRows(embedding=22, head=0), 22) == ["EOS has a row", "vocabulary fits the model"]


@pytest.mark.parametrize(
    ("pad", "is_ok", "value"),
    [
        (PAD, True, "id 1: the tokenizer's own"),
        (EOS, True, "EOS (id 0): no pad token, no free row (22 tokens, 24 rows)"),
        (22, True, "id 22: no pad token, so a free row (22 tokens, 24 rows)"),
        (24, False, "id 24: no pad token, so a free row (22 tokens, 24 rows)"),
    ],
)
def test_the_row_that_pads_is_named_with_its_reason(pad: int, is_ok: bool, value: str) -> None:
    ids = SpecialIds(eos=EOS, pad=pad, bos=frozenset())
    seen = look_at(rows_of([SOUND], pad=pad), ids)
    checks = {check.name: check for check in check_vocabulary(seen, ModelRows(24, 24), size=22, ids=ids)}

    assert (checks["pad has a row"].is_ok, checks["pad has a row"].value) == (is_ok, value)
    assert checks["vocabulary fits the model"].value.startswith("22 tokens (highest id seen 21)")


def test_tokenizers_that_differ_are_found_and_a_model_without_one_is_said() -> None:
    same = check_fingerprints({"shards": "a" * 64, "model": "a" * 64}, shards="S")
    other = check_fingerprints({"shards": "a" * 64, "model": "b" * 64}, shards="S")
    silent = check_fingerprints({"shards": "a" * 64, "model": None}, shards="S")

    assert (same.is_ok, other.is_ok, silent.is_ok) == (True, False, True)
    assert other.value == "shards aaaaaaaa, model bbbbbbbb"
    assert silent.value == "shards aaaaaaaa, model brings none"


@pytest.mark.parametrize(
    ("loss", "is_new", "is_ok"),
    [
        (6.9, True, True),  # ln 1000
        (10.3, True, True),
        (10.4, True, False),
        (2.5, False, True),
        (6.9, False, False),
        (0.0, False, False),
        (float("nan"), True, False),
        (float("inf"), False, False),
    ],
)
def test_the_first_loss_is_held_against_guessing_or_against_a_base_that_knows(
    loss: float, is_new: bool, is_ok: bool
) -> None:
    assert check_first_loss(loss, vocab_size=1000, is_new=is_new, gate=GateConfig()).is_ok is is_ok


def test_the_bos_is_found_where_the_tokenizer_names_one(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    found = []
    for bos in ({"bos_token": "<s>"}, {"bos_token": {"content": "<s>"}}, {}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(bos | {"eos_token": "</s>"}))
        found.append(bos_ids(tmp_path))

    assert found == [{1}, {1}, set()]


def test_limits_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gate: min_target_share 0.5 is above max_target_share 0.4"):
        tiny_config(tmp_path, tmp_path, gate={"min_target_share": 0.5, "max_target_share": 0.4})


def test_a_failed_line_says_what_to_do_below_it() -> None:
    good = Check("short", "1", "1", True, "nothing")
    bad = Check("a longer name", "value", "none", False, "build it again")

    assert table([good, bad], title="gate:").splitlines() == [
        "gate:",
        "  ok    short          1      (1)",
        "  FAIL  a longer name  value  (none)",
        "        → build it again",
    ]


# On a real run: shards on disk, a model, an engine.


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return set_up(tiny_config(tmp_path, make_shards(tmp_path / "shards")), ALONE)


def test_a_sound_run_passes_and_is_shown_as_a_table(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run_gate(run, ALONE)

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("gate: the first 4 steps: 40 rows of 32 with ")
    assert len(lines) == 12 and all(line.startswith("  ok  ") for line in lines[1:])


def test_the_gate_changes_nothing(run: Run) -> None:
    weights = {name: tensor.detach().clone() for name, tensor in run.engine.model.named_parameters()}
    run.engine.module.train()
    torch.manual_seed(11)
    before = torch.get_rng_state()

    run_gate(run, ALONE)

    assert torch.equal(torch.get_rng_state(), before)
    assert run.stream.next_row == 0
    assert run.engine.module.training
    for name, tensor in run.engine.model.named_parameters():
        assert torch.equal(tensor, weights[name]) and tensor.grad is None


def leak(run: Run) -> None:
    forward = run.engine.model.forward

    def with_a_full_mask(**inputs: Any) -> Any:
        return forward(**inputs | {"attention_mask": torch.ones_like(inputs["input_ids"])})

    run.engine.model.forward = with_a_full_mask  # type: ignore[method-assign]


def poison(run: Run) -> None:
    with torch.no_grad():
        run.engine.model.get_output_embeddings().weight[5] = float("nan")  # type: ignore[operator, union-attr]


def blow_up(run: Run) -> None:
    with torch.no_grad():
        run.engine.model.get_output_embeddings().weight.mul_(100)  # type: ignore[operator, union-attr]


def shrink(run: Run) -> None:
    run.engine.model.resize_token_embeddings(96)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("plant", "line"),
    [
        (leak, r"gate: documents are apart: sdpa: a document reads its neighbour, but it must be no logit moved"),
        (poison, r"gate: first loss is sane: nan nats a target, but it must be above 0, below 6\.86"),
        (blow_up, r"gate: first loss is sane: \d+\.\d+ nats a target, but it must be above 0, below 6\.86"),
        (shrink, r"gate: vocabulary fits the model: 97 tokens \(highest id seen 96\); embedding 96 and head 96 rows"),
    ],
)
def test_a_fault_of_the_model_is_refused(run: Run, plant: Callable[[Run], None], line: str) -> None:
    plant(run)

    with pytest.raises(RunError, match=line):
        run_gate(run, ALONE)


def test_every_failed_line_stands_in_the_refusal(run: Run) -> None:
    leak(run)
    blow_up(run)

    with pytest.raises(RunError) as refusal:
        run_gate(run, ALONE)

    assert [line.split(":")[1] for line in str(refusal.value).splitlines()] == [
        " first loss is sane",
        " documents are apart",
    ]
    assert [check.name for check in check_first_batches(run) if not check.is_ok] == [
        "first loss is sane",
        "documents are apart",
    ]
