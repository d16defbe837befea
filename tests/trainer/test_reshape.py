"""Laws 2 and 7 over another number of ranks: a run goes 2 -> 1 -> 2 and 1 -> 2 -> 3, by itself and by the verb.

Every start is a real one: the ranks of four process groups, one after the other, since an import costs seconds.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.test_resume import ENGINES, Subjects, began, signal_at, work
from tests.trainer.tiny_run import lines_of, losses_of, write_config
from trainer.ledger import read_ledger, rows_by_epoch
from trainer.pieces import Pieces
from trainer.reshape import reshape

pytestmark = pytest.mark.stages

STOPPED, DONE = 85, 0
STOPS = (5, 9)  # the last finished steps of the first two attempts
SIGNALS = (("SIGTERM", 4), ("SIGUSR1", 3))  # and what stops them: in which step after the attempt's first

Case = tuple[str, str, str]  # engine, precision, and what is trained
CASES: list[Case] = [(f"zero-{stage}", precision, "pretrain") for stage in (1, 2, 3) for precision in ("fp32", "bf16")]
CASES += [("zero-2", "fp32", "lora"), ("zero-3", "bf16", "lora"), ("zero-1", "fp32", "qlora")]
CASES += [("zero-2", "fp32", "qlora"), ("zero-3", "fp32", "qlora")]
MOVES = {"2-1-2": (2, 1, 2), "1-2-3": (1, 2, 3)}
# Cut anew for one rank after step 5, by the verb's function, before one rank goes on.
CUT: list[Case] = [("zero-2", "fp32", "pretrain"), ("zero-3", "bf16", "lora"), ("zero-2", "fp32", "qlora")]
TURNED = [("zero-2", "zero-3"), ("zero-3", "zero-1")]  # another stage as well, from step 5 on

# In float32 only the order of sums is another (law 6); moments of 8 bits come to as much, though a cut across their
# blocks packs them anew. In bf16 the measure is what two undisturbed runs on one and on two ranks differ by.
TOLERANCE = 1e-5
LOOSE = [case for case in CASES if case[1] == "bf16"]


def name_of(case: Case) -> str:
    return "-".join(case)


class Starts:
    """The attempts that are due, and the process groups that carry them out."""

    def __init__(self, folder: Path, subjects: Subjects) -> None:
        self.runs = folder / "runs"
        self._folder = folder
        self._subjects = subjects

    def config(self, name: str, case: Case, *, engine: str = "") -> str:
        # Dropout draws by rank: without it, ranks make no difference but in the order of sums.
        still: dict[str, Any] = {"model" if case[2] == "pretrain" else "adapter": {"dropout": 0.0}}
        sections = still | {"engine": ENGINES[engine or case[0]], "train": {"precision": case[1]}}
        sections |= {"logging": {"ledger": True}, "run": {"name": name}}
        return str(write_config(self._folder / f"{name}.yaml", self._subjects.config(self.runs, case[2], **sections)))

    def go(self, ranks: int, attempts: list[tuple[str, int]]) -> None:
        """Carry out attempts (config, its number from 0) on `ranks` ranks; the first two of a run are stopped."""
        plan: list[dict[str, Any]] = []
        for config, number in attempts:
            stops = [
                signal_at("step", count, rank=ranks - 1, name=name) for name, count in SIGNALS[number : number + 1]
            ]
            plan.append({"config": config} | ({"signal": stops[0]} if stops else {}))
        codes = [outcome["code"] for outcome in work(self._folder, plan, ranks=ranks)]
        assert codes == [STOPPED if "signal" in step else DONE for step in plan]

    def copy(self, name: str, case: Case, *, engine: str = "") -> str:
        """A copy of the run that two ranks began; the config that goes on with it."""
        shutil.copytree(self.runs / f"2-1-2-{name_of(case)}", self.runs / name)
        return self.config(name, case, engine=engine)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each case a run on two ranks at once, and one for each of MOVES that was stopped after steps 5 and 9."""
    folder = tmp_path_factory.mktemp("reshape")
    starts = Starts(folder, Subjects(tmp_path_factory.mktemp("subjects")))
    configs = {
        (move, case): starts.config(f"{move}-{name_of(case)}", case) for move in ("whole", *MOVES) for case in CASES
    }

    def attempts(move: str, number: int) -> list[tuple[str, int]]:
        return [(configs[move, case], number) for case in CASES]

    starts.go(2, attempts("2-1-2", 0))
    copies = [(starts.copy(f"cut-{name_of(case)}", case), 1) for case in CUT]
    for case in CUT:
        reshape(starts.runs / f"cut-{name_of(case)}/checkpoints/step-00000005", num_ranks=1)
    copies += [(starts.copy(f"turned-{old}", (old, "fp32", "pretrain"), engine=new), 1) for old, new in TURNED]
    alone = [(starts.config(f"alone-{name_of(case)}", case), 2) for case in LOOSE]
    starts.go(1, attempts("2-1-2", 1) + attempts("1-2-3", 0) + copies + alone)
    starts.go(2, attempts("2-1-2", 2) + attempts("1-2-3", 1) + attempts("whole", 2))
    starts.go(3, attempts("1-2-3", 2))
    return starts.runs


