from __future__ import annotations

from pathlib import Path

import pytest
from trained_tokenizer import KINDS, make_corpus, run, stage_of, write_documents


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    return make_corpus(folder / "corpus", write_documents(folder / "docs.jsonl"))


@pytest.fixture(scope="session")
def trained(corpus: Path) -> dict[str, Path]:
    """A finished tokenizer folder of each kind."""
    folders = {kind: corpus.parent / kind for kind in KINDS}
    for kind, folder in folders.items():
        run(stage_of(corpus, folder, kind=kind))
    return folders


@pytest.fixture(scope="session")
def byte_level(trained: dict[str, Path]) -> Path:
    return trained["byte_level_bpe"]


@pytest.fixture(scope="session")
def hash_hash(trained: dict[str, Path]) -> Path:
    return trained["hash_hash_bpe"]
