"""Laws 12 and 14 in the launcher: signals reach every rank, any failure fails the whole, nobody outlives it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.local import Place, environments, reserved_port
from trainer.errors import RunError
from trainer.launch_environment import wants_gpu

IP_LOCAL_PORT_RANGE = 51  # linux/in.h; the socket module lacks it

# `dure train` as far as the launcher goes: argv is the run folder, the number of ranks, the grace time, a rank's code.
# Tests that run under nohup ignore SIGHUP, which a launcher inherits and respects.
LAUNCHER = """
import signal, sys
from pathlib import Path
from launch.local import hold_signals, start_ranks
signal.signal(signal.SIGHUP, signal.SIG_DFL)
hold_signals()
folder, num_ranks, grace, code = sys.argv[1:5]
Path(folder, "held").touch()
command = [sys.executable, "-c", code, folder]
sys.exit(start_ranks(
    command, num_ranks=int(num_ranks), device="cpu", run_folder=Path(folder), grace_seconds=float(grace)
))
"""

# What every rank's code begins with: it says that it is ready in a file, and knows how a trainer ends.
RANK = """
import os, sys, time
from pathlib import Path
from trainer.resilience import ExitRecord, StopFlag, die_with_parent
from trainer.run_folder import RunFolder
stop = StopFlag()
stop.install()
die_with_parent()
rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
def ready():
    (folder / f"ready-{rank}").write_text(str(os.getpid()))
def loop(seconds=60):
    end = time.time() + seconds
    while not stop.requested and time.time() < end:
        time.sleep(0.01)
def finish(code, reason):
    if rank == 0:
        RunFolder(folder, rank=0).write_exit(ExitRecord(code=code, reason=reason, step=7))
    (folder / f"ended-{rank}").write_text(reason)
    sys.exit(code)
