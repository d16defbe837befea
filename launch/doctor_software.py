"""Packages and how they fit each other: requirements, imports, torch with CUDA and the driver, DeepSpeed's ops.

Facts are gathered by `gather`, in part from child processes (`launch.doctor_probe`), and judged by functions that know
nothing but them.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from launch.doctor_findings import Finding

PACKAGES, TORCH, KERNELS, DEEPSPEED = "Packages", "torch and CUDA", "Kernels", "DeepSpeed"
SUPPORTED_PYTHON = ((3, 11), (3, 12))
# The oldest Linux driver of each CUDA major version, from NVIDIA's "CUDA Toolkit Release Notes", table of minor version
# compatibility.
OLDEST_DRIVER = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
REINSTALL_TORCH = "install the torch of this driver's CUDA: https://pytorch.org/get-started/locally"
FLASH_CAPABILITY = (8, 0)
SLOW_IMPORT_SECONDS = 90.0


@dataclass(frozen=True)
class Gpu:
    """One line of nvidia-smi."""

    index: int
    name: str
    memory_mib: int
    used_mib: int
    driver: str


@dataclass
class CudaFacts:
    """What nvidia-smi and torch say. `driver_cuda`: the newest CUDA that the driver speaks, "" where unknown."""

    gpus: list[Gpu] = field(default_factory=list)
    device_files: int = 0
    smi_error: str = ""
    driver_cuda: str = ""
    torch_version: str = ""
    torch_cuda: str | None = None
    sees: int = 0
    error: str = ""
    capabilities: list[tuple[int, int]] = field(default_factory=list)
    arch_list: list[str] = field(default_factory=list)
    nccl: str = ""
    visible: str | None = None


def run_program(*command: str, timeout: float = 20, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Exit code and output (of both streams); 127 where there is no such program, 124 where it takes too long."""
    try:
        done = subprocess.run(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, env=env
        )
    except FileNotFoundError:
        return 127, f"{command[0]} is not on PATH"
    except subprocess.TimeoutExpired:
        return 124, f"{command[0]} gave no answer in {timeout:.0f} s"
    except OSError as error:
        return 126, str(error)
    return done.returncode, done.stdout.strip()


def cuda_facts(probe: Mapping[str, Any]) -> CudaFacts:
    """From nvidia-smi, /dev and what the probe's process heard of torch."""
    facts = CudaFacts(
        device_files=len(list(Path("/dev").glob("nvidia[0-9]*"))), visible=os.environ.get("CUDA_VISIBLE_DEVICES")
    )
    query = "--query-gpu=index,name,memory.total,memory.used,driver_version"
    code, output = run_program("nvidia-smi", query, "--format=csv,noheader,nounits")
    if code == 0:
        facts.gpus = [gpu for line in output.splitlines() if (gpu := _gpu(line)) is not None]
        banner = re.search(r"CUDA Version:\s*([\d.]+)", run_program("nvidia-smi")[1])
        facts.driver_cuda = banner[1] if banner else ""
    elif code != 127 or facts.device_files:
        facts.smi_error = output.splitlines()[-1] if output else f"exit code {code}"
    for name in ("torch_version", "torch_cuda", "sees", "error", "arch_list", "nccl"):
        if name in probe:
            setattr(facts, name, probe[name])
    facts.capabilities = [(int(major), int(minor)) for major, minor in probe.get("capabilities", [])]
    return facts


def _gpu(line: str) -> Gpu | None:
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 5 or not parts[0].isdecimal():
        return None
    memory, used = (int(part) if part.isdecimal() else 0 for part in parts[2:4])  # "[N/A]" where memory is shared
    return Gpu(int(parts[0]), parts[1], memory, used, parts[4])


