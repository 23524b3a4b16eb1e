"""Processes that are killed, interrupted, and whose inputs vanish: no file is lost, nothing stays.

A few tries of each by default; with ``-m slow -s`` as many as the printed counts say.
"""

import contextlib
import io
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from recover.cli import main
from recover.execution.publish import finish_earlier
from tests.support.models import ROOT

STARTED = "started"
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Tiles take a while, and the first one is announced.
SLOW_TILES = """
import signal, sys, time
import recover.merge.resume as resume
import recover.execution.tiles as tiles
from recover.cli import main
resume._SECONDS = 0.05
tiles._ENOUGH = 1  # one tile at a time
take, seconds = tiles._Queue.take, float(sys.argv.pop(1))
def slow(self, finished):
    if finished == 0:
        sys.stderr.write("started\\n")  # at once, whatever the other threads do
    time.sleep(seconds)
    return take(self, finished)
tiles._Queue.take = slow
signal.signal(signal.SIGINT, signal.default_int_handler)  # who started us may have it ignored
sys.exit(main(sys.argv[1:]))
"""

# So do the steps in which files get their names.
SLOW_NAMES = """
import os, signal, sys, time
import recover.execution.publish as publish
from recover.cli import main
pause = float(sys.argv.pop(1))
def slow(original):
    def call(*arguments):
        time.sleep(pause)
        result = original(*arguments)
        time.sleep(pause)
        return result
    return call
put = publish.put_in_place
def announce(*arguments):
    for each in (os, publish):
        for name in ("replace", "sync_folder", "_remove"):
            if hasattr(each, name):
                setattr(each, name, slow(getattr(each, name)))
    print("started", file=sys.stderr, flush=True)
    return put(*arguments)
import recover.execution.output as writer
writer.put_in_place = announce
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def _deadline() -> None:
    """Campaigns take their time; every process in them has a deadline."""


def several(few: int, many: int) -> pytest.MarkDecorator:
    """A few tries by default, and the campaign."""
    return pytest.mark.parametrize("n_tries", [few, pytest.param(many, marks=pytest.mark.slow)])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def start(script: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, **options)


def wait_until_started(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    list(itertools.takewhile(lambda line: line and line != f"{STARTED}\n", process.stderr))


def merge_into(folder: Path, inputs: list[Path], case: str) -> list[str]:
    command = ["merge", *map(str, inputs), "-o", str(folder / "out.gguf"), "--quiet"]
    if "parts" in case:
        command += ["--split-max-size", "1500K"]
    if "deviations" in case:
        command += ["--uncertainty", str(folder / "deviations.gguf")]
    if "resume" in case:
        command += ["--resume"]
    return command


def run(command: list[str]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(command) == 0


def result_of(folder: Path, command: list[str]) -> dict[str, bytes]:
    """The files of a merge that nothing happens to."""
    folder.mkdir(exist_ok=True)
    run(command)
    return contents(folder)


@several(3, 50)
def test_kills(tiny: list[Path], tmp_path: Path, n_tries: int) -> None:
    """Whenever a merge is killed, the same command makes the same bytes."""
    rng = random.Random(n_tries)
    case = "parts, deviations, resume"
    whole = result_of(tmp_path / "whole", merge_into(tmp_path / "whole", tiny, case))
    moments: Counter[str] = Counter()
    for number in range(n_tries):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        command = merge_into(folder, tiny, case)
        with start(SLOW_TILES, 0.05, *command) as process:
            if rng.random() < 0.8:
                wait_until_started(process)
            time.sleep(rng.uniform(0, 1.2))
            process.kill()
        left = contents(folder)
        moments["hidden files" if left else "nothing"] += 1
        moments["with a journal"] += any(name.endswith(".journal") for name in left)
        run(command)
        assert contents(folder) == whole
    print(f"\n{n_tries} kills, all resumed byte for byte; left behind: {dict(moments)}")


def _take_signals() -> None:
    for each in STOPPING:
        signal.signal(each, signal.SIG_DFL)


@several(4, 200)
@pytest.mark.parametrize("cache", ["empty cache", "full cache"])
def test_signals_at_random_moments(
    tiny: list[Path], tmp_path: Path, n_tries: int, cache: str
) -> None:
    """Of the first two seconds: imports, planning, compilation, tiles, names."""
    rng = random.Random(n_tries)
    outcomes: Counter[str] = Counter()
    longest = 0.0
    n_tries //= 4 if cache == "empty cache" else 2  # to compile takes long
    for number in range(n_tries):
        folder, code = tmp_path / f"{number}", tmp_path / "code"
        folder.mkdir()
        environment = dict(os.environ)
        if cache == "empty cache":
            shutil.rmtree(code, ignore_errors=True)
            environment["NUMBA_CACHE_DIR"] = str(code)
        asked = rng.choice(STOPPING)
        command = [sys.executable, "-m", "recover", *merge_into(folder, tiny, "deviations")]
        with subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
            # Who runs the tests in the background, or by nohup, has them ignored.
            preexec_fn=_take_signals,
        ) as process:
            time.sleep(rng.uniform(0, 2))
            since = time.monotonic()
            process.send_signal(asked)
            _, messages = process.communicate(timeout=60)
            longest = max(longest, time.monotonic() - since)
        names = sorted(path.name for path in folder.iterdir())
        status = process.returncode
        if status == 0:
            outcomes["had finished"] += 1
            assert names == ["deviations.gguf", "out.gguf"]
        elif status in (1, -asked):  # before any of our code, or after it
            outcomes["by Python itself"] += 1
            at_start = "Could not import runpy", "Fatal Python error: init"
            assert status < 0 or any(text in messages for text in at_start), messages
        else:
            assert status == 128 + asked, messages
            assert "recover: stopped (" in messages
            outcomes["128 + n"] += 1
        assert names in ([], ["deviations.gguf", "out.gguf"])
        outcomes["of these with complete files"] += bool(names)
    print(f"\n{n_tries} signals ({cache}), none swallowed: {dict(outcomes)}", end="")
    print(f"; the last to end took {longest:.1f} s")


KILL = (signal.SIGKILL,)
CASES = ("one", "resume", "parts", "deviations", "parts, deviations, resume")


@several(5, 40)
def test_interrupts_around_the_rename(tiny: list[Path], tmp_path: Path, n_tries: int) -> None:
    """Each name has the complete older file or the complete newer one, none is lost."""
    rng = random.Random(n_tries)
    outcomes: Counter[str] = Counter()
    older, newer = {}, {}
    for case in CASES:
        folder = tmp_path / case.replace(", ", "-")
        older[case] = result_of(folder, [*merge_into(folder, tiny, case), "--method", "best"])
        newer[case] = result_of(folder, merge_into(folder, tiny, case))
    for number in range(n_tries):
        case, is_new = CASES[number % len(CASES)], rng.random() < 0.2
        folder = tmp_path / f"{number}"
        folder.mkdir()
        before = {} if is_new else older[case]
        for name, raw in before.items():
            (folder / name).write_bytes(raw)
        how = rng.choice([(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGINT,) * 2, KILL])
        with start(SLOW_NAMES, 0.04, *merge_into(folder, tiny, case)) as process:
            wait_until_started(process)
            time.sleep(rng.uniform(0, 0.5))
            for each in how:
                process.send_signal(each)
            process.communicate(timeout=60)
        if how == KILL or len(how) > 1:  # the next run ends what this one began
            first = min(name for name in newer[case] if name.startswith("out"))
            outcomes["of these ended by the next run"] += finish_earlier(folder / first)
        left = contents(folder)
        visible = {name: raw for name, raw in left.items() if not name.startswith(".")}
        assert visible in (before, newer[case]), (case, how, sorted(left))
        outcomes["older" if visible == before else "newer"] += 1
        if how != KILL and "resume" not in case:
            assert visible == left, (case, how, sorted(left))
        run(merge_into(folder, tiny, case))
        assert contents(folder) == newer[case]
    print(f"\n{n_tries} interrupts around the rename, no file lost: {dict(outcomes)}")


@several(5, 20)
def test_inputs_that_are_truncated_while_they_are_read(
    tiny: list[Path], tmp_path: Path, n_tries: int
) -> None:
    """A line that names the file, status 1, and no file is left but what --resume keeps."""
    rng = random.Random(n_tries)
    named = 0
    whole = result_of(tmp_path / "whole", merge_into(tmp_path / "whole", tiny, "one"))
    commands = ("merge", "resume", "quantize", "bounds", "evaluate")
    for number in range(n_tries):
        inputs, folder = tmp_path / f"inputs-{number}", tmp_path / f"{number}"
        inputs.mkdir()
        folder.mkdir()
        copies = [Path(shutil.copy2(path, inputs / path.name)) for path in tiny]
        victim, what = rng.choice(copies), commands[number % len(commands)]
        arguments = merge_into(folder, copies, what)
        if what == "quantize":
            arguments = ["quantize", str(victim), "Q4_0", "--allow-requantize"]
            arguments += ["-o", str(folder / "out.gguf")]
        elif what == "bounds":
            arguments = ["bounds", *map(str, copies), "-o", str(folder / "out.safetensors")]
        elif what == "evaluate":
            arguments = ["evaluate", str(victim), "--truth", str(copies[0])]
        status = victim.stat()
        with start(SLOW_TILES, 0.05, *arguments) as process:
            wait_until_started(process)
            time.sleep(rng.uniform(0, 0.3))
            os.truncate(victim, rng.randrange(1, status.st_size))
            output, messages = process.communicate(timeout=60)
        assert process.returncode == 1, (what, output, messages)
        lines = [line for line in messages.splitlines() if line != STARTED]
        (error,) = [line for line in lines if line.startswith("recover: error: ")]
        assert len(lines) == 1
        assert f"{victim}: was truncated" in error
        named += "in tensor" in error
        left = contents(folder)
        if what != "resume":
            assert not left
            continue
        assert all(name.startswith(".") for name in left)
        shutil.copy2(next(path for path in tiny if path.name == victim.name), victim)
        run(arguments)
        assert contents(folder) == whole
    print(f"\n{n_tries} truncations, each with a message ({named} with the tensor), no file left")