"""
TRAINS = RANK + "ready()\nloop()\nfinish(85 if stop.requested else 0, stop.signal_name)\n"


def launch(folder: Path, code: str, *, num_ranks: int = 2, grace: float = 20) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(folder), str(num_ranks), str(grace), code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
    )


def wait_for(*paths: Path, is_empty: bool = False) -> None:
    deadline = time.monotonic() + 120
    while not all(path.exists() and (is_empty or path.read_text()) for path in paths):
        assert time.monotonic() < deadline, f"none of {paths} came"
        time.sleep(0.01)


def ready_pids(folder: Path, num_ranks: int = 2) -> list[int]:
    paths = [folder / f"ready-{rank}" for rank in range(num_ranks)]
    wait_for(*paths)
    return [int(path.read_text()) for path in paths]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def wait_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 120
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "a rank outlived its launcher"
        time.sleep(0.05)


def test_ranks_that_are_done_end_the_whole_with_0_and_only_rank_0_speaks(tmp_path: Path) -> None:
    code = RANK + "print('rank', rank, os.environ['WORLD_SIZE'])\nfinish(0, 'done')\n"
    process = launch(tmp_path, code, num_ranks=3)
    assert process.communicate(timeout=180) == ("rank 0 3\n", "")
    assert process.returncode == 0


def test_a_warning_of_another_rank_carries_its_name(tmp_path: Path) -> None:
    # One write a rank: `print` makes two, between which the other rank's line may fall.
    code = RANK + "os.write(2, b'slow disk\\nand more\\n')\nfinish(0, 'done')\n"
    _, errors = launch(tmp_path, code).communicate(timeout=180)
    assert sorted(errors.splitlines()) == ["[rank 1] and more", "[rank 1] slow disk", "and more", "slow disk"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_launcher_stops_every_rank_and_ends_with_85(tmp_path: Path, number: signal.Signals) -> None:
    process = launch(tmp_path, TRAINS)
    ready_pids(tmp_path)
    process.send_signal(number)
    process.communicate(timeout=180)

    expected = "SIGTERM" if number == signal.SIGHUP else number.name
    assert process.returncode == 85
    assert [(tmp_path / f"ended-{rank}").read_text() for rank in (0, 1)] == [expected, expected]
    assert json.loads((tmp_path / "exit.json").read_text())["reason"] == expected


@pytest.mark.stages
def test_a_signal_at_any_moment_of_the_start_is_lost_by_no_one(tmp_path: Path) -> None:
    codes = []
    for try_number in range(12):
        folder = tmp_path / str(try_number)
        folder.mkdir()
        process = launch(folder, TRAINS.replace("loop()", "loop(120)"))
        if is_late := try_number >= 6:
            wait_for(folder / "held", is_empty=True)
        time.sleep(0.05 * try_number - 0.3 * is_late)
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        process.communicate(timeout=180)
        assert time.monotonic() - started < 110, "the ranks did not hear of it"
        codes.append(process.returncode)
    assert set(codes) <= {85, -signal.SIGTERM}
    assert codes[-6:] == [85] * 6


def test_no_thread_is_there_before_signals_are_held() -> None:
    """A thread that NumPy or Arrow starts at its import would take a signal that the main thread holds back."""
    code = "import os, sys\nfrom launch.verb_train import hold_signals\nprint(len(os.listdir('/proc/self/task')))\n"
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
    assert done.stdout == "1\n", done.stderr


def test_a_signal_while_the_ranks_load_waits_until_they_can_take_it(tmp_path: Path) -> None:
    loads = (
        "import os, sys, time\nopen(f'{sys.argv[1]}/loading-' + os.environ['RANK'], 'w').write('x')\ntime.sleep(1)\n"
    )
    process = launch(tmp_path, loads + TRAINS)
    wait_for(tmp_path / "loading-0", tmp_path / "loading-1")
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=180)
    assert process.returncode == 85
    assert (tmp_path / "ended-1").read_text() == "SIGUSR1"


def test_a_signal_before_the_start_begins_nothing(tmp_path: Path) -> None:
    launcher = LAUNCHER.replace(
        "hold_signals()\nfolder", "hold_signals()\nimport os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nfolder"
    )
    done = subprocess.run(
        [sys.executable, "-c", launcher, str(tmp_path), "2", "5", TRAINS], capture_output=True, text=True
    )
    assert done.returncode == 85
    assert "SIGTERM: stopped before the ranks were started; nothing was begun" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["held"]


def test_a_rank_that_fails_is_named_and_ends_the_whole(tmp_path: Path) -> None:
    code = RANK + "ready()\nif rank == 1:\n    time.sleep(0.3)\n    sys.exit(3)\nloop()\nfinish(85, stop.signal_name)\n"
    process = launch(tmp_path, code)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 3
    assert "rank 1 of 2 (pid " in errors
    assert "ended with exit code 3; the others were stopped. The last complete checkpoint stands" in errors
    assert (tmp_path / "ended-0").read_text() == "SIGTERM"


def test_a_killed_rank_ends_the_whole_though_the_others_say_85(tmp_path: Path) -> None:
    process = launch(tmp_path, TRAINS)
    os.kill(ready_pids(tmp_path)[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 137
    assert "rank 1 of 2 (pid " in errors
    assert "was killed by SIGKILL; was it out of memory (메모리 부족)? see dmesg; the others were stopped" in errors


@pytest.mark.stages
def test_a_rank_that_will_not_stop_is_ended_by_force_with_its_children(tmp_path: Path) -> None:
    code = RANK + (
        "import subprocess\n"
        "if rank == 0:\n"
        "    child = subprocess.Popen(['sleep', '600'])\n"
        "    (folder / 'child').write_text(str(child.pid))\n"
        "ready()\n"
        "if rank == 1:\n"
        "    while not (folder / 'child').exists(): time.sleep(0.01)\n"
        "    sys.exit(4)\n"
        "time.sleep(600)\n"
        "while True: time.sleep(600)\n"
    )
    process = launch(tmp_path, code, grace=0.5)
    pids = ready_pids(tmp_path)
    started = time.monotonic()
    process.communicate(timeout=180)
    assert process.returncode == 4
    assert time.monotonic() - started < 120, "they slept to their end"
    wait_gone([*pids, int((tmp_path / "child").read_text())])


def test_a_refusal_that_a_rank_has_told_is_not_told_again(tmp_path: Path) -> None:
    process = launch(tmp_path, RANK + "if rank == 0:\n    print('error: x', file=sys.stderr)\nsys.exit(2)\n")
    _, errors = process.communicate(timeout=180)
    # The rank that is stopped because the other one refused may say so.
    assert errors.count("error: x") == 1
    assert "dure train" not in errors
    assert process.returncode == 2


@pytest.mark.stages
def test_an_exit_record_of_an_earlier_start_is_no_excuse(tmp_path: Path) -> None:
    first = launch(tmp_path, TRAINS)
    ready_pids(tmp_path)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=180)
    assert first.returncode == 85

    second = launch(tmp_path, RANK + "sys.exit(85)\n")
    _, errors = second.communicate(timeout=180)
    assert second.returncode == 1
    assert "the ranks ended with 85, 85, but this start's exit.json is missing; taken as failed" in errors

    third = launch(tmp_path, RANK + "sys.exit(0)\n")
    third.communicate(timeout=180)
    assert third.returncode == 0


@pytest.mark.stages
def test_two_presses_of_ctrl_c_end_it_unsaved_also_a_rank_that_hangs(tmp_path: Path) -> None:
    hangs = (
        "import signal\nif rank == 1:\n    for n in (signal.SIGINT, signal.SIGTERM): signal.signal(n, signal.SIG_IGN)\n"
    )
    process = launch(tmp_path, RANK + hangs + "ready()\ntime.sleep(600)\ntime.sleep(600)\n", grace=600)
    pids = ready_pids(tmp_path)
    process.send_signal(signal.SIGINT)
    time.sleep(1.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 130
    assert errors.count("Ctrl-C: stopping after this step") == 1
    assert "nothing saved" in errors
    wait_gone(pids)


def test_a_killed_launcher_leaves_no_rank_behind_and_they_save(tmp_path: Path) -> None:
    process = launch(tmp_path, TRAINS)
    pids = ready_pids(tmp_path)
    process.kill()
    process.communicate(timeout=180)
    wait_gone(pids)
    assert [(tmp_path / f"ended-{rank}").read_text() for rank in (0, 1)] == ["SIGTERM", "SIGTERM"]
    assert json.loads((tmp_path / "exit.json").read_text())["code"] == 85


def test_signals_are_the_callers_again_once_the_ranks_are_done(tmp_path: Path) -> None:
    code = LAUNCHER.replace("sys.exit(", "result = (", 1)
    code += "import signal\nassert result == 0 and not signal.pthread_sigmask(signal.SIG_BLOCK, set())\n"
    subprocess.run([sys.executable, "-c", code, str(tmp_path), "1", "5", "pass"], check=True, timeout=60)


def test_each_rank_knows_its_place() -> None:
    ranks = environments(2, device="cpu", port=2345, env={"HOME": "/root", "CUDA_VISIBLE_DEVICES": "0,1"})
    assert [(env["RANK"], env["LOCAL_RANK"], env["WORLD_SIZE"], env["LOCAL_WORLD_SIZE"]) for env in ranks] == [
        ("0", "0", "2", "2"),
        ("1", "1", "2", "2"),
    ]
    assert {env["MASTER_ADDR"] + ":" + env["MASTER_PORT"] for env in ranks} == {"127.0.0.1:2345"}
    assert {env["CUDA_VISIBLE_DEVICES"] for env in ranks} == {""}
    cores = len(os.sched_getaffinity(0))
    assert {env["OMP_NUM_THREADS"] for env in ranks} == {str(max(1, cores // 2))}
    assert ranks[0]["HOME"] == "/root"
    assert {env["DURE_DEVICE"] for env in ranks} == {"cpu"}


def test_on_gpus_the_devices_and_a_chosen_number_of_threads_stay() -> None:
    (rank,) = environments(1, device="gpu", port=1, env={"CUDA_VISIBLE_DEVICES": "3", "OMP_NUM_THREADS": "7"})
    assert (rank["CUDA_VISIBLE_DEVICES"], rank["OMP_NUM_THREADS"]) == ("3", "7")


def test_ranks_that_were_started_for_gpus_never_train_on_a_cpu() -> None:
    """Whoever starts them: `dure train`, or a node of a cluster whose driver is broken."""
    for place in (None, Place(first_rank=2, world_size=4, master="n1")):
        (rank,) = environments(1, device="gpu", port=1, env={}, place=place)
        with pytest.raises(RunError, match="started this rank for a GPU, but torch finds none here; fix the driver"):
            wants_gpu(rank, num_devices=0)
        assert wants_gpu(rank, num_devices=1)


@pytest.mark.stages
def test_rank_0_can_listen_on_the_port_and_nobody_else_is_given_it(tmp_path: Path) -> None:
    code = (
        "import os, sys, torch.distributed as dist\n"
        "store = dist.TCPStore('127.0.0.1', int(os.environ['MASTER_PORT']), 2, is_master=os.environ['RANK'] == '0')\n"
        "store.add('met', 1)\n"
        "store.wait(['met'])\n"
        "print(dist.PrefixStore('x', store) is not None)\n"
    )
    process = launch(tmp_path, code)
    output, errors = process.communicate(timeout=180)
    assert (process.returncode, output) == (0, "True\n"), errors


def test_a_reserved_port_is_never_handed_out() -> None:
    with reserved_port() as port, socket.socket() as other:
        try:
            # This socket may be given that one port only.
            other.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", port << 16 | port))
        except OSError:
            pytest.skip("the kernel has no IP_LOCAL_PORT_RANGE (Linux 6.3)")
        with pytest.raises(OSError, match="Address already in use"):
            other.bind(("127.0.0.1", 0))
    with socket.socket() as other:
        other.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", port << 16 | port))
        other.bind(("127.0.0.1", 0))


def test_what_a_rank_prints_is_kept_attempt_after_attempt(tmp_path: Path) -> None:
    code = RANK + "print('said', rank)\nos.write(2, b'\\r 10%\\r 20%\\rwarned\\n')\nos.write(1, b'torn')\nos._exit(0)\n"
    for _ in range(2):
        launch(tmp_path, code).communicate(timeout=180)
    for rank in (0, 1):
        lines = (tmp_path / "logs" / f"rank-0000{rank}.log").read_text().splitlines()
        heads = [line for line in lines if line.startswith("===")]
        assert len(heads) == 2
        assert heads[0].startswith(f"=== attempt 1 job none host {socket.gethostname()} 20")
        others = [line for line in lines if line not in heads]
        assert sorted(others) == sorted(["torn", f"said {rank}", "warned"] * 2)


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way")
    output, errors = launch(tmp_path, RANK + "print('said')\nfinish(0, 'done')\n").communicate(timeout=180)
    assert output == "said\n"
    assert errors.count("this rank's output is not kept") == 2


def test_on_a_terminal_the_first_rank_has_one_too_and_its_log_no_bar(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    # One write a stream: what two streams say in pieces mixes on a terminal.
    told = "os.write(1, f'tty {sys.stdout.isatty()} {sys.stderr.isatty()}\\n'.encode())"
    code = RANK + f"{told}\nos.write(2, b'\\r 10%\\r 20%\\n')\n"
    command = [sys.executable, "-c", LAUNCHER, str(tmp_path), "1", "20", code]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):
            while chunk := os.read(ours, 1000):
                shown += chunk
    assert process.returncode == 0
    assert b"tty True True" in shown and b"\r 10%\r 20%" in shown
    assert sorted((tmp_path / "logs" / "rank-00000.log").read_text().splitlines()[1:]) == [" 20%", "tty True True"]