def judge_packages(installed: Mapping[str, str | None], requirements: Sequence[str]) -> Iterator[Finding]:
    """Each requirement of `dure` against what is installed; of extras only what is there and does not fit."""
    python = sys.version_info[:2]
    if python in SUPPORTED_PYTHON:
        yield Finding(PACKAGES, "Python", sys.version.split()[0])
    else:
        advice = "3.11 and 3.12 are what is tested: make the environment anew with one of them"
        yield Finding(PACKAGES, "Python", sys.version.split()[0], "warn", advice)
    unfit, fitting = [], 0
    for text in requirements:
        requirement = Requirement(text)
        is_extra = requirement.marker is not None and "extra" in str(requirement.marker)
        if requirement.name == "dure" or (requirement.marker and not is_extra and not requirement.marker.evaluate()):
            continue
        found = installed.get(requirement.name)
        if found is not None and requirement.specifier.contains(found, prereleases=True):
            fitting += 1
        elif found is not None or not is_extra:
            unfit.append((requirement, found))
    for requirement, found in unfit:
        advice = f"pip install '{requirement.name}{requirement.specifier}' -c constraints.txt"
        value = f"{found or 'missing'}, {requirement.specifier or 'any version'} is needed"
        yield Finding(PACKAGES, requirement.name, value, "broken", advice)
    if not unfit:
        yield Finding(PACKAGES, "requirements", f"{fitting} packages, each of a version that fits")


