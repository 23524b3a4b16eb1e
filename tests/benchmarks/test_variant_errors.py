"""The named quantizers next to llama.cpp's: errors on trained weights, and speed on one core.

Run with --benchmark-enable; the table is printed at the end.
"""

from collections.abc import Iterator

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from recover.quants import quantize
from tests.benchmarks.peers import fastest
from tests.oracle.data_sets import DATA_SETS, blocks_of
from tests.support.kinds import scalar
from tests.support.variants import MADE, errors

pytestmark = pytest.mark.quality

N_WEIGHTS = 3_000_000
_Row = tuple[str, str, float, float, float]


@pytest.fixture(scope="module")
def table() -> Iterator[list[_Row]]:
    rows: list[_Row] = []
    yield rows
    if rows:
        print("\n\n                                mean square   blocks   million")
        print("                                error ratio   better   weights/s")
        for name, model, ratio, better, speed in rows:
            print(f"{name:16}{model:16}{ratio:11.4f}{better:8.1%}{speed:11.1f}")


@pytest.mark.parametrize("model", DATA_SETS)
@pytest.mark.parametrize(("variant", "name"), MADE, ids=lambda value: value)
def test_variant(
    benchmark: BenchmarkFixture, table: list[_Row], variant: str, name: str, model: str
) -> None:
    kind = scalar(name)
    x = blocks_of(model, kind.block_size, N_WEIGHTS if benchmark.enabled else 10_000)
    if not x.size:
        pytest.skip(f"{model} is not there")
    out = np.empty(kind.n_bytes(x.size), np.uint8)
    benchmark.pedantic(quantize, (x, kind, None, out, variant), rounds=3, warmup_rounds=1)
    if benchmark.enabled:
        ours, theirs = errors(kind, variant, x)
        speed = x.size / fastest(benchmark) / 1e6
        label = variant if variant.startswith(name.lower()) else f"{variant} {name}"
        better = float(np.mean(ours < theirs))
        table.append((label, model, ours.sum() / theirs.sum(), better, speed))
