"""The text of an sbatch script: pinned to the byte, and read by sbatch and bash as it was meant."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from launch.cluster import ClusterConfig
from launch.sbatch import Job, bash_word, sbatch_text
from tests.launch.sbatch_jobs import CONTROLS, HOSTILE, PROFILES, REPO, WITH_BACKSLASH, make_job, profile
from trainer.errors import RunError

GOLDEN = REPO / "tests/golden/sbatch"
TRAIN = (
    "python",
    "-m",
    "launch.job",
    "/project/configs/ko-1b.yaml",
    "train.max_steps=10",
    "--cluster",
    "/project/c.yaml",
)

JOBS: dict[str, Job] = {
    **{
        path.stem: make_job(name="ko-1b", command=TRAIN, cluster=profile(path), nodes=profile(path).nodes)
        for path in PROFILES
    },
    "hostile": make_job(
        name=HOSTILE[-1],
        command=("python", "-m", "launch.job", *HOSTILE, *WITH_BACKSLASH, *CONTROLS),
        cluster=ClusterConfig(
            partition="a 'b' \"c\" \\ # $(id)",
            modules=("m 'n' $(id)",),
            venv="/home/한글 '\"$(id)/venv",
            environment={"A": "x \"y\" $(id) 'z'"},
            network_interface="ib0 $(id)",
            exclude=("n1", "n[3-5]"),
            extra_sbatch=('--comment=it\'s "here" # not a comment', "--contiguous"),
            setup=('echo "$HOME"',),
        ),
        log=Path("/runs/50% 'a' \"b\" $(id) 한글/logs/slurm-%j.out"),
        workdir=Path("/home/a b/$(id) 'x'"),
    ),
    "array": make_job(
        name="tasks",
        command=("python", "-m", "launch.array", "run", "/project/spec.json"),
        cluster=ClusterConfig(gpus_per_node=8, gpu_kind="a100", cpus_per_task=4, memory="16G", time_limit="60"),
        nodes=1,
        log=Path("/project/logs/%A_%a.out"),
        signal_seconds=0,
        array="0-99%50",
        dependency="afterok:12:13",
        requeue=False,
        uses_gpus=False,
    ),
}


@pytest.mark.parametrize("name", JOBS)
def test_a_script_is_its_golden_text(name: str, rewrite_golden: bool) -> None:
    text = sbatch_text(JOBS[name])
    golden = GOLDEN / f"{name}.sbatch"
    if rewrite_golden:
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text, encoding="utf-8")

    assert golden.is_file(), f"{golden} is missing; look at the text and run with --rewrite-golden"
    assert text == golden.read_text(encoding="utf-8")


def test_no_golden_text_is_left_of_a_job_that_is_gone() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(JOBS)


def sbatch_options(text: str) -> list[str]:
    """The options that sbatch reads from a script, by the rules of its source (src/sbatch/opt.c).

    Lines of #SBATCH before the first command; a backslash escapes inside and outside of quotes; outside of them a #
    begins a comment. And #PBS lines, which it takes from anywhere.
    """
    options: list[str] = []
    before_commands = True
    for line in text.split("\n"):
        if line.startswith("#SBATCH") and before_commands:
            options += _words(line.removeprefix("#SBATCH"))
        elif line.startswith(("#PBS", "#BSUB")):
            options += _words(line.removeprefix("#PBS").removeprefix("#BSUB"))
        elif line.strip() and not line.lstrip().startswith("#"):
            before_commands = False
    return options


def _words(line: str) -> list[str]:
    words, quote, word, escaped = [], "", None, False
    for character in line:
        if escaped:
            word, escaped = (word or "") + character, False
        elif character == "\\":
            escaped = True
        elif quote:
            quote, word = ("", word) if character == quote else (quote, (word or "") + character)
        elif character in "\"'":
            quote = character
        elif character == "#":
            break
        elif character.isspace():
            words, word = (words if word is None else [*words, word]), None
        else:
            word = (word or "") + character
    assert not quote, f"sbatch: unmatched {quote} in {line}"
    return words if word is None else [*words, word]


# A python that prints what it was called with, one word a NUL, and where.
PYTHON = """#!/bin/bash
printf '%s\\0' "$PWD" "${HOSTILE_VALUE-}" "$@"
"""


def run_script(
    text: str, folder: Path, *, words: tuple[str, ...] = (), **extra: str
) -> subprocess.CompletedProcess[bytes]:
    """The script as slurmd starts it, but with a `python` that only tells its words."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin/python").write_text(PYTHON)
    (folder / "bin/python").chmod(0o755)
    script = folder / "slurm_script"
    script.write_text(text, encoding="utf-8")
    script.chmod(0o755)
    syntax = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert syntax.returncode == 0, syntax.stderr
    env = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **extra}
    return subprocess.run([str(script), *words], cwd=folder, env=env, capture_output=True, timeout=60)


