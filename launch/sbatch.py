"""The text of an sbatch script, from a Job: a pure function, pinned by tests/golden/sbatch/.

Two readers with rules of their own see a word: sbatch its #SBATCH lines, bash the rest; each gets it quoted its way.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launch.cluster import ClusterConfig
from trainer.errors import RunError


@dataclass(frozen=True)
class Job:
    """What one sbatch script starts.

    `command` is the argv after `exec`. The folder of `log` is meant literally, its name may hold SLURM's %j, %A, %a.
    `signal_seconds` before the time limit the program gets USR1; 0: never, and then no signal is held back for it.
    """

    name: str
    command: tuple[str, ...]
    cluster: ClusterConfig
    nodes: int
    log: Path
    workdir: Path
    signal_seconds: int
    array: str = ""
    dependency: str = ""
    ntasks_per_node: int = 1
    requeue: bool = True
    uses_gpus: bool = True


def sbatch_text(job: Job) -> str:
    """The script, to be submitted as it is.

    Raises:
        RunError: a name or a path that an #SBATCH line can't carry.
    """
    lines = ["#!/bin/bash", "# Written by dure; sbatch takes it as it is, from any folder."]
    lines += [f"#SBATCH {_sbatch_word(flag)}" for flag in _flags(job)]
    lines += ["", *_HOLD_SIGNALS] if job.signal_seconds else [""]
    lines += [*_START, *_place(job), *_modules(job.cluster), *_python(job.cluster), *_exports(job.cluster)]
    if job.cluster.setup:
        lines += ["set -e", *job.cluster.setup]
    return "\n".join([*lines, "", f"exec {' '.join(map(bash_word, job.command))}", ""])


def _flags(job: Job) -> Iterator[str]:
    cluster = job.cluster
    yield f"--job-name={job.name}"
    yield f"--output={_log_pattern(job.log)}"
    yield "--open-mode=append"  # else a requeued job begins its log anew
    yield "--requeue" if job.requeue else "--no-requeue"
    yield f"--nodes={job.nodes}"
    yield f"--ntasks-per-node={job.ntasks_per_node}"
    if cluster.gpus_per_node and job.uses_gpus:
        kind = f"{cluster.gpu_kind}:" if cluster.gpu_kind else ""
        yield f"--gres=gpu:{kind}{cluster.gpus_per_node}"
    if cluster.cpus_per_task is not None:
        yield f"--cpus-per-task={cluster.cpus_per_task}"
    if cluster.memory:
        yield f"--mem={cluster.memory}"
    yield f"--time={cluster.time_limit}"
    if job.signal_seconds:
        yield f"--signal=B:USR1@{job.signal_seconds}"
    if cluster.exclusive:
        yield "--exclusive"
    for name in ("account", "partition", "qos", "constraint", "reservation"):
        if value := getattr(cluster, name):
            yield f"--{name}={value}"
    if cluster.exclude:
        yield f"--exclude={','.join(cluster.exclude)}"
    if job.array:
        yield f"--array={job.array}"
    if job.dependency:
        yield f"--dependency={job.dependency}"
        yield "--kill-on-invalid-dep=yes"  # else it waits for good once what it waits for has failed
    yield from cluster.extra_sbatch


def _log_pattern(log: Path) -> str:
    """`--output` of a log: SLURM puts numbers for %j and the like, so a % of the folder is written twice."""
    folder = str(log.parent)
    if "\\" in str(log):
        raise RunError(f"run folder: {log}: SLURM replaces no %j in a path with a backslash; choose another folder")
    if not log.is_absolute():
        raise RunError(f"run folder: {log}: a log's path must be absolute, as the job may start elsewhere")
    return f"{folder.replace('%', '%%')}/{log.name}"


_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./^\[\]-]+")


def _sbatch_word(word: str) -> str:
    """A flag in an #SBATCH line, for sbatch's own reader: there a backslash escapes inside of all quotes."""
    broken = [character for character in word if character in "\0\n\r"]
    if broken:
        raise RunError(f"#SBATCH {word!r}: {broken[0]!r} can't stand in a line of sbatch; choose a name without it")
    if _PLAIN.fullmatch(word):
        return word
    name, _, value = word.partition("=")
    return f'{name}="' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def bash_word(word: str) -> str:
    """One word for bash. A line break is written as an escape: no line of the script begins with what a word holds.

    sbatch reads lines such as `#PBS` anywhere in a script, in the middle of a quoted word too.
    """
    if "\0" in word:
        raise RunError(f"{word!r}: no word of a command can hold a NUL character; choose a name without it")
    if not any(character < " " for character in word):
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(_escape(character) for character in escaped) + "'"


