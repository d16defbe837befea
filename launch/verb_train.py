"""`dure train`: the ranks of this machine, started, watched and signalled; their exit record becomes the exit code."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from launch.local import Device, hold_signals, start_ranks
from launch.raw_stages import prepare
from trainer.errors import RunError
from trainer.launch_environment import DEVICE_VARIABLE
from trainer.resilience import REFUSED

COLOUR_VARIABLE = "DURE_COLOUR"
# Read when cuBLAS and flash-attn start, so that equal steps give equal bits; trainer.debug says the same to torch.
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FLASH_ATTENTION_DETERMINISTIC": "1"}
# torch.profiler tells its own start and stop on stderr.
QUIET_PROFILER = {"KINETO_LOG_LEVEL": "99"}


def train(arguments: argparse.Namespace) -> int:
    """Start `python -m trainer` on as many ranks as asked for: --gpus N, --cpu-ranks N, or one of whatever is here."""
    if arguments.debug:
        return try_out(
            arguments.config,
            arguments.overrides,
            gpus=arguments.gpus,
            cpu_ranks=arguments.cpu_ranks,
            profile=arguments.profile,
        )
    if arguments.profile:
        raise RunError("--profile: records the steps of a debug run; give --debug too")
    return run(arguments.config, arguments.overrides, gpus=arguments.gpus, cpu_ranks=arguments.cpu_ranks)


def run(config_path: str, overrides: list[str], *, gpus: int | None = None, cpu_ranks: int | None = None) -> int:
    """Carry a run out on this machine, or go on with it; returns 0, 85 (stopped, all saved) or a failure's code.

    Raises:
        ConfigError: the config is faulty; told before any rank starts.
    """
    held = hold_signals()
    from data_pipeline.config import load
    from trainer.config import TrainConfig

    config = load(config_path, overrides, TrainConfig)
    if code := prepare(config.data.raw, [config_path, *overrides], held=held):
        return code
    num_ranks, device = _ranks(gpus, cpu_ranks)
    if device == "cpu" and config.engine.kind == "deepspeed":
        from launch.toolchain import prepare_cpu_ranks

        prepare_cpu_ranks()
    command = [sys.executable, "-m", "trainer", config_path, *overrides]
    run_folder = Path(config.run.folder) / config.run.name
    env = {**os.environ, DEVICE_VARIABLE: device}
    return start_ranks(command, num_ranks=num_ranks, device=device, run_folder=run_folder, env=env)


def try_out(
    config_path: str, overrides: list[str], *, gpus: int | None = None, cpu_ranks: int | None = None, profile: bool
) -> int:
    """Try a run on one device in a folder of its own (`--debug`); 0 is well, 1 a fault was found and named.

    Raises:
        ConfigError, RunError: the config is faulty, more than one rank is asked for, or the folder is not ours.
    """
    if max(gpus or 1, cpu_ranks or 1) > 1:
        flag, asked = ("--gpus", gpus) if (gpus or 1) > 1 else ("--cpu-ranks", cpu_ranks)
        raise RunError(f"--debug: tries a run on one device, but {flag} asks for {asked}; leave it out, or give 1")
    held = hold_signals()
    from data_pipeline.config import load
    from trainer.config import TrainConfig
    from trainer.debug_config import as_debug, begin_anew, debug_folder
    from trainer.run_folder import read_exit

    config = load(config_path, overrides, TrainConfig)
    as_debug(config)
    if code := prepare(config.data.raw, [config_path, *overrides], held=held):
        return code
    _, device = _ranks(gpus, cpu_ranks)
    folder = debug_folder(config)
    begin_anew(folder)
    command = [sys.executable, "-m", "trainer.debug", *(["--profile"] if profile else []), config_path, *overrides]
    has_colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    env = {
        **os.environ,
        DEVICE_VARIABLE: device,
        COLOUR_VARIABLE: "1" if has_colour else "0",
        **DETERMINISTIC,
        **QUIET_PROFILER,
    }
    code = start_ranks(command, num_ranks=1, device=device, run_folder=folder, env=env)
    record = read_exit(folder)
    return record.code if code == REFUSED and record is not None else code


def _ranks(gpus: int | None, cpu_ranks: int | None) -> tuple[int, Device]:
    if cpu_ranks is not None:
        return cpu_ranks, "cpu"
    if gpus is not None:
        if (found := num_gpus()) < gpus:
            raise RunError(
                f"--gpus: {gpus} asked for, but torch finds {found} CUDA devices here; ask for fewer, or fix the driver"
            )
        return gpus, "gpu"
    return 1, "gpu" if num_gpus() else "cpu"


def num_gpus() -> int:
    """How many CUDA devices torch finds, without the seconds that importing it takes where there is none."""
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/dxg").exists():
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
