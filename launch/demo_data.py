"""The data parts of `dure demo`: text, corpus, tokenizer and shards, and the same for instructions and preferences."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.config import load
from data_pipeline.stage import Manifest, Stage, read_manifest

if TYPE_CHECKING:
    from data_pipeline.synthetic.facts import Split

# The made-up world has few words: a larger vocabulary fuses its names with the particles behind them, and a model that
# has never seen a name apart can't copy it.
MADE_VOCABULARY = 1536
NUM_DOCUMENTS = 9000
VOCABULARY = 4096
TEMPLATE = "koalpaca"
# Made text brings its own held-out documents (AIHub's Validation); of a user's text, every 20th is held out.
USER_HELDOUT_FRACTION = 0.05
NUM_PREFERENCES, NUM_HELDOUT_PREFERENCES = 2000, 300
# The folders' names say what is held out, as AIHub's do.
SPLIT_FOLDERS: dict[Split, str] = {"train": "Training", "heldout": "Validation"}


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

    @property
    def preferences(self) -> Path:
        return self.data / "preferences"

    @property
    def dpo_corpus(self) -> Path:
        return self.data / "dpo-corpus"

    @property
    def dpo_shards(self) -> Path:
        return self.data / "dpo-shards"


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
    for split, folder in SPLIT_FOLDERS.items():
        _write_rows(places.rows / folder, instruction_rows(config, split))
    disk.write_json(marker, config.model_dump())
    size = sum(path.stat().st_size for path in places.aihub.rglob("*.zip"))
    print(
        f"   {config.num_documents + config.num_heldout_documents:,} documents, {size:,} bytes of zips; "
        f"{config.num_instructions + config.num_heldout_instructions:,} instruction rows"
    )


def generate_preferences(places: Places, *, seed: int) -> None:
    """Preference rows of the same world; does nothing where they stand already."""
    from data_pipeline import disk
    from data_pipeline.synthetic.config import SyntheticConfig
    from data_pipeline.synthetic.preferences import preference_rows

    counts: dict[Split, int] = {"train": NUM_PREFERENCES, "heldout": NUM_HELDOUT_PREFERENCES}
    marker = places.data / "made-preferences.json"
    made_from = {"seed": seed, **{str(split): count for split, count in counts.items()}}
    if marker.is_file() and json.loads(marker.read_text()) == made_from:
        print(f"   up to date: {places.preferences}")
        return
    config = SyntheticConfig(seed=seed)
    for split, folder in SPLIT_FOLDERS.items():
        _write_rows(places.preferences / folder, preference_rows(config, split, count=counts[split]))
    disk.write_json(marker, made_from)
    manner = "an answer as one writes (문어체) is chosen, the same as one speaks (해요체) rejected"
    print(f"   {sum(counts.values()):,} rows: {manner}")


def _write_rows(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    from data_pipeline import disk

    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    folder.mkdir(parents=True, exist_ok=True)
    disk.write_bytes(folder / "rows.jsonl", text.encode())


def build_corpus(source: Path, output: Path, *, record: str) -> None:
    from data_pipeline.corpus.build import CorpusBuild, CorpusConfig

    config = load(None, [f"inputs={json.dumps([str(source)])}", f"output={output}", f"record={record}"], CorpusConfig)
    _run_stage(CorpusBuild(config), kind="corpus", show=_show_corpus)


def train_tokenizer(places: Places, *, vocab_size: int) -> None:
    from data_pipeline.tokenizer.train import TokenizerConfig, TokenizerTrain

    config = TokenizerConfig(corpus=places.corpus, output=places.tokenizer, vocab_size=vocab_size)
    _run_stage(TokenizerTrain(config), kind="tokenizer", show=lambda made: f"{made['vocab_size']:,} tokens")


def build_shards(corpus: Path, output: Path, *, tokenizer: Path, is_made: bool, template: str | None = None) -> None:
    """Documents without a template, or rows of questions and answers with one."""
    from data_pipeline.shards.build import ShardsBuild, ShardsConfig

    config = ShardsConfig(
        corpus=corpus, tokenizer=tokenizer, output=output, template=template, heldout_fraction=_fraction(is_made)
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
