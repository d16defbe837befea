"""Files to train on -> a folder of shards, by the data stages themselves, in a cache keyed by all that goes into them.

What `dure train` does where a config names files instead of shards (`data.raw`). The stages are those of the verbs, so
that there is one code path; one whose result lies in the cache does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from data_pipeline import disk
from data_pipeline.config import Config
from data_pipeline.corpus.build import CorpusBuild, CorpusConfig
from data_pipeline.raw_config import RawDataConfig
from data_pipeline.shards.build import ShardsBuild, ShardsConfig
from data_pipeline.stage import Stage, StageError, fingerprint
from data_pipeline.tokenizer.train import TokenizerConfig, TokenizerTrain

KEY_DIGITS = 16

ConfigT = TypeVar("ConfigT", bound=Config)
RunStage = Callable[[Stage, str], object]


class _Keyed(Stage, Protocol):
    """A stage that can tell what decides its result, wherever that is written."""

    @property
    def inputs(self) -> dict[str, Any]: ...


def prepare_shards(raw: RawDataConfig, *, run: RunStage | None) -> Path:
    """The shards of `raw`; `run(stage, kind)` is called for each stage in turn whose result is not there.

    Raises:
        StageError: from a stage, from `run`, or, where that is None, because a result is not there.
    """
    cache = raw.cache
    corpus = _up_to_date(
        CorpusConfig(inputs=raw.inputs, output=cache, record=raw.record), CorpusBuild, kind="corpus", run=run
    )
    tokenizer = raw.tokenizer
    if tokenizer is None:
        wanted = TokenizerConfig(corpus=corpus, output=cache, vocab_size=raw.vocab_size)
        tokenizer = _up_to_date(wanted, TokenizerTrain, kind="tokenizer", run=run)
    shards = ShardsConfig(
        corpus=corpus,
        tokenizer=tokenizer,
        output=cache,
        template=raw.template,
        heldout_fraction=raw.heldout_fraction,
        labels=raw.labels,
        max_tokens=raw.max_tokens,
        too_long=raw.too_long,
    )
    return _up_to_date(shards, ShardsBuild, kind="shards", run=run)


def find_shards(raw: RawDataConfig) -> Path:
    """The shards that `prepare_shards` made before; raises StageError where a stage is still to be run."""
    return prepare_shards(raw, run=None)


def _up_to_date(config: ConfigT, make: Callable[[ConfigT], _Keyed], *, kind: str, run: RunStage | None) -> Path:
    """The result of a stage, in a folder of the cache that is named by its inputs."""
    cache: Path = config.output  # type: ignore[attr-defined]
    key = fingerprint(make(config).inputs)[:KEY_DIGITS]
    stage = make(config.model_copy(update={"output": cache / f"{kind}-{key}"}))
    if stage.is_done():
        return stage.output
    if run is None:
        raise _not_built(stage, kind)
    with disk.locked(cache / f".{kind}-{key}.lock"):  # two runs may begin on the same files at once
        if not stage.is_done():
            run(stage, kind)
    return stage.output


def _not_built(stage: Stage, kind: str) -> StageError:
    return StageError(
        f"data.raw: {stage.output}: the {kind} is not built yet, and ranks do not build it; start the run once by "
        f"`dure train CONFIG`, which does, or build shards yourself and set data.shards"
    )
