"""Small tensors that are taken together: all is as if each were taken alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recover import PlanError
from recover.bounds.execute import execute_bounds
from recover.bounds.plan import plan_bounds
from recover.estimators.base import _one_by_one, estimator
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Source
from recover.execution import stacks
from recover.inspect.report import inspect_files
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from recover.merge.tasks import tasks_of
from recover.quants import TILE, type_by_name
from tests.support.gguf_files import Stored, stored, write_gguf
from tests.support.resuming import figures

N = 6  # tensors of each kind
KINDS = {"q": ("Q5_K", "Q4_K"), "k": ("Q4_0", "Q8_0"), "v": ("IQ2_S", "Q3_K"), "o": ("F16", "Q4_K")}
Both = Callable[[Callable[[Path], Any]], tuple[Any, Any]]


def name_of(kind: str, number: int) -> str:
    return f"blk.{number}.attn_{kind}.weight"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Small tensors of several kinds; one contradicts another, one is broken, some are copied."""
    folder, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(4)
    files: list[dict[str, Stored]] = [{}, {}]
    for number in range(N):
        for kind, types in KINDS.items():
            x = (0.02 * rng.standard_t(6, (2, 512))).astype(np.float32)
            for file, name in zip(files, types, strict=True):
                file[name_of(kind, number)] = stored(name, x)
        norm = rng.normal(1, 0.1, 96).astype(np.float32)
        for file in files:
            file[f"blk.{number}.attn_norm.weight"] = stored("F32", norm)
    changed = files[1][name_of("q", 2)].rows
    changed[:] = changed[::-1].copy()
    broken = files[0][name_of("k", 3)].rows
    broken[0, :2] = np.array([0x7E00], "<u2").view(np.uint8)
    return [write_gguf(folder / f"{i}.gguf", file) for i, file in enumerate(files)]


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Both:
    """What is found with tensors taken together, and with each of them alone."""

    def run(find: Callable[[Path], Any]) -> tuple[Any, Any]:
        found = []
        for name, largest in (("together", stacks.LARGEST), ("alone", 0)):
            folder = tmp_path / name
            folder.mkdir()
            with monkeypatch.context() as patch:
                patch.setattr(stacks, "LARGEST", largest)
                found.append(find(folder))
        return found[0], found[1]

    return run


def test_which_tensors_are_taken_together() -> None:
    n = TILE // 4
    told = [(0, n, "a"), (1, n, "b"), (2, n, "a"), (3, n, None), (4, 2 * TILE, "a"), (5, n, "a")]
    told += [(6, n // 2, "a"), (7, n, "a"), (8, n, "a"), (9, n, "b")]
    found = list(stacks.stacks(told))
    assert found == [(3,), (4,), (0, 2, 5, 7), (1, 9), (6,), (8,)]


@pytest.mark.parametrize("outtype", ["f32", "bf16", "q8_0"])
@pytest.mark.parametrize("method", ["best", "linear", "midpoint", "posterior"])
def test_merges(method: str, outtype: str, inputs: list[Path], both: Both) -> None:
    n_tasks = []

    def merge(folder: Path) -> Any:
        options: dict[str, Any] = {"method": method, "outtype": outtype}
        options["uncertainty"] = folder / "sd.gguf"
        plan = plan_merge(inputs, folder / "out.gguf", **options)
        paths = [file.path for file in plan.files]
        n_tasks.append(sum(1 for _ in tasks_of(plan, range(len(plan.tensors)), paths)))
        result = execute_merge(plan, force=True, resume=True)
        assert any("NaN" in each for each in result.warnings) == (method != "best")
        return [path.read_bytes() for path in paths], figures(result), result.warnings

    together, alone = both(merge)
    assert together == alone
    assert n_tasks[0] <= 5 + 2 * (method != "best")
    assert n_tasks[1] == N * 5


def test_what_is_known_of_files(inputs: list[Path], both: Both) -> None:
    def inspect(_folder: Path) -> Any:
        return inspect_files(inputs).to_json()

    together, alone = both(inspect)
    assert together == alone
    assert any(each["conflict_fraction"] for each in together["together"]["tensors"])


@pytest.mark.parametrize("writes", [False, True])
def test_bounds(writes: bool, inputs: list[Path], both: Both) -> None:
    def bound(folder: Path) -> Any:
        plan = plan_bounds(inputs, folder / "out.gguf" if writes else None)
        found = execute_bounds(plan).to_json()
        assert found.pop("seconds") > 0
        assert found.pop("weights_per_second") > 0
        found.pop("output")
        return found, [path.read_bytes() for path in folder.iterdir()]

    together, alone = both(bound)
    assert together == alone
    assert together[0]["total"]["two_sided"] > 0


def test_a_broken_tensor_is_named(inputs: list[Path], tmp_path: Path) -> None:
    tensors = "attn_k.weight"
    plan = plan_merge([inputs[0]], tmp_path / "out.gguf", tensors=tensors, outtype="f32")
    with pytest.raises(PlanError, match=r"0\.gguf: tensor 'blk\.3\.attn_k\.weight' holds NaN"):
        execute_merge(plan, n_threads=1)


def test_an_estimator_of_one_tensor_at_a_time() -> None:
    """One that knows no stacks is asked for each tensor with its own evidence."""
    sources = [Source(type_by_name(name)) for name in ("Q5_K", "Q4_K")]
    x = np.random.default_rng(0).standard_normal((6, 256)).astype(np.float32)
    raws = [stored(source.type.name, x).rows.reshape(-1) for source in sources]
    tile = UncorrectedTileEstimator(sources, "posterior")
    own = estimator("posterior")
    found = []
    for each in (own.estimate_each, _one_by_one(own.estimate)):
        object.__setattr__(tile, "estimator", type(own)(**vars(own) | {"estimate_each": each}))
        out, deviation = np.empty((2, x.size), np.float32)
        tallies = tile.estimate_each(raws, 0, x.size, 3, out, deviation)
        found.append((tallies.tolist(), out.tolist(), deviation.tolist()))
    assert found[0] == found[1]
    assert len(found[0][0]) == 3
