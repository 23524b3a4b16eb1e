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

from recover.cli import main
from tests.support.models import ROOT, TINY

pytestmark = pytest.mark.long

RECOVER = f"{shlex.quote(sys.executable)} -m recover"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT
    )


@pytest.fixture
def merge(tiny: list[Path], tmp_path: Path) -> str:
    return f"{RECOVER} merge {shlex.join(map(str, tiny))} -o {tmp_path / 'out.gguf'} --force"


CANNOT = "recover: error: the results cannot be printed: {}\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams(merge: str, tiny: list[Path], tmp_path: Path, closed: str) -> None:
    done = shell(f"{merge} {closed}")
    is_printed = closed in ("2>&-", "<&-")
    assert done.returncode == (0 if is_printed else 1)
    assert done.stderr == (CANNOT.format("Bad file descriptor") if closed == ">&-" else "")
    assert (done.stdout != "") == is_printed
    main(["merge", *map(str, tiny), "-o", str(tmp_path / "other.gguf"), "-q"])
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_messages_never_reach_stdout(tmp_path: Path) -> None:
    done = shell(f"{RECOVER} merge {tmp_path}/none.gguf -o {tmp_path}/out.gguf --json 2>&-")
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize(
    "command",
    [f"inspect {TINY}", f"evaluate --by tensor --truth {TINY} {TINY}", "--help", "merge --version"],
)
@pytest.mark.parametrize(
    ("where", "why"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_results_that_cannot_be_printed(command: str, where: str, why: str) -> None:
    done = shell(f"{RECOVER} {command} {where}")
    assert (done.returncode, done.stderr) == (1, CANNOT.format(why))


def test_what_failed_before_counts_first(tmp_path: Path) -> None:
    done = shell(f"{RECOVER} inspect {tmp_path}/none.gguf >&-")
    assert done.returncode == 1
    assert "none.gguf" in done.stderr
    assert done.stderr.count("\n") == 1


def test_messages_that_cannot_be_written(tmp_path: Path) -> None:
    done = shell(f"{RECOVER} merge {tmp_path}/none.gguf -o {tmp_path}/out.gguf 2>/dev/full")
    assert (done.returncode, done.stdout) == (1, "")

    done = shell(f"{RECOVER} merge --no-such-option 2>/dev/full")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("command", [f"inspect {TINY}", f"inspect {TINY} --json", "--help"])
def test_nobody_reads(command: str) -> None:
    done = shell(f"{{ sleep 0.2; {RECOVER} {command}; echo $? >&2; }} | true")
    assert (done.stdout, done.stderr) == ("", "0\n")


def test_nobody_reads_of_what_fails(tiny: list[Path]) -> None:
    """The status is that of the work, however much of it is read."""
    done = shell(f"{{ sleep 0.2; {RECOVER} verify {tiny[0]} {TINY}; echo $? >&2; }} | true")
    assert done.stderr.splitlines()[-1] == "1"


def test_head_is_no_error() -> None:
    many = f"{RECOVER} evaluate --by tensor --truth {TINY} {TINY} {TINY} {TINY}"
    done = shell(f"set -o pipefail; {many} | head -n 1; echo $?")
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


# A signal while the commands are imported.
EARLY = """
import os, signal, sys
class Finder:
    def find_spec(name, path, target=None):
        if name == "recover.cli._commands":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
signal.signal(signal.SIGINT, signal.default_int_handler)
from recover.cli import main
sys.exit(main(["--version"]))
"""


def test_an_interrupt_while_the_program_loads() -> None:
    command = [sys.executable, "-c", EARLY]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr == "recover: stopped (Interrupt); nothing new was left behind\n"


LOADED = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
before = set(sys.modules)
import recover.cli
print(*set(sys.modules) - before)
"""


def test_little_is_loaded_before_interrupts_are_caught() -> None:
    command = [sys.executable, "-I", "-S", "-c", LOADED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"recover", "recover.cli", "signal"} <= loaded
    assert not loaded & {"argparse", "pathlib", "re", "threading", "typing"}


# Work that never looks at the flag, and an output that is on its way.
STUBBORN = """
import signal, sys, time
from recover.cli import main
from recover.merge.work import Worker
def work(self, task, files):
    sys.stderr.write("busy\\n")
    time.sleep(60)
Worker.work = work
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
