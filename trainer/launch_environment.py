"""What a launcher says through the environment, checked against the config before anything is loaded.

The config decides the engine, the launcher decides only the ranks. Flags of `accelerate launch` arrive as ACCELERATE_*
variables, or are read off its command line; those that would change the engine, the precision or the accumulation are
refused with both values.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import RunError

if TYPE_CHECKING:
    from trainer.config import TrainConfig

DEVICE_VARIABLE = "DURE_DEVICE"  # "gpu" or "cpu": what the ranks were started for, here or on a cluster's node

_TRUE = {"1", "true", "yes", "on"}


def wants_gpu(environ: Mapping[str, str] = os.environ, *, num_devices: int) -> bool:
    """Whether this rank trains on a GPU: as the launcher says, else wherever there is one.

    Raises:
        RunError: a GPU is asked for, or this local rank's turn, and torch does not find it.
    """
    asked = environ.get(DEVICE_VARIABLE)
    if asked == "cpu" or (asked is None and _is_on(environ, "ACCELERATE_USE_CPU")):
        return False
    local_rank = _number(environ, "LOCAL_RANK", 0)
    if asked == "gpu" and num_devices == 0:
        raise RunError("device: the launcher started this rank for a GPU, but torch finds none here; fix the driver")
    if 0 < num_devices <= local_rank:
        raise RunError(
            f"device: LOCAL_RANK is {local_rank}, but torch finds {num_devices} CUDA devices here; start at most as "
            "many ranks as there are devices"
        )
    return num_devices > 0


def check_launch(
    config: TrainConfig,
    environ: MutableMapping[str, str] = os.environ,
    *,
    launcher_words: Sequence[str] | None = None,
) -> None:
    """Refuse an environment that contradicts `config`, then take out what accelerate would act on by itself.

    Args:
        launcher_words: the launcher's own command line; None: that of the process that started this one. accelerate
            passes some flags on in no variable, and would ignore them without a word.

    Raises:
        RunError: every contradiction at once, each with both values.
    """
    said = {**_flags_of(_launcher_words() if launcher_words is None else launcher_words), **environ}
    faults = [*_rank_faults(config, environ), *_flag_faults(config, said)]
    if faults:
        raise RunError("\n".join(faults))
    for name in _ENGINE_VARIABLES:
        environ.pop(name, None)


# Flags of `accelerate launch` -> the variable in which it passes them on, where it does.
_FLAGS = {
    "--mixed_precision": "ACCELERATE_MIXED_PRECISION",
    "--gradient_accumulation_steps": "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "--gradient_clipping": "ACCELERATE_GRADIENT_CLIPPING",
    "--zero_stage": "ACCELERATE_DEEPSPEED_ZERO_STAGE",
    "--offload_optimizer_device": "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
    "--offload_param_device": "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE",
    "--deepspeed_config_file": "ACCELERATE_DEEPSPEED_CONFIG_FILE",
    "--dynamo_backend": "ACCELERATE_DYNAMO_BACKEND",
}


def _launcher_words() -> list[str]:
    """The command line of the parent process; [] where the kernel does not tell it."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
    return words


def _flags_of(words: Sequence[str]) -> dict[str, str]:
    """What `accelerate launch` was told before the program's own words, as the variables would say it."""
    place = next((place for place, word in enumerate(words) if Path(word).name in _ACCELERATE), None)
    if place is None:
        return {}
    said: dict[str, str] = {}
    ours = list(words[place + 1 :])
    while ours and ours[0] not in ("-m", "--module"):
        name, has_value, value = ours.pop(0).replace("-", "_").partition("=")
        flag = f"--{name.lstrip('_')}"
        if flag in _FLAGS:
            said[_FLAGS[flag]] = value if has_value else (ours.pop(0) if ours else "")
    return said


_ACCELERATE = ("accelerate", "accelerate-launch", "accelerate.commands.launch", "launch.py")
_ENGINE_VARIABLES = (
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE",
    "ACCELERATE_DEEPSPEED_CONFIG_FILE",
    "ACCELERATE_CONFIG_DS_FIELDS",
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_MIXED_PRECISION",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "ACCELERATE_DYNAMO_BACKEND",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL",
    "ACCELERATE_GRADIENT_CLIPPING",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
    # accelerate would take it as cpu=True, which turns DeepSpeed off; `wants_gpu` has read it.
    "ACCELERATE_USE_CPU",
)


