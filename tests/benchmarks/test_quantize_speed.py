"""Speed of the encoders next to ggml's, on one core; run with --benchmark-enable.

The table at the end compares the fastest rounds.
"""

from collections.abc import Iterator

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from recover.quants import ScalarType, all_types, quantize
from tests.benchmarks.peers import fastest, print_speeds, seconds
from tests.oracle import libggml

SCALAR_TYPES = [kind for kind in all_types() if isinstance(kind, ScalarType)]
SHAPE = (128, 4096)


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple[str, list[float]]]]:
    rows: list[tuple[str, list[float]]] = []
    yield rows
    if rows:
        print_speeds(["ggml"], rows)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("kind", SCALAR_TYPES, ids=lambda kind: kind.name)
def test_quantize(
    benchmark: BenchmarkFixture,
    table: list[tuple[str, list[float]]],
    kind: ScalarType,
    weighted: bool,
) -> None:
    rng = np.random.default_rng(1)
    x = (0.02 * rng.standard_normal(SHAPE)).astype(np.float32)
    imatrix = rng.random(SHAPE[1]).astype(np.float32) if weighted else None
    out = np.empty(kind.n_bytes(x.size), np.uint8)
    benchmark.pedantic(quantize, (x, kind, imatrix, out), rounds=10, warmup_rounds=1)
    if benchmark.enabled:
        theirs = seconds(lambda: libggml.quantize(kind.type_id, x, imatrix), n_rounds=3)
        label = f"{kind.name}{' imatrix' if weighted else ''}"
        table.append((label, [x.size / fastest(benchmark), x.size / theirs]))
