"""The command line as scripts use it: exit status, streams, JSON, signals, speed of start."""

import argparse
import gc
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numba.core import event

import recover
from recover._compiled import jit as _jit
from recover.cli import _compiling, _console, _streams, main
from tests.support.gguf_files import stored, write_gguf
from tests.support.models import TINY

pytestmark = pytest.mark.long

RECOVER = (sys.executable, "-m", "recover")


def run(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A process of its own."""
    command = [*RECOVER, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


class Here:
    """Commands in this process, which starts none."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Status and what is printed, as of a process."""
        words = [*map(str, arguments)]
        status = main(words)
        printed = self._capsys.readouterr()
        return subprocess.CompletedProcess(words, status, printed.out, printed.err)


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(capsys)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file for which next to nothing is compiled."""
    return write_gguf(
        tmp_path / "small.gguf",
        {"blk.0.ffn_up.weight": stored("F32", np.ones((2, 32), np.float32))},
    )


def test_garbage_is_collected_as_before() -> None:
    before = gc.get_threshold()
    assert main(["inspect", str(TINY), "-q"]) == 0
    assert main(["inspect", "missing.gguf", "-q"]) == 1
    assert gc.get_threshold() == before


def test_version_and_usage() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"recover {recover.__version__}\n")
    for arguments in (
        ["merge"],
        ["merge", "a.gguf"],
        ["nonsense"],
        ["merge", "--threads", "0"],
    ):
        done = run(*arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("recover: error: ")
        assert done.stderr.splitlines()[1].startswith("usage: recover")
        assert done.stderr.count("\n") == 2


@pytest.mark.parametrize(
    "options",
    [
        ["merge", "-o", "o.gguf", "--method", "linear", "--estimate", "map"],
        ["merge", "-o", "o.gguf", "--method", "linear", "--simulate", "100000"],
        ["merge", "-o", "o.gguf", "--tensors", "("],
        ["evaluate", "--truth", str(TINY), "--chunks", "4"],
        ["evaluate", "--truth", str(TINY), "--native"],
    ],
    ids=" ".join,
)
def test_options_that_do_not_go_together(
    options: list[str],
    tiny: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([options[0], str(tiny[0]), str(tiny[1]), *options[1:]]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("recover: error: ")
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_reblock_says_that_it_only_copied(
    tiny: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reblock", str(tiny[0]), "-o", str(tmp_path / "copy.gguf")]) == 0
    assert "nothing was re-blocked" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, contextlib, recover.cli\n"
        "with contextlib.suppress(SystemExit): recover.cli.main(['--help'])\n"
        "heavy = {'cvxpy', 'gguf', 'matplotlib', 'numba', 'numpy', 'rich', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    assert "merge" in done.stdout


def test_merge_of_gguf_files_loads_no_other_container(tiny: list[Path], tmp_path: Path) -> None:
    arguments = ["merge", *map(str, tiny), "-o", str(tmp_path / "out.gguf"), "-q"]
    code = (
        "import sys, contextlib, recover.cli\n"
        f"with contextlib.suppress(SystemExit): recover.cli.main({arguments})\n"
        "heavy = {'recover.containers.huggingface.reader', 'scipy', 'statistics'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert (tmp_path / "out.gguf").exists()


def test_merge_json(tiny: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    done = run("merge", *tiny, "-o", out, "--method", "midpoint", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert list(document) == [
        "output",
        "method",
        "inputs",
        "n_weights",
        "seconds",
        "weights_per_second",
        "expected_mse_ratio",
        "conflict_fraction",
        "tensors",
    ]
    assert document["output"] == str(out)
    assert document["method"] == "midpoint"
    assert document["inputs"] == [str(path) for path in tiny]
    assert document["conflict_fraction"] == 0
    assert 0.7 < document["expected_mse_ratio"] < 0.9
    tensors = {tensor["name"]: tensor for tensor in document["tensors"]}
    keys = ["name", "shape", "action", "types", "expected_rmse", "conflict_fraction"]
    assert all(list(tensor) == keys for tensor in tensors.values())
    assert tensors["blk.0.ffn_up.weight"]["action"] == "merge"
    assert tensors["blk.0.ffn_up.weight"]["shape"] == [256, 768]
    assert tensors["blk.0.ffn_up.weight"]["types"] == ["Q5_K", "Q4_K", "Q2_K"]
    assert tensors["blk.0.ffn_norm.weight"]["action"] == "copy"
    assert tensors["output.weight"]["action"] == "convert"
    assert out.exists()


def test_default_method_and_messages(tiny: list[Path], tmp_path: Path, here: Here) -> None:
    out = tmp_path / "out.gguf"
    done = here("merge", *tiny, "-o", out)
    assert done.returncode == 0
    assert "(posterior)" in done.stdout
    assert f"wrote {out}" in done.stdout
    assert done.stderr == ""


def test_verbose_says_what_the_method_does(
    tiny: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["merge", *map(str, tiny[:2]), "-o", str(tmp_path / "out.gguf"), "--dry-run"]
    assert main([*command, "--method", "midpoint"]) == 0
    assert capsys.readouterr().err == ""
    assert main([*command, "--method", "midpoint", "-v"]) == 0
    assert capsys.readouterr().err.startswith("recover: midpoint: the middle of the intersection")


def test_dry_run_writes_nothing(tiny: list[Path], tmp_path: Path, here: Here) -> None:
    done = here("merge", *tiny, "-o", tmp_path / "out.gguf", "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert plan["tensors"][0]["name"] == "output.weight"
    assert not list(tmp_path.iterdir())
    for more in ([], ["-v"]):
        done = here("merge", *tiny, "-o", tmp_path / "out.gguf", "--dry-run", *more)
        assert ("blk.0.ffn_up.weight" in done.stdout) == bool(more)
        lines = done.stdout.splitlines()
        assert lines[-5] == "30 tensors, 2.89M weights: 22 to merge, 7 to copy, 1 to convert"
        starts = "to read: ", "to write: 5.5 MiB (", "expected time: ", "expected gain: mean square"
        for line, start in zip(lines[-4:], starts, strict=True):
            assert line.startswith(start)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_dry_run_fails_if_there_is_too_little_space(
    more: list[str],
    tiny: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["merge", *map(str, tiny), "-o", str(tmp_path / "out.gguf"), "--dry-run", *more]
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: SimpleNamespace(free=5_000_000))
    assert main(command) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"recover: error: {tmp_path}: has 5,000,000 bytes free, and 5,7")
    assert captured.out.endswith("}\n" if more else "of that of the best single input\n")


def test_logs_are_told_of_progress_once_a_minute(
    tiny: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = iter(range(0, 10_000, 25))
    clock = SimpleNamespace(monotonic=lambda: next(times))
    monkeypatch.setattr("recover.cli._console.time", clock)
    args = argparse.Namespace(quiet=False)
    with _console.progress_bar(args, "merging") as progress:
        assert progress is not None
        for n_done in range(1000, 11_000, 1000):  # one each 25 seconds
            progress(n_done, 20_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "recover: merging: 15.0% of 20k weights, 40 weights/s, 7 min left"
    assert len(lines) == 3
    args.quiet = True
    with _console.progress_bar(args, "merging") as progress:
        assert progress is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.01, "less than 0.1 s"),
        (3.14, "3.1 s"),
        (60, "60 s"),
        (150, "2 min"),
        (12_000, "3 h 20 min"),
        (200_000, "2.3 days"),
    ],
)
def test_times(seconds: float, text: str) -> None:
    assert _console.duration(seconds) == text


def test_merge_says_where_nothing_is_gained(tiny: list[Path], tmp_path: Path, here: Here) -> None:
    done = here("merge", tiny[0], "-o", tmp_path / "one.gguf")
    assert "error: 1.000 of that of the best single input, so nothing is gained\n" in done.stdout
    done = here("merge", TINY, "-o", tmp_path / "float.gguf")
    assert "nothing to estimate: of every tensor an input is unquantized" in done.stdout


def test_tensors_selects(tiny: list[Path], tmp_path: Path, here: Here) -> None:
    done = here("merge", *tiny, "-o", tmp_path / "o.gguf", "--tensors", r"blk\.1\..*ffn", "--json")
    names = {tensor["name"] for tensor in json.loads(done.stdout)["tensors"]}
    assert names == {f"blk.1.ffn_{part}.weight" for part in ("down", "gate", "norm", "up")}
    assert here("merge", *tiny, "-o", tmp_path / "p.gguf", "--tensors", "nothing").returncode == 1


@pytest.mark.parametrize("kind", ["missing", "empty", "garbage", "truncated", "folder"])
def test_bad_input_is_one_line(kind: str, tiny: list[Path], tmp_path: Path, here: Here) -> None:
    bad = tmp_path / "bad.gguf"
    if kind == "folder":
        bad.mkdir()
    elif kind != "missing":
        data = tiny[0].read_bytes()
        bad.write_bytes({"empty": b"", "garbage": b"x" * 99, "truncated": data[:-1]}[kind])
    before = sorted(tmp_path.iterdir())
    done = here("merge", tiny[0], bad, "-o", tmp_path / "out.gguf")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("recover: error: ")
    assert done.stderr.count("\n") == 1
    assert str(bad) in done.stderr
    assert ("tensor" in done.stderr) == (kind == "truncated")
    assert sorted(tmp_path.iterdir()) == before


def test_output_that_cannot_be_written(tiny: list[Path], tmp_path: Path, here: Here) -> None:
    copy = tmp_path / "input.gguf"
    copy.write_bytes(tiny[0].read_bytes())
    for out in (copy, tmp_path / "no" / "folder.gguf", tmp_path, Path("/dev/null")):
        done = here("merge", copy, tiny[1], "-o", out)
        assert done.returncode == 1
        assert done.stderr.startswith(f"recover: error: {out}: ")
        assert done.stderr.count("\n") == 1
    assert copy.read_bytes() == tiny[0].read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["input.gguf"]


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run("merge", tmp_path / "none.gguf", "-o", tmp_path / "out.gguf", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("recover: error: ")


SLOW_MERGE = """
import signal, sys, time
from recover.cli import _compiling, _console, _streams, main
from recover.merge.work import Worker
work = Worker.work
def slow(self, task, files):
    time.sleep(0.2)
    sys.stderr.write("tile\\n")
    return work(self, task, files)
Worker.work = slow
# whoever runs the tests in the background may have had it ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_leave_no_output(number: signal.Signals, tiny: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    command = [sys.executable, "-c", SLOW_MERGE, "merge", *map(str, tiny), "-o", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "tile\n"
        assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
        process.send_signal(number)
        messages = process.stderr.read()
    assert not out.exists()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        return
    assert process.returncode == 128 + number
    assert not list(tmp_path.iterdir())
    assert messages.splitlines()[-1].startswith("recover: stopped")
    assert "Traceback" not in messages


def test_broken_pipe_is_quiet(tiny: list[Path]) -> None:
    command = [*RECOVER, "evaluate", str(tiny[0]), "--truth", str(TINY), "--by", "tensor"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        messages = process.stderr.read()
    assert b"Traceback" not in messages
    assert b"Exception" not in messages


def test_demo(capsys: pytest.CaptureFixture[str]) -> None:
    """What it prints for people is compared with docs/measured.md by tests/docs/test_docs.py."""
    assert main(["demo", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    models = {Path(model["path"]).name: model["total"]["mse"] for model in document["models"]}
    first = models["tiny-llama-3m-Q5_K_M.gguf"]
    assert models["merged-best.gguf"] == pytest.approx(first, rel=1e-3)
    assert models["merged-linear.gguf"] < 0.83 * first
    assert models["merged-midpoint.gguf"] < 0.83 * first
    assert models["merged-posterior.gguf"] < models["merged-posterior-Q8_0.gguf"] < 0.82 * first
    assert document["inspection"]["together"]["same_original"]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("terminal", [True, False])
def test_people_are_told_of_compilation_once(
    first: bool,
    terminal: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a log of the first run alone, which would look as if it hung."""
    monkeypatch.setattr(_jit, "_folder", lambda _path: tmp_path)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    if not first:
        (tmp_path / "of-an-earlier-run.nbi").touch()
    listener = _compiling.Compilations()

    def told() -> str:
        with event.trigger_event("tests:compile"):
            return capsys.readouterr().err

    event.register("tests:compile", listener)
    try:
        monkeypatch.setattr(_streams, "_quiet", True)
        assert told() == ""
        monkeypatch.setattr(_streams, "_quiet", False)
        text = told()
        assert text.startswith("recover: compiling for this CPU") == (first or terminal)
        assert text.count("\n") == (first or terminal)
        assert told() == ""
    finally:
        event.unregister("tests:compile", listener)


COMPILING = "recover: compiling for this CPU first, which takes half a minute or more once\n"


def test_a_quiet_first_run(small: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    done = run("inspect", small, "-q", env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.glob("cache/**/*.nbc"))  # it compiled


def test_people_are_told_of_compilation_before_it(tiny: list[Path], tmp_path: Path) -> None:
    """A merge compiles when it looks at samples, long before there is a bar."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    some = "merge", *map(str, tiny), "-o", str(tmp_path / "out.gguf"), "--tensors", "norm"
    master, slave = pty.openpty()
    with subprocess.Popen([*RECOVER, *some, "--dry-run"], stderr=slave, env=environment) as process:
        os.close(slave)
        first = os.read(master, 1000)
        process.kill()  # what it compiles takes long
    os.close(master)
    assert first.startswith(b"recover: compiling for this CPU first")


def test_a_log_of_the_first_run_and_the_second(small: Path, tmp_path: Path) -> None:
    """Which compiles nothing; machine code is kept apart from the package, maybe read-only."""
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "NUMBA_DEBUG_CACHE": "1",
    }
    environment.pop("NUMBA_CACHE_DIR", None)
    runs = [run("inspect", small, env=environment) for _ in range(2)]
    assert [(done.returncode, done.stderr) for done in runs] == [(0, COMPILING), (0, "")]
    saved = [line for line in runs[0].stdout.splitlines() if "data saved to" in line]
    assert saved
    assert all(environment["XDG_CACHE_HOME"] in line for line in saved)
    assert "data saved to" not in runs[1].stdout
    assert "data loaded from" in runs[1].stdout
