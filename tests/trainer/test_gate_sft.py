"""The gate over instruction shards that were built and then spoilt on disk: each fault is refused with its line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.shards.format import read_shards
from data_pipeline.shards.reader import open_shard
from data_pipeline.shards.writer import Documents, LossSpans, ShardWriter
from data_pipeline.stage import read_manifest, write_manifest
from tests.trainer.small_world import SmallWorld
from tests.trainer.tiny_run import lines_of, tiny_config
from trainer.config import TrainConfig
from trainer.errors import RunError
from trainer.gate import run_gate
from trainer.ranks import Ranks
from trainer.resilience import StopFlag
from trainer.run import run_in_group
from trainer.setup import set_up

pytestmark = pytest.mark.stages

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
EOS, PAD, MASK = 0, 1, 3
SEQ_LEN = 256

Row = tuple[list[int], list[tuple[int, int]]]
Spoil = Callable[[list[int], list[tuple[int, int]]], Row]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return SmallWorld(tmp_path_factory.mktemp("world"))


def config_of(folder: Path, shards: Path, **sections: Any) -> TrainConfig:
    sized = {"model": {"max_positions": SEQ_LEN}, "data": {"seq_len": SEQ_LEN}}
    return tiny_config(folder, shards, stage="sft", **sized | sections)


def spoilt(shards: Path, folder: Path, spoil: Spoil) -> Path:
    """A copy of the shards whose training rows went through `spoil`, committed by the writer of real ones."""
    shutil.copytree(shards, folder, ignore=shutil.ignore_patterns("rows", "train"))
    (folder / "train").mkdir()
    found = read_shards(shards, split="train")
    writer = ShardWriter(
        folder, "train/part-00000", split="train", dtype=found.dtype, max_shard_bytes=1 << 20, record="instruction"
    )
    rows: list[Row] = []
    for file in found.files:
        for batch in open_shard(file):
            columns = (batch.column(name).to_pylist() for name in ("input_ids", "loss_spans"))
            for ids, spans in zip(*columns, strict=True):
                rows.append(spoil(ids, [(span["start"], span["end"]) for span in spans]))
    lengths = np.array([len(ids) for ids, _ in rows], np.int64)
    flat_spans = np.array([span for _, spans in rows for span in spans], np.int32).reshape(-1, 2)
    writer.add(
        Documents(
            ids=np.concatenate([np.array(ids, found.dtype) for ids, _ in rows]),
            lengths=lengths,
            record_ids=[str(number) for number in range(len(rows))],
            num_bytes=np.full(len(rows), 10, np.int64),
            sources=["test"] * len(rows),
            loss_spans=LossSpans(
                np.array([len(spans) for _, spans in rows], np.int64), flat_spans[:, 0], flat_spans[:, 1]
            ),
        )
    )
    writer.close()
    manifest = read_manifest(shards, kind="shards")
    manifest["files"] = writer.files + [file for file in manifest["files"] if file["split"] == "heldout"]
    manifest["splits"]["train"] |= {
        "num_tokens": int(lengths.sum()),
        "num_targets": int((flat_spans[:, 1] - flat_spans[:, 0]).sum()),
    }
    write_manifest(folder, manifest)
    return folder


def without_eos(ids: list[int], spans: list[tuple[int, int]]) -> Row:
    return ids, [(start, end - 1) for start, end in spans]


def all_targets(ids: list[int], spans: list[tuple[int, int]]) -> Row:
    return ids, [(1, len(ids))]


def hardly_any(ids: list[int], spans: list[tuple[int, int]]) -> Row:
    question = [7] * 200 + ids[: spans[0][0]]
    return [*question, ids[-1]], [(len(question), len(question) + 1)]


def learnt_padding(ids: list[int], spans: list[tuple[int, int]]) -> Row:
    return [*ids[:-1], PAD, ids[-1]], [(spans[0][0], len(ids) + 1)]


def two_bos(ids: list[int], spans: list[tuple[int, int]]) -> Row:
    return [MASK, MASK, *ids], [(start + 2, end + 2) for start, end in spans]


def emptied(ids: list[int], spans: list[tuple[int, int]]) -> Row:
    return (ids, []) if sum(ids) % 4 == 1 else (ids, spans)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (
            without_eos,
            r"gate: EOS is a target: 0 of [\d,]+ documents end in it, but it must be all; a model that never",
        ),
        (
            all_targets,
            r"gate: share of targets: 100.0 % of [\d,]+ tokens, but it must be 1 to 99 %; questions are targets",
        ),
        (hardly_any, r"gate: share of targets: 0\.\d % of [\d,]+ tokens, but it must be 1 to 99 %; hardly anything"),
        (learnt_padding, r"gate: padding is no target: (\d+) of [\d,]+ targets, but it must be 0; id 1 pads"),
        (
            two_bos,
            r"gate: BOS once a document: (\d+) of \1 have more, but it must be 0; the template and the tokenizer",
        ),
        (
            emptied,
            r"gate: no emptied rows: [1-9]\d* of \d+ documents, \d+ of \d+ rows without target, but it must be 0",
        ),
    ],
)
def test_a_fault_of_the_rows_is_refused(world: SmallWorld, tmp_path: Path, spoil: Spoil, line: str) -> None:
    shards = spoilt(world.instruction_shards, tmp_path / "shards", spoil)
    if spoil is two_bos:
        settings = shards / "tokenizer/tokenizer_config.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"bos_token": "<|mask|>"}))

    with pytest.raises(RunError, match=line):
        run_gate(set_up(config_of(tmp_path, shards), ALONE), ALONE)


def test_rows_that_nobody_spoilt_pass(world: SmallWorld, tmp_path: Path) -> None:
    shards = spoilt(world.instruction_shards, tmp_path / "shards", lambda ids, spans: (ids, spans))

    run_gate(set_up(config_of(tmp_path, shards), ALONE), ALONE)


def test_shards_of_another_tokenizer_than_the_one_beside_them_are_refused(world: SmallWorld, tmp_path: Path) -> None:
    shards = shutil.copytree(world.instruction_shards, tmp_path / "shards")
    write_manifest(shards, read_manifest(shards, kind="shards") | {"tokenizer_fingerprint": "f" * 64})

    with pytest.raises(RunError, match=r"gate: one tokenizer: shards ffffffff, their tokenizer/ [0-9a-f]{8}, but it"):
        run_gate(set_up(config_of(tmp_path, shards), ALONE), ALONE)


def test_a_base_that_says_nothing_of_its_rows_is_refused_by_its_first_loss(world: SmallWorld, tmp_path: Path) -> None:
    """A continued model with the weights of another seed: no error but this line would ever be seen."""
    run = set_up(config_of(tmp_path, world.instruction_shards), ALONE)
    run.engine.model.save_pretrained(tmp_path / "base")  # type: ignore[operator]
    gate = {"max_first_loss": 5.0}  # of so few tokens even a guess has little more than the 6 that are usual
    config = config_of(tmp_path, world.instruction_shards, model={"from": str(tmp_path / "base")}, gate=gate)

    with pytest.raises(
        RunError, match=r"gate: first loss is sane: [56]\.\d+ nats a target, .* below 5\.00; guessing has 6"
    ):
        run_gate(set_up(config, ALONE), ALONE)


def test_a_refused_run_trained_nothing_and_ends_as_refused(world: SmallWorld, tmp_path: Path) -> None:
    shards = spoilt(world.instruction_shards, tmp_path / "shards", without_eos)

    with pytest.raises(RunError, match="gate: EOS is a target"):
        run_in_group(config_of(tmp_path, shards), ALONE, stop=StopFlag())

    record = json.loads((tmp_path / "run/exit.json").read_text())
    assert (record["code"], record["reason"].partition(":")[0]) == (2, "gate")
    assert not (tmp_path / "run/metrics.jsonl").exists()
    assert not list((tmp_path / "run/checkpoints").iterdir())


def test_a_resumed_run_passes_no_gate_again(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = world.instruction_shards
    for max_steps in (4, 8):
        config = config_of(
            tmp_path, shards, train={"max_steps": max_steps, "schedule": {"kind": "wsd", "warmup_steps": 2}}
        )
        run_in_group(config, ALONE, stop=StopFlag())

    assert capsys.readouterr().out.count("gate: the first") == 1
    assert [line["step"] for line in lines_of(tmp_path / "run/metrics.jsonl")] == list(range(1, 9))
