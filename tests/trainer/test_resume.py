"""Laws 7 and 12 on whole runs: a stop and a resume are invisible, and a signal in any phase loses no finished step.

Everything here is trained in two worker processes groups (one rank, two ranks), since an import costs seconds.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.trainer.small_world import SmallWorld
from tests.trainer.tiny_run import REPO, environment, lines_of, losses_of, make_shards, tiny_config, write_config
from tests.trainer.tiny_sft import make_base, sft_config
from trainer import checkpoint
from trainer.config import TrainConfig

pytestmark = pytest.mark.stages

STOPPED, DONE = 85, 0
ENGINES: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    **{f"zero-{stage}": {"kind": "deepspeed", "zero_stage": stage} for stage in (1, 2, 3)},
}
Case = tuple[int, str, str, str]  # ranks, engine, precision, and what is trained: "pretrain" or a tuning of a base
CASES: list[Case] = [(1, "none", "fp32", "pretrain"), (1, "none", "bf16", "pretrain")]
CASES += [(2, engine, precision, "pretrain") for engine in ENGINES for precision in ("fp32", "bf16")]
CASES += [(1, "none", "fp32", "qlora"), (1, "none", "bf16", "lora"), (1, "none", "fp32", "full")]
CASES += [(2, engine, "fp32", "qlora") for engine in ENGINES]
CASES += [(2, "zero-2", "bf16", "full"), (2, "zero-1", "bf16", "lora"), (2, "zero-3", "bf16", "qlora")]
PHASES = ("load", "step", "evaluate", "save")
TRIES = {"pretrain": 10, "qlora": 5}


def name_of(ranks: int, engine: str, precision: str, trained: str) -> str:
    return f"{ranks}-{engine}-{precision}-{trained}"


class Subjects:
    """The configs of the runs under test: pretraining over made-up ids, and tunings of a tiny base."""

    def __init__(self, folder: Path) -> None:
        self._shards = make_shards(folder / "made-up-shards")
        self._world = SmallWorld(folder)
        self._base = make_base(self._world)

    def config(self, folder: Path, trained: str, **sections: Any) -> TrainConfig:
        if trained == "pretrain":
            return tiny_config(folder, self._shards, **sections)
        return sft_config(folder, self._world, self._base, trained, **sections)


def work(folder: Path, plan: list[dict[str, Any]], *, ranks: int) -> list[dict[str, Any]]:
    """Carry out a plan's attempts on `ranks` ranks; what each left behind."""
    path = folder / f"plan-{ranks}-{len(list(folder.glob('plan-*')))}.json"
    path.write_text(json.dumps(plan))
    worker = [str(REPO / "tests/trainer/run_worker.py"), str(path)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *worker]
    done = subprocess.run(launcher, cwd=REPO, env=environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    outcomes: list[dict[str, Any]] = json.loads(path.with_suffix(".outcomes.json").read_text())
    return outcomes


def signal_at(phase: str, count: int, *, rank: int = 0, name: str = "SIGTERM", delay: float = 0.0) -> dict[str, Any]:
    return {"phase": phase, "count": count, "rank": rank, "name": name, "delay_seconds": delay}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Subjects:
    return Subjects(tmp_path_factory.mktemp("subjects"))


@pytest.fixture(scope="module")
def runs(subjects: Subjects, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each case two runs of 12 steps: `whole-…` at once, `parts-…` stopped after steps 5 and 9."""
    folder = tmp_path_factory.mktemp("resume")
    for ranks in (1, 2):
        plan = []
        for case in (case for case in CASES if case[0] == ranks):
            _, engine, precision, trained = case
            for kind in ("whole", "parts"):
                sections = {"run": {"name": f"{kind}-{name_of(*case)}"}, "engine": ENGINES[engine]}
                config = subjects.config(folder / "runs", trained, train={"precision": precision}, **sections)
                path = str(write_config(folder / f"{kind}-{name_of(*case)}.yaml", config))
                # The 5th step is under way, then the 4th of the second attempt: steps 5 and 9 are the last finished.
                stops = [signal_at("step", 5, rank=ranks - 1), signal_at("step", 4, name="SIGUSR1")]
                plan += [{"config": path, "signal": stop} for stop in (stops if kind == "parts" else [])]
                plan.append({"config": path})
        outcomes = work(folder, plan, ranks=ranks)
        assert [outcome["code"] for outcome in outcomes] == [STOPPED if "signal" in step else DONE for step in plan]
    return folder / "runs"


@pytest.mark.parametrize("case", CASES, ids=lambda case: name_of(*case))
def test_law_7_two_stops_and_resumes_are_invisible_to_the_bit(runs: Path, case: Case) -> None:
    whole, parts = runs / f"whole-{name_of(*case)}", runs / f"parts-{name_of(*case)}"

    assert began(whole) == [0]
    assert began(parts) == [0, 5, 9]
    assert losses_of(parts) == losses_of(whole)
    assert list(losses_of(parts)) == list(range(1, 13))
    assert evaluations_of(parts) == evaluations_of(whole)
    state, other_state = (checkpoint.read_state(run / "checkpoints/step-00000012") for run in (parts, whole))
    assert state["stream"] == other_state["stream"]
    assert state["progress"] == other_state["progress"]


@pytest.mark.parametrize("case", [case for case in CASES if "lora" in case[3]], ids=lambda case: name_of(*case))
def test_an_adapters_checkpoint_holds_no_weight_of_its_base(runs: Path, case: Case) -> None:
    """The base's embedding alone has more elements than all that may be here of it: none."""
    folder = runs / f"whole-{name_of(*case)}" / "checkpoints/step-00000012"
    engine = folder / "deepspeed"
    if engine.is_dir():
        states = [torch.load(file, map_location="cpu", weights_only=False) for file in engine.glob("*model_states.pt")]
        names = {name for state in states for name in state["module"]}
    else:
        names = set(safetensors.torch.load_file(folder / "model.safetensors"))

    assert len(names) == 28  # A and B of seven linear layers, twice
    assert all("lora_" in name for name in names)


def began(run: Path) -> list[int]:
    """The step that each attempt went on from."""
    return [event["step"] for event in lines_of(run / "events.jsonl") if event["kind"] == "started"]


def evaluations_of(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in lines_of(run / "evaluations.jsonl")]


def test_law_7_holds_on_three_ranks_whose_sums_have_an_order(tmp_path: Path) -> None:
    # Two summands commute; three do not. A model of several DDP buckets, which DDP lays out anew after its first
    # backward pass: a start would sum its first step in another order than an unbroken run.
    shards = make_shards(tmp_path / "shards")
    model = {"hidden_size": 256, "num_layers": 4, "num_heads": 4, "dropout": 0.0}
    plan: list[dict[str, Any]] = []
    for kind in ("whole", "parts"):
        config = tiny_config(tmp_path / "runs", shards, run={"name": kind}, model=model)
        path = str(write_config(tmp_path / f"{kind}.yaml", config))
        plan += [{"config": path, "signal": signal_at("step", 5)}] if kind == "parts" else []
        plan.append({"config": path})

    work(tmp_path, plan, ranks=3)

    assert began(tmp_path / "runs/parts") == [0, 5]
    assert losses_of(tmp_path / "runs/parts") == losses_of(tmp_path / "runs/whole")


@pytest.mark.parametrize("engine", list(ENGINES))
def test_engines_of_two_ranks_train_alike_in_fp32_on_ragged_steps(runs: Path, engine: str) -> None:
    # Five micro-batches of a step on two ranks: the last micro-step is ragged. Dropout draws by rank, so one rank
    # is no reference here; test_equal_training.py has that, without dropout.
    reference = losses_of(runs / f"whole-{name_of(2, 'none', 'fp32', 'pretrain')}")

    assert losses_of(runs / f"whole-{name_of(2, engine, 'fp32', 'pretrain')}") == pytest.approx(reference, rel=1e-5)


Signalled = dict[tuple[str, str], list[dict[str, Any]]]  # by what is trained, and by phase


@pytest.fixture(scope="module")
def signalled(subjects: Subjects, tmp_path_factory: pytest.TempPathFactory) -> Signalled:
    """For each phase some runs (two ranks, ZeRO-2) that get a signal at a random moment of it, each then resumed."""
    folder = tmp_path_factory.mktemp("signals")
    plan: list[dict[str, Any]] = []
    tries: Signalled = {}
    for trained, phase in ((trained, phase) for trained in TRIES for phase in PHASES):
        for number in range(TRIES[trained]):
            chance = random.Random(f"{phase} {number}")
            name = f"{trained}-{phase}-{number}"
            sections = {"run": {"name": name}, "engine": ENGINES["zero-2"], "train": {"precision": "fp32"}}
            config = subjects.config(folder / "runs", trained, **sections)
            path = str(write_config(folder / f"{name}.yaml", config))
            count = {"load": 1, "step": chance.randint(1, 12), "evaluate": chance.randint(1, 2), "save": 1}[phase]
            # A step takes tens of milliseconds here, an evaluation and a save about as long, loading half a second.
            delay = chance.uniform(0, 0.6 if phase == "load" else 0.06)
            name_of_signal = chance.choice(["SIGTERM", "SIGUSR1", "SIGINT"])
            sent = signal_at(phase, count, rank=chance.randint(0, 1), name=name_of_signal, delay=delay)
            tries.setdefault((trained, phase), []).append({"run": folder / "runs" / name, "plan": len(plan)})
            plan += [{"config": path, "signal": sent}, {"config": path}]
    outcomes = work(folder, plan, ranks=2)
    for entries in tries.values():
        for entry in entries:
            entry["first"], entry["second"] = outcomes[entry["plan"] : entry["plan"] + 2]
    return tries


@pytest.mark.parametrize("trained", list(TRIES))
@pytest.mark.parametrize("phase", PHASES)
def test_law_12_a_signal_in_any_phase_loses_no_finished_step(
    runs: Path, signalled: Signalled, phase: str, trained: str
) -> None:
    undisturbed = losses_of(runs / f"whole-{name_of(2, 'zero-2', 'fp32', trained)}")

    for entry in signalled[trained, phase]:
        first, second = entry["first"], entry["second"]
        # A signal in the last step, evaluation or save of a run may come too late to stop anything.
        assert first["code"] in (STOPPED, DONE) and second["code"] == DONE
        assert first["recorded"] == first["saved"] == first["logged"]
        # The next attempt went on from what the first one saved; one that found all done did not begin at all.
        later = [step for step in second["began"] if step]
        assert later == ([first["saved"]] if first["saved"] else []) or (first["saved"] == 12 and later == [])
        assert losses_of(entry["run"]) == undisturbed
        assert not list((entry["run"] / "checkpoints").glob("damaged-*"))


@pytest.mark.parametrize("trained", list(TRIES))
def test_law_12_most_signals_stopped_a_run_in_its_middle(signalled: Signalled, trained: str) -> None:
    for phase in PHASES:
        assert sum(entry["first"]["code"] == STOPPED for entry in signalled[trained, phase]) >= TRIES[trained] // 2
