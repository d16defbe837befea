"""`dure doctor`: does this machine have what training needs, and does it fit together? Each finding with what to do.

Changes nothing. What can crash or hang is tried in child processes with a time limit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import doctor_machine, doctor_software
from launch.doctor_findings import Finding, area_table, as_json, summary
from launch.doctor_software import KERNELS, PACKAGES, TORCH, CudaFacts

TRIAL = "A short training"
IMPORTED = ("torch", "transformers", "accelerate", "deepspeed", "peft", "bitsandbytes", "flash-attn")
# Of a trial that takes seconds on an idle machine.
PATIENCE_SECONDS = 240.0

Area = tuple[str, list[Finding]]


def doctor(arguments: argparse.Namespace) -> int:
    """Look and tell; 1 where something is broken."""
    from trainer.programs import add_scripts_to_path

    add_scripts_to_path()
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    findings: list[Finding] = []
    for area, found in examine(tell=_progress if sys.stderr.isatty() else lambda text: None):
        findings += found
        if not arguments.json:
            print(area_table(area, found, colour=colour) + "\n", flush=True)
    if arguments.json:
        print(json.dumps(as_json(findings), ensure_ascii=False, indent=1))
    else:
        print(summary(findings, colour=colour))
    return int(any(finding.state == "broken" for finding in findings))


def _progress(text: str) -> None:
    """What is being tried, on a line that the next one takes the place of."""
    sys.stderr.write(f"\r\x1b[K{text}")
    sys.stderr.flush()


def examine(*, tell: Any) -> Iterator[Area]:
    """Every area in turn, as soon as it is known."""

    def area(name: str, findings: Iterator[Finding]) -> Area:
        tell(f"{name} …")
        found = list(findings)
        tell("")
        return name, found

    requirements = doctor_software.requirements_of_dure()
    installed = doctor_software.installed_versions([*requirements, *IMPORTED])
    yield area(doctor_machine.MACHINE, doctor_machine.judge_machine(doctor_machine.machine_facts()))
    yield area(doctor_machine.DISK, _disks())
    yield area(PACKAGES, _packages(requirements, installed))
    tell("torch …")
    facts = doctor_software.cuda_facts(_last(probe("torch")))
    tell("")
    yield area(TORCH, doctor_software.judge_cuda(facts))
    yield area(KERNELS, _kernels(facts, installed))
    yield area(doctor_software.DEEPSPEED, doctor_software.judge_ops(doctor_software.ops_facts(facts.torch_cuda)))
    yield area(TRIAL, _trials(facts))
    yield area(doctor_machine.SLURM, doctor_machine.slurm_findings())


def _disks() -> Iterator[Finding]:
    home = Path.home() / ".cache" / "huggingface"
    places = {
        "runs": Path("runs").resolve(),
        "temporary files": Path(tempfile.gettempdir()),
        "hub's cache": Path(os.environ.get("HF_HOME") or home),
    }
    for use, path in places.items():
        yield from doctor_machine.judge_disk(doctor_machine.disk_facts(use, path))


def _packages(requirements: Sequence[str], installed: Mapping[str, str | None]) -> Iterator[Finding]:
    if not requirements:
        advice = "pip install -e . -c constraints.txt in the checkout"
        yield Finding(PACKAGES, "dure", "not installed, so that its requirements are unknown", "warn", advice)
    yield from doctor_software.judge_packages(installed, requirements)
    names = [name for name in IMPORTED if installed.get(name)]
    results = probe("imports", *names)
    done = {result["name"]: result for result in results if "version" in result}
    begun = [result["name"] for result in results if result.get("begun")]
    failure = next((result["failure"] for result in results if "failure" in result), "")
    for name in begun:
        # The one that was begun and not finished took the process with it.
        crashed = {"name": name, "version": installed[name], "seconds": 0.0, "error": failure or "the process ended"}
        done.setdefault(name, crashed)
    yield from doctor_software.judge_imports([done[name] for name in names if name in done])


def _kernels(facts: CudaFacts, installed: Mapping[str, str | None]) -> Iterator[Finding]:
    result = _last(probe("kernels"))
    if "failure" in result:
        result = {"bitsandbytes": result["failure"]}
    yield from doctor_software.judge_kernels(facts, installed, result)


def _trials(facts: CudaFacts) -> Iterator[Finding]:
    """A step on each device, and ranks that exchange their gradients."""
    devices = ["cpu", *(f"cuda:{index}" for index in range(facts.sees))]
    for device in devices:
        yield from judge_step(device, probe("step", device))
    if facts.sees >= 2:
        yield judge_exchange("NCCL", exchange("cuda", num_ranks=facts.sees))
    yield judge_exchange("gloo", exchange("cpu", num_ranks=2))


def judge_step(device: str, results: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """`results`: what the probe said of each precision; {"failure": …} where its process ended."""
    for result in results:
        if "failure" in result:
            advice = f"see the whole error: python -m launch.doctor_probe step {device}"
            yield Finding(TRIAL, device, str(result["failure"]), "broken", advice)
            return
        name, losses = f"{device}, {result['precision']}", result["losses"]
        value = f"loss {losses[0]:.3f} → {losses[-1]:.3f} in {len(losses)} steps of {result['seconds'] * 1e3:,.0f} ms"
        if result["error"]:
            advice = "the device or its driver computes wrongly: nvidia-smi -q for ECC errors; on a CPU reinstall torch"
            yield Finding(TRIAL, name, f"{value}; {result['error']}", "broken", advice)
        else:
            yield Finding(TRIAL, name, f"{value}, attention {result['kernel']}")


def judge_exchange(backend: str, result: Mapping[str, Any]) -> Finding:
    """`result`: of rank 0's probe, or {"failure": …}."""
    name = f"ranks by {backend}"
    advice = {
        "gloo": "GLOO_SOCKET_IFNAME names the network interface (ip -brief address); a firewall may close the ports",
        "NCCL": "NCCL_DEBUG=INFO says where it stops; NCCL_P2P_DISABLE=1 or NCCL_SHM_DISABLE=1 tells which path fails",
    }[backend]
    if "failure" in result:
        return Finding(TRIAL, name, str(result["failure"]), "broken", advice)
    value = f"{result['ranks']} ranks, {result['gib_per_second']:.2f} GiB/s"
    if not result["is_right"]:
        return Finding(TRIAL, name, f"{value}; the sum is wrong", "broken", advice)
    return Finding(TRIAL, name, value)


