"""g++ and ninja are found, installed where root allows, or named in one message."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import pytest

from launch import toolchain
from trainer.errors import RunError

APT = """#!/bin/sh
echo "$@" >> {log}
{then}
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH: it holds neither g++ nor ninja."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "touch", "chmod"):
        (folder / name).symlink_to(
            next(Path(place, name) for place in ("/bin", "/usr/bin") if Path(place, name).exists())
        )
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path / "scripts"))
    return folder


def apt_get(programs: Path, then: str) -> Path:
    """An apt-get that logs its words and then does `then`; returns the log."""
    log = programs / "apt.log"
    (programs / "apt-get").write_text(APT.format(log=log, then=then))
    (programs / "apt-get").chmod(0o755)
    return log


def make_program(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


def test_tools_of_the_environment_are_found_and_passed_on_to_children(programs: Path, tmp_path: Path) -> None:
    make_program(programs / "g++")
    make_program(tmp_path / "scripts" / "ninja")

    toolchain.prepare_tools()
    toolchain.prepare_tools()

    assert os.environ["PATH"].split(os.pathsep) == [str(tmp_path / "scripts"), str(programs)]


def test_root_installs_what_is_missing(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    log = apt_get(programs, f"for p in g++ ninja; do touch {programs}/$p; chmod +x {programs}/$p; done")

    toolchain.prepare_tools()

    assert log.read_text() == "install -y --no-install-recommends g++ ninja-build\n"


def test_package_lists_are_fetched_where_there_are_none(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    fails_without_lists = f"""case $1 in
        update) touch {programs}/lists;;
        install) [ -e {programs}/lists ] || exit 100
                 for p in g++ ninja; do touch {programs}/$p; chmod +x {programs}/$p; done;;
    esac"""
    log = apt_get(programs, fails_without_lists)

    toolchain.prepare_tools()

    assert [line.split()[0] for line in log.read_text().splitlines()] == ["install", "update", "install"]


def test_without_root_everything_missing_is_named_in_one_message(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    log = apt_get(programs, "exit 0")

    with pytest.raises(RunError) as caught:
        toolchain.prepare_tools()

    assert str(caught.value) == (
        "toolchain: g++ ninja-build is missing (컴파일러 없음), and only root may install packages; DeepSpeed "
        "compiles an op for several ranks on a CPU: have an administrator run `apt-get install g++ ninja-build`, "
        "or train with engine.kind=none"
    )
    assert not log.exists()


def test_a_machine_without_apt_and_an_apt_that_fails_say_so(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    with pytest.raises(RunError, match="there is no apt-get here"):
        toolchain.prepare_tools()
    apt_get(programs, "echo 'E: no network' >&2; exit 100")
    with pytest.raises(RunError, match="apt-get install: E: no network; DeepSpeed"):
        toolchain.prepare_tools()


@pytest.mark.parametrize(("environment", "code"), [({}, 0), ({"CI": "true"}, 1)])
def test_missing_tools_fail_the_setup_only_under_ci(
    programs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
    code: int,
) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("sys.argv", ["toolchain"])
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert toolchain.main() == code
    assert "g++ ninja-build is missing" in capsys.readouterr().err
