"""What the parts of `dure demo` share: each is timed and told, trained by `dure train`, and kept where it is done."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.stage import read_manifest
from launch.demo_data import Places

RESULT_NAME = "demo.json"
CPU_RANKS = 2


def part(title: str, run: Callable[[], Any]) -> Any:
    """What `run` returns; its title stands above what it prints, its seconds below."""
    print(f"\n== {title}", flush=True)
    started = time.perf_counter()
    result = run()
    print(f"   {time.perf_counter() - started:.1f} s", flush=True)
    return result


def train(config: Path, places: Places, overrides: list[str]) -> int:
    """Start or resume a run of the demo, on a GPU where there is one; the exit code."""
    from launch.verb_train import num_gpus, run

    overrides = [f"run.folder={places.root}", *overrides]
    if num_gpus():
        return run(str(config), [*overrides, "train.precision=bf16"], gpus=1)
    return run(str(config), overrides, cpu_ranks=CPU_RANKS)


def kept(places: Places, name: str, made_from: dict[str, Any], make: Callable[[], Any]) -> Any:
    """The result of a part as demo.json keeps it, made anew where it was made from something else."""
    from data_pipeline import disk

    path = places.root / RESULT_NAME
    results = read_results(places)
    if results.get(name, {}).get("made_from") == made_from:
        print(f"   up to date: {path}: {name}")
        return results[name]["result"]
    result = make()
    disk.write_json(path, {**results, name: {"made_from": made_from, "result": result}})
    return result


def read_results(places: Places) -> dict[str, Any]:
    """demo.json; {} where no part was kept yet."""
    path = places.root / RESULT_NAME
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return results


def checkpoint_of(run: Path) -> str:
    """The checkpoint that stands for a run."""
    from trainer.saved import find_saved

    return str(find_saved(str(run)).checkpoint)


def export_merged(run: Path, output: Path) -> None:
    """The tuned model, merged, in `output`; one of an older checkpoint is replaced."""
    from data_pipeline.stage import MANIFEST_NAME
    from trainer.export import ExportOptions, export, origin_of
    from trainer.saved import find_saved

    saved = find_saved(str(run))
    if (output / MANIFEST_NAME).is_file():
        if read_manifest(output, kind="export")["origin"] == origin_of(saved):
            print(f"   up to date: {output}")
            return
        shutil.rmtree(output)
    manifest = export(saved, output, ExportOptions(merge=True))
    print(f"   {output}: {sum(entry['num_bytes'] for entry in manifest['files']):,} bytes")
