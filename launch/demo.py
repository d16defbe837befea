"""`dure demo`: the whole of what stands so far, on this machine, in minutes; each part is the one that real runs use.

generate (or the user's own files) -> corpus -> tokenizer -> shards -> pretrain -> evaluate beside a trigram model.
Every part that is done already is skipped and says so; a part that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.stage import Manifest, Stage, StageError, read_manifest

CONFIG = Path("configs/demo.yaml")
RUN_NAME = "pretrain"
RESULT_NAME = "demo.json"
# The made-up world has few words: a larger vocabulary is not to be had from it, and fuses words with particles.
MADE_VOCABULARY = 2048
VOCABULARY = 4096
CPU_RANKS = 2
DEFAULT_SEED = 1


@dataclass(frozen=True)
class Places:
    """Where the demo's parts lie."""

    root: Path
    data: Path
    aihub: Path
    corpus: Path
    tokenizer: Path
    shards: Path


def places_of(root: Path) -> Places:
    data = root / "data"
    return Places(
        root=root,
        data=data,
        aihub=data / "aihub",
        corpus=data / "corpus",
        tokenizer=data / "tokenizer",
        shards=data / "shards",
    )


def demo(arguments: argparse.Namespace) -> int:
    """Run every part in turn; returns the exit code of the first one that fails, else 0."""
    started = time.perf_counter()
    if not CONFIG.is_file():
        raise StageError(f"{CONFIG}: not here; run `dure demo` in the folder of the checkout")
    places = places_of(Path(arguments.output or _default_root(arguments.corpus, seed=arguments.seed)))
    is_made = arguments.corpus is None
    source = places.aihub if is_made else Path(arguments.corpus)
    if is_made:
        _part("generate: AIHub-653 zips of made-up Korean", lambda: _generate(places, seed=arguments.seed))
    _part(f"corpus: {source} -> documents", lambda: _build_corpus(source, places))
    vocabulary = MADE_VOCABULARY if is_made else VOCABULARY
    _part(f"tokenizer: byte-level BPE, {vocabulary:,} tokens", lambda: _train_tokenizer(places, vocabulary))
    _part("shards: documents -> token ids in Arrow files", lambda: _build_shards(places, is_made=is_made))
    code: int = _part(f"pretrain: {CONFIG}", lambda: _pretrain(places, ranks=None))
    if code:
        return code
    is_below = _part("evaluate: held-out bits per byte beside a trigram model", lambda: _evaluate(places))
    if is_made and not is_below:
        print("the demo's own text must be learned better than by counting: something is wrong", file=sys.stderr)
        return 1
    _say_what_is_next(places, seconds=time.perf_counter() - started)
    return 0


def _default_root(corpus: str | None, *, seed: int) -> str:
    """A folder for each corpus: what was made of one is never mixed with what is made of another."""
    if corpus is not None:
        return f"runs/demo-{Path(corpus).name}"
    return "runs/demo" if seed == DEFAULT_SEED else f"runs/demo-seed-{seed}"


def _part(title: str, run: Callable[[], Any]) -> Any:
    print(f"\n== {title}", flush=True)
    started = time.perf_counter()
    result = run()
    print(f"   {time.perf_counter() - started:.1f} s", flush=True)
    return result


def _generate(places: Places, *, seed: int) -> None:
    from data_pipeline import disk
    from data_pipeline.synthetic.config import SyntheticConfig
    from data_pipeline.synthetic.zips import make_653

    config = SyntheticConfig(seed=seed)
    marker = places.aihub / "made.json"
    if marker.is_file() and json.loads(marker.read_text()) == config.model_dump():
        print(f"   up to date: {places.aihub}")
        return
    make_653(config, places.aihub)
    disk.write_json(marker, config.model_dump())
    size = sum(path.stat().st_size for path in places.aihub.rglob("*.zip"))
    print(f"   {config.num_documents + config.num_heldout_documents:,} documents, {size:,} bytes of zips")


def _run_stage(stage: Stage, *, kind: str, show: Callable[[Manifest], str]) -> None:
    from launch.tasks import num_cores, run_stage

    if stage.is_done():
        print(f"   up to date: {stage.output}: {show(read_manifest(stage.output, kind=kind))}")
        return
    manifest = run_stage(stage, num_cores(), label=kind)
    print(f"   {stage.output}: {show(manifest)}")


