"""Interrupted merges as real processes on real disks."""

import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import recover.merge.resume as resume_module
from recover.cli import main
from recover.execution import reserving
from tests.support.file_systems import mounted
from tests.support.interrupting import N_TENSORS, Interrupt, Whole, Workers
from tests.support.models import ROOT
from tests.support.resuming import contents, make_plan

# Real processes, real disks.

SLOW_MERGE = """
import sys, time
import recover.execution.stacks as stacks
import recover.merge.resume as resume
from recover.cli import main
from recover.execution.journal import Journal
from recover.merge.work import Worker
work, append, n_fast, n_written = Worker.work, Journal.append, int(sys.argv.pop(1)), 0
resume._SECONDS = 0
stacks.LARGEST = 0  # one tensor a task
def count(self, record):
    global n_written
    append(self, record)
    n_written += len(record.get("tensors", []))
def slow(self, task, files):
    global n_fast
    if n_fast == 0:
        while n_written < 20:
            time.sleep(0.01)
        print("slow", file=sys.stderr, flush=True)
        time.sleep(0.3)
    n_fast -= 1
    return work(self, task, files)
Worker.work, Journal.append = slow, count
sys.exit(main(sys.argv[1:]))
"""


def interrupt_process(arguments: list[str], number: signal.Signals) -> tuple[int, str]:
    """Exit status and messages of a merge that gets a signal when 20 tensors are complete."""
    command = [sys.executable, "-c", SLOW_MERGE, "20", *arguments, "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        lines = list(itertools.takewhile(lambda line: line and line != "slow\n", process.stderr))
        process.send_signal(number)
        lines.append(process.stderr.read())
    return process.returncode, "".join(lines)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_signals(
    tiny: list[Path],
    tmp_path: Path,
    whole: Whole,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    case = "one file" if number == signal.SIGTERM else "parts and deviations"
    out = tmp_path / "out.gguf"
    arguments = ["merge", *map(str, tiny), "-o", str(out), "--resume", "--json"]
    if case != "one file":
        arguments += [
            "--split-max-size",
            "1500K",
            "--uncertainty",
            str(tmp_path / "deviation.gguf"),
        ]
    status, messages = interrupt_process(arguments, number)
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    if number == signal.SIGKILL:
        assert (status, messages) == (-number, "")
    else:
        kept, stopped = messages.splitlines()
        assert status == 128 + number
        assert "kept for the same command with --resume: 2" in kept
        assert stopped == (
            f"recover: stopped ({signal.strsignal(number)}); {out} is kept as far as it is"
            " complete, for --resume"
        )
    assert main(arguments) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert captured.err.startswith("recover: ")
    assert captured.err.count("\n") == 1
    assert f"{document['output']}: going on with what is there: 2" in captured.err
    files, expected = whole(case)
    assert contents(tmp_path) == files
    assert document | {"output": Path(document["output"]).name} == {
        **{key: document[key] for key in ("seconds", "weights_per_second")},
        **{key: value for key, value in expected.items() if key != "n_exact"},
    }


def test_quiet(
    tiny: list[Path], tmp_path: Path, interrupt: Interrupt, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(make_plan(tiny, tmp_path), 5)
    arguments = ["merge", *map(str, tiny), "-o", str(tmp_path / "out.gguf"), "--resume", "-q"]
    assert main(arguments) == 0
    assert capsys.readouterr().err == ""


def test_full_disk(
    tiny: list[Path],
    tmp_path: Path,
    whole: Whole,
    workers: Workers,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One that does not show before the work."""
    monkeypatch.setattr(reserving, "_check_space", lambda *_each: None)
    monkeypatch.setattr(resume_module, "_SECONDS", 0)
    workers.before = lambda: time.sleep(0.01)
    small = tmp_path / "small"
    with mounted(small, "7m"):
        ballast = small / "ballast"
        ballast.write_bytes(bytes(4_000_000))
        arguments = ["merge", *map(str, tiny), "-o", str(small / "out.gguf"), "--threads", "1"]
        assert main([*arguments, "--resume"]) == 1
        kept, error = capsys.readouterr().err.splitlines()
        n_kept = int(kept.split("--resume: ")[1].split(" of")[0])
        assert 5 < n_kept < 25
        assert "no space left for its 5,798" in error
        ballast.unlink()
        workers.done.clear()
        assert main([*arguments, "--resume"]) == 0
        assert f"going on with what is there: {n_kept} of 30" in capsys.readouterr().err
        assert len(workers.done) == N_TENSORS - n_kept
        assert contents(small) == whole("one file")[0]
