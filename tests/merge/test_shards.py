"""Parts of a merge that several processes do: the bytes and figures are those of one."""

import itertools
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from recover import OutputError, PlanError
from recover import _stopping as stopping
from recover.cli import main
from recover.execution import common
from recover.execution.shares import Shard
from recover.execution.sharing import PartResult, Sharing
from recover.merge.execute import MergeResult, execute_merge, execute_merge_part
from recover.merge.merging import Merging
from recover.merge.plan import MergePlan, plan_merge
from tests.support.gguf_files import F32Array, stored
from tests.support.merging import UP, Make
from tests.support.sharding import (
    LAST_MOMENTS,
    MOMENTS,
    contents,
    figures,
    hidden,
    in_a_process,
    parts,
)

pytestmark = pytest.mark.long

LAYOUTS: dict[str, dict[str, Any]] = {
    "file": {"tensors": r"blk\.0|norm|token"},
    "parts and deviations": {"tensors": r"blk\.[01]", "split_max_size": 300_000, "deviates": True},
    "folder": {"max_shard_size": 2_000_000},
}


class Case:
    """A merge, the files and figures of which are known."""

    def __init__(self, inputs: list[Path], folder: Path, layout: str) -> None:
        self.inputs = inputs
        self.layout = layout
        once = folder / "once"
        result = execute_merge(self.plan(once), n_threads=2)
        self.expected, self.figures = contents(once), figures(result.to_json())
        self.warnings = result.warnings

    def plan(self, home: Path) -> MergePlan:
        home.mkdir(exist_ok=True)
        options = dict(LAYOUTS[self.layout])
        if options.pop("deviates", False):
            beside = home / "beside"
            beside.mkdir(exist_ok=True)
            options["uncertainty"] = beside / "deviation.gguf"
        output: Any = f"{home}/out/" if self.layout == "folder" else home / "out.gguf"
        return plan_merge(self.inputs, output, **options)

    def part(self, home: Path, shard: Shard) -> MergeResult | PartResult:
        return execute_merge_part(self.plan(home), shard, n_threads=1)

    def check(self, home: Path, result: MergeResult | PartResult) -> None:
        """All is as one process does it, and little is left."""
        assert isinstance(result, MergeResult)
        assert contents(home) == self.expected
        assert figures(result.to_json()) == self.figures
        assert result.warnings == self.warnings
        (left,) = hidden(home)
        assert left.endswith(".shards.json")