def _build_corpus(source: Path, places: Places) -> None:
    from data_pipeline.corpus.build import CorpusBuild, CorpusConfig

    config = CorpusConfig(inputs=(str(source),), output=places.corpus)  # type: ignore[arg-type]
    _run_stage(
        CorpusBuild(config),
        kind="corpus",
        show=lambda made: f"{made['num_records']:,} documents, {made['num_text_bytes']:,} bytes of text",
    )


def _train_tokenizer(places: Places, vocab_size: int) -> None:
    from data_pipeline.tokenizer.train import TokenizerConfig, TokenizerTrain

    config = TokenizerConfig(corpus=places.corpus, output=places.tokenizer, vocab_size=vocab_size)
    _run_stage(TokenizerTrain(config), kind="tokenizer", show=lambda made: f"{made['vocab_size']:,} tokens")


def _build_shards(places: Places, *, is_made: bool) -> None:
    from data_pipeline.shards.build import ShardsBuild, ShardsConfig

    # Made text brings its own held-out documents (AIHub's Validation); of a user's text, every 20th is held out.
    fraction = 0.0 if is_made else 0.05
    config = ShardsConfig(
        corpus=places.corpus, tokenizer=places.tokenizer, output=places.shards, heldout_fraction=fraction
    )
    _run_stage(ShardsBuild(config), kind="shards", show=_show_shards)


def _show_shards(manifest: Manifest) -> str:
    splits = manifest["splits"].items()
    return ", ".join(f"{name} {counts['num_tokens']:,} tokens" for name, counts in splits)


def _pretrain(places: Places, *, ranks: int | None) -> int:
    from launch.verb_train import num_gpus, run

    overrides = [f"run.folder={places.root}", f"data.shards={places.shards}"]
    if num_gpus():
        return run(str(CONFIG), [*overrides, "train.precision=bf16"], gpus=ranks or 1)
    return run(str(CONFIG), overrides, cpu_ranks=ranks or CPU_RANKS)


def _evaluate(places: Places) -> bool:
    """The model's held-out figures beside those of a trigram model that was counted on the same tokens."""
    from data_pipeline import disk
    from data_pipeline.ngram import trigram_baseline
    from launch.verb_evaluate import evaluate_saved
    from trainer.saved import find_saved

    run, kept = places.root / RUN_NAME, places.root / RESULT_NAME
    made_from = {
        "checkpoint": str(find_saved(str(run)).checkpoint),
        "shards": read_manifest(places.shards, kind="shards")["manifest_sha256"],
    }
    result = json.loads(kept.read_text()) if kept.is_file() else {}
    if result.get("made_from") == made_from:
        print(f"   up to date: {kept}")
    else:
        model, trigram = evaluate_saved(str(run)), asdict(trigram_baseline(places.shards))
        result = {"made_from": made_from, "model": model, "trigram": trigram}
        disk.write_json(kept, result)
    return _show_result(result["model"], result["trigram"])


def _show_result(model: dict[str, Any], trigram: dict[str, Any]) -> bool:
    """Print both; whether the model is below."""
    print(f"   {'':<28}{'bits per byte':>14}{'nats a token':>14}")
    for name, figures in (("Llama after pretraining", model), ("interpolated trigram", trigram)):
        print(f"   {name:<28}{figures['bits_per_byte']:>14.4f}{figures['loss']:>14.4f}")
    is_below = bool(model["bits_per_byte"] < trigram["bits_per_byte"])
    verdict = "below" if is_below else "NOT below"
    print(f"   the model is {verdict} the trigram model, on {model['num_documents']:,} held-out documents")
    return is_below


def _say_what_is_next(places: Places, *, seconds: float) -> None:
    run = places.root / RUN_NAME
    print(
        f"\nDone in {seconds:.0f} s (완료). What is here now:\n"
        f"  {places.data}  zips, corpus, tokenizer and shards, each with its manifest.json\n"
        f"  {run}  config, metrics.jsonl, TensorBoard, checkpoints\n"
        f"Next (다음):\n"
        f"  dure shards inspect {places.shards} --tokenizer {places.tokenizer}\n"
        f"  tensorboard --logdir {run}/tensorboard\n"
        f"  dure train configs/debug.yaml data.shards={places.shards}\n"
        f"  dure demo --corpus YOUR_FOLDER"
    )