def installed_versions(requirements: Sequence[str]) -> dict[str, str | None]:
    """By name; None for what is not installed."""
    versions: dict[str, str | None] = {}
    for text in requirements:
        name = Requirement(text).name
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def requirements_of_dure() -> list[str]:
    """As its metadata says; empty for a checkout that was never installed."""
    try:
        return importlib.metadata.requires("dure") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def judge_imports(results: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """`results`: {name, version, seconds, error} a package; an error is one line of what was raised."""
    for result in results:
        name, error = result["name"], result.get("error")
        if error:
            value = f"{result['version']} does not import: {error}"
            yield Finding(PACKAGES, name, value, "broken", _import_advice(name, error))
        else:
            yield Finding(PACKAGES, name, result["version"])
    seconds = sum(result["seconds"] for result in results)
    if seconds > SLOW_IMPORT_SECONDS:
        advice = "each start waits for it; an environment on a network disk is slow: put it on a local one"
        yield Finding(PACKAGES, "import of these", f"{seconds:.0f} s", "note", advice)


def _import_advice(name: str, error: str) -> str:
    if "undefined symbol" in error or "cannot open shared object" in error:
        return (
            f"its compiled part was made for another torch or CUDA (다른 torch로 빌드됨): "
            f"pip uninstall {name} && pip install --no-cache-dir --no-build-isolation {name}"
        )
    return (
        f"pip install --force-reinstall --no-deps {name} -c constraints.txt; DURE_TRACEBACK=1 python -c 'import {name}'"
    )


def judge_cuda(facts: CudaFacts) -> Iterator[Finding]:
    """torch, its CUDA, the driver and the cards."""
    if not facts.torch_version:
        yield Finding(TORCH, "torch", facts.error or "does not import", "broken", "install torch first")
        return
    kind = f"CUDA {facts.torch_cuda}" if facts.torch_cuda else "a CPU build"
    yield Finding(TORCH, "torch", f"{facts.torch_version}, {kind}")
    if facts.smi_error:
        advice = (
            "after an update of the driver: reboot (or `modprobe -r nvidia; modprobe nvidia`); else install it anew"
        )
        yield Finding(TORCH, "driver", f"nvidia-smi fails: {facts.smi_error}", "broken", advice)
    if not facts.gpus:
        if facts.torch_cuda and not facts.smi_error:
            yield Finding(TORCH, "GPU", "none: training goes on the CPU", "note")
        elif not facts.smi_error:
            yield Finding(TORCH, "GPU", "none (GPU 없음): training goes on the CPU", "note")
        return
    yield from _judge_driver(facts)
    yield from _judge_cards(facts)


def _judge_driver(facts: CudaFacts) -> Iterator[Finding]:
    driver = facts.gpus[0].driver
    says = f"{driver}, CUDA up to {facts.driver_cuda}" if facts.driver_cuda else driver
    if facts.torch_cuda is None:
        yield Finding(TORCH, "driver", says)
        yield Finding(TORCH, "torch sees", "no GPU: it is a CPU build", "broken", REINSTALL_TORCH)
        return
    oldest = OLDEST_DRIVER.get(int(facts.torch_cuda.partition(".")[0]))
    if oldest is not None and Version(driver) < Version(oldest):
        advice = f"update the driver to {oldest} or newer, or {REINSTALL_TORCH}"
        yield Finding(TORCH, "driver", f"{says}; CUDA {facts.torch_cuda} needs {oldest}", "broken", advice)
    elif facts.driver_cuda and Version(facts.driver_cuda) < Version(facts.torch_cuda):
        advice = "kernels that are compiled at run time (Triton, DeepSpeed's ops) may fail; update the driver"
        yield Finding(TORCH, "driver", f"{says}, older than torch's {facts.torch_cuda}", "warn", advice)
    else:
        yield Finding(TORCH, "driver", says)
    if facts.visible is not None and len([part for part in facts.visible.split(",") if part.strip()]) < len(facts.gpus):
        yield Finding(
            TORCH,
            "CUDA_VISIBLE_DEVICES",
            f"{facts.visible!r} of {len(facts.gpus)} GPUs",
            "warn",
            "unset it to use all of them; inside a SLURM job it is the share of the job and right",
        )
    elif facts.sees < len(facts.gpus):
        value = f"{facts.sees} of {len(facts.gpus)} GPUs{': ' + facts.error if facts.error else ''}"
        advice = "`nvidia-smi -q | grep -i -e xid -e 'ECC'` and dmesg name a card that fell off; MIG needs its UUIDs"
        yield Finding(TORCH, "torch sees", value, "broken", advice)


def _judge_cards(facts: CudaFacts) -> Iterator[Finding]:
    for gpu in facts.gpus:
        value = f"{gpu.name}, {gpu.memory_mib / 1024:.0f} GiB"
        if gpu.memory_mib and gpu.used_mib > max(1024, gpu.memory_mib // 20):
            advice = "`nvidia-smi` names the processes that hold it; end them, or train on other cards"
            yield Finding(TORCH, f"GPU {gpu.index}", f"{value}, {gpu.used_mib / 1024:.1f} in use", "warn", advice)
        else:
            yield Finding(TORCH, f"GPU {gpu.index}", value)
    for index, (major, minor) in enumerate(facts.capabilities):
        wanted = f"sm_{major}{minor}"
        same_major = [arch for arch in facts.arch_list if re.fullmatch(rf"(sm|compute)_{major}\d[a-z]?", arch)]
        if facts.arch_list and not same_major:
            value = f"{wanted}; this torch has {', '.join(facts.arch_list)}"
            yield Finding(TORCH, f"kernels for GPU {index}", value, "broken", REINSTALL_TORCH)
    if facts.nccl:
        yield Finding(TORCH, "NCCL", facts.nccl)


def judge_kernels(facts: CudaFacts, installed: Mapping[str, str | None], trial: Mapping[str, Any]) -> Iterator[Finding]:
    """flash-attn and bitsandbytes. `trial`: an error by name, "" for none, absent where untried."""
    flash = installed.get("flash-attn")
    is_able = any(capability >= FLASH_CAPABILITY for capability in facts.capabilities)
    if flash is None and is_able:
        advice = "pip install flash-attn --no-build-isolation (minutes to an hour); until then attention is sdpa"
        yield Finding(KERNELS, "flash-attn", "not installed, though a card could run it", "warn", advice)
    elif flash is None:
        yield Finding(KERNELS, "flash-attn", "not installed; attention is sdpa", "note")
    elif trial.get("flash_attn"):
        yield Finding(
            KERNELS,
            "flash-attn",
            f"{flash}: {trial['flash_attn']}",
            "broken",
            _import_advice("flash-attn", trial["flash_attn"]),
        )
    else:
        yield Finding(KERNELS, "flash-attn", f"{flash}" + ("" if is_able else ", without a card that runs it"))
    if "bitsandbytes" in trial:
        error = trial["bitsandbytes"]
        value = "4-bit weights and 8-bit moments work" if not error else str(error)
        advice = (
            "`python -m bitsandbytes` says which library it looks for; QLoRA and adamw_8bit need it" if error else ""
        )
        yield Finding(KERNELS, "bitsandbytes", value, "broken" if error else "ok", advice)


@dataclass(frozen=True)
class OpsFacts:
    """DeepSpeed's compiled ops. `locks`: (path, whether a process of this machine holds it)."""

    root: Path
    locks: list[tuple[Path, bool]]
    is_built: bool
    missing_tools: list[str]
    nvcc: str = ""
    torch_cuda: str | None = None


def ops_facts(torch_cuda: str | None) -> OpsFacts:
    """Looked up, nothing compiled and nothing removed."""
    from trainer.ops import TOOLS, extensions_root, is_built, is_open_somewhere

    root = extensions_root()
    locks = sorted({*root.glob("*/lock"), *root.glob("*/*/lock")}) if root.is_dir() else []
    found = re.search(r"release ([\d.]+)", run_program("nvcc", "--version")[1])
    missing = [package for program, package in TOOLS.items() if shutil.which(program) is None]
    built = not missing and importlib.util.find_spec("deepspeed") is not None and is_built(root)
    held = [(lock, is_open_somewhere(lock)) for lock in locks]
    return OpsFacts(root, held, built, missing, found[1] if found else "", torch_cuda)


def judge_ops(facts: OpsFacts) -> Iterator[Finding]:
    """Stale build locks before all: every later start waits for them without a word."""
    for path, is_held in facts.locks:
        if is_held:
            yield Finding(DEEPSPEED, "build lock", f"{path}: a build is running", "note")
        else:
            advice = (
                "a build was killed, and every start that needs this op waits for ever without a word; unless another "
                f"machine with this home is building now: rm {path}"
            )
            yield Finding(DEEPSPEED, "build lock", f"{path}: no process here holds it", "broken", advice)
    if not facts.locks:
        yield Finding(DEEPSPEED, "build locks", f"none in {facts.root}")
    if facts.missing_tools:
        packages = " ".join(facts.missing_tools)
        advice = f"apt-get install {packages}; without it no op is compiled: several DeepSpeed ranks on a CPU, offload"
        yield Finding(DEEPSPEED, "compiler", f"{packages} is missing (컴파일러 없음)", "warn", advice)
    else:
        yield Finding(DEEPSPEED, "compiler", "g++ and ninja")
    said = "compiled" if facts.is_built else "not compiled yet: 1-2 minutes at the first start of CPU ranks"
    yield Finding(DEEPSPEED, "op for CPU ranks", said, "ok" if facts.is_built else "note")
    if facts.torch_cuda is None:
        return
    if not facts.nvcc:
        yield Finding(DEEPSPEED, "nvcc", "not on PATH; only offload and fused optimizers of DeepSpeed need it", "note")
    elif facts.nvcc.partition(".")[0] != facts.torch_cuda.partition(".")[0]:
        advice = (
            f"set CUDA_HOME and PATH to a CUDA {facts.torch_cuda} toolkit; ops of another major version do not load"
        )
        yield Finding(DEEPSPEED, "nvcc", f"{facts.nvcc}, torch has CUDA {facts.torch_cuda}", "warn", advice)
    else:
        yield Finding(DEEPSPEED, "nvcc", f"{facts.nvcc}, as torch's CUDA {facts.torch_cuda}")
