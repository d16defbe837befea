"""What is to be made: how much of it, from which seed, and which faults are planted for tests of a reader."""

from __future__ import annotations

from pydantic import Field

from data_pipeline.config import Config


class FaultsConfig(Config):
    """Faults as real downloads have them, none by default. Each counts members of the training zips."""

    num_broken_members: int = Field(default=0, ge=0)
    num_empty_members: int = Field(default=0, ge=0)
    num_duplicate_documents: int = Field(default=0, ge=0)
    num_nfd_documents: int = Field(default=0, ge=0)


class SyntheticConfig(Config):
    """Size and seed of the made text. Text i depends on the seed and on i: a larger corpus begins as a smaller one."""

    seed: int = Field(default=0, ge=0)
    num_documents: int = Field(default=5500, ge=1)
    num_heldout_documents: int = Field(default=250, ge=1)
    num_instructions: int = Field(default=3000, ge=1)
    num_heldout_instructions: int = Field(default=300, ge=1)
    faults: FaultsConfig = FaultsConfig()