@pytest.mark.parametrize("move", list(MOVES))
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_law_7_a_run_goes_on_with_another_number_of_ranks(runs: Path, case: Case, move: str) -> None:
    whole, moved = losses_of(runs / f"whole-{name_of(case)}"), losses_of(runs / f"{move}-{name_of(case)}")

    assert began(runs / f"{move}-{name_of(case)}") == [0, *STOPS]
    assert list(moved) == list(whole) == list(range(1, 13))
    spread = spread_of(moved, whole)
    allowed = TOLERANCE
    if case in LOOSE:
        allowed = 2 * spread_of(losses_of(runs / f"alone-{name_of(case)}"), whole)
        assert allowed < 2e-3
    print(f"{move} {name_of(case)}: losses within {spread:.1e} of {allowed:.1e}")
    assert spread <= allowed


def spread_of(losses: dict[int, float], others: dict[int, float]) -> float:
    """The largest relative difference of a step's losses."""
    return max(abs(losses[step] / loss - 1) for step, loss in others.items())


@pytest.mark.parametrize("move", list(MOVES))
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_law_2_it_sees_the_identical_rows_in_each_step(runs: Path, case: Case, move: str) -> None:
    whole, moved = runs / f"whole-{name_of(case)}", runs / f"{move}-{name_of(case)}"

    assert read_ledger(moved) == read_ledger(whole)
    assert sum(map(len, read_ledger(whole).values())) == 12 * 10
    for rows in rows_by_epoch(moved).values():
        assert len(rows) == len(set(rows))


@pytest.mark.parametrize("move", list(MOVES))
def test_the_ranks_are_told_in_attempts_events_and_the_next_checkpoint(runs: Path, move: str) -> None:
    run = runs / f"{move}-zero-2-fp32-pretrain"

    assert [attempt["ranks"] for attempt in lines_of(run / "attempts.jsonl")] == list(MOVES[move])
    events = [event for event in lines_of(run / "events.jsonl") if event["kind"] == "reshaped"]
    first, second, third = (f"{ranks} rank{'s' * (ranks > 1)} under ZeRO-2" for ranks in MOVES[move])
    assert [(event["step"], event["detail"]) for event in events] == [
        (5, f"saved by {first}, goes on with {second}"),
        (9, f"saved by {second}, goes on with {third}"),
    ]
    state = json.loads((run / "checkpoints/step-00000012/state.json").read_text())
    assert state["engine"]["ranks"] == MOVES[move][-1]
    assert Pieces(run / "checkpoints/step-00000012").num_ranks == MOVES[move][-1]


@pytest.mark.parametrize("case", CUT, ids=name_of)
def test_what_was_cut_beforehand_goes_on_to_the_bit_as_what_was_not(runs: Path, case: Case) -> None:
    cut, itself = runs / f"cut-{name_of(case)}", runs / f"2-1-2-{name_of(case)}"

    started = [event["detail"]["reason"] for event in lines_of(cut / "events.jsonl") if event["kind"] == "started"]
    assert started[-1].endswith("step-00000005-ranks-1")
    assert not [event for event in lines_of(cut / "events.jsonl") if event["kind"] == "reshaped"]
    assert losses_of(cut) == {step: loss for step, loss in losses_of(itself).items() if step <= 9}


@pytest.mark.parametrize(("old", "new"), TURNED)
def test_another_stage_goes_on_too(runs: Path, old: str, new: str) -> None:
    whole, turned = losses_of(runs / f"whole-{old}-fp32-pretrain"), losses_of(runs / f"turned-{old}")

    assert turned == pytest.approx({step: whole[step] for step in range(1, 10)}, rel=1e-5)
    [event] = [event for event in lines_of(runs / f"turned-{old}/events.jsonl") if event["kind"] == "reshaped"]
    told = (f"2 ranks under ZeRO-{old[-1]}", f"1 rank under ZeRO-{new[-1]}")
    assert event["detail"] == f"saved by {told[0]}, goes on with {told[1]}"


def test_reshape_cuts_as_deepspeed_does_so_that_each_rank_reads_one_file_straight_through(runs: Path) -> None:
    for stage in (1, 2, 3):
        checkpoints = runs / f"1-2-3-zero-{stage}-fp32-pretrain/checkpoints"
        two = reshape(checkpoints / "step-00000012", num_ranks=2)
        three = Pieces(checkpoints / "step-00000012")
        again = reshape(two, num_ranks=3)
        made = Pieces(again)
        assert [made.layouts(rank) for rank in range(3)] == [three.layouts(rank) for rank in range(3)]
