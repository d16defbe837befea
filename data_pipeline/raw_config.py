"""What a run names instead of shards: the files that it is to be trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from data_pipeline.config import Config
from data_pipeline.corpus.sources import InputConfig, paths_as_inputs
from data_pipeline.shards.labels import Labels

_TEMPLATED = ("instruction", "preference", "feedback", "prompt")


class RawDataConfig(Config):
    """Files instead of shards; each key is that of the stage which reads it.

    The results lie in `cache`, in folders named by all that went into them: other files give other folders.
    """

    inputs: tuple[InputConfig, ...] = Field(min_length=1)
    record: Literal["document", "instruction", "label", "pair", "preference", "feedback", "prompt"] = "document"
    template: str | None = None
    tokenizer: Path | None = None
    vocab_size: int = Field(default=32_000, ge=64, description="of the tokenizer that is trained without `tokenizer`")
    heldout_fraction: float = Field(default=0.01, ge=0, lt=1)
    labels: Labels | None = Field(default=None, description="of label records: the classes in their order")
    max_tokens: int | None = Field(default=None, ge=2, description="of a sequence of records other than documents")
    too_long: Literal["refuse", "drop", "cut"] = "refuse"
    cache: Path = Path("data/cache")

    @field_validator("inputs", mode="before")
    @classmethod
    def _paths_are_inputs(cls, value: Any) -> Any:
        return paths_as_inputs(value)

    @model_validator(mode="after")
    def _written_rows_need_more(self) -> RawDataConfig:
        if self.record in _TEMPLATED and (self.template is None or self.tokenizer is None):
            missing = " and ".join(key for key in ("template", "tokenizer") if getattr(self, key) is None)
            raise ValueError(
                f"record is {self.record!r}, but there is no {missing}; name the template that writes the rows, and "
                "the tokenizer of the model that is tuned"
            )
        return self

    @model_validator(mode="after")
    def _examples_need_a_tokenizer(self) -> RawDataConfig:
        if self.record in ("label", "pair") and self.tokenizer is None:
            raise ValueError(
                f"record is {self.record!r}, but there is no tokenizer; name that of the model that is tuned"
            )
        return self
