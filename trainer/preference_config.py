"""What the stages that learn from preferences have to choose; `objectives/preference_losses.py` has the formulas."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from data_pipeline.config import Config

Share = Annotated[float, Field(ge=0, lt=0.5)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]

ReferenceKind = Literal["auto", "on_the_fly", "precomputed"]


class DpoConfig(Config):
    """Direct preference optimisation. `beta`: how dear the way from the reference is, or the tau of `ipo`.

    `log_probs`: whether an answer counts by the sum of its ids' log p or by their average; auto: the average for `ipo`
    (what its authors run), else the sum. `sft_weight` adds the mean nats of the chosen answer's ids (Pang et al. 2024,
    "Iterative reasoning preference optimization", equation 1).
    """

    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    beta: Scale = 0.1
    label_smoothing: Share = 0.0
    log_probs: Literal["auto", "sum", "average"] = "auto"
    sft_weight: Weight = 0.0
    reference: ReferenceKind = "auto"
    """auto: the base without its adapter, at each step; where every weight is trained, precomputed before step 1."""

    @property
    def averages(self) -> bool:
        return self.log_probs == "average" or (self.log_probs == "auto" and self.loss == "ipo")


class CpoConfig(Config):
    """Contrastive preference optimisation, without a reference; and SimPO, its sibling over averages.

    `sft_weight`: of the mean nats of the chosen answer's ids; auto: 1, as CPO has it, and 0 for `simpo`.
    `target_margin`: SimPO's gamma. `beta`: auto is 0.1, and 2 for `simpo`, whose averages differ by less than sums.
    """

    loss: Literal["sigmoid", "hinge", "simpo"] = "sigmoid"
    beta: Scale | Literal["auto"] = "auto"
    label_smoothing: Share = 0.0
    sft_weight: Weight | Literal["auto"] = "auto"
    target_margin: Weight = 0.5

    @property
    def scale(self) -> float:
        """Beta as it is used."""
        if self.beta == "auto":
            return 2.0 if self.loss == "simpo" else 0.1
        return self.beta

    @property
    def weight_of_sft(self) -> float:
        if self.sft_weight == "auto":
            return 0.0 if self.loss == "simpo" else 1.0
        return self.sft_weight


class OrpoConfig(Config):
    """Odds ratio preference optimisation: the mean nats of the chosen answer's ids, and `odds_weight` (the paper's
    lambda) times the log odds ratio's loss. No reference."""

    odds_weight: Weight = 0.1


class KtoConfig(Config):
    """Kahneman-Tversky optimisation: single answers that are desirable or not."""

    beta: Scale = 0.1
    desirable_weight: Weight = 1.0
    undesirable_weight: Weight = 1.0
    reference: ReferenceKind = "auto"
    """As of `dpo`."""


class RewardConfig(Config):
    """A model that scores an answer: the chosen one above the rejected one."""

    center_weight: Weight = 0.0
    """Of the square of both scores' sum, which keeps their mean at 0; 0.01 is usual where scores are compared."""


# Of `dpo.loss` and `cpo.loss`: the keys that only some of them read.
UNREAD: dict[tuple[str, str], tuple[str, ...]] = {
    ("dpo", "ipo"): ("label_smoothing",),
    ("dpo", "hinge"): ("label_smoothing",),
    ("cpo", "sigmoid"): ("target_margin",),
    ("cpo", "hinge"): ("label_smoothing", "target_margin"),
    ("cpo", "simpo"): ("label_smoothing",),
}
