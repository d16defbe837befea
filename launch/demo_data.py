"""The data parts of `dure demo`: text, corpus, tokenizer and shards, and the same for instruction rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.config import load
from data_pipeline.stage import Manifest, Stage, read_manifest

# The made-up world has few words: a larger vocabulary fuses its names with the particles behind them, and a model that
# has never seen a name apart can't copy it.
MADE_VOCABULARY = 1536
NUM_DOCUMENTS = 9000
VOCABULARY = 4096
TEMPLATE = "koalpaca"
# Made text brings its own held-out documents (AIHub's Validation); of a user's text, every 20th is held out.
USER_HELDOUT_FRACTION = 0.05


@dataclass(frozen=True)
class Places:
    """Where the demo's parts lie."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def aihub(self) -> Path:
        return self.data / "aihub"

    @property
    def rows(self) -> Path:
        return self.data / "rows"

    @property
    def corpus(self) -> Path:
        return self.data / "corpus"

    @property
    def tokenizer(self) -> Path:
        return self.data / "tokenizer"

    @property
    def shards(self) -> Path:
        return self.data / "shards"

    @property
    def sft_corpus(self) -> Path:
        return self.data / "sft-corpus"

    @property
    def sft_shards(self) -> Path:
        return self.data / "sft-shards"


def generate(places: Places, *, seed: int) -> None:
    """AIHub-653 zips and instruction rows of a made-up world; does nothing where they stand already."""
    from data_pipeline import disk
    from data_pipeline.synthetic.config import SyntheticConfig
    from data_pipeline.synthetic.instructions import instruction_rows
    from data_pipeline.synthetic.zips import make_653

    config = SyntheticConfig(seed=seed, num_documents=NUM_DOCUMENTS)
    marker = places.data / "made.json"
    if marker.is_file() and json.loads(marker.read_text()) == config.model_dump():
        print(f"   up to date: {places.aihub}, {places.rows}")
        return
    make_653(config, places.aihub)
    # The folders' names say what is held out, as AIHub's do.
    for split, folder in (("train", "Training"), ("heldout", "Validation")):
        rows = instruction_rows(config, split)  # type: ignore[arg-type]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (places.rows / folder).mkdir(parents=True, exist_ok=True)
        disk.write_bytes(places.rows / folder / "rows.jsonl", text.encode())
    disk.write_json(marker, config.model_dump())
    size = sum(path.stat().st_size for path in places.aihub.rglob("*.zip"))
    print(
        f"   {config.num_documents + config.num_heldout_documents:,} documents, {size:,} bytes of zips; "
        f"{config.num_instructions + config.num_heldout_instructions:,} instruction rows"
    )


def build_corpus(source: Path, output: Path, *, record: str) -> None:
    from data_pipeline.corpus.build import CorpusBuild, CorpusConfig

    config = load(None, [f"inputs={json.dumps([str(source)])}", f"output={output}", f"record={record}"], CorpusConfig)
    _run_stage(CorpusBuild(config), kind="corpus", show=_show_corpus)


def train_tokenizer(places: Places, *, vocab_size: int) -> None:
    from data_pipeline.tokenizer.train import TokenizerConfig, TokenizerTrain

    config = TokenizerConfig(corpus=places.corpus, output=places.tokenizer, vocab_size=vocab_size)
    _run_stage(TokenizerTrain(config), kind="tokenizer", show=lambda made: f"{made['vocab_size']:,} tokens")


def build_shards(places: Places, *, is_made: bool) -> None:
    from data_pipeline.shards.build import ShardsBuild, ShardsConfig

    config = ShardsConfig(
        corpus=places.corpus, tokenizer=places.tokenizer, output=places.shards, heldout_fraction=_fraction(is_made)
    )
    _run_stage(ShardsBuild(config), kind="shards", show=_show_shards)


def build_sft_shards(places: Places, *, is_made: bool) -> None:
    from data_pipeline.shards.build import ShardsBuild, ShardsConfig

    config = ShardsConfig(
        corpus=places.sft_corpus,
        tokenizer=places.tokenizer,
        output=places.sft_shards,
        template=TEMPLATE,
        heldout_fraction=_fraction(is_made),
    )
    _run_stage(ShardsBuild(config), kind="shards", show=_show_shards)


def _fraction(is_made: bool) -> float:
    return 0.0 if is_made else USER_HELDOUT_FRACTION


def _run_stage(stage: Stage, *, kind: str, show: Callable[[Manifest], str]) -> None:
    from launch.tasks import num_cores, run_stage

    if stage.is_done():
        print(f"   up to date: {stage.output}: {show(read_manifest(stage.output, kind=kind))}")
        return
    manifest = run_stage(stage, num_cores(), label=kind)
    print(f"   {stage.output}: {show(manifest)}")


def _show_corpus(manifest: Manifest) -> str:
    return f"{manifest['num_records']:,} {manifest['record']}s, {manifest['num_text_bytes']:,} bytes of text"


def _show_shards(manifest: Manifest) -> str:
    return ", ".join(f"{split} {counts['num_tokens']:,} tokens" for split, counts in manifest["splits"].items())
