"""What model a run trains: one built from a few numbers, or one that exists."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from data_pipeline.config import Config
from trainer.quantize import QuantizationConfig

Attention = Literal["auto", "flash_attention_2", "sdpa"]


class ModelConfig(Config):
    """`from`: a run, a model folder or a hub name to continue from. Without it, the sizes describe a new model.

    The vocabulary's size is not a key: it is the tokenizer's, padded to a multiple of `pad_vocab_to_multiple`.
    """

    source: str | None = Field(default=None, alias="from")
    revision: str | None = None
    trust_remote_code: bool = False
    architecture: Literal["llama", "gpt_neox", "bert", "roberta"] = "llama"
    """llama and gpt_neox read from left to right; bert and roberta both ways, for masked LMs and what follows them."""
    hidden_size: int = Field(default=768, ge=8)
    num_layers: int = Field(default=12, ge=1)
    num_heads: int = Field(default=12, ge=1)
    num_key_value_heads: int | None = Field(default=None, ge=1)
    intermediate_size: int | None = Field(default=None, ge=8)
    max_positions: int = Field(default=2048, ge=8)
    rope_theta: float = Field(default=10_000.0, gt=0)
    tie_embeddings: bool = False
    """Whether the head is the embedding. bert and roberta are always so."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    initializer_range: float = Field(default=0.02, gt=0)
    pad_vocab_to_multiple: int = Field(default=128, ge=1)
    attention: Attention = "auto"
    quantization: QuantizationConfig | None = None
    """How the frozen base of an adapter is held; None: unquantised, in the run's precision."""

    @field_validator("source")
    @classmethod
    def _home_is_a_folder(cls, source: str | None) -> str | None:
        return str(Path(source).expanduser()) if source is not None and source.startswith("~") else source

    @model_validator(mode="after")
    def _only_a_base_is_quantized(self) -> ModelConfig:
        if self.quantization is not None and self.source is None:
            raise ValueError("quantization: a new model has no weights worth freezing; name the base in model.from")
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> ModelConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.num_heads % self.key_value_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_key_value_heads {self.key_value_heads}"
            )
        if self.architecture != "llama" and self.num_key_value_heads not in (None, self.num_heads):
            raise ValueError(f"num_key_value_heads: {self.architecture} has as many as num_heads; leave the key out")
        return self

    @property
    def key_value_heads(self) -> int:
        return self.num_key_value_heads or self.num_heads

    @property
    def feed_forward_size(self) -> int:
        """`intermediate_size`, or the architecture's usual one: 8/3 of the width (SwiGLU, Shazeer 2020) or 4 times."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        if self.architecture != "llama":
            return 4 * self.hidden_size
        return (8 * self.hidden_size // 3 + 127) // 128 * 128
