"""The tasks of a merge: any process does them alone, in any order, with the same result."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recover import InputError, OutputError, PlanError
from recover.execution.tasks import PlacedFile, Record, Take, Task, Watch
from recover.inputs.recorded import Input, OpenInputs
from recover.merge.execute import MergeResult, execute_merge
from recover.merge.plan import MergePlan, plan_merge
from recover.merge.tasks import tasks_of
from recover.merge.work import carry_out
from recover.quants import TILE
from tests.support.gguf_files import F32Array, Stored, stored, write_gguf
from tests.support.hf_folders import write_folder
from tests.support.merging import UP, Make, Q
from tests.support.models import TINY
from tests.support.resuming import figures

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
ALONE = """
import json, sys
from recover.merge.work import carry_out
for line in sys.stdin:
    print(json.dumps(carry_out(json.loads(line))), flush=True)
"""


def in_a_process(records: list[Record], folder: Path) -> list[Record]:
    """What a fresh process gives that knows nothing but some tasks."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        input="".join(json.dumps(each) + "\n" for each in records),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


class Strangers:
    """An executor: a few fresh processes have the tasks in random order, one after the other."""

    def __init__(self, folder: Path, n_processes: int = 2) -> None:
        self.n_runs = 0
        self._folder = folder
        self._n_processes = n_processes
        self._rng = np.random.default_rng(1)

    def run(self, tasks: Iterable[Task], take: Take, watch: Watch | None = None) -> None:
        self.n_runs += 1
        known = list(tasks)
        order = self._rng.permutation(len(known))
        for part in np.array_split(order, self._n_processes):
            mine = [known[i] for i in part]
            gave = in_a_process([each.to_record() for each in mine], self._folder)
            for task, result in zip(mine, gave, strict=True):
                take(task, result)
            if watch is not None:
                watch(sum(each.n_weights for each in mine))


