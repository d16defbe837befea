"""Which weights move in which update of a run with new rows, at what rate; all others stay as they are, to the bit.

Every phase's weights are in the optimizer from the beginning, whatever engine holds it. What a phase does not name gets
a gradient of zeros (so that the norm that clips does not see it) and a rate of zero (so that neither its moments nor
its decay move it). Moments begin anew with each phase: a phase is a training of its own, as EEVE's stages are.
What an update does is a pure function of its number, so that a resume in the middle of a phase needs no state.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from trainer.errors import RunError
from trainer.new_rows import MODEL, role_of
from trainer.new_rows_config import NewRowsConfig, PhaseConfig, Trained
from trainer.schedule import ScheduleConfig, learning_rate

if TYPE_CHECKING:
    import torch
    from torch import nn

# What each phase moves, by the roles of new_rows.role_of; tied rows are of the role "both".
_MOVED: dict[Trained, frozenset[str]] = {
    "input": frozenset({"input"}),
    "output": frozenset({"output"}),
    "both": frozenset({"input", "output", "both"}),
    "adapter": frozenset({MODEL}),
    "all": frozenset({"input", "output", "both", MODEL}),
}


class _Engine(Protocol):
    """Of an engine: the model inside, and the optimizer under whatever wraps it."""

    model: nn.Module

    @property
    def optimizer(self) -> Any: ...


@dataclass(frozen=True)
class Place:
    """Where an update stands: its phase (counted from 0), its number inside it, and its learning rate."""

    phase: int
    step: int
    lr: float


def place_of(number: int, *, phases: tuple[PhaseConfig, ...], schedule: ScheduleConfig) -> Place:
    """The place of update `number`, counted from 0; what lies beyond the last phase belongs to it."""
    first = 0
    for index, phase in enumerate(phases):
        if number < first + phase.steps or index == len(phases) - 1:
            inside = number - first
            rate = learning_rate(phase.schedule or schedule, step=inside, max_steps=phase.steps)
            return Place(index, inside, rate)
        first += phase.steps
    raise AssertionError("a run with phases has at least one")


def check_phases(config: NewRowsConfig, model: nn.Module) -> None:
    """Refuse a phase in which nothing would move.

    Raises:
        RunError: it names rows of the head or of the embedding alone where both are one.
    """
    roles = {role_of(parameter) for parameter in model.parameters() if parameter.requires_grad}
    for number, phase in enumerate(config.phases):
        if not _MOVED[phase.train] & roles:
            why = "its head is its embedding: the rows are one, and 'both' trains them"
            if "both" not in roles:
                why = "it has no head with rows of its own"
            raise RunError(f"new_rows.phases.{number}.train: {phase.train!r} moves nothing in this model: {why}")


class Phases:
    """Leads an engine through the phases of a run."""

    def __init__(self, config: NewRowsConfig, engine: _Engine, *, schedule: ScheduleConfig) -> None:
        self._config, self._engine, self._schedule = config, engine, schedule
        self._moved = frozenset[str]()
        for parameter in engine.model.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._gradient_hook(role_of(parameter)))

    def _gradient_hook(self, role: str) -> Any:
        def hook(gradient: torch.Tensor) -> torch.Tensor:
            # Not times zero: what is not finite must not come through.
            return gradient if role in self._moved else gradient.new_zeros(gradient.shape)

        return hook

    def begin_update(self, number: int) -> Place:
        """Let update `number` move what its phase names; its first one forgets all moments."""
        place = place_of(number, phases=self._config.phases, schedule=self._schedule)
        self._moved = _MOVED[self._config.phases[place.phase].train]
        mark_moved(self._engine.optimizer.param_groups, self._moved)
        if place.step == 0:
            forget_moments(self._engine.optimizer)
        return place

    def describe(self, place: Place) -> str:
        """The phase in words, for the record of a run."""
        phase = self._config.phases[place.phase]
        return (
            f"phase {place.phase + 1} of {len(self._config.phases)}: {phase.train} for {phase.steps:,} steps; nothing "
            "else moves"
        )


def mark_moved(groups: Iterable[dict[str, Any]], moved: frozenset[str]) -> None:
    """Only groups of these roles take a learning rate from here on."""
    for group in groups:
        group["is_moved"] = group.get("role", MODEL) in moved


def forget_moments(optimizer: Any) -> None:
    """An optimizer as it was before its first update: no moments, no count of updates."""
    optimizer.state.clear()
    pages = getattr(optimizer, "page_mng", None)  # bitsandbytes': what it moves between device and host
    if pages is not None:
        pages.paged_tensors.clear()
