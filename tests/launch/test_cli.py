"""`dure VERB`: words become a call, errors become one message and an exit code, and help costs nothing."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch import cli
from launch.verb_table import GROUPS, VERBS, Flag, Verb

REPO = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "numpy", "pyarrow", "pydantic", "ruamel", "transformers", "datasets", "tokenizers", "tqdm"}

received: list[argparse.Namespace] = []


def receive(arguments: argparse.Namespace) -> int:
    """The function of the verbs below."""
    received.append(arguments)
    return 7


def parsed(verb: Verb, *words: str) -> argparse.Namespace:
    return cli.parse_words(verb, list(words))


def dure(*words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "launch.cli", *words]
    return subprocess.run(command, cwd=REPO, capture_output=True, env={**os.environ, **environment}, timeout=60)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a command line that is refused; it is one line."""
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.strip()


def test_help_imports_nothing_heavy() -> None:
    program = "import sys; from launch import cli; cli.main(['--help']); print('|'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, check=True)

    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split("|")}

    assert loaded & HEAVY == set()
    assert loaded & {"data_pipeline", "trainer"} == set()


def test_help_names_every_verb_with_its_usage_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0

    text = capsys.readouterr().out

    for verb in VERBS.values():
        assert f"  {verb.usage}\n      {verb.help}\n" in text


def test_docs_commands_says_the_same_as_help() -> None:
    text = (REPO / "docs" / "commands.md").read_text(encoding="utf-8")

    usages = re.findall(r"^    (dure .+)$", text, flags=re.MULTILINE)

    assert usages == [verb.usage for verb in VERBS.values()]
    for title, _ in GROUPS:
        assert f"\n## {title}\n" in text
    for flag in (flag for verb in VERBS.values() for flag in verb.flags):
        assert f"`{flag.name} {flag.metavar}".rstrip() in text


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_names_a_function_that_is_there(name: str) -> None:
    module, _, function = VERBS[name].function.partition(":")

    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*name.split(), "--help"])

    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert VERBS[name].help in text
    for flag in VERBS[name].flags:
        assert flag.name in text


def test_the_first_word_of_a_group_lists_its_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["shards", "--help"]) == 0

    text = capsys.readouterr().out

    assert "dure shards verify" in text
    assert "dure train" not in text
    assert "one word more is needed: `dure shards build`, `dure shards verify`" in refusal(capsys, "shards")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["corpus", "biuld"], "corpus build"),
        (["corpsu", "build"], "corpus build"),
        (["trian", "a.yaml"], "train"),
        (["evalute"], "evaluate"),
    ],
)
def test_a_mistyped_verb_is_recognised(capsys: pytest.CaptureFixture[str], words: list[str], meant: str) -> None:
    assert refusal(capsys, *words).endswith(f"no such verb; did you mean `dure {meant}`?")


def test_a_word_like_no_verb_points_to_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, "qqqq") == "error: dure qqqq: no such verb; `dure --help` lists the verbs"


def test_no_words_at_all_print_help_and_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([])

    assert caught.value.code == 2
    assert "dure corpus build" in capsys.readouterr().err