def probe(*words: str) -> list[dict[str, Any]]:
    """What a trial printed, with {"failure": why} behind it where its process did not end well."""
    process = _start(words, {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    return _finish(process, PATIENCE_SECONDS)


def exchange(device: str, *, num_ranks: int) -> dict[str, Any]:
    """Start ranks as `dure train` does, and let them exchange; rank 0's result, or the first failure."""
    from launch.local import environments, reserved_port

    with reserved_port() as port:
        named = environments(num_ranks, device="gpu" if device == "cuda" else "cpu", port=port, env=os.environ)
        for environment in named:
            environment.pop("DURE_LAUNCHER_PID", None)
        processes = [_start(("exchange", device), environment) for environment in named]
        results = [_finish(process, PATIENCE_SECONDS) for process in processes]
    failure = next((line for lines in results for line in lines if "failure" in line), None)
    return failure or _last(results[0])


def _start(words: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch.doctor_probe", *words],
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _finish(process: subprocess.Popen[str], patience: float) -> list[dict[str, Any]]:
    try:
        output, errors = process.communicate(timeout=patience)
        failure = _why(process.returncode, errors)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        failure = f"no end within {patience:.0f} s"
    lines = [parsed for line in output.splitlines() if (parsed := _parsed(line)) is not None]
    return [*lines, {"failure": failure}] if failure else lines


def _why(code: int, errors: str) -> str:
    """One line on how a process ended; "" for well."""
    if code == 0:
        return ""
    if code < 0:
        import signal

        return f"the process was killed by {signal.Signals(-code).name}"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {code}"


def _parsed(line: str) -> dict[str, Any] | None:
    """The JSON object on a line; None for what a library printed between."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _last(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if not results:
        return {"failure": "nothing was printed"}
    if "failure" in results[-1]:
        return {**results[-1], "error": results[-1]["failure"]}
    return results[-1]
