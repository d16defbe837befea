"""What the stages that learn from their own answers have to choose; `objectives/advantages.py` has the formulas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from data_pipeline.config import Config

if TYPE_CHECKING:
    from trainer.config import TrainConfig

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]

ONLINE = ("ppo", "grpo")


class RewardSourceConfig(Config):
    """Where the reward of an answer comes from: a Python function, or a model that `stage: reward` trained."""

    function: str | None = None
    """path/to/file.py:name; called with (prompts, answers, references), lists of text, returns a number for each."""
    model: str | None = None
    """A run of `stage: reward`, one of its checkpoints, or a model folder with one label."""
    missing_eos_penalty: Weight = 0.0
    """Taken from the reward of an answer that was cut at its limit."""

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, function: str | None) -> str | None:
        path, colon, name = (function or "a.py:f").rpartition(":")
        if not (colon and path.endswith(".py") and name.isidentifier()):
            raise ValueError(f"{function!r} names no function; write path/to/file.py:name")
        return function

    @model_validator(mode="after")
    def _one_source(self) -> RewardSourceConfig:
        if self.function is not None and self.model is not None:
            raise ValueError(
                f"function {self.function!r} and model {self.model!r}: a reward has one source; give one of them (a "
                "function may add what it likes)"
            )
        return self


class OnlineConfig(Config):
    """What both stages choose: how answers are sampled, judged and held near the reference.

    The reference is the base without its adapter. A step samples answers to its prompts, then makes `num_passes`
    updates over all of them.
    """

    reward: RewardSourceConfig = RewardSourceConfig()
    max_new_tokens: int = Field(default=256, ge=1)
    temperature: Scale = 1.0
    """Of the answers that are learnt from, and of the probabilities that are compared."""
    generation_batch_sequences: int = Field(default=16, ge=1)
    """Answers that a rank samples at once; changes no answer."""
    evaluation_temperature: Weight = 0.0
    """Of the answers to held-out prompts; 0 takes the likeliest id, and such answers tell nothing of the KL."""
    num_shown: int = Field(default=8, ge=0)
    """Of the held-out answers, so many go to `answers/step-N.jsonl`."""


class PpoConfig(OnlineConfig):
    """Proximal policy optimisation (Schulman et al. 2017) with a value head on the policy's last hidden state."""

    num_passes: int = Field(default=4, ge=1)
    clip_range: Scale = 0.2
    kl_weight: Weight = 0.05
    """Of ln(pi / pi_ref), which is taken from each id's reward."""
    target_kl: Scale | None = None
    """Nats an answer: `kl_weight` is only where it begins, and grows or falls until the KL is there."""
    kl_gain: Scale = 0.1
    """By how much `kl_weight` follows; read with `target_kl`."""
    value_weight: Weight = 0.1
    value_clip_range: Scale = 0.2
    discount: Share = 1.0
    advantage_smoothing: Share = 0.95
    """Lambda of the generalised advantages."""


class GrpoConfig(OnlineConfig):
    """Group relative policy optimisation (Shao et al. 2024): an answer is good by how far it is above its group's mean.

    `loss`: what is averaged. "grpo": each answer's ids, then answers; "dapo": all ids alike (Yu et al. 2025, equation
    8); "dr_grpo": ids over `max_new_tokens`, so that no length is favoured (Liu et al. 2025, section 3.2).
    """

    num_samples: int = Field(default=8, ge=2)
    """Answers to a prompt, its group."""
    num_passes: int = Field(default=1, ge=1)
    loss: Literal["grpo", "dapo", "dr_grpo"] = "grpo"
    clip_range: Scale = 0.2
    clip_range_above: Scale | None = None
    """How far above 1 a ratio counts; None: as `clip_range`. Larger is DAPO's "clip higher" (equation 10)."""
    kl_weight: Weight = 0.04
    """Of the estimator k3 in the loss (equation 3)."""
    scale_rewards: bool = True
    """Whether a group's advantages are divided by its standard deviation."""


def answers_each(config: TrainConfig) -> int:
    """Sequences that a row of training becomes."""
    return (config.grpo or GrpoConfig()).num_samples if config.stage == "grpo" else 1


def online_faults(config: TrainConfig) -> Iterator[str]:
    """What the config of an online stage contradicts; nothing for other stages."""
    if config.stage not in ONLINE:
        return
    stage = config.stage
    choices: PpoConfig | GrpoConfig = getattr(config, stage) or {"ppo": PpoConfig, "grpo": GrpoConfig}[stage]()
    if choices.reward.function is None and choices.reward.model is None:
        yield (
            f"{stage}.reward: names neither a function nor a model, so that nothing says which answer is good; set "
            f"{stage}.reward.function to path/to/file.py:name, or {stage}.reward.model to a run of stage 'reward'"
        )
    target = getattr(choices, "target_kl", None)
    if config.adapter is None and (choices.kl_weight > 0 or target is not None):
        yield (
            f"{stage}.kl_weight is {choices.kl_weight:g}, but there is no adapter: the reference is the base without "
            f"it, and no second copy of the weights is held; set adapter (adapter: {{}}), or {stage}.kl_weight to 0 "
            "and no target_kl"
        )
    if target is not None and choices.kl_weight == 0:
        yield f"{stage}.target_kl is {target:g}, but kl_weight begins at 0 and stays there; set it above 0"
    if config.new_rows is not None:
        yield (
            f"new_rows: stage {stage!r} holds the policy against the base without its adapter, which has no rows for "
            "the new tokens; train them by stage 'pretrain' or 'sft' first, and name that run in model.from"
        )
    if config.policy.refuse_spikes:
        yield (
            f"policy.refuse_spikes: the loss of stage {stage!r} goes up and down around 0, so that no multiple of its "
            "median is a spike; set it to false"
        )


def online_unread(config: TrainConfig) -> Iterator[str]:
    """A line for each key that nothing reads in an online stage."""
    ppo = config.ppo if config.stage == "ppo" else None
    if ppo is not None and ppo.target_kl is None and ppo.kl_gain != PpoConfig.model_fields["kl_gain"].default:
        yield f"ppo.kl_gain: {ppo.kl_gain!r} is not read: there is no ppo.target_kl"
    if config.stage in ONLINE and config.adapter is not None and config.adapter.dropout:
        yield (
            f"adapter.dropout: {config.adapter.dropout!r} is not read: stage {config.stage!r} compares probabilities, "
            "which dropout would stir"
        )