def _rank_faults(config: TrainConfig, environ: MutableMapping[str, str]) -> Iterator[str]:
    world_size = _number(environ, "WORLD_SIZE", 1)
    expected = config.run.expected_ranks
    if expected is not None and expected != world_size:
        yield (
            f"run.expected_ranks: the config expects {expected} ranks, but WORLD_SIZE is {world_size}; start as many "
            "as expected, or change the key ('accelerate launch --cpu --num_processes N' starts one process only: "
            "the README has the line that starts several)"
        )
    if config.train.global_batch_sequences < world_size:
        yield (
            f"train.global_batch_sequences: {config.train.global_batch_sequences} sequences a step cannot feed "
            f"{world_size} ranks; raise it to {world_size} or more, or start fewer ranks"
        )


def _flag_faults(config: TrainConfig, environ: Mapping[str, str]) -> Iterator[str]:
    kind, stage = config.engine.kind, config.engine.zero_stage
    wants_deepspeed = _is_on(environ, "ACCELERATE_USE_DEEPSPEED")
    if wants_deepspeed and kind != "deepspeed":
        yield f"engine.kind: the config says {kind!r}, the launcher --use_deepspeed; drop the flag or set the key"
    launched_stage = environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    if launched_stage is not None and kind == "deepspeed" and launched_stage != str(stage):
        yield f"engine.zero_stage: the config says {stage}, the launcher --zero_stage {launched_stage}; drop the flag"
    if launched_stage is not None and kind != "deepspeed" and not wants_deepspeed:
        yield f"engine.kind: the config says {kind!r}, the launcher --zero_stage {launched_stage}; drop the flag"
    if environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none") != "none":
        file = environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"]
        yield f"engine: the launcher brings --deepspeed_config_file {file}, but the run's config decides; drop the flag"
    for name, flag in (("ACCELERATE_USE_FSDP", "--use_fsdp"), ("ACCELERATE_USE_MEGATRON_LM", "--use_megatron_lm")):
        if _is_on(environ, name):
            yield f"engine.kind: the config says {kind!r}, the launcher {flag}; drop the flag"
    precision = environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", config.train.precision):
        yield (
            f"train.precision: the config says {config.train.precision!r}, the launcher --mixed_precision "
            f"{precision}; drop the flag or set the key"
        )
    accumulation = environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation != "1":
        yield (
            f"train.micro_batch_sequences: the launcher says --gradient_accumulation_steps {accumulation}, but it "
            "follows from global_batch_sequences, micro_batch_sequences and the ranks; drop the flag"
        )
    clipping = environ.get("ACCELERATE_GRADIENT_CLIPPING", "none")
    if clipping != "none" and float(clipping) != config.train.max_grad_norm:
        yield (
            f"train.max_grad_norm: the config says {config.train.max_grad_norm}, the launcher --gradient_clipping "
            f"{clipping}; drop the flag or set the key"
        )
    offload = environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none")
    if offload != "none" and not config.engine.offload_optimizer:
        yield f"engine.offload_optimizer: the config says false, the launcher --offload_optimizer_device {offload}"
    offload_param = environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none")
    if offload_param != "none":
        yield f"engine: the launcher says --offload_param_device {offload_param}, the config has no such key"
    if _is_on(environ, "ACCELERATE_USE_PARALLELISM_CONFIG"):
        yield "engine: the launcher says --use_parallelism_config, the config has no such key; drop the flag"
    dynamo = environ.get("ACCELERATE_DYNAMO_BACKEND", "NO").upper()
    if dynamo != "NO":
        yield f"train: the launcher says --dynamo_backend {dynamo.lower()}, the config has none; drop the flag"


def _number(environ: Mapping[str, str], name: str, otherwise: int) -> int:
    text = environ.get(name, str(otherwise))
    if not text.isdecimal():
        raise RunError(f"{name}: {text!r} is no number of ranks; let a launcher set it, or unset it for one process")
    return int(text)


def _is_on(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "false").lower() in _TRUE