@pytest.fixture(scope="module", params=LAYOUTS)
def case(
    request: pytest.FixtureRequest, tiny: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Case:
    return Case(tiny, tmp_path_factory.mktemp("case"), request.param)


def test_any_order(case: Case, tmp_path: Path) -> None:
    for order in ((0, 1, 2), (2, 0, 1)):
        home = tmp_path / "-".join(map(str, order))
        *others, last = (case.part(home, parts(3)[i]) for i in order)
        assert isinstance(others[0], PartResult)
        assert isinstance(others[1], PartResult)
        assert others[0].missing == tuple(sorted(order[i] + 1 for i in (1, 2)))
        assert others[1].missing == (order[2] + 1,)
        case.check(home, last)


def test_one_part_and_more_than_tensors(case: Case, tmp_path: Path) -> None:
    case.check(tmp_path / "one", case.part(tmp_path / "one", Shard(1, 1)))
    if case.layout == "file":
        n = len(case.plan(tmp_path / "many").tensors) + 2
        results = [case.part(tmp_path / "many", shard) for shard in parts(n)]
        assert any(isinstance(each, PartResult) and not each.n_weights for each in results)
        case.check(tmp_path / "many", results[-1])


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_repeated(
    case: Case, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = parts(3)
    with monkeypatch.context() as patch:
        MOMENTS[moment](patch)
        assert in_a_process(lambda: case.part(tmp_path, two)) < 0
    assert isinstance(case.part(tmp_path, one), PartResult)
    with monkeypatch.context() as patch:
        MOMENTS[moment](patch)
        assert in_a_process(lambda: case.part(tmp_path, three)) < 0
    assert isinstance(case.part(tmp_path, three), PartResult)
    case.check(tmp_path, case.part(tmp_path, two))


@pytest.mark.parametrize("moment", LAST_MOMENTS)
def test_the_last_is_killed(
    case: Case, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard in parts(3)[:2]:
        case.part(tmp_path, shard)
    with monkeypatch.context() as patch:
        LAST_MOMENTS[moment](patch)
        assert in_a_process(lambda: case.part(tmp_path, Shard(3, 3))) < 0
    if moment != "named":  # others leave it to that one
        before = contents(tmp_path)
        other = case.part(tmp_path, Shard(1, 3))
        assert isinstance(other, PartResult)
        assert (other.missing, other.finished_by) == ((), 3)
        assert contents(tmp_path) == before
    case.check(tmp_path, case.part(tmp_path, Shard(3, 3)))


def test_repeated_when_all_is_done(case: Case, tmp_path: Path) -> None:
    results = [case.part(tmp_path, shard) for shard in parts(2)]
    changed = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    for shard in parts(2):
        case.check(tmp_path, case.part(tmp_path, shard))
    assert changed == {path: path.stat().st_mtime_ns for path in changed}
    assert isinstance(results[1], MergeResult)


def test_an_output_that_is_gone_is_written_again(tiny: list[Path], tmp_path: Path) -> None:
    case = Case(tiny, tmp_path, "file")
    home = tmp_path / "home"
    for _ in range(2):
        case.check(home, [case.part(home, shard) for shard in parts(2)][-1])
        (home / "out.gguf").unlink()


def test_all_at_the_same_time(case: Case, tmp_path: Path) -> None:
    """One of those that end at the same time finishes."""
    for round_ in range(3):
        home = tmp_path / str(round_)
        plans = [case.plan(home) for _ in range(3)]
        results: list[MergeResult | PartResult] = []

        def work(plan: MergePlan, shard: Shard, results: list[Any] = results) -> None:
            results.append(execute_merge_part(plan, shard, n_threads=1))

        threads = [
            threading.Thread(target=work, args=each) for each in zip(plans, parts(3), strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 3
        (last,) = (each for each in results if isinstance(each, MergeResult))
        case.check(home, last)


def test_both_see_all_parts_done(tiny: list[Path], tmp_path: Path) -> None:
    """Whatever they see, one alone gets the claim."""
    case = Case(tiny, tmp_path, "file")
    home = tmp_path / "home"
    claims: list[int] = []

    def first(sharing: Sharing) -> None:
        claims.append(1)
        other = case.part(home, Shard(1, 2))  # while the second finishes
        assert isinstance(other, PartResult)
        assert (other.missing, other.finished_by) == ((), 2)

    case.part(home, Shard(1, 2))
    with pytest.MonkeyPatch.context() as patch:
        add_up = Sharing._add_up

        def watched(sharing: Sharing) -> None:
            first(sharing)
            add_up(sharing)

        patch.setattr(Sharing, "_add_up", watched)
        case.check(home, case.part(home, Shard(2, 2)))
    assert claims == [1]


@pytest.fixture
def started(tiny: list[Path], tmp_path: Path) -> Path:
    """A folder in which a part of two is done."""
    plan = plan_merge(tiny, tmp_path / "out.gguf", tensors=r"blk\.0")
    execute_merge_part(plan, Shard(1, 2), n_threads=1)
    return tmp_path


def test_other_plans_are_refused(tiny: list[Path], started: Path) -> None:
    before = {path: path.read_bytes() for path in started.rglob("*") if path.is_file()}

    def refused(words: str, *arguments: Any, n: int = 2, **options: Any) -> None:
        plan = plan_merge(*arguments, **options)
        with pytest.raises(OutputError, match=rf"parts of another plan \({words}\).*remove .*"):
            execute_merge_part(plan, Shard(2, n), n_threads=1)
        assert before == {path: path.read_bytes() for path in before}

    output = started / "out.gguf"
    refused("other inputs, other options", tiny[:2], output, tensors=r"blk\.0")
    refused("other options", tiny, output, tensors=r"blk\.0", method="linear")
    refused("in 2 parts, not 3", tiny, output, tensors=r"blk\.0", n=3)
    os.utime(started, (0, 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recover.execution.fingerprints.__version__", "99.0")
        refused("other version", tiny, output, tensors=r"blk\.0")
    plan = plan_merge(tiny, output, tensors=r"blk\.0")
    result = execute_merge_part(plan, Shard(2, 2), n_threads=1)
    assert isinstance(result, MergeResult)
    # What is complete is in nobody's way.
    other = plan_merge(tiny, output, tensors=r"blk\.1")
    for shard in parts(2):
        execute_merge_part(other, shard, n_threads=1)
    assert len(hidden(started)) == 1


def test_started_over(tiny: list[Path], started: Path) -> None:
    """As the message says."""
    (folder,) = started.glob(".*.shards")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    plan = plan_merge(tiny, started / "out.gguf", tensors=r"blk\.1")
    results = [execute_merge_part(plan, shard, n_threads=1) for shard in parts(3)]
    assert isinstance(results[-1], MergeResult)


def test_files_that_vanish(tiny: list[Path], started: Path) -> None:
    (partial,) = started.glob(".*.shards/*.gguf")
    plan = plan_merge(tiny, started / "out.gguf", tensors=r"blk\.0")
    moved = partial.rename(started / "moved")
    with pytest.raises(OutputError, match=r"is not there any more .*to start over, remove"):
        execute_merge_part(plan, Shard(2, 2), n_threads=1)
    partial.write_bytes(moved.read_bytes()[:-1])
    with pytest.raises(OutputError, match=r"bytes"):
        execute_merge_part(plan, Shard(2, 2), n_threads=1)
    moved.rename(partial)
    (done,) = started.glob(".*.shards/1.done")
    done.write_text("{}")
    with pytest.raises(OutputError, match=r"1\.done: is damaged; remove it, and do part 1/2"):
        execute_merge_part(plan, Shard(2, 2), n_threads=1)
    done.unlink()
    results = [execute_merge_part(plan, shard, n_threads=1) for shard in parts(2)]
    assert isinstance(results[0], MergeResult)


def test_damaged_bytes_are_made_again(
    tiny: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(tiny, tmp_path, "file")
    home = tmp_path / "home"
    with monkeypatch.context() as patch:
        MOMENTS["done"](patch)
        assert in_a_process(lambda: case.part(home, Shard(1, 2))) < 0
    (partial,) = home.glob(".*.shards/*.gguf")
    partial.write_bytes(b"\xff" * partial.stat().st_size)
    said: list[str] = []
    execute_merge_part(case.plan(home), Shard(1, 2), n_threads=1, tell=said.append)
    assert "damaged on the disk, and made again" in said[0]
    case.check(home, case.part(home, Shard(2, 2)))


def test_a_part_that_is_being_done(tiny: list[Path], tmp_path: Path) -> None:
    plan = plan_merge(tiny, tmp_path / "out.gguf", tensors=r"blk\.0")

    def again(n_done: int, n_all: int) -> None:
        with pytest.raises(OutputError, match="another process is writing it with --shard 1/2"):
            execute_merge_part(plan, Shard(1, 2), n_threads=1)
        seen.append(n_done)

    seen: list[int] = []
    execute_merge_part(plan, Shard(1, 2), n_threads=1, progress=again)
    assert seen


def test_contradictions_show_at_the_end(
    make: Make, truth: dict[str, F32Array], tmp_path: Path
) -> None:
    """With force, the last one goes on with what all have done."""
    other = stored("Q4_K", truth[UP][::-1].copy())
    inputs = [make("Q6_K"), make("Q4_K", {UP: other})]
    once = plan_merge(inputs, tmp_path / "once.gguf")
    expected = execute_merge(once, n_threads=1, force=True)
    plan = plan_merge(inputs, tmp_path / "out.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recover.merge.execute.check_relations", lambda plan: None)
        assert isinstance(execute_merge_part(plan, Shard(2, 2), n_threads=1), PartResult)
        for _ in range(2):
            with pytest.raises(PlanError, match="contradict"):
                execute_merge_part(plan, Shard(1, 2), n_threads=1)
    assert not plan.output.exists()
    for shard in (*parts(2), *parts(2)):  # whichever is repeated
        result = execute_merge_part(plan, shard, n_threads=1, force=True)
        assert isinstance(result, MergeResult)
        assert figures(result.to_json()) == figures(expected.to_json())
        assert result.warnings == expected.warnings
    assert plan.output.read_bytes() == once.output.read_bytes()


def test_a_signal(tiny: list[Path], tmp_path: Path) -> None:
    case = Case(tiny, tmp_path, "file")
    home = tmp_path / "home"
    said: list[str] = []

    def stop(n_done: int, n_all: int) -> None:
        stopping.request(2)

    plan = case.plan(home)
    try:
        with pytest.raises(stopping.Stopped):
            execute_merge_part(plan, Shard(1, 2), n_threads=1, progress=stop, tell=said.append)
    finally:
        stopping.reset()
    assert not said or "kept for the same command" in said[0]
    results = [case.part(home, shard) for shard in parts(2)]
    case.check(home, results[-1])


def test_disk_full(tiny: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tiny, tmp_path, "file")
    home = tmp_path / "home"

    def full(*_arguments: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr("recover.execution.output.make_room", full)
        with pytest.raises(OutputError, match="no space left for its"):
            case.part(home, Shard(1, 2))
    assert not [*home.glob(".*.shards/*.gguf")]
    with monkeypatch.context() as patch:
        patch.setattr("recover.execution.output.write_all", full)
        with pytest.raises(OutputError, match="no space left for its"):
            case.part(home, Shard(1, 2))
    case.check(home, [case.part(home, shard) for shard in parts(2)][-1])


def test_without_links(tiny: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_arguments: object) -> None:
        raise OSError(95, os.strerror(95))

    case = Case(tiny, tmp_path, "file")
    monkeypatch.setattr("recover.execution.common.os.link", no_links)
    case.check(tmp_path / "home", [case.part(tmp_path / "home", s) for s in parts(2)][-1])


def test_without_locks(tiny: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recover.execution.journal.fcntl", None)
    monkeypatch.setattr("recover.execution.locks.fcntl", None)
    case = Case(tiny, tmp_path, "file")
    case.check(tmp_path / "home", [case.part(tmp_path / "home", s) for s in parts(2)][-1])


def test_twins_without_locks(
    tiny: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes with the same part, of which one finishes while the other one works."""
    monkeypatch.setattr("recover.execution.journal.fcntl", None)
    monkeypatch.setattr("recover.execution.locks.fcntl", None)
    case, home = Case(tiny, tmp_path, "file"), tmp_path / "home"
    twins: list[object] = []

    def after_the_other(path: Path, document: Any) -> None:
        if not twins:
            twins.append(None)
            twins[0] = case.part(home, Shard(1, 1))
        common.put(path, document)

    monkeypatch.setattr("recover.execution.sharing.put", after_the_other)
    with pytest.raises(OutputError, match="another process with the same part has finished it"):
        case.part(home, Shard(1, 1))
    assert isinstance(twins[0], MergeResult)
    case.check(home, case.part(home, Shard(1, 1)))


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "1", "a/b", "-1/3", "1/3/4", "1/99999999"])
def test_no_parts(text: str, tiny: list[Path], tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as error:
        main(["merge", *map(str, tiny), "-o", str(tmp_path / "out.gguf"), f"--shard={text}"])
    assert error.value.code == 2
    assert "--shard" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_command_line(tiny: list[Path], tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "out.gguf"
    command = ["merge", *map(str, tiny), "-o", str(output), "--tensors", "norm", "--threads", "1"]
    assert main([*command, "--shard", "2/2"]) == 0
    shown = capsys.readouterr().out
    assert f"part 2/2 of {output} is done" in shown
    assert "not done yet: part 1 of 2" in shown
    assert main([*command, "--shard", "2/2", "--json"]) == 0
    assert '"missing": [\n    1\n  ]' in capsys.readouterr().out
    assert not output.exists()
    assert main([*command, "--shard", "1/2"]) == 0
    assert f"wrote {output}" in capsys.readouterr().out
    assert main([*command, "--shard", "2/2"]) == 0
    shown = capsys.readouterr()
    assert "is complete already" in shown.err
    assert f"wrote {output}" in shown.out


def test_the_same_work_for_all(tiny: list[Path], tmp_path: Path) -> None:
    from recover.execution.shares import shares

    units = Merging(plan_merge(tiny, tmp_path / "out.gguf")).units
    for n in (1, 2, 3, 7):
        found = shares(units, n)
        assert sorted(itertools.chain(*found)) == list(range(len(units)))
        sizes = [sum(units[i].n_weights for i in each) for each in found]
        assert max(sizes) <= sum(sizes) / n + max(unit.n_weights for unit in units)


def test_nobody_writes_alone_what_parts_are_written_of(case: Case, tmp_path: Path) -> None:
    """It would be replaced by the last part, or replace it."""
    case.part(tmp_path, Shard(1, 2))
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=r"in parts \(1 done\).*do what is left with --shard"):
        execute_merge(case.plan(tmp_path), n_threads=1)
    assert contents(tmp_path) == before
    case.check(tmp_path, case.part(tmp_path, Shard(2, 2)))
    assert execute_merge(case.plan(tmp_path), n_threads=1, force=True)
