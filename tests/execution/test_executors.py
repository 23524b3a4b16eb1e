"""Who does tasks: processes of this machine, and Dask's workers; the bytes are those of threads."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname
from typing import Any

import pytest

from recover import ExecutionError, PlanError
from recover.cli import main
from recover.execution import batches, stacks
from recover.execution.dask import Dask, cluster
from recover.execution.processes import Processes
from recover.execution.tasks import Executor, Take, Task, Watch, carry_out
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from tests.support.sharded_commands import Shared
from tests.support.sharding import contents, figures

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("default")]  # Dask's own warnings


class Records:
    """An executor that knows of tasks what JSON does."""

    def __init__(self) -> None:
        self.n_tasks = 0

    def run(self, tasks: Iterable[Task], take: Take, watch: Watch | None = None) -> None:
        for task in tasks:
            gave = carry_out(json.loads(json.dumps(task.to_record())))
            take(task, json.loads(json.dumps(gave)))
            self.n_tasks += 1


@pytest.fixture(scope="module")
def dask() -> Iterator[Dask]:
    """Two workers, which are processes."""
    with cluster("local", 2) as found:
        yield found


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor is a task, and every task goes alone."""
    monkeypatch.setattr(stacks, "LARGEST", 0)
    monkeypatch.setattr(batches, "_WEIGHTS", 1)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[Executor], None]:
    """Has commands use an executor."""

    def give(executor: Executor) -> None:
        @contextmanager
        def means(args: Any, progress: Any, **others: Any) -> Iterator[dict[str, Any]]:
            yield {"n_threads": 1, "progress": progress, "executor": executor, **others}

        monkeypatch.setattr("recover.cli._sharing.means_of", means)

    return give


def test_records_are_enough(
    shared: Shared, tmp_path: Path, given: Callable[[Executor], None]
) -> None:
    expected = shared.do(tmp_path / "once")
    executor = Records()
    given(executor)
    home = tmp_path / "home"
    document = shared.do(home)
    assert executor.n_tasks > 1
    shared.check_same(home, document, tmp_path / "once", expected)


def test_dask_does_all_commands(
    shared: Shared, tmp_path: Path, given: Callable[[Executor], None], dask: Dask
) -> None:
    expected = shared.do(tmp_path / "once")
    given(dask)
    home = tmp_path / "home"
    shared.check_same(home, shared.do(home), tmp_path / "once", expected)


def check_merge(inputs: list[Path], folder: Path, executor: Executor, **how: Any) -> None:
    """A merge with deviations in parts by threads, and by others."""
    results = []
    for name, who in (("threads", None), ("others", executor)):
        home = folder / name
        home.mkdir(exist_ok=True)
        options: dict[str, Any] = {"uncertainty": home / "deviation.gguf", "tensors": "blk|norm"}
        plan = plan_merge(inputs, home / "out.gguf", split_max_size=700_000, **options)
        results.append(execute_merge(plan, executor=who, n_threads=2, **(how if who else {})))
    assert contents(folder / "threads") == contents(folder / "others")
    assert figures(results[0].to_json()) == figures(results[1].to_json())


def test_processes(tiny: list[Path], tmp_path: Path, one_by_one: None) -> None:
    seen: list[int] = []
    check_merge(tiny, tmp_path, Processes(2), progress=lambda n, _: seen.append(n))
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]


def test_a_process_that_dies(tiny: list[Path], tmp_path: Path, one_by_one: None) -> None:
    def kill(n_done: int, n_all: int) -> None:
        import multiprocessing

        for child in multiprocessing.active_children():
            child.kill()

    plan = plan_merge(tiny, tmp_path / "out.gguf", tensors="blk")
    with pytest.raises(ExecutionError, match="was killed; is there enough memory"):
        execute_merge(plan, executor=Processes(1), progress=kill)
    assert not [*tmp_path.iterdir()]


def test_dask_merges(tiny: list[Path], tmp_path: Path, one_by_one: None, dask: Dask) -> None:
    seen: list[int] = []
    check_merge(tiny, tmp_path, dask, progress=lambda n, _: seen.append(n))
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]


