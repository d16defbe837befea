"""Law 9 with the real engine: a run that is killed at any disk operation, or finds a flipped byte, goes on from its
last complete step with the losses of the undisturbed run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults.fault_harness import (
    KillPoint,
    check_on_ranks,
    count_moments,
    flip,
    flipped_bytes,
    lone_rank,
    save_killed,
)
from tests.faults.run_subject import RunSubject, losses_after
from tests.trainer.tiny_run import lines_of, losses_of
from trainer import checkpoint
from trainer.checkpoint_marker import read_marker

pytestmark = pytest.mark.stages

OLD, NEW, END = 4, 8, 12


class Case:
    """A run that stands complete at step OLD, and the losses of the same run undisturbed to END."""

    def __init__(self, folder: Path, *, trained: str) -> None:
        self.subject = RunSubject(folder, trained=trained)
        self.subject.warm_up(folder / "warm-up")
        self.scratch = folder
        undisturbed = folder / "undisturbed"
        count_moments(self.subject, undisturbed / "run/checkpoints", step=END, scratch=folder)
        self.losses = losses_of(undisturbed / "run")
        self.pristine = folder / "pristine"
        count_moments(self.subject, self.pristine / "run/checkpoints", step=OLD, scratch=folder)

    def copy(self, name: str) -> Path:
        """The run folder of a copy of the run at step OLD."""
        return shutil.copytree(self.pristine, self.scratch / name) / "run"


# What is trained, and the step between two moments that are tried. A start of a tuning loads and packs a base, so that
# each takes a second: there it is every moment before an operation, which leaves each state of the disk that a rank can
# leave (after one operation is before the next).
STRIDES = {"pretrain": 1, "qlora": 2}


@pytest.fixture(scope="module", params=list(STRIDES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("faults"), trained=request.param)


def test_a_run_killed_at_any_operation_of_any_rank_goes_on_with_the_same_losses(case: Case) -> None:
    rehearsal = case.copy("rehearsal")
    moments = count_moments(case.subject, rehearsal / "checkpoints", step=NEW, scratch=case.scratch)
    complete = rehearsal / "checkpoints" / checkpoint.step_name(NEW)
    points = [KillPoint(rank, number) for rank in range(2) for number in range(moments[rank])]
    assert len(points) > 80, "the attempt writes less than it did: does it still go through disk?"
    told = [(case.scratch / f"moments-{rank}").read_text().splitlines() for rank in range(2)]
    assert all(moment.startswith("before ") for moments_of_rank in told for moment in moments_of_rank[::2])
    tried: set[int] = set()
    # The last moments are those around COMPLETE and after it: what a rank left then is always tried.
    stride = STRIDES[case.subject.trained]
    points = [point for point in points if point.number % stride == 0 or point.number > moments[point.rank] - 12]
    print(f"{len(points)} kill points")
    for point in points:
        run = case.copy("killed")
        codes = save_killed(case.subject, run / "checkpoints", step=NEW, point=point, scratch=case.scratch)
        assert codes[point.rank] == -9, f"{point} was not reached"
        chosen = checkpoint.choose(run / "checkpoints", lone_rank())
        assert chosen.path is not None and chosen.damaged == []
        step = checkpoint.step_of(chosen.path)
        assert step in (OLD, NEW)
        reference = complete if step == NEW else case.pristine / "run/checkpoints" / checkpoint.step_name(OLD)
        assert weights_and_state(chosen.path) == weights_and_state(reference)
        if step not in tried:  # equal bytes train alike: one continuation of each outcome tells for all
            tried.add(step)
            check_on_ranks(case.subject, chosen.path, step=step, scratch=case.scratch)
            assert started_at(run)[-1] == step
            assert losses_after(run, step) == {
                number: loss for number, loss in case.losses.items() if step < number <= step + 4
            }
        shutil.rmtree(run.parent)
    assert tried == {OLD, NEW}


def started_at(run: Path) -> list[int]:
    """The step that each attempt of the run went on from."""
    return [event["step"] for event in lines_of(run / "events.jsonl") if event["kind"] == "started"]


def weights_and_state(folder: Path) -> dict[str, str]:
    """Hashes of all that a resume reads."""
    marker, fault = read_marker(folder)
    assert fault == ""
    names = ("config.yaml", "environment.json")  # these hold the attempt's own paths
    return {entry["name"]: entry["sha256"] for entry in marker["files"] if entry["name"] not in names}


def test_a_flipped_byte_in_any_file_sends_the_run_back_to_the_last_complete_step(case: Case) -> None:
    both = case.copy("both")
    count_moments(case.subject, both / "checkpoints", step=NEW, scratch=case.scratch)
    names = [path.name for path, _ in flipped_bytes(both / "checkpoints" / checkpoint.step_name(NEW))]
    ranks = {f"rank-{rank:05}-of-00002.safetensors" for rank in range(2)}
    assert {"COMPLETE", "state.json", *ranks} <= set(names)

    for number in range(len(names)):
        run = shutil.copytree(both.parent, case.scratch / f"flipped-{number}") / "run"
        path, position = list(flipped_bytes(run / "checkpoints" / checkpoint.step_name(NEW)))[number]
        flip(path, position)

        case_losses = {step: loss for step, loss in case.losses.items() if step <= NEW}
        count_moments(case.subject, run / "checkpoints", step=NEW, scratch=case.scratch)

        assert started_at(run)[-1] == OLD
        assert losses_of(run) == case_losses
        told = [event for event in lines_of(run / "events.jsonl") if event["kind"] == "damaged_checkpoint"]
        assert len(told) == 1 and path.name in told[0]["detail"]
        shutil.rmtree(run.parent)
