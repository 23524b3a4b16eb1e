"""One tensor as arrays is what the commands write of it, bit for bit."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from safetensors.numpy import load_file

import recover
from recover.api.estimate import TensorEstimate
from recover.execution.tasks import Task
from recover.merge.work import Worker
from tests.support.gguf_files import read_weights, stored, write_gguf
from tests.support.hf_folders import write_folder
from tests.support.models import DATA, TINY, quantize

NAMES = ("blk.0.attn_q.weight", "blk.1.ffn_down.weight", "output_norm.weight", "token_embd.weight")
TINY_FILES = [DATA / f"tiny-llama-3m-{name}.gguf" for name in ("Q5_K_M", "Q4_K_M", "Q2_K")]


@pytest.fixture(scope="module")
def fine(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Q8_0 and Q5_K: bounds that decide on weights."""
    return quantize(TINY, tmp_path_factory.mktemp("fine"), ("Q8_0", "Q5_K_M"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A folder beside a GGUF file."""
    return [write_folder(TINY, tmp_path_factory.mktemp("folder") / "nf4", "nf4"), TINY_FILES[1]]


def check(
    inputs: Sequence[Path], names: Sequence[str], folder: Path, *, force: bool = False, **how: Any
) -> dict[str, TensorEstimate]:
    """Compare estimates with what a merge of all tensors, and bounds of all, write."""
    out, second = folder / "out.gguf", folder / "sd.gguf"
    recover.merge(inputs, out, outtype="f32", uncertainty=second, force=force, **how)
    recover.execute_bounds(recover.plan_bounds(inputs, folder / "bounds.safetensors"))
    merged, deviations = read_weights(out), read_weights(second)
    proven = load_file(folder / "bounds.safetensors")
    found = {}
    for name in names:
        one = found[name] = recover.estimate(inputs, name, force=force, **how)
        assert_array_equal(one.mean, merged[name])
        expected = deviations.get(name, np.zeros_like(merged[name]))
        assert_array_equal(one.deviation, expected)
        assert_array_equal(one.lower, proven[f"{name}.lower"])
        assert_array_equal(one.upper, proven[f"{name}.upper"])
        assert_array_equal(one.conflicts, np.isnan(proven[f"{name}.lower"]))
    return found


@pytest.mark.parametrize("method", ["best", "linear", "midpoint", "posterior", "joint"])
def test_files(method: str, tmp_path: Path) -> None:
    found = check(TINY_FILES, NAMES, tmp_path, method=method)
    one = found[NAMES[0]]
    assert (one.method, one.types) == (method, ("Q5_K", "Q4_K", "Q2_K"))
    assert one.expected_rmse is not None
    assert (one.deviation > 0).all()
    assert not one.conflicts.any()


def test_mode_and_rounding(tmp_path: Path) -> None:
    check(TINY_FILES, NAMES[:2], tmp_path, estimate="map")
    check(TINY_FILES, NAMES[:2], tmp_path, snap="bf16")


def test_certain_weights(fine: list[Path], tmp_path: Path) -> None:
    found = check(fine, NAMES, tmp_path)
    assert (found[NAMES[0]].deviation == 0).any()


def test_folder_beside_file(folders: list[Path], tmp_path: Path) -> None:
    check(folders, NAMES, tmp_path)

    alone = recover.estimate(folders[0], NAMES[0], "best")
    stored = recover.open_model(folders[0]).tensors[NAMES[0]]
    assert_array_equal(alone.mean.ravel(), stored.read(0, stored.n_weights))
    assert np.isfinite(alone.lower).any()


def test_one_input_alone(tmp_path: Path) -> None:
    one = recover.estimate(TINY_FILES[2], NAMES[0], "best")
    assert_array_equal(one.mean, read_weights(TINY_FILES[2])[NAMES[0]])
    check(TINY_FILES[2:], NAMES, tmp_path)


def test_larger_model(quantized_29m: dict[str, Path], tmp_path: Path) -> None:
    files = [quantized_29m[name] for name in ("Q5_K_M", "Q4_K_M", "Q2_K")]
    check(files, ("blk.3.ffn_down.weight", "blk.5.attn_v.weight"), tmp_path)


Spoil = Callable[[dict[str, np.ndarray]], None]


def other_format(weights: dict[str, np.ndarray]) -> None:
    """A few weights of one matrix are no BF16 numbers."""
    weights[NAMES[1]][3, ::7] *= np.float32(1.003)


def inputs_of(folder: Path, kinds: Sequence[str], spoil: Spoil) -> list[Path]:
    """Files with the same weights, which have one layer of a trained model."""
    truth = {n: w.copy() for n, w in read_weights(TINY).items() if n.startswith(("blk.1", "out"))}
    spoil(truth)
    return [
        write_gguf(
            folder / f"{kind}.gguf",
            {n: stored(kind if w.ndim > 1 else "F32", w) for n, w in truth.items()},
        )
        for kind in kinds
    ]


def test_what_other_tensors_contradict(tmp_path: Path) -> None:
    """Small matrices are certain no more where another one shows that its weights were no BF16."""
    inputs = inputs_of(tmp_path, ("Q8_0", "Q5_0"), other_format)
    names = [name for name in read_weights(inputs[0]) if name.startswith("blk.1")]
    check(inputs, names, tmp_path)


def test_conflicts(tmp_path: Path) -> None:
    """Where a file is of another model, the finest input is taken, and all of them are told."""
    (tmp_path / "other").mkdir()
    first = inputs_of(tmp_path, ("Q5_K",), lambda weights: None)

    def shuffle(weights: dict[str, np.ndarray]) -> None:
        weights[NAMES[1]] = weights[NAMES[1]][::-1].copy()

    inputs = [*first, *inputs_of(tmp_path / "other", ("Q4_K",), shuffle)]
    with pytest.raises(recover.PlanError, match="contradict"):
        recover.estimate(inputs, NAMES[1])
    found = check(inputs, [NAMES[1], "blk.1.ffn_up.weight"], tmp_path, force=True)
    assert found[NAMES[1]].conflicts.any()
    assert any("finest input" in each for each in found[NAMES[1]].warnings)


def test_only_one_tensor_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: set[str] = set()
    work = Worker.work

    def watch(self: Worker, task: Task, files: object) -> object:
        looked_at.update(task.tensors)
        return work(self, task, files)  # type: ignore[arg-type]

    monkeypatch.setattr(Worker, "work", watch)
    recover.estimate(TINY_FILES, NAMES[0])
    assert looked_at == {NAMES[0]}


def test_names_that_are_not_there() -> None:
    with pytest.raises(recover.UsageError, match=r"did you mean .blk\.0\.attn_q\.weight"):
        recover.estimate(TINY_FILES, "blk.0.attn_q.wieght")
    with pytest.raises(recover.UsageError, match="no tensor"):
        recover.bounds(TINY_FILES, "nothing")


def test_progress_ends_at_all_weights() -> None:
    told: list[tuple[int, int]] = []
    one = recover.estimate(TINY_FILES, NAMES[3], progress=lambda *each: told.append(each))
    assert all(n == one.mean.size for _, n in told)
