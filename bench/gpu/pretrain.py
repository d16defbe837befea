"""Pretraining on one GPU: tokens a second, MFU and peak memory of a config, beside transformers' Trainer.

python bench/gpu/pretrain.py [--config configs/pretrain/ko-125m.yaml] [--steps 30] [key.sub=value ...]

Each contender is a process of its own, so that none finds another's memory. Random ids stand for text: nothing is
learned, and nothing of a step's cost depends on what the ids say.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

OUT = Path("bench/out/gpu-pretrain.json")
KERNELS = ("flash_attention_2", "sdpa")


def measure(contender: str, config_path: str, overrides: list[str], steps: int) -> dict[str, Any]:
    """One contender's figures, in this process."""
    import torch

    from bench.peers.hf_trainer import trainer_seconds
    from bench.peers.ours import our_seconds
    from data_pipeline.config import load
    from trainer.config import TrainConfig
    from trainer.metrics import peak_tflops
    from trainer.model import choose_attention, flops_per_token, make_model, read_vocabulary

    config = load(config_path, overrides, TrainConfig)
    device = torch.device("cuda")
    chosen = choose_attention(config.model, device=device, precision=config.train.precision)
    if contender == "dure":
        seconds = our_seconds(config, steps)
    else:
        seconds = trainer_seconds(config, steps, config.run.folder, kernel=chosen.kernel)
    tokens = steps * config.train.global_batch_sequences * config.data.seq_len
    vocabulary = read_vocabulary(Path(config.data.shards))
    with torch.device("meta"):
        model = make_model(config.model, vocabulary=vocabulary, kernel="sdpa", dtype=torch.float32, seed=1)
    flops = flops_per_token(model, seq_len=config.data.seq_len)
    peak = peak_tflops(torch.cuda.get_device_name(device))
    return {
        "contender": contender,
        "kernel": chosen.kernel,
        "tokens_per_second": tokens / seconds,
        "mfu": tokens / seconds * flops / (peak * 1e12) if peak else None,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30,
        "device": torch.cuda.get_device_name(device),
    }


def in_process(contender: str, kernel: str, shards: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a process of its own; {"error": ...} where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            *arguments.overrides,
            f"model.attention={kernel}",
            f"data.shards={shards}",
            f"run.folder={folder}",
            f"train.max_steps={arguments.steps + 1}",
            "engine.kind=none",
            "logging.tensorboard=false",
            "logging.progress_bar=false",
        ]
        command = [sys.executable, __file__, "--measure", contender, "--config", arguments.config]
        command += ["--steps", str(arguments.steps), *overrides]
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    if done.returncode:
        return {"contender": contender, "kernel": kernel, "error": done.stderr.strip().splitlines()[-1:]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/pretrain/ko-125m.yaml")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--measure", choices=("dure", "Trainer"))
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.config, arguments.overrides, arguments.steps)))
        return
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device: nothing is measured (skipped)")
        return
    from bench.stream import write_shards

    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        write_shards(shards, 40_000_000)
        results = [in_process(name, kernel, shards, arguments) for kernel in KERNELS for name in ("dure", "Trainer")]
    print(f"{'contender':<12}{'kernel':<20}{'tokens/s':>12}{'MFU':>8}{'GiB':>8}")
    for result in results:
        if "error" in result:
            print(f"{result['contender']:<12}{result['kernel']:<20}{result['error']}")
            continue
        mfu = f"{result['mfu']:.3f}" if result["mfu"] else "-"
        rate, memory = result["tokens_per_second"], result["memory_gib"]
        print(f"{result['contender']:<12}{result['kernel']:<20}{rate:>12,.0f}{mfu:>8}{memory:>8.1f}")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"config": arguments.config, "steps": arguments.steps, "results": results}, indent=1))


if __name__ == "__main__":
    main()
