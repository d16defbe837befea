"""What `dure doctor` tries in processes of their own, where a crash or a hang ends only the trial.

python -m launch.doctor_probe imports NAME…      one JSON line a package, as it is done
python -m launch.doctor_probe torch              what torch says of CUDA
python -m launch.doctor_probe kernels            bitsandbytes and flash-attn on a few numbers
python -m launch.doctor_probe step DEVICE        a short training of a tiny model on "cpu" or "cuda:0"
python -m launch.doctor_probe exchange DEVICE    an all-reduce among the ranks that the environment names
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from typing import Any

# Modules by the names of their packages, where these differ.
MODULES = {"flash-attn": "flash_attn", "liger-kernel": "liger_kernel"}
STEPS, ROWS, LENGTH, VOCABULARY = 4, 2, 64, 128
EXCHANGE_MIB = 16


def main(argv: list[str]) -> int:
    """Do one trial and print what came out as JSON lines."""
    kind, words = argv[0], argv[1:]
    if kind == "imports":
        for name in words:
            _say({"name": name, "begun": True})
            _say(import_package(name))
    elif kind == "torch":
        _say(torch_says())
    elif kind == "kernels":
        _say(try_kernels())
    elif kind == "step":
        for precision in ("fp32", "bf16"):
            _say(train_shortly(words[0], precision=precision))
    else:
        _say(exchange(words[0]))
    return 0


def _say(result: dict[str, Any]) -> None:
    print(json.dumps(result), flush=True)


def import_package(name: str) -> dict[str, Any]:
    """Its version, how long the import took, and the last line of what went wrong."""
    started, error = time.perf_counter(), ""
    try:
        importlib.import_module(MODULES.get(name, name))
    except BaseException as fault:  # a package may raise anything, SystemExit too
        error = _one_line(fault)
    version = importlib.metadata.version(name)
    return {"name": name, "version": version, "seconds": round(time.perf_counter() - started, 2), "error": error}


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def torch_says() -> dict[str, Any]:
    """Versions, and the CUDA devices that torch finds."""
    import warnings

    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sees = torch.cuda.device_count() if torch.cuda.is_available() else 0
    told = next((str(one.message).splitlines()[0] for one in caught if "CUDA" in str(one.message)), "")
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.version.cuda else ""
    return {
        "torch_version": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "sees": sees,
        "error": told,
        "capabilities": [torch.cuda.get_device_capability(index) for index in range(sees)],
        "arch_list": torch.cuda.get_arch_list() if sees else [],
        "nccl": nccl,
    }


def try_kernels() -> dict[str, str]:
    """Per package: "" where it works, else one line; absent where it was not tried."""
    import torch

    has_gpu = torch.cuda.is_available()
    results: dict[str, str] = {}
    try:
        _quantize("cuda" if has_gpu else "cpu")
        results["bitsandbytes"] = ""
    except Exception as error:
        results["bitsandbytes"] = _one_line(error)
    if importlib.util.find_spec("flash_attn") is not None:
        try:
            _flash(has_gpu=has_gpu)
            results["flash_attn"] = ""
        except Exception as error:
            results["flash_attn"] = _one_line(error)
    return results


def _quantize(device: str) -> None:
    """4-bit weights come back near to what they were, and an 8-bit optimizer takes a step."""
    import bitsandbytes as bnb
    import torch
    from bitsandbytes import functional

    weights = torch.randn(64, 64, device=device)
    packed, state = functional.quantize_4bit(weights, quant_type="nf4")
    if (worst := (functional.dequantize_4bit(packed, state) - weights).abs().max().item()) > 1.0:
        raise RuntimeError(f"4-bit weights come back wrong, by up to {worst:.2f}")
    parameter = torch.nn.Parameter(weights.clone())
    parameter.grad = torch.ones_like(parameter)
    bnb.optim.AdamW8bit([parameter], lr=0.1, min_8bit_size=64).step()
    if torch.equal(parameter.detach(), weights):
        raise RuntimeError("the 8-bit optimizer moved nothing")


def _flash(*, has_gpu: bool) -> None:
    import torch
    from flash_attn import flash_attn_func

    if has_gpu and torch.cuda.get_device_capability() >= (8, 0):
        inputs = [torch.randn(1, 16, 2, 32, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
        if not bool(torch.isfinite(flash_attn_func(*inputs, causal=True)).all()):
            raise RuntimeError("its result is not finite")


def train_shortly(device_name: str, *, precision: str) -> dict[str, Any]:
    """A tiny Llama learns one batch by the engine, objective and update of a real run; its documents stay apart."""
    import torch

    from data_pipeline.config import validate
    from trainer.config import TrainConfig
    from trainer.engine import PlainEngine
    from trainer.initial_weights import new_model
    from trainer.model import Vocabulary, check_documents_apart, choose_attention, describe
    from trainer.objectives.causal_lm import CausalLM
    from trainer.ranks import Ranks
    from trainer.resilience import StepPolicy
    from trainer.step import Updater

    tree = {
        "run": {"name": "doctor"},
        "model": {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "max_positions": LENGTH},
        "data": {"shards": "none", "seq_len": LENGTH},
        "train": {
            "max_steps": STEPS,
            "global_batch_sequences": ROWS,
            "micro_batch_sequences": ROWS,
            "precision": precision,
            "schedule": {"warmup_steps": 0},
        },
    }
    config, device = validate(tree, TrainConfig, where="doctor"), torch.device(device_name)
    kernel = choose_attention(config.model, device=device, precision=precision).kernel
    vocabulary = Vocabulary(size=VOCABULARY, eos_id=0, pad_id=1)
    ranks = Ranks(rank=0, world_size=1, local_rank=0, device=device)
    model = new_model(describe(config.model, vocabulary=vocabulary), kernel=kernel, seed=1)
    engine, objective = PlainEngine(config, model=model, ranks=ranks), CausalLM(kernel=kernel, device=device)
    updater = Updater(engine, objective, StepPolicy(config.policy), ranks, 1, lambda: False)
    batch, losses, started = _batch(), [], time.perf_counter()
    for number in range(STEPS):
        losses.append(updater.step([batch], number=number, lr=1e-2).loss)
    seconds = (time.perf_counter() - started) / STEPS
    error = "" if losses[-1] < losses[0] else f"the loss does not fall: {losses[0]:.4f} → {losses[-1]:.4f}"
    if not error:
        try:
            check_documents_apart(engine.module, kernel=kernel, device=device, vocab_size=VOCABULARY)
        except RuntimeError as fault:
            error = _one_line(fault)
    return {"precision": precision, "kernel": kernel, "losses": losses, "seconds": seconds, "error": error}


def _batch() -> Any:
    import numpy as np

    from data_pipeline.stream.batch import Batch

    ids = np.random.default_rng(0).integers(2, VOCABULARY, (ROWS, LENGTH + 1))
    return Batch(
        input_ids=ids[:, :-1].copy(),
        labels=ids[:, 1:].copy(),
        position_ids=np.tile(np.arange(LENGTH), (ROWS, 1)),
        row_ids=np.arange(ROWS),
        num_targets=ROWS * LENGTH,
    )


def exchange(device_name: str) -> dict[str, Any]:
    """An all-reduce of 16 MiB among all ranks: whether its sum is right, and its bandwidth on the bus."""
    import torch
    import torch.distributed as dist

    from trainer.ranks import start_ranks, stop_ranks

    ranks = start_ranks(use_gpu=device_name == "cuda")
    values = torch.ones(EXCHANGE_MIB << 18, device=ranks.device)
    dist.all_reduce(values)
    is_right = bool((values == ranks.world_size).all())
    started = time.perf_counter()
    dist.all_reduce(values)
    if device_name == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    # Each rank sends and receives 2 (n - 1) / n of the buffer: https://github.com/NVIDIA/nccl-tests, PERFORMANCE.md.
    moved = EXCHANGE_MIB / 1024 * 2 * (ranks.world_size - 1) / ranks.world_size
    stop_ranks()
    return {"ranks": ranks.world_size, "is_right": is_right, "gib_per_second": moved / seconds}


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
