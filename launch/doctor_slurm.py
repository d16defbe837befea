"""What the cluster's own settings mean for runs that are stopped, requeued and spread: from `scontrol show config`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from launch.cluster import ClusterConfig
from launch.doctor_findings import Finding

AREA = "SLURM"
MIN_KILL_WAIT = 30
MIN_JOB_AGE = 300
_LINE = re.compile(r"^(\w+)\s*=\s*(.*?)\s*$", re.MULTILINE)


def judge_config(text: str) -> Iterator[Finding]:
    """A finding for each setting that loses work or hides it; "" says nothing. Pure."""
    found = dict(_LINE.findall(text))
    if (seconds := _number(found, "KillWait")) is not None and seconds < MIN_KILL_WAIT:
        advice = "a run that `scancel` ends may not come to save: end it by `dure cancel`, which waits for its save"
        yield Finding(AREA, "KillWait", f"{seconds} s", "warn", advice)
    preempt = found.get("PreemptMode", "")
    if "CANCEL" in preempt.upper():
        advice = "a preempted job saves but is not requeued: submit it again, or take a partition that requeues"
        yield Finding(AREA, "PreemptMode", preempt, "warn", advice)
    if found.get("JobRequeue") == "0":
        advice = "jobs of dure ask for --requeue by themselves; of other jobs SLURM requeues none"
        yield Finding(AREA, "JobRequeue", "0", "note", advice)
    ours = int(ClusterConfig.model_fields["max_array_size"].default)
    if (most := _number(found, "MaxArraySize")) is not None and most <= ours:
        advice = f"a profile's max_array_size is {ours} by default: set it to {max(1, most - 1)} or less"
        yield Finding(AREA, "MaxArraySize", str(most), "warn", advice)
    keeps_accounts = not found.get("AccountingStorageType", "accounting_storage/slurmdbd").endswith("none")
    age = _number(found, "MinJobAge")
    if not keeps_accounts and age is not None and age < MIN_JOB_AGE:
        advice = "how a job ended is forgotten after that: `dure status` then knows only what the run has written"
        yield Finding(AREA, "MinJobAge", f"{age} s, no accounts", "note", advice)


def _number(found: dict[str, str], name: str) -> int | None:
    match = re.match(r"\d+", found.get(name, ""))
    return int(match.group()) if match else None
