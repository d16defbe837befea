"""One training of bench/gpu/qlora.py: its config, and what a contender's process finds out about it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.gpu.qlora_inputs import Inputs

CONFIG = "configs/sft/polyglot-ko-12.8b-qlora.yaml"
TARGETS = {"query_key_value": '["query_key_value"]', "all-linear": "all-linear"}

Contender = Literal["ours", "peer", "peer+liger"]


@dataclass(frozen=True)
class Case:
    """One training: what both contenders are told. JSON of it is the child's whole input."""

    size: str
    cache: str
    seq_len: int
    steps: int
    warmup_steps: int
    global_batch_sequences: int
    micro_batch_sequences: int
    rank: int
    targets: str
    attention: str
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.targets}, attention {self.attention}, {self.micro_batch_sequences} x {self.seq_len:,}"


def config_of(case: Case, folder: str) -> Any:
    """The run's config. On a CPU float32, which is three times faster there."""
    import torch

    from data_pipeline.config import load
    from trainer.config import TrainConfig

    inputs = Inputs(Path(case.cache), case.size)
    on_gpu = torch.cuda.is_available()
    overrides = [
        f"run.folder={folder}",
        "run.name=bench",
        "run.expected_ranks=1",
        f"model.from={inputs.base}",
        f"model.attention={case.attention}",
        f"model.quantization.compute_dtype={'bf16' if on_gpu else 'fp32'}",
        f"adapter.rank={case.rank}",
        f"adapter.alpha={2 * case.rank}",
        f"adapter.targets={TARGETS[case.targets]}",
        "adapter.dropout=0",
        f"data.shards={inputs.shards}",
        f"data.seq_len={case.seq_len}",
        f"train.precision={'bf16' if on_gpu else 'fp32'}",
        f"train.max_steps={case.warmup_steps + case.steps}",
        f"train.global_batch_sequences={case.global_batch_sequences}",
        f"train.micro_batch_sequences={case.micro_batch_sequences}",
        "train.schedule.warmup_steps=2",
        "checkpoint.every_steps=1000000",
        "evaluation.every_steps=1000000",
        "evaluation.max_documents=1",
        "evaluation.answers.num_rows=0",
        "gate.max_first_loss=1000",  # random weights; the gate's 1.5 ln V still holds
        "logging.every_steps=1",
        "logging.tensorboard=false",
        "logging.progress_bar=false",
        *case.overrides,
    ]
    return load(CONFIG, overrides, TrainConfig)


def measure(contender: Contender, case: Case) -> dict[str, Any]:
    """One contender's figures, in this process; {"left_out": why} where there is nothing to measure."""
    import psutil
    import torch

    from bench.peers.sft import Clock, liger_obstacle, steps_of, tokens_of, train_ours, train_peer
    from trainer.model import choose_attention

    with tempfile.TemporaryDirectory() as folder:
        config = config_of(case, folder)
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        kernel = choose_attention(config.model, device=device, precision=config.train.precision).kernel
        with_liger = contender == "peer+liger"
        if with_liger and (obstacle := liger_obstacle("gpt_neox")):
            return {"left_out": obstacle}
        clock = Clock(device)
        if contender == "ours":
            losses = train_ours(config, clock)
        else:
            losses = train_peer(config, clock, kernel=kernel, with_liger=with_liger)
        tokens = [tokens_of(step) for step in steps_of(config)][case.warmup_steps :]
        flops = flops_of(config)
    measured = clock.seconds[case.warmup_steps :]
    rate = sum(step.num_inputs for step in tokens) / sum(measured)
    return {
        "contender": contender,
        "what": _what(contender),
        "kernel": kernel,
        "tokens_per_second": rate,
        "target_tokens_per_second": sum(step.num_targets for step in tokens) / sum(measured),
        "seconds_per_step": measured,
        "seconds_to_first_step": clock.marks[0] - psutil.Process().create_time(),
        "seconds_of_first_step": clock.seconds[0],
        "loading_gib": clock.loading_gib,
        "training_gib": clock.training_gib,
        "reserved_gib": clock.reserved_gib,
        "mfu": _mfu(rate * flops, device),
        "losses": losses,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")},
    }


def _what(contender: Contender) -> str:
    if contender == "ours":
        return "dure"
    trl = "trl SFTTrainer " + importlib.metadata.version("trl") if importlib.util.find_spec("trl") else "HF Trainer"
    return trl + (" + liger" if contender == "peer+liger" else "")


def flops_of(config: Any) -> float:
    """FLOPs a token by the formula that `dure train` reports MFU with, of the model's shapes alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from trainer.adapter import add_adapter
    from trainer.model import flops_per_token

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config.model.source))
        add_adapter(model, config.adapter, seed=1, dtype=torch.float32)
    return flops_per_token(model, seq_len=config.data.seq_len)


def _mfu(flops_per_second: float, device: Any) -> float | None:
    import torch

    from trainer.metrics import peak_tflops

    peak = peak_tflops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return flops_per_second / (peak * 1e12) if peak else None


def make(case: Case) -> dict[str, Any]:
    """Text and base in the cache, in this process; seconds and sizes."""
    from bench.gpu.qlora_inputs import make_base, make_text, text_figures

    inputs = Inputs(Path(case.cache), case.size)
    started = time.perf_counter()
    make_text(inputs)
    after_text = time.perf_counter()
    written = make_base(inputs)
    seconds = {"text_seconds": after_text - started, "base_seconds": time.perf_counter() - after_text}
    return {**seconds, "bytes_written": written, **text_figures(inputs, seq_len=case.seq_len)}
