"""The default corpus, made once: the laws about held-out combinations are proven over all of it."""

from __future__ import annotations

import pytest

from data_pipeline.synthetic.config import SyntheticConfig
from data_pipeline.synthetic.documents import Document, documents
from data_pipeline.synthetic.instructions import Instruction, instruction


@pytest.fixture(scope="package")
def config() -> SyntheticConfig:
    return SyntheticConfig()


@pytest.fixture(scope="package")
def train_documents(config: SyntheticConfig) -> list[Document]:
    return list(documents(config, "train"))


@pytest.fixture(scope="package")
def heldout_documents(config: SyntheticConfig) -> list[Document]:
    return list(documents(config, "heldout"))


@pytest.fixture(scope="package")
def train_instructions(config: SyntheticConfig) -> list[Instruction]:
    return [instruction(config, split="train", index=index) for index in range(config.num_instructions)]


@pytest.fixture(scope="package")
def heldout_instructions(config: SyntheticConfig) -> list[Instruction]:
    return [instruction(config, split="heldout", index=index) for index in range(config.num_heldout_instructions)]
