"""Speed of the encoders next to ggml's, on one core; run with --benchmark-enable.

The table at the end compares the fastest rounds.
"""

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from recover.quants import ScalarType, all_types, quantize
from tests.oracle import libggml

SCALAR_TYPES = [kind for kind in all_types() if isinstance(kind, ScalarType)]
SHAPE = (128, 4096)

_Row = tuple[str, float, float]


def _seconds(work: Callable[[], object], n_rounds: int) -> float:
    """The shortest of some runs."""
    best = np.inf
    for _ in range(n_rounds):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


@pytest.fixture(scope="module")
def table() -> Iterator[list[_Row]]:
    rows: list[_Row] = []
    yield rows
    if rows:
        print("\n\nmillion weights/s          ours      ggml   ratio")
        for name, ours, theirs in rows:
            print(f"{name:18}{ours:13.1f}{theirs:10.1f}{ours / theirs:8.2f}")


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("kind", SCALAR_TYPES, ids=lambda kind: kind.name)
def test_quantize(
    benchmark: BenchmarkFixture, table: list[_Row], kind: ScalarType, weighted: bool
) -> None:
    rng = np.random.default_rng(1)
    x = (0.02 * rng.standard_normal(SHAPE)).astype(np.float32)
    imatrix = rng.random(SHAPE[1]).astype(np.float32) if weighted else None
    out = np.empty(kind.n_bytes(x.size), np.uint8)
    benchmark.pedantic(quantize, (x, kind, imatrix, out), rounds=10, warmup_rounds=1)
    if benchmark.enabled:
        theirs = _seconds(lambda: libggml.quantize(kind.type_id, x, imatrix), n_rounds=3)
        label = f"{kind.name}{' imatrix' if weighted else ''}"
        fastest = benchmark.stats.stats.min
        table.append((label, x.size / fastest / 1e6, x.size / theirs / 1e6))
