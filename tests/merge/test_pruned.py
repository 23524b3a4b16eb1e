"""Merges of pruned models: what is claimed is near what is true, whoever does the work."""

from pathlib import Path

import numpy as np
import pytest

from recover.api.estimate import estimate
from recover.execution.processes import Processes
from recover.inspect.report import inspect_files
from recover.merge.execute import execute_merge
from recover.merge.forecast import forecast
from recover.merge.plan import plan_merge
from recover.quants import F32Array
from tests.support.gguf_files import read_weights, squared_error, stored, write_gguf
from tests.support.resuming import figures
from tests.support.sparse_weights import at_random

NAMES = [f"blk.{i}.ffn_up.weight" for i in range(2)] + [f"blk.{i}.attn_k.weight" for i in range(5)]
TYPES = "Q6_K", "Q2_K"


@pytest.fixture(scope="module")
def weights() -> dict[str, F32Array]:
    """Two tensors of more than a tile, and small ones that are taken together."""
    rng, found = np.random.default_rng(6), dict[str, F32Array]()
    for i, name in enumerate(NAMES):
        shape = (1100, 512) if "ffn" in name else (128, 256)
        x = (0.05 * rng.standard_normal(shape)).astype(np.float32)
        found[name] = at_random(x, 0.9, i)
    return found


@pytest.fixture(scope="module")
def inputs(weights: dict[str, F32Array], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pruned")
    return [
        write_gguf(folder / f"{kind}.gguf", {name: stored(kind, x) for name, x in weights.items()})
        for kind in TYPES
    ]


def test_what_a_merge_claims(
    weights: dict[str, F32Array], inputs: list[Path], tmp_path: Path
) -> None:
    """1.23 times the error was claimed, of the merge and of Q6_K."""
    plan = plan_merge(inputs, tmp_path / "f32.gguf", outtype="f32")
    results = [
        execute_merge(plan, n_threads=1),
        execute_merge(plan, n_threads=3, force=True),
        execute_merge(plan, executor=Processes(2), force=True),
    ]
    for other in results[1:]:
        assert figures(other) == figures(results[0])
    error = squared_error(read_weights(tmp_path / "f32.gguf"), weights)
    told = results[0].to_json()["tensors"]
    claimed = sum(each["expected_rmse"] ** 2 * weights[each["name"]].size for each in told)
    assert claimed == pytest.approx(error, rel=0.05)
    assert forecast(plan).mse_ratio == pytest.approx(results[0].expected_mse_ratio, rel=0.01)
    assert inspect_files(inputs).expected_mse_ratio == pytest.approx(
        results[0].expected_mse_ratio, rel=1e-6
    )


def test_what_is_claimed_of_one_tensor(weights: dict[str, F32Array], inputs: list[Path]) -> None:
    for name in (NAMES[0], NAMES[-1]):
        one = estimate(inputs, name)
        assert one.expected_rmse is not None
        error = np.mean(np.square(one.mean - weights[name].reshape(one.mean.shape)))
        assert one.expected_rmse**2 == pytest.approx(error, rel=0.1)
        assert np.mean(np.square(one.deviation)) == pytest.approx(one.expected_rmse**2, rel=0.01)
