"""`dure demo`: the whole of what stands so far, on this machine, in minutes; each part is the one that real runs use.

generate (or the user's own files) -> corpus -> tokenizer -> shards -> pretrain -> evaluate beside a trigram model.
Every part that is done already is skipped and says so; a part that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = Path("configs/demo.yaml")
VOCABULARY = 4096


@dataclass(frozen=True)
class Places:
    """Where the demo's parts lie."""

    root: Path
    aihub: Path
    corpus: Path
    tokenizer: Path
    shards: Path


def places_of(root: Path) -> Places:
    data = root / "data"
    return Places(
        root=root,
        aihub=data / "aihub",
        corpus=data / "corpus",
        tokenizer=data / "tokenizer",
        shards=data / "shards",
    )


def demo(arguments: argparse.Namespace) -> int:
    """Run every part in turn; returns the exit code of the first one that fails, else 0."""
    from data_pipeline.stage import StageError

    started = time.perf_counter()
    if not CONFIG.is_file():
        raise StageError(f"{CONFIG}: not here; run `dure demo` in the folder of the checkout")
    places = places_of(Path(arguments.output or _default_root(arguments.corpus)))
    if arguments.corpus is None:
        _part("1/6 generate: AIHub-653 zips of made-up Korean", lambda: _generate(places, seed=arguments.seed))
    source = Path(arguments.corpus) if arguments.corpus else places.aihub
    _part(f"2/6 corpus: {source} -> documents", lambda: _build_corpus(source, places))
    _part(f"3/6 tokenizer: byte-level BPE, {VOCABULARY:,} tokens", lambda: _train_tokenizer(places))
    _part("4/6 shards: documents -> token ids in Arrow files", lambda: _build_shards(places, made=not arguments.corpus))
    code = _part("5/6 pretrain: Llama, ZeRO-2", lambda: _pretrain(places, arguments))
    if code:
        return code
    _part("6/6 evaluate: held-out bits per byte beside a trigram model", lambda: _evaluate(places))
    _say_what_is_next(places, seconds=time.perf_counter() - started)
    return 0


def _default_root(corpus: str | None) -> str:
    return "runs/demo" if corpus is None else f"runs/demo-{Path(corpus).name}"


def _part(title: str, run: Callable[[], Any]) -> Any:
    print(f"\n== {title}", flush=True)
    started = time.perf_counter()
    result = run()
    print(f"   {time.perf_counter() - started:.1f} s", flush=True)
    return result


def _generate(places: Places, *, seed: int) -> None:
    from data_pipeline.synthetic.config import SyntheticConfig
    from data_pipeline.synthetic.zips import make_653

    config = SyntheticConfig(seed=seed)
    marker = places.aihub / "made.json"
    if marker.is_file() and json.loads(marker.read_text()) == config.model_dump():
        print(f"   up to date: {places.aihub}")
        return
    from data_pipeline import disk

    make_653(config, places.aihub)
    disk.write_json(marker, config.model_dump())
    size = sum(path.stat().st_size for path in places.aihub.rglob("*.zip"))
    print(f"   {config.num_documents + config.num_heldout_documents:,} documents, {size:,} bytes of zips")


def _run_stage(stage: Any, *, label: str, show: Callable[[dict[str, Any]], str]) -> None:
    from data_pipeline.stage import MANIFEST_NAME
    from launch.tasks import run_stage

    if stage.is_done():
        manifest = json.loads((stage.output / MANIFEST_NAME).read_text())
        print(f"   up to date: {stage.output}: {show(manifest)}")
        return
    manifest = run_stage(stage, num_workers=os.cpu_count() or 1, label=label)
    print(f"   {stage.output}: {show(manifest)}")