def test_a_worker_that_dies_half_way(tiny: list[Path], tmp_path: Path, one_by_one: None) -> None:
    killed: list[int] = []
    with cluster("local", 2) as dask:
        pids = list(dask._client.run(os.getpid).values())

        def kill(n_done: int, n_all: int) -> None:
            if n_done > n_all // 3 and not killed:
                killed.append(pids[0])
                os.kill(pids[0], signal.SIGKILL)

        check_merge(tiny, tmp_path, dask, progress=kill)
    assert killed


def test_a_scheduler_that_is_lost(
    tiny: list[Path], tmp_path: Path, one_by_one: None, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = plan_merge(tiny, tmp_path / "out.gguf", tensors="blk")
    with cluster("local", 1) as dask:

        def leave(n_done: int, n_all: int) -> None:
            if n_done > n_all // 4:
                dask._client.cluster.close()

        with pytest.raises(ExecutionError, match="the Dask cluster is lost"):
            execute_merge(plan, executor=dask, progress=leave)
    assert not [*tmp_path.iterdir()]
    assert "ERROR" not in capfd.readouterr().err


def test_errors_of_tasks_arrive(tiny: list[Path], tmp_path: Path, dask: Dask) -> None:
    plan = plan_merge(tiny, tmp_path / "out.gguf", tensors="blk.0")
    task = Task("recover.merge.work", plan.digest, ("no",), 0, 1, (), (), {"version": "0"})
    for executor, where in (
        (dask, f"worker of the Dask cluster, on {gethostname()}"),
        (Processes(1), ""),
    ):
        with pytest.raises(PlanError, match=f"planned by version 0.*{where}"):
            executor.run([task], lambda *_: None)
    with pytest.raises(PlanError, match="'os' does no tasks"):
        carry_out(task.to_record() | {"does": "os"})


def test_an_input_that_is_another_one_elsewhere(
    tiny: list[Path], tmp_path: Path, capsys: Any
) -> None:
    from recover.quantize.plan import plan_quantize
    from recover.quantize.work import Quantizing
    from tests.support.models import TINY

    source = tmp_path / "source.gguf"
    source.write_bytes(TINY.read_bytes())
    work = Quantizing(plan_quantize(source, tmp_path / "out.gguf", "Q8_0"))
    place = tmp_path / "place"
    (task, *_) = work.tasks([0], [place])
    os.utime(source, ns=(0, 10**18))
    with pytest.raises(PlanError, match="were changed since the work was planned"):
        carry_out(task.to_record())
    assert not place.exists()


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from recover.cli import main\n"
        "if __name__ == '__main__':\n"
        "    status = main(sys.argv[1:])\n"
        "    print(*[name for name in ('dask', 'distributed') if name in sys.modules])\n"
        "    sys.exit(status)\n"
    )
    script = Path(str(arguments[-1])) / "script.py"
    script.write_text(code)
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments[:-1])],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_line(tiny: list[Path], tmp_path: Path) -> None:
    command = ["merge", *tiny, "--tensors", "blk.0", "--threads", "1", "--json", "-q", "-o"]
    (home := tmp_path / "home").mkdir()
    alone = run(*command, home / "once.gguf", tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.endswith("}\n\n")  # nothing of Dask is imported
    both = run(*command, home / "dask.gguf", "--scheduler", "local", "--shard", "1/1", tmp_path)
    assert both.returncode == 0, both.stderr
    assert both.stdout.endswith("dask distributed\n")
    assert not both.stderr
    assert (home / "dask.gguf").read_bytes() == (home / "once.gguf").read_bytes()
    first, second = (json.JSONDecoder().raw_decode(each.stdout)[0] for each in (alone, both))
    assert figures(first) == figures(second)


def test_nobody_answers(
    tiny: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("recover.execution.dask._CONNECT_SECONDS", 0.5)
    command = ["merge", str(tiny[0]), "-o", str(tmp_path / "out.gguf"), "--scheduler"]
    for address in ("tcp://127.0.0.1:9", "nonsense://"):
        assert main([*command, address]) == 1
        assert "no Dask scheduler answers at" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "recover.execution.dask")
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main([*command, "local"]) == 1
    assert "pip install 'recover-weights[distributed]'" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
