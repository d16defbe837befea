"""Rows for tokens that a model does not know: what they begin from, and which weights move in which part of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field, field_validator

from data_pipeline.config import Config
from trainer.schedule import ScheduleConfig

Trained = Literal["input", "output", "both", "adapter", "all"]

COPY = "copy:"
# Each way to begin a row, by name, and where it comes from.
STARTS = {
    "mean_of_subtokens": (
        "the mean of the rows of the tokens that its text was before (Koto et al. 2021, 'IndoBERTweet'; "
        "Kim et al. 2024, 'EEVE', for input rows)"
    ),
    "first_subtoken": (
        "the row of the first token that its text was before (Kim et al. 2024, 'EEVE', for output rows)"
    ),
    "mean_of_all": (
        "the mean of all old rows, which bounds how much a new token can take from old ones (Hewitt 2021, "
        "'Initializing New Word Embeddings for Pretrained Language Models')"
    ),
    "random": (
        "normal, with the deviation that the model's own weights were drawn with (its initializer_range); what "
        "transformers did before 4.46"
    ),
    "copy:TOKEN": "the row of TOKEN, to the bit",
}


class PhaseConfig(Config):
    """`steps` updates in which only what `train` names moves; its moments and its schedule begin anew.

    `input`, `output`: the new rows of the embedding, of the head. `both`: both. `adapter`: the adapter alone. `all`:
    whatever the run trains: the new rows, and the adapter or every weight of the model.
    Source of the order input, output, both, all: Kim et al. 2024, "Efficient and Effective Vocabulary Expansion
    Towards Multilingual Large Language Models" (EEVE), its seven stages in short.
    """

    train: Trained
    steps: int = Field(ge=1)
    schedule: ScheduleConfig | None = None
    """None: train.schedule, over the phase's own steps."""


class NewRowsConfig(Config):
    """Rows for the tokens that the shards' tokenizer has beyond the model's, and the phases in which they are trained.

    `init`, `output_init`: how the rows of the embedding and of the head begin, by a name of STARTS; the head as the
    embedding if None. Without `phases` everything moves from the first step on. `pad_to_multiple`: of the rows of the
    embedding, where it has to grow; free rows that a model has already are taken first.
    """

    init: str = "mean_of_subtokens"
    output_init: str | None = None
    pad_to_multiple: int = Field(default=64, ge=1)
    phases: tuple[PhaseConfig, ...] = ()

    @field_validator("init", "output_init")
    @classmethod
    def _is_known(cls, name: str | None) -> str | None:
        return name if name is None else checked_start(name)

    @property
    def head_start(self) -> str:
        return self.output_init or self.init

    def faults(self, *, max_steps: int, schedule: ScheduleConfig, has_adapter: bool) -> Iterator[str]:
        """Where the phases contradict the rest of a run's config."""
        total = sum(phase.steps for phase in self.phases)
        if self.phases and total != max_steps:
            yield (f"new_rows.phases: {total:,} steps in all, but train.max_steps is {max_steps:,}; make them equal")
        for number, phase in enumerate(self.phases):
            ours = phase.schedule or schedule
            needed = ours.warmup_steps + (ours.decay_steps if ours.kind == "wsd" else 0)
            if needed > phase.steps:
                yield (
                    f"new_rows.phases.{number}: warm-up and decay of its schedule take {needed:,} steps, but it has "
                    f"{phase.steps:,}; give it a schedule of its own"
                )
            if phase.train == "adapter" and not has_adapter:
                yield f"new_rows.phases.{number}.train: 'adapter', but the run has none; set adapter, or train 'all'"


def short_phases(phases: Sequence[PhaseConfig], *, steps: int, schedule: ScheduleConfig) -> list[PhaseConfig]:
    """The first phases, as many as `steps` allow, with an equal share of them each; the last takes what is left.

    `schedule`: that of phases without one of their own. Warm-up and decay fit into the shorter phases.
    """
    kept = list(phases[:steps])
    share = steps // max(1, len(kept))
    short = []
    for number, phase in enumerate(kept):
        length = share if number < len(kept) - 1 else steps - share * (len(kept) - 1)
        ours = phase.schedule or schedule
        limits = {key: min(getattr(ours, key), length // 4) for key in ("warmup_steps", "decay_steps")}
        short.append(phase.model_copy(update={"steps": length, "schedule": ours.model_copy(update=limits)}))
    return short


def checked_start(name: str) -> str:
    """`name` where it is a way to begin a row; raises ValueError else."""
    if name in STARTS and name != "copy:TOKEN":
        return name
    if name.startswith(COPY) and len(name) > len(COPY):
        return name
    raise ValueError(f"{name!r} is no way to begin a row; choose among {', '.join(STARTS)}")