def test_a_mistyped_flag_is_recognised(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, "corpus", "build", "--ouput", "x")

    assert message == "error: dure corpus build: unrecognized arguments: --ouput; did you mean --output?"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train"], "CONFIG is missing"),
        (["train", "a.yaml", "b.yaml"], "takes a config and its flags, got 'a.yaml b.yaml'"),
        (["demo", "a.yaml"], "takes no word and its flags, got 'a.yaml'"),
        (["shards", "verify"], "DIR is missing"),
        (["train", "a.yaml", "--gpus", "0"], "'0' is not an integer of 1 or more"),
        (["train", "a.yaml", "--cpu-ranks", "two"], "'two' is not an integer of 1 or more"),
        (["train", "a.yaml", "--gpus", "1", "--cpu-ranks", "2"], "not allowed with argument"),
        (["shards", "inspect", "d", "--split", "test"], "invalid choice: 'test'"),
        (["corpus", "build", "--output"], "expected one argument"),
    ],
)
def test_words_that_do_not_fit_are_refused(capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    assert says in refusal(capsys, *words)


def test_flags_config_and_overrides_may_stand_in_any_order() -> None:
    arguments = parsed(VERBS["train"], "a.b=1", "--cpu-ranks", "2", "configs/x=1.yaml", "train.max_steps=3")

    assert arguments.config == "configs/x=1.yaml"
    assert arguments.overrides == ["a.b=1", "train.max_steps=3"]
    assert (arguments.cpu_ranks, arguments.gpus) == (2, None)


def test_flags_of_paths_become_overrides_before_those_that_were_typed() -> None:
    words = ["--input", "가 나", "b", "task_bytes=5", "--output", "yes: #1", "output=z"]

    arguments = parsed(VERBS["corpus build"], *words)

    assert arguments.config is None
    assert arguments.overrides == ['inputs=["가 나", "b"]', "task_bytes=5", 'output="yes: #1"', "output=z"]


def test_a_path_that_looks_like_an_override_is_a_path_where_it_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("year=2021").mkdir()

    arguments = parsed(VERBS["corpus build"], "--input", "year=2021", "year=2022")

    assert arguments.overrides == ['inputs=["year=2021"]', "year=2022"]


@pytest.mark.parametrize("text", ["a b", "3", "yes", "x: y", "#", "'", '"', "a\nb", "한글", "[", "~"])
def test_a_hostile_path_reaches_the_config_as_it_was_typed(text: str) -> None:
    from data_pipeline.config import read_tree

    arguments = parsed(VERBS["corpus build"], "--input", text, "--output", text)

    assert read_tree(None, arguments.overrides) == {"inputs": [text], "output": text}


def test_the_exit_code_is_what_the_function_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERBS, "try", Verb("try", "", f"{__name__}:receive", "DIR", (Flag("--name", "X", ""),)))

    assert cli.main(["try", "folder", "--name", "a"]) == 7
    assert vars(received.pop()) == {"path": "folder", "name": "a"}


def test_a_config_error_is_printed_without_a_traceback_as_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("inptus: [x]\noutput: o\ntask_bytes: 0\n")

    done = dure("corpus", "build", str(path))

    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == [
        "error:",
        f"{path}: inputs: missing; it has no default, so the config must set it",
        f"{path}: task_bytes: input should be greater than 0, got 0",
        f"{path}: inptus: unknown key; did you mean 'inputs'?",
    ]


def test_a_stage_error_is_one_line(tmp_path: Path) -> None:
    done = dure("shards", "verify", str(tmp_path / "none"))

    assert done.returncode == 2
    assert done.stdout == b""
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"error: {tmp_path / 'none'}: no such folder, but a finished folder of shards is needed;")


def test_the_traceback_is_shown_on_request(tmp_path: Path) -> None:
    done = dure("shards", "verify", str(tmp_path / "none"), DURE_TRACEBACK="1")

    assert done.returncode == 1
    assert b"Traceback" in done.stderr
    assert b"StageError" in done.stderr


def test_a_fault_of_our_own_keeps_its_traceback() -> None:
    assert cli.exit_code_of(KeyError("x")) is None


def test_each_kind_of_error_has_its_exit_code() -> None:
    from data_pipeline.config import ConfigError
    from data_pipeline.disk import DiskError
    from data_pipeline.stage import StageError
    from launch.tasks import TaskError
    from trainer.errors import RunError, TrainingStopped

    codes = {type(error): cli.exit_code_of(error) for error in (ConfigError("a"), StageError("a"), TaskError("a"))}

    assert codes == {ConfigError: 2, StageError: 2, TaskError: 1}
    assert cli.exit_code_of(TaskError("a", is_input=True)) == 2
    assert cli.exit_code_of(DiskError(28, "a")) == 1
    assert cli.exit_code_of(TrainingStopped("a")) == 1
    assert cli.exit_code_of(RunError("a")) == 2  # as `python -m trainer` ends
    assert cli.exit_code_of(FileNotFoundError(2, "No such file", "x")) == 1


def test_a_message_of_the_disk_stands_alone_and_another_names_its_file() -> None:
    from data_pipeline.disk import DiskError

    assert cli.message_of(DiskError(28, "out: write failed: full")) == "error: out: write failed: full"
    assert cli.message_of(PermissionError(13, "Permission denied", "a/b")) == (
        "error: a/b: Permission denied; check the path and its permissions"
    )


def test_korean_is_utf8_whatever_the_locale() -> None:
    done = dure("--help", LC_ALL="C", LANG="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")

    assert done.returncode == 0
    assert "두레" in done.stdout.decode("utf-8")


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["config", "show", "configs/debug.yaml"]])
def test_a_reader_that_has_left_causes_no_traceback(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "launch.cli", *words]

    done = subprocess.run(command, cwd=REPO, stdout=writing, stderr=subprocess.PIPE, timeout=60)

    os.close(writing)
    assert done.stderr == b""
    assert done.returncode in (0, 1)  # argparse swallows the fault of its own help


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("dure")