def _escape(character: str) -> str:
    return f"\\{ord(character):03o}" if character < " " else character


_HOLD_SIGNALS = (
    "# A stop signal waits until the program can have it, from here on: by coreutils 8.31, else by perl.",
    'if [ -z "${DURE_SIGNALS_HELD:-}" ]; then',
    "    export DURE_SIGNALS_HELD=1",
    "    env --block-signal=USR1,TERM true 2>/dev/null &&",
    '        exec env --block-signal=USR1,TERM "$BASH" "$0" "$@"',
    "    perl -MPOSIX -e1 2>/dev/null &&",
    "        exec perl -MPOSIX -e 'sigprocmask(SIG_BLOCK, POSIX::SigSet->new(SIGUSR1, SIGTERM)); exec @ARGV' \\",
    '            "$BASH" "$0" "$@"',
    "fi",
    "unset DURE_SIGNALS_HELD",
    "",
)
_START = (
    'fail() { echo "error: $1" >&2; exit 1; }',
    'echo "== job ${SLURM_JOB_ID:-none} restart ${SLURM_RESTART_COUNT:-0} on ${SLURM_JOB_NODELIST:-here}, $(date)"',
)
_FIND_MODULE = (
    "if ! type module >/dev/null 2>&1; then",
    '    for init in "${LMOD_PKG:-/usr/share/lmod/lmod}/init/bash" "${MODULESHOME:-/usr/share/Modules}/init/bash"'
    " /etc/profile.d/lmod.sh /etc/profile.d/modules.sh; do",
    '        if [ -r "$init" ]; then . "$init"; break; fi',
    "    done",
    "fi",
)


_LOAD_MODULE = (
    "# Environment Modules before 4.1 returns 0 where it fails: what is loaded tells.",
    "load_module() {",
    '    local before="${LOADEDMODULES:-}"',
    '    module load "$1" || return',
    '    case ":${LOADEDMODULES:-}" in *:"$1"*) return 0 ;; esac',
    '    [ "${LOADEDMODULES:-}" != "$before" ]  # another name for it',
    "}",
)


def _or_fail(command: str, message: str) -> str:
    return f"{command} || fail {bash_word(message)}"


def _place(job: Job) -> Iterator[str]:
    folder = str(job.workdir)
    advice = "no such folder on this node; submit from a folder that all nodes share"
    yield _or_fail(f"cd -- {bash_word(folder)}", f"{folder}: {advice}")


def _modules(cluster: ClusterConfig) -> Iterator[str]:
    if cluster.modules:
        yield from _FIND_MODULE
        yield from _LOAD_MODULE
    for name in cluster.modules:
        advice = "could not be loaded on this node; `module avail` lists what is there"
        yield _or_fail(f"load_module {bash_word(name)}", f"modules: {name}: {advice}")


def _python(cluster: ClusterConfig) -> Iterator[str]:
    if cluster.venv:
        script = f"{cluster.venv}/bin/activate"
        advice = "could not be read on this node; set `venv` to a folder that all nodes share"
        yield _or_fail(f". {bash_word(script)}", f"venv: {script}: {advice}")
    if cluster.conda:
        advice = "conda: no such program on this node; load its module by `modules`, or put it on PATH by `setup`"
        yield _or_fail('conda_base="$("${CONDA_EXE:-conda}" info --base)"', advice)
        yield _or_fail('. "$conda_base/etc/profile.d/conda.sh"', "conda: its profile.d/conda.sh could not be read")
        advice = "no such environment on this node; `conda env list` shows them"
        yield _or_fail(f"conda activate {bash_word(cluster.conda)}", f"conda: {cluster.conda}: {advice}")


def _exports(cluster: ClusterConfig) -> Iterator[str]:
    variables = {"PYTHONUNBUFFERED": "1"}
    if cluster.network_interface:
        variables |= dict.fromkeys(("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"), cluster.network_interface)
    if cluster.cpus_per_task is not None:  # srun takes no --cpus-per-task over from sbatch since SLURM 22.05
        variables["SRUN_CPUS_PER_TASK"] = str(cluster.cpus_per_task)
    for name, value in {**variables, **cluster.environment}.items():
        yield f"export {name}={bash_word(value)}"
