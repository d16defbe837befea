"""Does an extension pay? A small model of one field's reviews goes on to another field's manuals, with and without.

python bench/long/extend.py [--data ../shared/data] [--output bench/out/extend] [--steps N] [--width N]

A byte-level tokenizer and a model of nsmc's reviews; the tokenizer extended by 500 tokens chosen on docs_ko; then the
same number of bytes of docs_ko for each: without the extension, with rows that begin as the mean of their pieces, with
random ones, and with LoRA. Every part is a `dure` command, printed as it is started; a second call goes on where the
first one ended. Ends with a table and bench/out/extend.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
OUT = REPO / "bench/out/extend.json"
COUNT = 500
SEQ_LEN, BATCH = 256, 16
MODEL = [f"data.seq_len={SEQ_LEN}", "model.num_layers=3", "model.num_heads=4", "model.max_positions=256"]
STEP = [
    "train.precision=fp32",
    "data.packing=concatenated",  # no padding: tokens and bytes are what they look like
    f"train.global_batch_sequences={BATCH}",
    f"train.micro_batch_sequences={BATCH}",
    "evaluation.max_documents=200",
    "evaluation.at_start=true",
    "logging.progress_bar=false",
    "logging.tensorboard=false",
]
ADAPTER = "adapter={rank: 16, alpha: 32}"
# Name, the tokenizer, and what the config adds.
RUNS: list[tuple[str, str, list[str]]] = [
    ("without", "base", []),
    ("subtokens", "extended", ["new_rows={init: mean_of_subtokens}"]),
    ("random", "extended", ["new_rows={init: random}"]),
    ("lora", "extended", ["new_rows={init: mean_of_subtokens}", ADAPTER]),
    ("lora-without", "base", [ADAPTER]),
]


def dure(*words: str) -> None:
    print("\n$ dure " + " ".join(words), flush=True)
    subprocess.run([sys.executable, "-m", "launch.cli", *words], cwd=REPO, check=True)


def prepare(data: Path, output: Path, *, vocab_size: int) -> None:
    """Two corpora, the tokenizer of one, its extension on the other, and shards."""
    output.mkdir(parents=True, exist_ok=True)
    nsmc = output / "nsmc.yaml"
    nsmc.write_text(
        f"inputs:\n  - {{path: {data / 'nsmc/ratings_train_rebuilt.txt'}, format: tsv, text_column: document}}\n"
        f"output: {output / 'nsmc'}\n",
        encoding="utf-8",
    )
    dure("corpus", "build", str(nsmc))
    dure("corpus", "build", "--input", str(data / "docs_ko"), "--output", f"{output / 'docs'}")
    base, extended = output / "base-tokenizer", output / "extended-tokenizer"
    dure("tokenizer", "train", "--corpus", f"{output / 'nsmc'}", "--output", f"{base}", f"vocab_size={vocab_size}")
    choose = ["--corpus", f"{output / 'docs'}", "--count", str(COUNT)]
    dure("tokenizer", "extend", f"{base}", *choose, "--output", f"{extended}")
    for corpus, tokenizer, name in (
        ("nsmc", base, "nsmc-shards"),
        ("docs", base, "base-shards"),
        ("docs", extended, "extended-shards"),
    ):
        paths = ["--corpus", f"{output / corpus}", "--tokenizer", f"{tokenizer}", "--output", f"{output / name}"]
        dure("shards", "build", *paths, f"heldout_fraction={0.02 if corpus == 'nsmc' else 0.1}")


def manifest(folder: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return tree


def bytes_per_token(shards: Path) -> float:
    counts = manifest(shards)["splits"]["train"]
    return float(counts["num_bytes"] / counts["num_tokens"])


def train(output: Path, name: str, *, shards: str, steps: int, more: list[str]) -> float:
    """Seconds of the call."""
    started = time.perf_counter()
    named = [f"run.folder={output}", f"run.name={name}", f"data.shards={output / shards}"]
    length = [f"train.max_steps={steps}", f"evaluation.every_steps={steps}", f"checkpoint.every_steps={steps}"]
    dure("train", "configs/base/pretrain.yaml", *named, *length, *STEP, *more, "--cpu-ranks", "1")
    return time.perf_counter() - started


def weights_of(run: Path, steps: int) -> dict[str, int]:
    """Bytes of the checkpoint's weights, and of the new rows among them."""
    import safetensors.torch

    tensors = safetensors.torch.load_file(run / f"checkpoints/step-{steps:08}/model.safetensors")
    rows = [tensor.numel() * tensor.element_size() for name, tensor in tensors.items() if name.endswith(".rows")]
    return {
        "checkpoint_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        "row_bytes": sum(rows),
    }