def both(
    inputs: list[Path], folder: Path, strangers: Strangers | None = None, **options: Any
) -> tuple[MergeResult, MergeResult]:
    """A merge by threads and one by strangers, whose files are the same; what either gives."""
    execution = {key: options.pop(key) for key in ("force", "resume") if key in options}
    results, files = [], []
    for name, executor in (("threads", None), ("strangers", strangers or Strangers(folder))):
        home = folder / name
        home.mkdir()
        if "uncertainty" in options:
            options["uncertainty"] = home / "deviation.gguf"
        plan = plan_merge(inputs, home / "out.gguf", **options)
        results.append(execute_merge(plan, executor=executor, n_threads=2, **execution))
        files.append({path.name: path.read_bytes() for path in home.iterdir()})
    assert files[0] == files[1]
    assert figures(results[0]) == figures(results[1])
    assert results[0].warnings == results[1].warnings
    return results[0], results[1]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two inputs; one of the tensors has several tiles."""
    folder, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(2)
    truth = {
        name: (0.02 * rng.standard_t(8, (n_rows, 512))).astype(np.float32)
        for name, n_rows in ((Q, 3 * TILE // 512 + 96), (UP, 64))
    }
    return [
        write_gguf(folder / f"{kind}.gguf", {name: stored(kind, x) for name, x in truth.items()})
        for kind in ("Q5_K", "Q4_K")
    ]


def test_processes_that_know_nothing_else(tiny: list[Path], tmp_path: Path) -> None:
    both(tiny, tmp_path, tensors=r"token_embd|blk.0|norm")


def test_tensors_of_several_tiles(large: list[Path], tmp_path: Path) -> None:
    both(large, tmp_path, uncertainty="")


def test_deviations_and_parts(tiny: list[Path], tmp_path: Path) -> None:
    both(tiny, tmp_path, tensors="blk.1", uncertainty="", split_max_size=300_000, resume=True)


def test_certain_weights_and_what_contradicts_them(tmp_path: Path) -> None:
    """Tensors that are done again by another plan are done again by strangers, too."""
    rng = np.random.default_rng(3)

    def bf16(x: Any) -> F32Array:
        return (x.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)

    truth = {name: bf16(0.02 * rng.standard_normal((64, 512))) for name in (Q, UP)}
    truth[UP].reshape(-1)[::50] *= np.float32(1 + 2**-12)
    kinds = ("Q8_0", "Q6_K")
    paths = [
        write_gguf(
            tmp_path / f"{kind}.gguf",
            {name: stored(kind, x) for name, x in truth.items()}
            | {"output_norm.weight": stored("F32", bf16(rng.normal(1, 0.1, 512)))},
        )
        for kind in kinds
    ]
    strangers = Strangers(tmp_path)
    result, _ = both(paths, tmp_path, strangers, snap="bf16", outtype="bf16")
    assert strangers.n_runs == 2
    assert result.plan.undecided


def test_inputs_that_are_compared(
    make: Make, truth: dict[str, F32Array], rng: np.random.Generator, tmp_path: Path
) -> None:
    """With force, the finest input is taken where they contradict each other."""
    other = stored("Q4_K", truth[UP][::-1].copy())
    paths = [make("Q6_K"), make("Q4_K", {UP: other}), make("F16", {Q: stored("Q5_K", truth[Q])})]
    paths += [make("IQ4_NL", name="reference"), make("IQ4_NL")]
    result, _ = both(paths, tmp_path, force=True)
    assert any(tensor.compared for tensor in result.plan.tensors)


def test_inputs_that_are_aligned(unlike: list[Path], tmp_path: Path) -> None:
    result, _ = both(unlike, tmp_path, uncertainty="")
    assert any(tensor.follows for tensor in result.plan.tensors)


def test_folders(tiny: list[Path], tmp_path: Path) -> None:
    """Types that have no number in GGUF files, rows in another order."""
    folder = write_folder(TINY, tmp_path / "folder", "nf4")
    both([tiny[1], folder], tmp_path, tensors=r"blk\.0|norm")


def test_a_file_twice(make: Make, truth: dict[str, F32Array], tmp_path: Path) -> None:
    """One of them may be taken in another way than the other."""
    path = make("Q5_K")
    both([path, path, make("Q4_K")], tmp_path)


def some_tasks(inputs: list[Path], folder: Path, **options: Any) -> tuple[MergePlan, list[Task]]:
    """The tasks of a merge, and the file that they are to fill."""
    plan = plan_merge(inputs, folder / "out.gguf", **options)
    place = folder / "place"
    place.write_bytes(bytes(plan.n_bytes))
    return plan, list(tasks_of(plan, range(len(plan.tensors)), [place]))


def test_records(tiny: list[Path], tmp_path: Path) -> None:
    plan, tasks = some_tasks(tiny, tmp_path)
    for task in tasks:
        record = task.to_record()
        text = json.dumps(record)
        assert len(text) < 3000
        assert Task.from_record(json.loads(text)).to_record() == record
        assert pickle.loads(pickle.dumps(task)).to_record() == record
        assert json.loads(text) == record
        assert task.plan == plan.digest
        assert all(Path(each["path"]).is_absolute() for each in task.to_record()["inputs"])


def everything(gave: list[Record], place: Path) -> Iterator[Any]:
    """What tasks give, tile by tile."""
    for each in gave:
        yield from zip(each["sums"], each["written"][str(place)], strict=True)


def test_several_tiles_are_one_task(large: list[Path], tmp_path: Path) -> None:
    plan, tasks = some_tasks(large, tmp_path, tensors="attn_q")
    assert len(tasks) == 4
    place = tmp_path / "place"
    alone = [carry_out(task.to_record()) for task in tasks]
    expected = place.read_bytes()
    place.write_bytes(bytes(plan.n_bytes))
    together = list(tasks_of(plan, [0], [place], n_tiles=3))
    assert len(together) == 2
    gave = [carry_out(task.to_record()) for task in together]
    assert place.read_bytes() == expected
    for one, other in zip(*([*everything(some, place)] for some in (gave, alone)), strict=True):
        assert one == other


def test_tasks_of_part_of_a_tile_are_refused(large: list[Path], tmp_path: Path) -> None:
    _, tasks = some_tasks(large, tmp_path, tensors="attn_q")
    for start, end in ((1, TILE), (0, 256)):
        record = tasks[0].to_record() | {"start": start, "end": end}
        with pytest.raises(PlanError, match="are no whole tiles"):
            carry_out(record)


def test_another_version_is_refused(make: Make, tmp_path: Path) -> None:
    _, tasks = some_tasks([make("Q5_K"), make("Q4_K")], tmp_path)
    record = tasks[0].to_record()
    with pytest.raises(PlanError, match=r"planned by version 0\.0\.1 of this program, which is"):
        carry_out(record | {"job": record["job"] | {"version": "0.0.1"}})
    assert not any((tmp_path / "place").read_bytes())


def test_a_changed_input_is_refused(make: Make, tmp_path: Path) -> None:
    paths = [make("Q5_K"), make("Q4_K")]
    _, tasks = some_tasks(paths, tmp_path)
    record = next(task for task in tasks if UP in task.tensors).to_record()
    assert carry_out(record)["sums"]
    paths[1].write_bytes(paths[1].read_bytes()[:-1] + b"\x01")
    os.utime(paths[1], ns=(0, 10**18))
    with pytest.raises(InputError, match=r"Q4_K\.gguf: was changed while it was read"):
        carry_out(record)
    with pytest.raises(InputError, match=r"Q4_K\.gguf: was changed since the work was planned"):
        OpenInputs().model(Input.from_record(record["inputs"][1]), UP)


def test_only_a_file_that_is_there_is_written(make: Make, tmp_path: Path) -> None:
    _, tasks = some_tasks([make("Q5_K"), make("Q4_K")], tmp_path)
    place, record = tmp_path / "place", tasks[-1].to_record()
    whole = place.read_bytes()
    place.write_bytes(whole[:-1])
    with pytest.raises(OutputError, match="is not the file that the work was planned for"):
        carry_out(record)
    assert place.read_bytes() == whole[:-1]
    place.unlink()
    with pytest.raises(OutputError, match="place: cannot be written: No such file"):
        carry_out(record)
    assert not place.exists()
    place.symlink_to(tmp_path / "Q5_K.gguf")
    with pytest.raises(OutputError, match="cannot be written"):
        carry_out(record)


def test_placed_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(8))
    file = PlacedFile(path)
    file.write_at(2, b"ab")
    file.write_at(6, np.frombuffer(b"cd", np.uint16).data)
    assert path.read_bytes() == b"\0\0ab\0\0cd"
    assert [each[:2] for each in file.written] == [(2, 2), (6, 2)]
    with pytest.raises(OutputError, match="has 8 bytes, and bytes 7 to 9"):
        file.write_at(7, b"ef")


def test_an_input_is_opened_once(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, tasks = some_tasks([make("Q5_K"), make("Q4_K")], tmp_path)
    opened = OpenInputs()
    models = [
        opened.model(Input.from_record(each), name)
        for task in tasks
        for name in task.tensors
        for each in task.to_record()["inputs"]
    ]
    assert len(models) > 2
    assert len({id(model) for model in models}) == 2


def test_tensors_that_are_made_of_others(
    make: Make, tmp_path: Path, truth: dict[str, F32Array], rng: np.random.Generator
) -> None:
    x = (0.02 * rng.standard_t(8, (4, 16, 512))).astype(np.float32)
    apart: dict[str, Stored | None] = {
        f"blk.0.ffn_gate.{i}.weight": stored("Q5_K", each) for i, each in enumerate(x)
    }
    changes = {"blk.0.ffn_gate_exps.weight": stored("Q4_K", x), UP: stored("Q4_K", truth[UP][:40])}
    both([make("Q5_K", apart), make("Q4_K", changes)], tmp_path, uncertainty="")
