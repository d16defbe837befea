"""What each further stage has to choose; the objective of the same name says what it means."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data_pipeline.config import Config
from trainer.policy_config import GrpoConfig, PpoConfig
from trainer.preference_config import CpoConfig, DpoConfig, KtoConfig, OrpoConfig, RewardConfig

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class MlmConfig(Config):
    """Masked language modelling (Devlin et al. 2019, section 3.1): of the chosen tokens so many are masked, and so many
    become another token; the rest stay, and are asked for all the same."""

    chosen_share: float = Field(default=0.15, gt=0, lt=1)
    masked_share: float = Field(default=0.8, ge=0, le=1)
    random_share: float = Field(default=0.1, ge=0, le=1)
    whole_words: bool = False
    """All tokens of a word are chosen together."""

    @model_validator(mode="after")
    def _shares_are_of_one(self) -> MlmConfig:
        if self.masked_share + self.random_share > 1:
            both = f"masked_share {self.masked_share:g} and random_share {self.random_share:g}"
            raise ValueError(f"{both} are together more than 1; they are shares of the chosen tokens: lower one")
        return self


class ClassifyConfig(Config):
    """Cross entropy over classes."""

    class_weights: Literal["none", "balanced"] | tuple[Weight, ...] = "none"
    """"balanced": by the inverse of how often each class stands in the training rows; or one a class, in order."""


class EmbedConfig(Config):
    """Sentence embeddings from pairs, scored pairs or triplets.

    `loss`: "in_batch" takes the other rows of a step as negatives (van den Oord et al. 2018, "CPC", equation 4, with
    the cosine divided by `temperature`); "cosine" fits the cosine to a score; "triplet" keeps the negative `margin`
    farther away than the positive (Reimers and Gurevych 2019, section 3).
    """

    loss: Literal["in_batch", "cosine", "triplet"] = "in_batch"
    pooling: Literal["mean", "cls"] = "mean"
    temperature: float = Field(default=0.05, gt=0)
    margin: float = Field(default=5.0, gt=0)
    max_score: float = Field(default=1.0, gt=0)
    """What scores are divided by: 5 where they go from 0 to 5."""
    normalize: bool = True
    """Whether what is written out has length 1."""


# The key that each loss alone reads.
LOSS_KEYS = {"in_batch": "temperature", "cosine": "max_score", "triplet": "margin"}

STAGE_CONFIGS: dict[str, type[Config]] = {
    "mlm": MlmConfig,
    "classify": ClassifyConfig,
    "embed": EmbedConfig,
    "dpo": DpoConfig,
    "orpo": OrpoConfig,
    "cpo": CpoConfig,
    "kto": KtoConfig,
    "reward": RewardConfig,
    "ppo": PpoConfig,
    "grpo": GrpoConfig,
}
