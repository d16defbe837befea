"""Laws 7 and 12 on whole runs: a stop and a resume are invisible, and a signal in any phase loses no finished step.

Everything here is trained in two worker processes groups (one rank, two ranks), since an import costs seconds.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch

from tests.trainer.small_world import SmallWorld
from tests.trainer.tiny_run import REPO, environment, lines_of, losses_of, make_shards, tiny_config, write_config
from tests.trainer.tiny_sft import MODEL, make_base, sft_config
from trainer import checkpoint
from trainer.config import TrainConfig
from trainer.pieces import Pieces, has_pieces

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
PHASES = ("load", "warm-up", "step", "evaluate", "save")
TRIES = 10  # signals in each phase
# Rows of a micro-batch in the runs that get signals. Pretraining has ragged steps of three; a tuning, whose forward and
# backward passes are what its tries cost, has one on each rank.
SIGNALLED = {"pretrain": 2, "qlora": 5}


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
        return self.tuning(folder, self._base, trained, **sections)

    def tuning(self, folder: Path, base: Path, trained: str, **sections: Any) -> TrainConfig:
        return sft_config(folder, self._world, base, trained, **sections)

    def wide_base(self) -> Path:
        model = MODEL | {"hidden_size": 384, "num_layers": 1}
        return self._world.train("wide", self._world.shards, model=model, train={"max_steps": 4})


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
                # The first of each is its warm-up.
                stops = [signal_at("step", 4, rank=ranks - 1), signal_at("step", 3, name="SIGUSR1")]
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
    if has_pieces(folder):
        names = set(Pieces(folder).shapes)
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
        plan += [{"config": path, "signal": signal_at("step", 4)}] if kind == "parts" else []
        plan.append({"config": path})

    work(tmp_path, plan, ranks=3)

    assert began(tmp_path / "runs/parts") == [0, 5]
    assert losses_of(tmp_path / "runs/parts") == losses_of(tmp_path / "runs/whole")


def test_a_weight_decomposed_adapter_trains_over_a_sliced_base_as_over_a_whole_one(
    subjects: Subjects, tmp_path: Path
) -> None:
    # DoRA reads the base's weights outside of their layer; ZeRO-3 cuts only what has 100,000 elements, as 384 x 384.
    base = subjects.wide_base()
    plan = []
    for engine in ("zero-2", "zero-3"):
        sections = {"adapter": {"rank": 320, "dropout": 0.0, "weight_decomposed": True}, "engine": ENGINES[engine]}
        train = {"max_steps": 3, "global_batch_sequences": 4, "schedule": {"warmup_steps": 0, "peak_lr": 1e-3}}
        config = subjects.tuning(tmp_path, base, "lora", run={"name": engine}, train=train, **sections)
        plan.append({"config": str(write_config(tmp_path / f"{engine}.yaml", config))})

    outcomes = work(tmp_path, plan, ranks=2)

    assert [outcome["code"] for outcome in outcomes] == [DONE, DONE]
    whole, sliced = losses_of(tmp_path / "zero-2"), losses_of(tmp_path / "zero-3")
    assert len(whole) == 3
    assert sliced == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("engine", list(ENGINES))
def test_engines_of_two_ranks_train_alike_in_fp32_on_ragged_steps(runs: Path, engine: str) -> None:
    # Five micro-batches of a step on two ranks: the last micro-step is ragged. Dropout draws by rank, so one rank
    # is no reference here; test_equal_training.py has that, without dropout.
    reference = losses_of(runs / f"whole-{name_of(2, 'none', 'fp32', 'pretrain')}")

    assert losses_of(runs / f"whole-{name_of(2, engine, 'fp32', 'pretrain')}") == pytest.approx(reference, rel=1e-5)


Entries = list[dict[str, Any]]


class Signalled(NamedTuple):
    """The tries by what is trained and by phase; the losses of the same run when nothing disturbs it."""

    tries: dict[tuple[str, str], Entries]
    undisturbed: dict[str, dict[int, float]]


@pytest.fixture(scope="module")
def signalled(subjects: Subjects, tmp_path_factory: pytest.TempPathFactory) -> Signalled:
    """For each phase some runs (two ranks, ZeRO-2) that get a signal at a random moment of it, each then resumed."""
    folder = tmp_path_factory.mktemp("signals")
    plan: Entries = []
    tries: dict[tuple[str, str], Entries] = {}

    def config_of(trained: str, name: str) -> str:
        train = {"precision": "fp32", "micro_batch_sequences": SIGNALLED[trained]}
        sections = {"run": {"name": name}, "engine": ENGINES["zero-2"], "train": train}
        return str(write_config(folder / f"{name}.yaml", subjects.config(folder / "runs", trained, **sections)))

    for trained in SIGNALLED:
        plan.append({"config": config_of(trained, f"{trained}-undisturbed")})
    for trained, phase in ((trained, phase) for trained in SIGNALLED for phase in PHASES):
        for number in range(TRIES):
            chance = random.Random(f"{phase} {number}")
            name = f"{trained}-{phase}-{number}"
            path = config_of(trained, name)
            counts = {"step": chance.randint(1, 11), "evaluate": chance.randint(1, 2)}
            count = counts.get(phase, 1)
            # A step takes tens of milliseconds here, an evaluation and a save about as long, loading half a second.
            delay = chance.uniform(0, 0.6 if phase == "load" else 0.06)
            name_of_signal = chance.choice(["SIGTERM", "SIGUSR1", "SIGINT"])
            sent = signal_at(phase, count, rank=chance.randint(0, 1), name=name_of_signal, delay=delay)
            tries.setdefault((trained, phase), []).append({"run": folder / "runs" / name, "plan": len(plan)})
            plan += [{"config": path, "signal": sent}, {"config": path}]
    outcomes = work(folder, plan, ranks=2)
    for entry in (entry for entries in tries.values() for entry in entries):
        entry["first"], entry["second"] = outcomes[entry["plan"] : entry["plan"] + 2]
    undisturbed = {trained: losses_of(folder / "runs" / f"{trained}-undisturbed") for trained in SIGNALLED}
    return Signalled(tries, undisturbed)


@pytest.mark.parametrize("trained", list(SIGNALLED))
@pytest.mark.parametrize("phase", PHASES)
def test_law_12_a_signal_in_any_phase_loses_no_finished_step(signalled: Signalled, phase: str, trained: str) -> None:
    entries = signalled.tries[trained, phase]

    assert len(entries) == TRIES
    for entry in entries:
        first, second = entry["first"], entry["second"]
        # A signal in the last step, evaluation or save of a run may come too late to stop anything.
        assert first["code"] in (STOPPED, DONE) and second["code"] == DONE
        assert first["recorded"] == first["saved"] == first["logged"]
        # The next attempt went on from what the first one saved; one that found all done did not begin at all.
        later = [step for step in second["began"] if step]
        assert later == ([first["saved"]] if first["saved"] else []) or (first["saved"] == 12 and later == [])
        assert losses_of(entry["run"]) == signalled.undisturbed[trained]
        assert not list((entry["run"] / "checkpoints").glob("damaged-*"))


@pytest.mark.parametrize("trained", list(SIGNALLED))
def test_law_12_most_signals_stopped_a_run_in_its_middle(signalled: Signalled, trained: str) -> None:
    for phase in PHASES:
        assert sum(entry["first"]["code"] == STOPPED for entry in signalled.tries[trained, phase]) >= TRIES // 2
