"""New rows in whole runs of one process: phases, resume, exports that plain transformers and peft open, refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from data_pipeline.stage import StageError
from data_pipeline.tokenizer.encode import Encoder
from tests.trainer.extended_world import PHASES, TIED_PHASES, ExtendedWorld
from tests.trainer.small_world import SmallWorld, small_world
from tests.trainer.tiny_run import environment, lines_of
from trainer.errors import RunError
from trainer.export import ExportOptions, export, export_full
from trainer.new_rows import plan_of
from trainer.saved import find_saved, open_model

pytestmark = pytest.mark.stages

EVERY = {"every_steps": 1, "keep_last": 20}
LORA = {"rank": 4, "alpha": 8.0}
# Of peft: the adapter on its base in a process that never saw this program.
FRESH = """
import sys, torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
folder, output, text = sys.argv[1:]
ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", add_special_tokens=False).input_ids
model = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
torch.save((ids, model(ids).logits.detach()), output)
"""
TEXT = "호랑이는 우물가에 산다. 거북이와 여우"


@pytest.fixture(scope="module")
def world() -> SmallWorld:
    return small_world()


@pytest.fixture(scope="module")
def extended(world: SmallWorld) -> ExtendedWorld:
    return ExtendedWorld(world)


@pytest.fixture(scope="module")
def base(world: SmallWorld) -> Path:
    """The small base as a folder, so that no run exports it again."""
    return export_full(world.base, world.root / "base-export")


@pytest.fixture(scope="module")
def whole(extended: ExtendedWorld, base: Path) -> Path:
    """Every weight trained, a checkpoint at each step."""
    return extended.train("whole", base=base, checkpoint=EVERY)


@pytest.fixture(scope="module")
def tuned(extended: ExtendedWorld, base: Path) -> Path:
    phases = [*PHASES[:3], {"train": "adapter", "steps": 1}, {"train": "all", "steps": 1}]
    return extended.train("tuned", base=base, adapter=LORA, new_rows={"phases": phases}, checkpoint=EVERY)


@pytest.fixture(scope="module")
def packed(extended: ExtendedWorld, base: Path) -> Path:
    model = {"quantization": {"compute_dtype": "fp32"}}
    return extended.train("packed", base=base, adapter=LORA, model=model, checkpoint=EVERY)


def weights_at(run: Path, step: int) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / f"checkpoints/step-{step:08}/model.safetensors")


def moved(run: Path, first: int, last: int) -> set[str]:
    one, two = weights_at(run, first), weights_at(run, last)
    kinds = {"embed_tokens.rows": "input", "lm_head.rows": "output"}
    names = [name for name in one if not torch.equal(one[name], two[name])]
    return {next((kind for part, kind in kinds.items() if part in name), "model") for name in names}


def test_law_11_is_proven_at_the_start(extended: ExtendedWorld, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extended.train("proven", base=base, new_rows={"phases": []}, train={"max_steps": 2})
    printed = capsys.readouterr().out

    line = next(line for line in printed.splitlines() if "old tokens undisturbed" in line)
    assert line.strip().startswith("ok")
    assert "  0 of " in line
    assert "model with its new tokens" in printed


@pytest.mark.parametrize("name", ["whole", "tuned", "packed"])
def test_each_phase_moves_what_it_names_and_nothing_else(name: str, request: pytest.FixtureRequest) -> None:
    run: Path = request.getfixturevalue(name)
    steps = [(1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8)]

    seen = [moved(run, *pair) for pair in steps]

    everything = {"input", "output", "model"}
    sixth = {"model"} if name == "tuned" else everything
    both = {"input", "output"}
    assert seen == [{"input"}, {"output"}, {"output"}, both, both, sixth, everything]
    told = [line["detail"] for line in lines_of(run / "events.jsonl") if line["kind"] == "phase"]
    assert told[0] == f"phase 1 of {len(told)}: input for 2 steps; nothing else moves"


@pytest.mark.parametrize("step", [2, 3, 5])
@pytest.mark.parametrize("name", ["whole", "packed"])
def test_a_resume_in_any_phase_is_invisible(
    name: str, step: int, request: pytest.FixtureRequest, extended: ExtendedWorld, base: Path
) -> None:
    run: Path = request.getfixturevalue(name)
    again = extended.world.root / f"{name}-{step}"
    shutil.copytree(run, again)
    for later in range(step + 1, 9):
        shutil.rmtree(again / f"checkpoints/step-{later:08}")
    sections: dict[str, Any] = {"checkpoint": EVERY, "run": {"name": again.name}}
    if name == "packed":
        sections |= {"adapter": LORA, "model": {"quantization": {"compute_dtype": "fp32"}}}

    extended.train(again.name, base=base, **sections)

    ours, theirs = weights_at(again, 8), weights_at(run, 8)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    losses = [[line["loss"] for line in lines_of(folder / "metrics.jsonl")] for folder in (again, run)]
    assert losses[0] == losses[1]


def test_an_adapter_saves_rows_and_no_embedding(tuned: Path, packed: Path) -> None:
    for run in (tuned, packed):
        saved = weights_at(run, 8)
        rows = [value for name, value in saved.items() if name.endswith(".rows")]
        assert [tuple(value.shape) for value in rows] == [(rows[0].shape[0], 64)] * 2
        assert rows[0].shape[0] < 64 + 5
        assert all(".lora_" in name or name.endswith(".rows") for name in saved)


def ids_of(folder: Path) -> torch.Tensor:
    return torch.from_numpy(Encoder(folder).encode_batch([TEXT])[0].astype("int64"))[None]


def test_a_full_export_is_a_plain_model(whole: Path, extended: ExtendedWorld) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output = extended.world.root / "whole-export"
    export(find_saved(whole), output, ExportOptions(dtype="fp32"))
    ours = open_model(find_saved(whole)).model
    plain = AutoModelForCausalLM.from_pretrained(output).eval()
    ids = ids_of(extended.tokenizer)

    assert type(plain.get_input_embeddings()) is torch.nn.Embedding
    assert plain.config.vocab_size % 64 == 0
    assert torch.equal(plain(ids).logits, ours(ids).logits)
    assert AutoTokenizer.from_pretrained(output)(TEXT, add_special_tokens=False).input_ids == ids[0].tolist()
    assert int(ids.max()) >= Encoder(extended.world.tokenizer).vocab_size, "there is a new token in it"


@pytest.mark.parametrize("name", ["tuned", "tied"])
def test_an_adapter_opens_in_plain_peft(
    name: str, request: pytest.FixtureRequest, world: SmallWorld, extended: ExtendedWorld
) -> None:
    if name == "tied":
        pretrained = world.pretrained("tied-base", hidden_size=64, tie_embeddings=True)
        base = export_full(pretrained, world.root / "tied-folder")
        run = extended.train("tied", base=base, adapter=LORA, new_rows={"phases": TIED_PHASES})
    else:
        run = request.getfixturevalue(name)
    output, logits = world.root / f"{name}-adapter", world.root / f"{name}.pt"
    export(find_saved(run), output, ExportOptions())
    command = [sys.executable, "-c", FRESH, str(output), str(logits), TEXT]
    done = subprocess.run(command, cwd=world.root, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]

    ids, theirs = torch.load(logits)
    first = open_model(find_saved(run)).model
    second = open_model(find_saved(output)).model
    size = Encoder(extended.tokenizer).vocab_size

    assert theirs.shape[-1] >= size
    # Without the rows that pad the trained model the product of the new ones has another shape, and other last bits.
    old = Encoder(extended.world.tokenizer).vocab_size
    assert torch.equal(first(ids).logits[..., :old], second(ids).logits[..., :old])
    torch.testing.assert_close(first(ids).logits[..., :size], second(ids).logits[..., :size], rtol=0, atol=1e-6)
    torch.testing.assert_close(theirs[..., :size], first(ids).logits[..., :size], rtol=0, atol=1e-5)
    assert "base.resize_token_embeddings(" in (output / "README.md").read_text()
    config = json.loads((output / "adapter_config.json").read_text())
    assert sorted(config["trainable_token_indices"]) == sorted(["model.embed_tokens"] + ["lm_head"] * (name == "tuned"))


@pytest.mark.parametrize("name", ["tuned", "packed"])
def test_a_merged_export_holds_the_rows(name: str, request: pytest.FixtureRequest, extended: ExtendedWorld) -> None:
    from transformers import AutoModelForCausalLM

    run: Path = request.getfixturevalue(name)
    output = extended.world.root / f"{name}-merged"
    export(find_saved(run), output, ExportOptions(merge=True, dtype="fp32"))
    ids = ids_of(extended.tokenizer)

    trained = open_model(find_saved(run)).model
    assert plan_of(trained) is not None
    merged = AutoModelForCausalLM.from_pretrained(output).eval()
    size = Encoder(extended.tokenizer).vocab_size
    torch.testing.assert_close(merged(ids).logits[..., :size], trained(ids).logits[..., :size], rtol=0, atol=2e-3)


def test_an_encoder_learns_new_tokens(world: SmallWorld, extended: ExtendedWorld) -> None:
    phases = {"phases": TIED_PHASES, "init": "copy:<|cls|>"}
    gate = {"max_first_loss": 20.0}
    run = extended.train("encoder", base=world.bert, stage="mlm", new_rows=phases, checkpoint=EVERY, gate=gate)

    def changed(step: int) -> set[str]:
        one, two = weights_at(run, step), weights_at(run, step + 1)
        return {name for name in one if not torch.equal(one[name], two[name])}

    rows = {"bert.embeddings.word_embeddings.rows", "cls.predictions.decoder.row_bias"}
    assert [changed(step) == rows for step in (1, 2, 3)] == [True] * 3
    assert changed(4) > rows
    ours = open_model(find_saved(run)).model
    assert int(ours.get_input_embeddings().num_embeddings) >= Encoder(extended.tokenizer).vocab_size  # type: ignore[operator, union-attr]


def test_a_run_goes_on_from_an_extended_one(whole: Path, extended: ExtendedWorld) -> None:
    extended.train("after", base=whole, new_rows=None, train={"max_steps": 2})


def test_new_tokens_without_rows_are_refused(extended: ExtendedWorld, base: Path) -> None:
    with pytest.raises(RunError, match=r"new_rows: missing, but the tokenizer of .* has 3 tokens that"):
        extended.train("refused-1", base=base, new_rows=None)


def test_rows_without_new_tokens_are_refused(world: SmallWorld, base: Path) -> None:
    with pytest.raises(RunError, match=r"new_rows: set, but .* knows every token"):
        world.train("refused-2", world.shards, model={"from": str(base)}, new_rows={})


def test_another_tokenizer_is_refused(extended: ExtendedWorld, world: SmallWorld, base: Path) -> None:
    other = world.root / "other-base"
    shutil.copytree(base, other)
    tree = json.loads((other / "tokenizer.json").read_text())
    tree["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(tree))

    with pytest.raises(RunError, match=r"is not that of .* with tokens added"):
        extended.train("refused-3", base=other)
    with pytest.raises(StageError, match="made with tokenizer"):
        extended.train("refused-4", base=other, new_rows=None)
    (other / "tokenizer.json").unlink()
    with pytest.raises(RunError, match=r"brings no tokenizer\.json, so that nothing shows which tokens"):
        extended.train("refused-5", base=other)
