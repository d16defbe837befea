"""Figures by source: those of everything are their sums, and each is that of its source's rows alone."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from data_pipeline.shards.format import read_shards
from data_pipeline.stage import StageError
from data_pipeline.stream.batch import NO_TARGET, Batch
from data_pipeline.stream.by_source import documents_by_source
from data_pipeline.stream.examples import ExampleBatch, ExampleSet
from launch.verb_evaluate import source_lines
from tests.data_pipeline.shards.example_folders import build, stage_of, write_examples, write_plain
from tests.data_pipeline.stream.shard_folder import write_shards
from tests.trainer.tiny_run import tiny_config
from trainer import evaluate_sources
from trainer.config import TrainConfig
from trainer.evaluate import evaluate
from trainer.evaluate_sources import OTHERS, SourcedRows, SourcedScorer, open_sources
from trainer.objectives.causal_lm import _BitsPerByte
from trainer.objectives.classification import _Confusion, _numbers
from trainer.objectives.objective import Objective, Outcome, Scorer
from trainer.ranks import Ranks

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
NAMES = ("책", "뉴스", "대화")
SEQ_LEN = 16


class Table(Objective):
    """A "model" that gives each label the probability of a fixed table: losses without a model's seconds."""

    def outcome(self, module: nn.Module, batch: Any) -> Outcome:
        assert isinstance(batch, Batch)
        labels = batch.labels[batch.labels != NO_TARGET]
        return Outcome(torch.tensor(float(np.sum(0.5 + labels % 7))))

    def scorer(self, *, num_bytes: int) -> Scorer:
        return _BitsPerByte(num_bytes)


def documents() -> list[list[int]]:
    """Short and long ones, some longer than a row."""
    draws = np.random.default_rng(5)
    return [draws.integers(2, 1000, size=length).tolist() for length in (3, 9, 40, 1, 17, 16, 25, 5, 33, 2, 8, 12, 7)]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    parts = [documents()[:6], documents()[6:]]
    return write_shards(tmp_path / "shards", parts, split="heldout", sources=NAMES)


def config_of(folder: Path, shards: Path, **sections: Any) -> TrainConfig:
    plain = tiny_config(folder, shards, data={"seq_len": SEQ_LEN}, evaluation={"max_documents": None}, **sections)
    return plain


def scored(rows: SourcedRows, objective: Objective, *, micro_batch_sequences: int = 3) -> dict[str, Any]:
    found = evaluate(
        nn.Identity(),
        rows,
        objective=objective,
        ranks=ALONE,
        micro_batch_sequences=micro_batch_sequences,
        scorer=SourcedScorer(objective, rows),
    )
    assert found is not None
    return found.as_dict()


def test_every_document_is_of_one_source_and_the_largest_comes_first(shards: Path) -> None:
    found = documents_by_source(read_shards(shards, split="heldout"))

    assert {name: numbers.tolist() for name, numbers in found.items()} == {
        "책": [0, 3, 6, 9, 12],
        "뉴스": [1, 4, 7, 10],
        "대화": [2, 5, 8, 11],
    }
    assert next(iter(found)) == "책"


def test_the_figures_of_all_are_the_sums_of_those_of_the_sources(tmp_path: Path, shards: Path) -> None:
    rows = open_sources(config_of(tmp_path, shards))

    found = scored(rows, Table())

    of_sources = found["sources"].values()
    for count in ("num_documents", "num_targets", "num_bytes"):
        assert found[count] == sum(figures[count] for figures in of_sources), count
    nats = sum(figures["loss"] * figures["num_targets"] for figures in of_sources)
    assert found["loss"] * found["num_targets"] == pytest.approx(nats, rel=1e-6)
    bits = sum(figures["bits_per_byte"] * figures["num_bytes"] for figures in of_sources)
    assert found["bits_per_byte"] * found["num_bytes"] == pytest.approx(bits, rel=1e-6)


def test_a_source_has_the_loss_of_its_documents(tmp_path: Path, shards: Path) -> None:
    found = scored(open_sources(config_of(tmp_path, shards)), Table())

    for place, name in enumerate(NAMES):
        mine = [ids for part in (documents()[:6], documents()[6:]) for ids in part[place :: len(NAMES)]]
        targets = [token for ids in mine for token in [*ids, 0][1:]]
        nats = sum(0.5 + token % 7 for token in targets)
        figures = found["sources"][name]
        assert (figures["num_documents"], figures["num_targets"]) == (len(mine), len(targets))
        assert figures["loss"] == pytest.approx(nats / len(targets), rel=1e-6)
        num_bytes = 3 * sum(map(len, mine))
        assert figures["bits_per_byte"] == pytest.approx(nats / (math.log(2) * num_bytes), rel=1e-6)