def told_words(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    assert done.returncode == 0, done.stderr.decode()
    head, _, rest = done.stdout.partition(b"\n")
    assert head.startswith(b"== job ")
    return rest.decode().split("\0")[:-1]


def test_every_word_of_a_command_reaches_the_program_as_it_is(tmp_path: Path) -> None:
    words = (*HOSTILE, *WITH_BACKSLASH, *CONTROLS, "")
    text = sbatch_text(make_job(command=("python", *words), workdir=tmp_path))

    done = run_script(text, tmp_path)

    assert told_words(done)[2:] == list(words)
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("name", [*HOSTILE, *WITH_BACKSLASH, *CONTROLS])
def test_a_hostile_folder_and_value_stay_what_they_are(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    value = name if name not in CONTROLS else "x"
    venv = tmp_path / f"venv {value}"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/activate").write_text("")
    cluster = ClusterConfig(environment={"HOSTILE_VALUE": value}, venv=str(venv))
    text = sbatch_text(make_job(command=("python", name), workdir=folder, cluster=cluster))

    done = run_script(text, tmp_path)

    assert told_words(done) == [str(folder), value, name]
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("name", [*HOSTILE, *WITH_BACKSLASH])
def test_sbatch_reads_a_hostile_name_as_one_option(name: str) -> None:
    cluster = ClusterConfig(partition=name, extra_sbatch=(f"--comment={name}",))
    options = sbatch_options(sbatch_text(make_job(name=name, cluster=cluster)))
    plain = sbatch_options(sbatch_text(make_job()))

    assert options[0] == f"--job-name={name}"
    assert [option for option in options if option.startswith(("--partition", "--comment"))] == [
        f"--partition={name}",
        f"--comment={name}",
    ]
    assert len(options) == len(plain) + 2


@pytest.mark.parametrize("name", [*HOSTILE, *CONTROLS])
def test_no_word_of_a_command_is_read_by_sbatch(name: str) -> None:
    text = sbatch_text(make_job(command=("python", name), workdir=Path("/") / name))

    assert sbatch_options(text) == sbatch_options(sbatch_text(make_job()))


@pytest.mark.parametrize("name", [line for line in CONTROLS if "\n" in line or "\r" in line])
@pytest.mark.parametrize("field", ["name", "log"])
def test_a_line_break_in_an_sbatch_line_is_refused(field: str, name: str) -> None:
    value: Any = name if field == "name" else Path("/") / name / "slurm-%j.out"

    with pytest.raises(RunError, match=r"can't stand in a line of sbatch|a path with a backslash"):
        sbatch_text(make_job(**{field: value}))


def test_a_percent_sign_of_the_log_folder_is_no_pattern() -> None:
    text = sbatch_text(make_job(log=Path("/runs/100%j/logs/slurm-%j.out")))

    assert "--output=/runs/100%%j/logs/slurm-%j.out" in sbatch_options(text)


@pytest.mark.parametrize(
    ("log", "says"),
    [("/runs/a\\b/slurm-%j.out", "replaces no %j in a path with a backslash"), ("runs/x.out", "must be absolute")],
)
def test_a_log_that_slurm_would_misplace_is_refused(log: str, says: str) -> None:
    with pytest.raises(RunError, match=says):
        sbatch_text(make_job(log=Path(log)))


def test_a_nul_is_refused() -> None:
    with pytest.raises(RunError, match="no word of a command can hold a NUL"):
        bash_word("a\0b")


@pytest.mark.parametrize("word", ["", "plain", *HOSTILE, *WITH_BACKSLASH])
def test_a_word_of_one_line_is_quoted_as_any_posix_shell_reads_it(word: str) -> None:
    visible = not any(character < " " for character in word)

    assert not visible or shlex.split(bash_word(word)) == [word]


@pytest.mark.parametrize(
    ("cluster", "says"),
    [
        ({"venv": "/no/such/venv"}, "venv: /no/such/venv/bin/activate: could not be read on this node"),
        ({"modules": ("no-such-module",)}, "modules: no-such-module: could not be loaded on this node"),
        ({"conda": "env"}, "conda: no such program on this node"),
    ],
    ids=["venv", "modules", "conda"],
)
def test_a_python_that_is_not_there_ends_the_job_with_the_reason(
    cluster: dict[str, Any], says: str, tmp_path: Path
) -> None:
    text = sbatch_text(make_job(workdir=tmp_path, cluster=ClusterConfig(**cluster)))

    done = run_script(text, tmp_path, CONDA_EXE="no-such-conda")

    assert done.returncode == 1
    assert says in done.stderr.decode()
    assert b"launch.job" not in done.stdout


def test_a_folder_that_the_node_does_not_see_ends_the_job(tmp_path: Path) -> None:
    done = run_script(sbatch_text(make_job(workdir=tmp_path / "gone")), tmp_path)

    assert done.returncode == 1
    assert f"{tmp_path}/gone: no such folder on this node" in done.stderr.decode()


def test_a_setup_line_that_fails_ends_the_job(tmp_path: Path) -> None:
    cluster = ClusterConfig(setup=("true", "false", "true"))

    done = run_script(sbatch_text(make_job(workdir=tmp_path, cluster=cluster)), tmp_path)

    assert done.returncode == 1
    assert b"launch.job" not in done.stdout


def test_conda_is_activated_by_its_own_script(tmp_path: Path) -> None:
    base = tmp_path / "my conda"
    (base / "etc/profile.d").mkdir(parents=True)
    (base / "etc/profile.d/conda.sh").write_text('conda() { HOSTILE_VALUE="$*"; export HOSTILE_VALUE; }\n')
    (base / "conda").write_text(f'#!/bin/bash\n[ "$*" = "info --base" ] && echo {shlex.quote(str(base))}\n')
    (base / "conda").chmod(0o755)
    text = sbatch_text(make_job(command=("python", "x"), workdir=tmp_path, cluster=ClusterConfig(conda="my env")))

    done = run_script(text, tmp_path, CONDA_EXE=str(base / "conda"))

    assert told_words(done)[1:] == ["activate my env", "x"]


def held_by(script: str, *, signal_seconds: int, folder: Path) -> int:
    """The exit code of a job that USR1 reaches in its setup, before the program stands."""
    text = sbatch_text(
        make_job(
            command=("bash", "-c", "exit 7"),
            workdir=folder,
            signal_seconds=signal_seconds,
            cluster=ClusterConfig(setup=(script,)),
        )
    )
    return run_script(text, folder).returncode


OLD_ENV = """#!/bin/bash
case "$1" in --*) echo "env: unrecognized option '$1'" >&2; exit 125; esac
exec /usr/bin/env "$@"
"""


@pytest.mark.parametrize("coreutils", ["new", "old"])
def test_a_signal_in_the_setup_waits_for_the_program(coreutils: str, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    if coreutils == "old":  # RHEL 8 has 8.30
        if shutil.which("perl") is None:
            pytest.skip("no perl on PATH")
        (tmp_path / "bin/env").write_text(OLD_ENV)
        (tmp_path / "bin/env").chmod(0o755)
    ask = "import signal; pending = signal.sigpending(); print(*sorted(map(int, pending)))"
    command = ("python3", "-c", ask)
    cluster = ClusterConfig(setup=("kill -USR1 $$; kill -TERM $$",))

    done = run_script(sbatch_text(make_job(command=command, workdir=tmp_path, cluster=cluster)), tmp_path)

    assert done.stdout.decode().splitlines()[-1] == f"{int(signal.SIGUSR1)} {int(signal.SIGTERM)}"
    assert done.returncode == 0


def test_a_job_that_is_never_warned_holds_no_signal_back(tmp_path: Path) -> None:
    assert held_by("kill -TERM $$", signal_seconds=0, folder=tmp_path) == -signal.SIGTERM
    assert held_by("kill -TERM $$", signal_seconds=60, folder=tmp_path) == 7


def test_a_job_inside_of_a_job_holds_signals_anew(tmp_path: Path) -> None:
    text = sbatch_text(make_job(command=("bash", "-c", "echo held=${DURE_SIGNALS_HELD-no}"), workdir=tmp_path))

    done = run_script(text, tmp_path)

    assert done.stdout.decode().splitlines()[-1] == "held=no"


BY_HAND = sorted((REPO / "slurm").glob("*.sbatch"))


@pytest.mark.parametrize("path", BY_HAND, ids=lambda path: path.name)
def test_a_script_by_hand_passes_every_word_on(path: Path, tmp_path: Path) -> None:
    words = (*HOSTILE, *WITH_BACKSLASH, *CONTROLS)

    done = run_script(path.read_text(encoding="utf-8"), tmp_path, words=words)

    assert done.stdout.decode().split("\0")[-len(words) - 1 : -1] == list(words)
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("path", BY_HAND, ids=lambda path: path.name)
def test_a_script_by_hand_without_words_says_what_is_missing(path: Path, tmp_path: Path) -> None:
    done = run_script(path.read_text(encoding="utf-8"), tmp_path)

    assert done.returncode == 2
    assert b"is missing" in done.stderr


@pytest.mark.parametrize("path", BY_HAND, ids=lambda path: path.name)
def test_a_script_by_hand_has_the_flags_that_a_submitted_one_has(path: Path) -> None:
    options = sbatch_options(path.read_text(encoding="utf-8"))

    assert {"--open-mode=append", "--requeue"} <= set(options)
    assert ("--signal=B:USR1@300" in options) == (path.name == "train.sbatch")


# As Environment Modules 3.2: what can't be loaded is told on stderr, and the exit code is 0.
OLD_MODULES = """
module() {
    case "$2" in
        good|good/1) LOADEDMODULES="${LOADEDMODULES:+$LOADEDMODULES:}good/1" ;;
        other-name) LOADEDMODULES="${LOADEDMODULES:+$LOADEDMODULES:}real/2" ;;
        *) echo "ModuleCmd_Load.c(213):ERROR:105: Unable to locate a modulefile for '$2'" >&2 ;;
    esac
    export LOADEDMODULES
}
"""


@pytest.mark.parametrize(
    ("names", "code"), [(("good", "other-name"), 0), (("good", "good/1"), 0), (("good", "gone"), 1), (("gone",), 1)]
)
def test_a_module_that_was_not_loaded_ends_the_job_whatever_module_says(
    names: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    """And its init script is found where the cluster's own variable says."""
    (tmp_path / "modules/init").mkdir(parents=True)
    (tmp_path / "modules/init/bash").write_text(OLD_MODULES)
    text = sbatch_text(make_job(workdir=tmp_path, cluster=ClusterConfig(modules=names)))

    done = run_script(text, tmp_path, MODULESHOME=str(tmp_path / "modules"), LMOD_PKG="/nowhere", LOADEDMODULES="")

    assert done.returncode == code, done.stderr
    assert (b"could not be loaded on this node" in done.stderr) is bool(code)
