"""Closed, full and broken standard streams; signals that come twice, or while nothing looks."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.models import ROOT, TINY

RECOVER = f"{shlex.quote(sys.executable)} -m recover"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT
    )


@pytest.fixture
def merge(tiny: list[Path], tmp_path: Path) -> str:
    return f"{RECOVER} merge {shlex.join(map(str, tiny))} -o {tmp_path / 'out.gguf'} --force"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams(merge: str, tmp_path: Path, closed: str) -> None:
    done = shell(f"{merge} {closed}")
    assert done.returncode == 0
    assert done.stderr == ""
    assert (done.stdout == "") == (">&- 2" in closed or closed == ">&-" or "<&- >" in closed)
    shell(f"{merge.replace('out.gguf', 'other.gguf')}")
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_messages_never_reach_stdout(tmp_path: Path) -> None:
    done = shell(f"{RECOVER} merge {tmp_path}/none.gguf -o {tmp_path}/out.gguf --json 2>&-")
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize("command", ["inspect", "evaluate --by tensor --truth"])
def test_a_full_device(command: str) -> None:
    done = shell(f"{RECOVER} {command} {TINY} {TINY} >/dev/full")
    assert done.returncode == 1
    assert done.stderr == (
        "recover: error: the results cannot be printed: No space left on device\n"
    )


def test_messages_that_cannot_be_written(tmp_path: Path) -> None:
    done = shell(f"{RECOVER} merge {tmp_path}/none.gguf -o {tmp_path}/out.gguf 2>/dev/full")
    assert (done.returncode, done.stdout) == (1, "")


def test_nobody_reads(tiny: list[Path]) -> None:
    done = shell(f"{RECOVER} inspect {tiny[0]} --json | true; echo ${{PIPESTATUS[0]}}")
    assert done.stderr == ""
    assert done.stdout in ("0\n", "1\n")


# Work that never looks at the flag, and an output that is on its way.
STUBBORN = """
import signal, sys, time
import recover.merge.execute as execute
from recover.cli import main
def work(self, tile):
    sys.stderr.write("busy\\n")
    time.sleep(60)
execute._Worker.work = work
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("n_signals", [1, 2])
def test_work_that_does_not_look(tiny: list[Path], tmp_path: Path, n_signals: int) -> None:
    out = tmp_path / "out.gguf"
    command = [sys.executable, "-c", STUBBORN, "merge", *map(str, tiny), "-o", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        process.stderr.readline()
        start = time.monotonic()
        for number in (signal.SIGTERM, signal.SIGINT)[:n_signals]:
            process.send_signal(number)
            time.sleep(0.2)
        messages = process.stderr.read()
    seconds = time.monotonic() - start
    assert process.returncode == 128 + signal.SIGTERM
    assert messages.endswith("recover: stopped (Terminated); nothing new was left behind\n")
    assert seconds < (10 if n_signals == 1 else 1.4)
    assert not list(tmp_path.iterdir())


# A signal in a function that C calls: exceptions end there.
CALLBACK = """
import ctypes, os, signal, sys
import recover.merge.execute as execute
from recover.cli import main
work = execute.check_relations
@ctypes.CFUNCTYPE(None)
def called():
    os.kill(os.getpid(), signal.SIGTERM)
    sum(range(10000))
def check(plan):
    called()
    work(plan)
execute.check_relations = check
sys.exit(main(sys.argv[1:]))
"""


def test_a_signal_in_a_callback_is_not_lost(tiny: list[Path], tmp_path: Path) -> None:
    command = [sys.executable, "-c", CALLBACK, "merge", *map(str, tiny), "-o", "out.gguf"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr == "recover: stopped (Terminated); nothing new was left behind\n"
    assert not list(tmp_path.iterdir())


def test_signals_that_are_ignored_stay_so(merge: str, tmp_path: Path) -> None:
    done = shell(f"trap '' HUP; {merge} --json & sleep 0.7; kill -HUP $!; wait $!")
    assert done.returncode == 0
    assert json.loads(done.stdout)["output"] == str(tmp_path / "out.gguf")
