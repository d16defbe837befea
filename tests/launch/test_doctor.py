"""`dure doctor`: facts of machines that are not here are judged, and this machine is looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.doctor import exchange, judge_exchange, judge_step, probe
from launch.doctor_findings import Finding, area_table, as_json, summary
from launch.doctor_machine import (
    GIB,
    DiskFacts,
    MachineFacts,
    disk_facts,
    file_system,
    judge_disk,
    judge_machine,
    judge_slurm,
    machine_facts,
    slurm_findings,
)
from launch.doctor_slurm import judge_config
from launch.doctor_software import (
    CudaFacts,
    Gpu,
    OpsFacts,
    judge_cuda,
    judge_imports,
    judge_kernels,
    judge_ops,
    judge_packages,
    ops_facts,
)

REPO = Path(__file__).resolve().parents[2]


def only(findings: Iterator[Finding], name: str) -> Finding:
    """The one finding of that name."""
    found = [finding for finding in findings if finding.name == name]
    assert len(found) == 1, found
    return found[0]


def states(findings: Iterator[Finding]) -> dict[str, str]:
    return {finding.name: finding.state for finding in findings if finding.state not in ("ok", "note")}


def a100s(count: int = 2, **changes: Any) -> CudaFacts:
    """A healthy node."""
    healthy: dict[str, Any] = {
        "gpus": [Gpu(index, "NVIDIA A100-SXM4-80GB", 81920, 4, "550.54.14") for index in range(count)],
        "device_files": count,
        "driver_cuda": "12.4",
        "torch_version": "2.11.0+cu124",
        "torch_cuda": "12.4",
        "sees": count,
        "capabilities": [(8, 0)] * count,
        "arch_list": ["sm_80", "sm_90"],
        "nccl": "2.27.5",
    }
    return CudaFacts(**healthy | changes)


def machine(**changes: Any) -> MachineFacts:
    """A healthy one."""
    healthy: dict[str, Any] = {
        "cores": 64,
        "threads": "",
        "memory": 512 * GIB,
        "available": 500 * GIB,
        "cgroup_limit": -1,
        "shm": 256 * GIB,
        "shm_free": 256 * GIB,
        "open_files": (1048576, 1048576),
        "locked_memory": -1,
        "processes": -1,
        "max_map_count": 1048576,
        "address_space": -1,
        "has_infiniband": True,
        "encoding": "utf-8",
    }
    return MachineFacts(**healthy | changes)


def disk(**changes: Any) -> DiskFacts:
    healthy: dict[str, Any] = {
        "use": "runs",
        "path": Path("/data/runs"),
        "free": 900 * GIB,
        "free_inodes": 10**8,
        "kind": "lustre",
        "mib_per_second": 800.0,
    }
    return DiskFacts(**healthy | changes)


def test_a_healthy_node_has_nothing_to_say() -> None:
    assert states(judge_cuda(a100s())) == {}
    assert states(judge_machine(machine())) == {}
    assert states(judge_disk(disk())) == {}
    assert only(judge_cuda(a100s()), "NCCL").value == "2.27.5"


@pytest.mark.parametrize(
    ("changes", "name", "state", "words"),
    [
        ({"torch_cuda": None, "sees": 0}, "torch sees", "broken", "CPU build"),
        ({"torch_cuda": "13.0"}, "driver", "broken", "580.65.06"),
        ({"torch_cuda": "12.8"}, "driver", "warn", "older than torch's 12.8"),
        ({"sees": 1}, "torch sees", "broken", "1 of 2 GPUs"),
        ({"visible": "0", "sees": 1}, "CUDA_VISIBLE_DEVICES", "warn", "'0' of 2 GPUs"),
        ({"arch_list": ["sm_90", "compute_90"]}, "kernels for GPU 0", "broken", "sm_80"),
        ({"gpus": [], "sees": 0, "smi_error": "Failed to initialize NVML"}, "driver", "broken", "Failed to initialize"),
        ({"torch_version": "", "error": "ImportError: x"}, "torch", "broken", "ImportError: x"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_named(changes: dict[str, Any], name: str, state: str, words: str) -> None:
    found = only(judge_cuda(a100s(**changes)), name)

    assert found.state == state
    assert words in found.value + found.advice


def test_memory_that_others_hold_is_named() -> None:
    busy = [Gpu(0, "A100", 81920, 40000, "550.54.14"), Gpu(1, "A100", 81920, 4, "550.54.14")]

    assert states(judge_cuda(a100s(gpus=busy))) == {"GPU 0": "warn"}


def test_flash_attention_is_missed_only_where_a_card_could_run_it() -> None:
    none = {"flash-attn": None}

    assert only(judge_kernels(a100s(), none, {}), "flash-attn").state == "warn"
    assert only(judge_kernels(a100s(capabilities=[(7, 5)]), none, {}), "flash-attn").state == "note"
    assert only(judge_kernels(CudaFacts(), none, {}), "flash-attn").state == "note"


def test_a_kernel_of_another_torch_is_to_be_built_again() -> None:
    error = "ImportError: flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2E"

    found = only(judge_kernels(a100s(), {"flash-attn": "2.8.0"}, {"flash_attn": error}), "flash-attn")

    assert found.state == "broken"
    assert "no-build-isolation" in found.advice
    assert only(judge_kernels(a100s(), {}, {"bitsandbytes": "RuntimeError: x"}), "bitsandbytes").state == "broken"


def test_requirements_are_held_against_what_is_installed() -> None:
    requirements = ["torch>=2.11", "peft>=0.21", "numpy>=2", 'flash-attn>=2.8; extra == "gpu"', 'x>=1; extra == "gpu"']
    installed = {"torch": "2.9.1", "peft": None, "numpy": "2.3.0", "flash-attn": "2.5.0", "x": None}

    found = {finding.name: finding for finding in judge_packages(installed, requirements)}

    assert {name for name, finding in found.items() if finding.state == "broken"} == {"torch", "peft", "flash-attn"}
    assert found["torch"].value == "2.9.1, >=2.11 is needed"
    assert found["peft"].value == "missing, >=0.21 is needed"


def test_an_import_that_fails_says_what_to_do() -> None:
    results = [
        {"name": "torch", "version": "2.13.0", "seconds": 60.0, "error": ""},
        {
            "name": "deepspeed",
            "version": "0.19",
            "seconds": 40.0,
            "error": "OSError: libcudart.so.12: cannot open shared object file",
        },
    ]

    found = {finding.name: finding for finding in judge_imports(results)}

    assert found["torch"].state == "ok"
    assert "made for another torch or CUDA" in found["deepspeed"].advice
    assert found["import of these"].value == "100 s"


@pytest.mark.parametrize(
    ("changes", "name", "state"),
    [
        ({"shm": 64 << 20, "shm_free": 64 << 20}, "/dev/shm", "broken"),
        ({"shm": 1 * GIB, "shm_free": 1 * GIB}, "/dev/shm", "warn"),
        ({"shm": -1, "shm_free": -1}, "/dev/shm", "broken"),
        ({"open_files": (256, 4096)}, "open files", "broken"),
        ({"address_space": 8 * GIB}, "address space", "broken"),
        ({"processes": 512}, "processes", "warn"),
        ({"max_map_count": 4096}, "mappings", "warn"),
        ({"locked_memory": 64 << 10}, "locked memory", "broken"),
        ({"available": 1 * GIB}, "memory", "warn"),
        ({"threads": "128"}, "cores", "warn"),
        ({"encoding": "ascii"}, "file names", "broken"),
    ],
)
def test_a_limit_that_stops_training_is_named(changes: dict[str, Any], name: str, state: str) -> None:
    assert states(judge_machine(machine(**changes))) == {name: state}


def test_locked_memory_matters_with_infiniband_only() -> None:
    assert states(judge_machine(machine(locked_memory=64 << 10, has_infiniband=False))) == {}


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({"free": 1 * GIB}, "broken", "make room"),
        ({"free": 20 * GIB}, "warn", "bytes a parameter"),
        ({"error": "Permission denied", "mib_per_second": None}, "broken", "Permission denied"),
        ({"free_inodes": 12}, "broken", "12 inodes"),
        ({"locks_work": False}, "broken", "nolock"),
        ({"mib_per_second": 4.0}, "warn", "faster disk"),
    ],
)
def test_a_disk_that_will_fail_is_named(changes: dict[str, Any], state: str, words: str) -> None:
    found = only(judge_disk(disk(**changes)), "runs")

    assert found.state == state
    if "locks_work" in changes:
        assert only(judge_disk(disk(**changes, use="tmp")), "tmp").state == "warn"
    assert words in found.value + found.advice


def test_a_disk_is_written_and_left_as_it_was(tmp_path: Path) -> None:
    facts = disk_facts("runs", tmp_path / "not" / "there")

    assert facts.mib_per_second is not None and facts.mib_per_second > 0
    assert facts.locks_work
    assert list(tmp_path.iterdir()) == []


def test_the_innermost_mount_tells_the_file_system() -> None:
    mounts = "/dev/sda / ext4 rw 0 0\nnas:/x /mnt/my\\040data nfs4 rw 0 0\ntmpfs /mnt tmpfs rw 0 0\n"

    assert file_system(Path("/mnt/my data/runs"), mounts) == "nfs4"
    assert file_system(Path("/mnt/other"), mounts) == "tmpfs"
    assert file_system(Path("/home"), mounts) == "ext4"


def test_this_machine_has_limits() -> None:
    facts = machine_facts()

    assert facts.cores >= 1
    assert facts.memory > facts.available > 0


def test_a_lock_of_a_killed_build_is_told_from_a_running_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    stale, held = (tmp_path / op / "lock" for op in ("cpu_adam", "deepspeed_shm_comm"))
    for lock in (stale, held):
        lock.parent.mkdir()
        lock.touch()

    with held.open():
        found = list(judge_ops(ops_facts(None)))

    broken = [finding for finding in found if finding.state == "broken"]
    assert [finding.value for finding in broken] == [f"{stale}: no process here holds it"]
    assert f"rm {stale}" in broken[0].advice
    assert any(finding.value == f"{held}: a build is running" for finding in found)
    assert stale.exists()


def test_a_missing_compiler_and_a_foreign_nvcc_are_named() -> None:
    facts = OpsFacts(Path("/x"), [], is_built=False, missing_tools=["ninja-build"], nvcc="11.8", torch_cuda="12.4")

    assert states(judge_ops(facts)) == {"compiler": "warn", "nvcc": "warn"}


def test_slurm_that_does_not_answer_is_broken() -> None:
    alive = "gpu* up 4 gpu:a100:8 2-00:00:00\ncpu down 2 (null) infinite\n"

    assert states(judge_slurm("slurm 23.11", code=0, output=alive, job="")) == {}
    assert states(judge_slurm("slurm 23.11", code=0, output="gpu* down 4 x 1:00\n", job="")) == {"partitions": "broken"}
    munge = only(judge_slurm("slurm", code=1, output="error: Munge encode failed", job=""), "controller")
    assert munge.state == "broken" and "munge" in munge.advice
    other = only(judge_slurm("slurm", code=124, output="sinfo gave no answer in 15 s", job=""), "controller")
    assert "scontrol ping" in other.advice


def test_a_machine_without_slurm_or_without_its_config_is_told_so(tmp_path: Path) -> None:
    assert only(slurm_findings({"PATH": str(tmp_path)}), "sbatch").state == "note"

    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'sbatch: fatal: no configuration source' >&2; exit 1\n")
    sbatch.chmod(0o755)
    found = only(slurm_findings({"PATH": f"{tmp_path}:/bin"}), "sbatch")

    assert (found.state, found.value) == ("warn", "sbatch: fatal: no configuration source")


# What SLURM 22.05 printed, in part.
SLURM_CONFIG = """\
Configuration data as of 2026-11-21T21:24:00
AccountingStorageType   = accounting_storage/none
JobRequeue              = 1
KillWait                = 30 sec
MaxArraySize            = 1001
MinJobAge               = 3600 sec
PreemptMode             = REQUEUE
"""


def test_a_cluster_that_loses_or_hides_work_is_told() -> None:
    assert list(judge_config(SLURM_CONFIG)) == list(judge_config("")) == []

    changed = SLURM_CONFIG
    for before, after in (("= 30 sec", "= 5 sec"), ("= 1001", "= 101"), ("REQUEUE", "GANG,CANCEL"), ("3600", "120")):
        changed = changed.replace(before, after)
    changed = changed.replace("JobRequeue              = 1", "JobRequeue              = 0")
    found = list(judge_config(changed))

    assert states(found) == dict.fromkeys(("KillWait", "PreemptMode", "MaxArraySize"), "warn")
    assert [finding.name for finding in found if finding.state == "note"] == ["JobRequeue", "MinJobAge"]
    assert "set it to 100 or less" in only(found, "MaxArraySize").advice


def test_a_step_that_does_not_learn_or_crashes_is_broken() -> None:
    good = {"precision": "fp32", "kernel": "sdpa", "losses": [4.9, 4.2], "seconds": 0.01, "error": ""}

    assert [finding.state for finding in judge_step("cpu", [good])] == ["ok"]
    assert [finding.state for finding in judge_step("cpu", [good | {"error": "the loss does not fall"}])] == ["broken"]
    assert [finding.state for finding in judge_step("cuda:0", [{"failure": "killed by SIGSEGV"}])] == ["broken"]
    assert judge_exchange("gloo", {"failure": "no end within 240 s"}).state == "broken"
    assert judge_exchange("NCCL", {"ranks": 2, "gib_per_second": 1.0, "is_right": False}).state == "broken"


def test_a_table_shows_what_to_do_and_the_json_holds_the_same() -> None:
    findings = [Finding("Disk", "런", "ok"), Finding("Disk", "tmp", "full", "broken", "make room")]

    text = area_table("Disk", findings, colour=False)

    assert text == "Disk\n  ok    런   ok\n  FAIL  tmp  full\n        → make room"
    assert "\x1b[31mFAIL" in area_table("Disk", findings, colour=True)
    assert summary(findings, colour=False) == "1 broken (Disk: tmp), 0 warnings, of 2 checks"
    assert summary(findings[:1], colour=False).startswith("all of 1 checks")
    assert as_json(findings)["findings"][1] == {
        "area": "Disk",
        "name": "tmp",
        "value": "full",
        "state": "broken",
        "advice": "make room",
    }
    assert as_json(findings)["broken"] == 1


def test_a_trial_that_crashes_ends_only_itself() -> None:
    results = probe("imports", "no-such-package-of-ours")

    assert results[0] == {"name": "no-such-package-of-ours", "begun": True}
    assert "PackageNotFoundError" in results[-1]["failure"]


@pytest.mark.stages
def test_ranks_exchange_and_a_device_learns() -> None:
    result = exchange("cpu", num_ranks=2)
    learnt = list(judge_step("cpu", probe("step", "cpu")))

    assert result["ranks"] == 2 and result["is_right"]
    assert [(finding.name, finding.state) for finding in learnt] == [("cpu, fp32", "ok"), ("cpu, bf16", "ok")]


@pytest.mark.stages
def test_a_stale_lock_makes_the_verb_end_with_1_and_a_machine_can_read_why(tmp_path: Path) -> None:
    lock = tmp_path / "py311_cpu" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}

    command = [sys.executable, "-m", "launch.cli", "doctor", "--json"]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=900)

    told = json.loads(done.stdout)
    assert done.returncode == 1, done.stderr
    broken = [finding for finding in told["findings"] if finding["state"] == "broken"]
    assert any(finding["value"].startswith(str(lock)) for finding in broken)
    assert {"Machine", "Disk", "Packages", "torch and CUDA", "Kernels", "DeepSpeed", "A short training", "SLURM"} == {
        finding["area"] for finding in told["findings"]
    }
