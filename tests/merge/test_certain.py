"""Weights that are certain, where some weights of the original had another format."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from recover.cli import main
from recover.estimators import Tally
from recover.execution import stacks
from recover.execution.local import Threads
from recover.execution.tasks import Record, Task
from recover.merge.certain import find_withdrawal
from recover.merge.execute import MergeResult, execute_merge
from recover.merge.plan import plan_merge
from recover.merge.sums import Sums
from tests.support.gguf_files import F32Array, read_weights, stored, write_gguf
from tests.support.models import TINY

pytestmark = pytest.mark.long

Weights = dict[str, F32Array]
Change = Callable[[Weights, np.random.Generator], None]
SEEDS = range(8)


@pytest.fixture(scope="module")
def bf16() -> Weights:
    """Two layers of a trained model, whose weights are BF16 numbers."""
    return {
        name: weights
        for name, weights in read_weights(TINY).items()
        if name.startswith(("blk.0.", "blk.1.", "output"))
    }


@pytest.fixture(scope="module")
def f16(bf16: Weights) -> Weights:
    rng = np.random.default_rng(5)
    noisy = {n: w * (1 + 0.003 * rng.standard_normal(w.shape)) for n, w in bf16.items()}
    return {n: w.astype(np.float16).astype(np.float32) for n, w in noisy.items()}


def replace_rows(weights: Weights, rng: np.random.Generator) -> None:
    """One row of each of three matrices."""
    names = [name for name, each in weights.items() if each.ndim > 1]
    for name in rng.choice(names, 3, replace=False):
        row = weights[name][rng.integers(len(weights[name]))]
        row *= (1 + 0.003 * rng.standard_normal(row.size)).astype(np.float32)


def move_weights(weights: Weights, rng: np.random.Generator) -> None:
    """One weight in 10,000, by up to 0.4%."""
    for each in weights.values():
        if each.ndim > 1:
            moved = rng.random(each.shape) < 1e-4
            factor = 1 + 0.004 * rng.uniform(-1, 1, np.count_nonzero(moved))
            each[moved] *= factor.astype(np.float32)


def make_inputs(folder: Path, truth: Weights, kinds: Sequence[str]) -> list[Path]:
    return [
        write_gguf(
            folder / f"{kind}.gguf",
            {n: stored(kind if w.ndim > 1 else "F32", w) for n, w in truth.items()},
        )
        for kind in kinds
    ]


def merge(folder: Path, inputs: list[Path], **options: Any) -> MergeResult:
    plan = plan_merge(
        inputs, folder / "out.gguf", outtype="f32", uncertainty=folder / "sd.gguf", **options
    )
    return execute_merge(plan, n_threads=2)


def count(folder: Path, truth: Weights, result: MergeResult) -> int:
    """Weights of deviation 0, all of which must be right."""
    merged, deviations = read_weights(folder / "out.gguf"), read_weights(folder / "sd.gguf")
    n_certain = 0
    for name, weights in truth.items():
        certain = deviations[name] == 0
        np.testing.assert_array_equal(merged[name][certain], weights[certain])
        n_certain += int(np.count_nonzero(certain)) * (weights.ndim > 1)
    assert result.n_exact == n_certain
    return n_certain


@pytest.mark.parametrize("snap", ["none", "auto", "bf16"])
@pytest.mark.parametrize("change", [replace_rows, move_weights])
def test_no_certain_weight_is_wrong(
    bf16: Weights, tmp_path: Path, change: Change, snap: str
) -> None:
    n_certain = []
    for seed in SEEDS:
        truth = {name: weights.copy() for name, weights in bf16.items()}
        change(truth, np.random.default_rng(seed))
        inputs = make_inputs(tmp_path, truth, ("Q8_0", "Q6_K"))
        result = merge(tmp_path, inputs, snap=snap)
        assert [*result.plan.warnings, *result.warnings]
        n_certain.append(count(tmp_path, truth, result))
    # What is not like the tensors with other rows stays certain.
    assert (max(n_certain) > 10_000) == (change is replace_rows)


@pytest.mark.parametrize("snap", ["none", "bf16"])
def test_weights_of_the_format_stay_certain(bf16: Weights, tmp_path: Path, snap: str) -> None:
    result = merge(tmp_path, make_inputs(tmp_path, bf16, ("Q8_0", "Q6_K")), snap=snap)
    assert result.warnings == ()
    n_weights = sum(w.size for w in bf16.values() if w.ndim > 1)
    assert count(tmp_path, bf16, result) > 0.06 * n_weights


def test_contradictions_are_counted_by_tensor(bf16: Weights, tmp_path: Path) -> None:
    """Where the sample of the plan sees nothing: one row of a large tensor, between its runs."""
    truth = {name: weights.copy() for name, weights in bf16.items()}
    rng = np.random.default_rng(3)
    name = "blk.0.ffn_up.weight"
    large = np.concatenate([truth[name]] * 8)  # 49,152 blocks, of which 4,096 are looked at
    large[700] *= (1 + 0.003 * rng.standard_normal(large.shape[1:])).astype(np.float32)
    truth[name] = large
    inputs = make_inputs(tmp_path, truth, ("Q8_0", "Q6_K"))
    result = merge(tmp_path, inputs)
    assert result.plan.warnings == ()
    first, *_ = result.warnings
    assert f"'{name}' (" in first
    assert "scales of other weights: " in first
    assert name in result.plan.undecided
    count(tmp_path, truth, result)


@pytest.mark.parametrize("snap", ["none", "f16"])
def test_cells_too_wide_to_show_another_format_prove_no_weight(
    f16: Weights, tmp_path: Path, snap: str
) -> None:
    """The cells of Q8_0 hold a single F16 number now and then, but hardly ever none."""
    truth = {name: weights.copy() for name, weights in f16.items()}
    replace_rows(truth, np.random.default_rng(0))
    result = merge(tmp_path, make_inputs(tmp_path, truth, ("Q8_0", "Q6_K")), snap=snap)
    assert count(tmp_path, truth, result) == 0
    if snap == "f16":
        weights = read_weights(tmp_path / "out.gguf")["output.weight"]
        rounded = weights.astype(np.float16).astype(np.float32)
        assert np.mean(rounded == weights) > 0.99


def test_coarse_inputs_prove_no_weight(bf16: Weights, tmp_path: Path) -> None:
    result = merge(tmp_path, make_inputs(tmp_path, bf16, ("Q6_K", "Q5_K", "Q4_K")), snap="bf16")
    assert count(tmp_path, bf16, result) == 0
    weights = read_weights(tmp_path / "out.gguf")["output.weight"]
    np.testing.assert_array_equal(weights, weights.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_deviation_is_zero_only_where_weights_are_certain(bf16: Weights, tmp_path: Path) -> None:
    """Estimates between bounds that are next to each other have some error, too."""
    truth = {name: weights.copy() for name, weights in bf16.items()}
    move_weights(truth, np.random.default_rng(1))
    result = merge(tmp_path, make_inputs(tmp_path, truth, ("Q8_0", "Q6_K")))
    assert result.n_exact == 0
    for name, deviation in read_weights(tmp_path / "sd.gguf").items():
        assert (deviation.min() > 0) == (truth[name].ndim > 1)


@pytest.mark.parametrize("change", [replace_rows, move_weights])
def test_an_interrupted_second_estimate_is_resumed(
    bf16: Weights, tmp_path: Path, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = {name: weights.copy() for name, weights in bf16.items()}
    change(truth, np.random.default_rng(2))
    inputs = make_inputs(tmp_path, truth, ("Q8_0", "Q6_K"))
    whole = merge(tmp_path, inputs, snap="auto")
    names = ("out.gguf", "sd.gguf")
    expected = [(tmp_path / name).read_bytes() for name in names]
    for name in names:
        (tmp_path / name).unlink()
    run, n_runs, n_done = Threads.run, [0], [0]

    def interrupted(threads: Threads, tasks: Any, take: Any, watch: Any = None) -> None:
        def stop(task: Task, gave: Record) -> None:
            n_done[0] += n_runs[0] > 1
            if n_done[0] > 1:
                raise KeyboardInterrupt
            take(task, gave)

        n_runs[0] += 1
        run(threads, tasks, stop, watch)

    plan = plan_merge(
        inputs, tmp_path / "out.gguf", outtype="f32", uncertainty=tmp_path / "sd.gguf", snap="auto"
    )
    with monkeypatch.context() as patch:
        patch.setattr(stacks, "LARGEST", 0)  # one tensor a task
        patch.setattr(Threads, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            execute_merge(plan, n_threads=1, resume=True)
    assert n_done == [2]
    result = execute_merge(plan, n_threads=2, resume=True)
    assert [(tmp_path / name).read_bytes() for name in names] == expected
    assert (result.n_exact, result.warnings) == (whole.n_exact, whole.warnings)
    assert result.plan.undecided == whole.plan.undecided


def test_command_says_which_tensors(
    bf16: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = {name: weights.copy() for name, weights in bf16.items()}
    move_weights(truth, np.random.default_rng(4))
    inputs = make_inputs(tmp_path, truth, ("Q8_0", "Q6_K"))
    output = tmp_path / "out.gguf"
    assert main(["merge", *map(str, inputs), "-o", str(output)]) == 0
    printed = capsys.readouterr()
    assert "no weight of this merge is certain" in printed.err
    assert "certain: " not in printed.out


def test_the_order_in_which_tensors_are_finished_tells_nothing() -> None:
    totals = {
        i: Sums(empty=1 + i, expected=0.1 * i, estimated=Tally(np.zeros(4))) for i in range(3)
    }
    first, last = find_withdrawal(totals), find_withdrawal(dict(reversed(totals.items())))
    assert first == last
    assert list(first.contradicted) == list(last.contradicted) == [0, 1, 2]