def test_a_source_of_nothing_to_score_is_left_out_and_all_of_them_are_refused(tmp_path: Path) -> None:
    mixed = write_shards(tmp_path / "mixed", [[[5, 6], []]], split="heldout", sources=("있음", "없음"))
    rows = open_sources(config_of(tmp_path, mixed))
    assert list(rows.rows) == ["있음"]

    empty = write_shards(tmp_path / "empty", [[[], []]], split="heldout", sources=("가", "나"))
    with pytest.raises(StageError, match="hold no target"):
        open_sources(config_of(tmp_path, empty))


def test_many_sources_share_the_last_line(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_sources, "MAX_SOURCES", 1)

    found = scored(open_sources(config_of(tmp_path, shards)), Table())

    assert list(found["sources"]) == ["책", OTHERS]
    assert found["sources"][OTHERS]["num_documents"] == 8


class Parity(Objective):
    """Predicts the class of an example by the parity of its length."""

    def outcome(self, module: nn.Module, batch: Any) -> Outcome:
        assert isinstance(batch, ExampleBatch)
        predicted = torch.from_numpy(batch.lengths % 2)
        outputs = torch.nn.functional.one_hot(predicted, 2).double()
        right = int((predicted.numpy() == _numbers(batch)).sum())
        return Outcome(torch.tensor(float(batch.num_targets - right)), {}, outputs)

    def scorer(self, *, num_bytes: int) -> Scorer:
        return _Confusion(("a", "b"))


def test_the_figures_of_a_stage_over_examples_are_told_by_source(tmp_path: Path) -> None:
    rows = [{"text_a": "x" * (1 + row % 5), "label": "ab"[row % 3 == 0]} for row in range(30)]
    corpora = write_examples(tmp_path / "c", "label", [rows, rows[:6]], heldout=range(30), sources=("하나", "둘"))
    build(stage_of(corpora, write_plain(tmp_path / "t"), tmp_path / "s"))
    config = config_of(tmp_path, tmp_path / "s", stage="classify", model={"architecture": "bert"})

    found = scored(open_sources(config), Parity())

    assert found["accuracy"] == pytest.approx(
        sum(figures["accuracy"] * figures["num_documents"] for figures in found["sources"].values()) / 30
    )
    confusions = np.array([figures["confusion"] for figures in found["sources"].values()])
    assert confusions.sum(axis=0).tolist() == found["confusion"] and (confusions.sum(axis=(1, 2)) == 15).all()
    whole = ExampleSet(tmp_path / "s", split="heldout", seq_len=SEQ_LEN)
    first = ExampleSet(tmp_path / "s", split="heldout", seq_len=SEQ_LEN, documents=np.arange(0, 30, 2))
    assert (whole.num_documents, first.num_documents) == (30, 15)


def test_sources_stand_in_a_table_and_one_alone_in_none() -> None:
    one = {"loss": 2.0, "bits_per_byte": 1.25, "num_documents": 1200, "num_targets": 9, "num_bytes": 40}
    sources = {"aihub_653": one, "뉴스": {**one, "loss": 10.5}}

    assert source_lines({"책": one}) == []
    assert source_lines(sources) == [
        "출처 source     loss  bits_per_byte  num_documents  num_targets",
        "aihub_653     2.0000         1.2500          1,200            9",
        "뉴스         10.5000         1.2500          1,200            9",
    ]


def test_the_batches_of_all_sources_are_those_of_the_sources(tmp_path: Path, shards: Path) -> None:
    rows = open_sources(config_of(tmp_path, shards))
    split = {"dp_rank": 1, "dp_world_size": 2, "micro_batch_sequences": 2}

    given = [(rows.current, dataclasses.astuple(batch)[4]) for batch in rows.batches(**split)]

    assert given == [
        (name, dataclasses.astuple(batch)[4]) for name, one in rows.rows.items() for batch in one.batches(**split)
    ]


@pytest.mark.stages
@pytest.mark.parametrize("case", ["dpo", "kto-lora", "grpo"])
def test_a_finished_run_scores_as_its_last_evaluation_did(tmp_path: Path, case: str) -> None:
    """With the reference that was computed before its first step, or its base without the adapter; answers sampled."""
    from launch.verb_evaluate import evaluate_saved
    from tests.trainer.small_world import SOURCE, small_world
    from tests.trainer.stage_cases import CASES
    from tests.trainer.tiny_run import lines_of
    from trainer.resilience import StopFlag
    from trainer.run import run_in_group

    config = CASES[case].config(tmp_path, small_world(), evaluation={"every_steps": 12, "max_documents": None})
    assert run_in_group(config, ALONE, stop=StopFlag()) == 0
    run = Path(config.run.folder) / config.run.name

    found = evaluate_saved(str(run), checkpoint="last")

    last = lines_of(run / "evaluations.jsonl")[-1]
    told = {name: value for name, value in found.items() if isinstance(value, float)}
    assert told == pytest.approx({name: last[name] for name in told}, rel=1e-5, abs=1e-6) and "loss" in told
    assert {name: found["sources"][SOURCE][name] for name in told} == pytest.approx(told, rel=1e-5, abs=1e-6)