def figures(output: Path, name: str, shards: str, *, steps: int, seconds: float) -> dict[str, Any]:
    lines = (output / name / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    tokens = steps * BATCH * SEQ_LEN
    return {
        "steps": steps,
        "tokens": tokens,
        "bytes": round(tokens * bytes_per_token(output / shards)),
        "bits_per_byte_before": first["bits_per_byte"],
        "bits_per_byte": last["bits_per_byte"],
        "seconds": seconds,
        **weights_of(output / name, steps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=REPO.parent / "shared/data")
    parser.add_argument("--output", type=Path, default=REPO / "bench/out/extend")
    parser.add_argument("--pretrain-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=300, help="of the run without extension; the others' follow")
    parser.add_argument("--vocab-size", type=int, default=16_000)
    parser.add_argument("--width", type=int, default=128, help="of the model; smaller for a look at whether it runs")
    arguments = parser.parse_args()
    data, output = arguments.data.resolve(), arguments.output.resolve()
    if not (data / "docs_ko").is_dir() or not (data / "nsmc/ratings_train_rebuilt.txt").is_file():
        print(f"{data}: no docs_ko/ and nsmc/ratings_train_rebuilt.txt; give --data (skipped)")
        return
    prepare(data, output, vocab_size=arguments.vocab_size)
    rate = ["train.schedule.peak_lr=2e-3", "train.schedule.warmup_steps=20"]
    first = arguments.pretrain_steps
    train(
        output, "base", shards="nsmc-shards", steps=first, more=[*MODEL, f"model.hidden_size={arguments.width}", *rate]
    )
    ratio = bytes_per_token(output / "base-shards") / bytes_per_token(output / "extended-shards")
    result: dict[str, Any] = {}
    for name, tokenizer, more in RUNS:
        steps = arguments.steps if tokenizer == "base" else round(arguments.steps * ratio)
        continued = [f"data.seq_len={SEQ_LEN}", f"model.from={output / 'base'}", "gate.max_first_loss=20", *rate, *more]
        seconds = train(output, name, shards=f"{tokenizer}-shards", steps=steps, more=continued)
        result[name] = figures(output, name, f"{tokenizer}-shards", steps=steps, seconds=seconds)
    extension = json.loads((output / "extended-tokenizer/extension.json").read_text(encoding="utf-8"))
    result["sample"] = extension["sample"]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    show(result)


def show(result: dict[str, Any]) -> None:
    before, after = (result["sample"][f"num_tokens_{when}"] for when in ("before", "after"))
    print(f"\ndocs_ko: {before:,} tokens before, {after:,} after: {1 - after / before:.2%} fewer")
    heads = ("steps", "tokens", "bytes", "bpb before", "bpb after", "row bytes", "saved bytes")
    print(f"  {'run':<14} " + " ".join(f"{head:>12}" for head in heads))
    for name, told in result.items():
        if name == "sample":
            continue
        counts = [f"{told[key]:>12,}" for key in ("steps", "tokens", "bytes")]
        rates = [f"{told[key]:>12.4f}" for key in ("bits_per_byte_before", "bits_per_byte")]
        sizes = [f"{told[key]:>12,}" for key in ("row_bytes", "checkpoint_bytes")]
        print(f"  {name:<14} " + " ".join([*counts, *rates, *sizes]))
    pays = result["subtokens"]["bits_per_byte"] <= result["without"]["bits_per_byte"]
    fewer = result["subtokens"]["tokens"] < result["without"]["tokens"]
    print(f"bits per byte with sub-token rows <= without: {pays}; at fewer tokens: {fewer}")


if __name__ == "__main__":
    main()
