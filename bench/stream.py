"""Tokens a second of the stream, beside a raw memory copy and beside memmap + permutation, in one run.

    .venv/bin/python bench/stream.py [--tokens 50_000_000] [--rounds 5]

Log-normal documents are written by the writer of `shards build`. Each contender makes int64 batches of 8 rows of 2,048
in one process; the rounds are interleaved, so that a busy machine slows all of them. The page cache is warm. A batch
of the stream is inputs, labels and positions (24 bytes a token); one of the two limits is inputs alone (8 bytes).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from data_pipeline.shards.format import FORMAT_VERSION, KIND, token_dtype  # noqa: E402
from data_pipeline.shards.writer import Documents, ShardWriter  # noqa: E402
from data_pipeline.stage import write_manifest  # noqa: E402
from data_pipeline.stream.batch import RowBuffers  # noqa: E402
from data_pipeline.stream.rows import Rows, open_rows  # noqa: E402
from data_pipeline.stream.stream import Stream  # noqa: E402

SEQ_LEN = 2048
MICRO_BATCH = 8
VOCAB_SIZE = 32_000
MEAN_TOKENS = 700  # a document of the corpus that notes/peers.md measures

RESUME = """
import sys, time
sys.path.insert(0, sys.argv[1])
start = time.perf_counter()
from pathlib import Path
from data_pipeline.stream.rows import open_rows
from data_pipeline.stream.stream import Stream
imported = time.perf_counter()
rows = open_rows(Path(sys.argv[2]), split="train", seq_len=int(sys.argv[4]), packing=sys.argv[3], build=False)
stream = Stream(rows, seed=1, global_batch_sequences=8)
stream.load_state_dict(stream.state_dict() | {"next_row": int(float(sys.argv[5]) * rows.num_rows)})
stream.batches(dp_rank=0, dp_world_size=1, micro_batch_sequences=8)
print(imported - start, time.perf_counter() - imported)
"""


def write_shards(folder: Path, num_tokens: int) -> np.ndarray:
    """Shards of log-normal documents, a hundredth held out; returns train's flat ids for those without documents."""
    rng = np.random.default_rng(0)
    ids, files, counts = _write_split(folder, "train", num_tokens, rng)
    _, heldout_files, heldout_counts = _write_split(folder, "heldout", max(num_tokens // 100, 100_000), rng)
    tokenizer = {"vocab_size": VOCAB_SIZE, "eos_id": 0, "pad_id": 1, "unk_id": None}
    manifest = {"tokenizer_fingerprint": "0" * 64, "tokenizer": tokenizer, "dtype": token_dtype(VOCAB_SIZE).name}
    manifest |= {"files": [*files, *heldout_files], "splits": {"train": counts, "heldout": heldout_counts}}
    write_manifest(folder, {"kind": KIND, "format_version": FORMAT_VERSION, **manifest})
    return ids


def _write_split(folder: Path, split: str, num_tokens: int, rng: Any) -> tuple[np.ndarray, list[Any], dict[str, int]]:
    dtype = token_dtype(VOCAB_SIZE)
    lengths = rng.lognormal(np.log(MEAN_TOKENS) - 0.5, 1.0, num_tokens // MEAN_TOKENS).astype(np.int64) + 2
    ids = rng.integers(38, VOCAB_SIZE, int(lengths.sum()), dtype=dtype)
    ids[np.cumsum(lengths) - 1] = 0
    (folder / split).mkdir(parents=True)
    writer = ShardWriter(folder, f"{split}/part-00000", split=split, dtype=dtype, max_shard_bytes=64 << 20)
    ends = np.cumsum(lengths)
    for first in range(0, len(lengths), 10_000):
        part = lengths[first : first + 10_000]
        start = int(ends[first] - lengths[first])
        names = [f"{number}" for number in range(first, first + len(part))]
        piece = ids[start : start + int(part.sum())]
        writer.add(Documents(piece, part, names, part * 3, ["bench"] * len(part)))
    writer.close()
    return ids, writer.files, {"num_documents": len(lengths), "num_tokens": len(ids), "num_bytes": 3 * len(ids)}


def stream_contender(rows: Rows) -> Callable[[int], None]:
    stream = Stream(rows, seed=1, global_batch_sequences=MICRO_BATCH)

    def run(num_batches: int) -> None:
        for _ in range(num_batches):
            stream.batches(dp_rank=0, dp_world_size=1, micro_batch_sequences=MICRO_BATCH)
            stream.advance()

    return run


def copy_contender(ids: np.ndarray, *, num_arrays: int) -> Callable[[int], None]:
    """Shuffled rows copied into reused int64 buffers: no stream can do better with these dtypes."""
    table = ids[: len(ids) // SEQ_LEN * SEQ_LEN].reshape(-1, SEQ_LEN)
    order = np.random.default_rng(1).permutation(len(table))
    buffers = RowBuffers.empty(MICRO_BATCH, SEQ_LEN)
    outs = (buffers.input_ids, buffers.labels, buffers.position_ids)[:num_arrays]
    state = {"at": 0}

    def run(num_batches: int) -> None:
        for _ in range(num_batches):
            for place in range(MICRO_BATCH):
                source = table[order[(state["at"] + place) % len(order)]]
                for out in outs:
                    np.copyto(out[place], source)
            state["at"] += MICRO_BATCH

    return run


def memmap_contender(path: Path, ids: np.ndarray) -> Callable[[int], None]:
    """A flat memory-mapped file, a NumPy permutation of rows, a new array a batch; no documents, no positions."""
    ids.tofile(path)
    flat = np.memmap(path, dtype=ids.dtype, mode="r")
    num_rows = (len(flat) - 1) // SEQ_LEN
    order = np.random.default_rng(1).permutation(num_rows)
    state = {"at": 0}

    def run(num_batches: int) -> None:
        for _ in range(num_batches):
            numbers = [order[(state["at"] + place) % num_rows] for place in range(MICRO_BATCH)]
            rows = np.stack([flat[n * SEQ_LEN : (n + 1) * SEQ_LEN + 1] for n in numbers]).astype(np.int64)
            _inputs, _labels = rows[:, :-1], rows[:, 1:]
            state["at"] += MICRO_BATCH

    return run


def measure(contenders: dict[str, Callable[[int], None]], *, num_batches: int, rounds: int) -> dict[str, list[float]]:
    """M tokens/s of each contender in each round."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run(num_batches)  # compiles, maps, and fills the page tables
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run(num_batches)
            found[name].append(num_batches * MICRO_BATCH * SEQ_LEN / (time.perf_counter() - start) / 1e6)
    return found


def resume_seconds(folder: Path, packing: str, fraction: float) -> tuple[float, float]:
    """(imports, opening to first batch) of a new process that resumes at a fraction of the epoch."""
    arguments = [str(REPO), str(folder), packing, str(SEQ_LEN), str(fraction)]
    output = subprocess.run(
        [sys.executable, "-c", RESUME, *arguments], check=True, capture_output=True, text=True
    ).stdout.split()
    return float(output[0]), float(output[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=50_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        report = run_all(Path(name), num_tokens=arguments.tokens, rounds=arguments.rounds)
    print_report(report)
    out = REPO / "bench" / "out"
    out.mkdir(parents=True, exist_ok=True)
    (out / "stream.json").write_text(json.dumps(report, indent=1) + "\n")


def run_all(folder: Path, *, num_tokens: int, rounds: int) -> dict[str, Any]:
    shards = folder / "shards"
    ids = write_shards(shards, num_tokens)
    rows, build_seconds = {}, {}
    for packing in ("concatenated", "best_fit"):
        start = time.perf_counter()
        rows[packing] = open_rows(shards, split="train", seq_len=SEQ_LEN, packing=packing)
        build_seconds[packing] = time.perf_counter() - start
    contenders = {
        "limit: inputs alone": copy_contender(ids, num_arrays=1),
        "limit: inputs, labels, positions": copy_contender(ids, num_arrays=3),
        "stream, concatenated": stream_contender(rows["concatenated"]),
        "stream, best_fit": stream_contender(rows["best_fit"]),
        "memmap + numpy permutation": memmap_contender(folder / "flat.bin", ids),
    }
    num_batches = max(rows["concatenated"].num_rows // MICRO_BATCH, 1)
    rates = measure(contenders, num_batches=num_batches, rounds=rounds)
    resume = {
        f"{packing} at {fraction:.0%}": resume_seconds(shards, packing, fraction)
        for packing in rows
        for fraction in (0.0, 0.5)
    }
    return {
        "num_tokens": len(ids),
        "seq_len": SEQ_LEN,
        "micro_batch_sequences": MICRO_BATCH,
        "machine": platform.platform(),
        "million_tokens_per_second": rates,
        "table_build_seconds": build_seconds,
        "padding_fraction": {
            packing: found.counts.num_padding / (found.num_rows * SEQ_LEN) for packing, found in rows.items()
        },
        "documents_cut_fraction": {
            packing: found.counts.num_documents_cut / found.counts.num_documents for packing, found in rows.items()
        },
        "resume_seconds": resume,
    }


def print_report(report: dict[str, Any]) -> None:
    print(f"{report['num_tokens']:,} tokens, batches [{MICRO_BATCH}, {SEQ_LEN}] int64, one process")
    print(f"{'M tokens/s':36} {'median':>8} {'worst':>8} {'best':>8}")
    for name, rates in report["million_tokens_per_second"].items():
        print(f"{name:36} {np.median(rates):8.0f} {min(rates):8.0f} {max(rates):8.0f}")
    for packing, seconds in report["table_build_seconds"].items():
        padded, cut = report["padding_fraction"][packing], report["documents_cut_fraction"][packing]
        print(
            f"{packing}: row table {seconds:.2f} s (compiling included), padding {padded:.3%}, documents cut {cut:.2%}"
        )
    for name, (imports, opening) in report["resume_seconds"].items():
        print(f"resume, {name:22} imports {imports:.2f} s, then first batch after {opening:.3f} s")


if __name__ == "__main__":
    main()
