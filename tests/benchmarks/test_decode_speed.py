"""Speed of the decoders next to gguf-py and ggml, on one core; run with --benchmark-enable.

The table at the end compares the fastest rounds, on weights whose float32 values stay in the cache.
"""

from collections.abc import Iterator

import gguf
import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from recover.quants import TILE, ScalarType, all_types, dequantize
from tests.benchmarks.peers import fastest, print_speeds, seconds
from tests.oracle import libggml

SCALAR_TYPES = [kind for kind in all_types() if isinstance(kind, ScalarType)]


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple[str, list[float]]]]:
    rows: list[tuple[str, list[float]]] = []
    yield rows
    if rows:
        print_speeds(["gguf-py", "ggml"], rows)


@pytest.mark.parametrize("kind", SCALAR_TYPES, ids=lambda kind: kind.name)
def test_dequantize(
    benchmark: BenchmarkFixture, table: list[tuple[str, list[float]]], kind: ScalarType
) -> None:
    x = np.random.default_rng(1).standard_normal((TILE // 256, 256), np.float32)
    raw = libggml.quantize(kind.type_id, x)
    out = np.empty(x.size, np.float32)
    benchmark.pedantic(dequantize, (raw, kind, out), iterations=20, rounds=20, warmup_rounds=1)
    if benchmark.enabled:
        blocks, number = raw.reshape(-1, kind.type_size), gguf.GGMLQuantizationType[kind.name]
        gguf_py = seconds(lambda: gguf.quants.dequantize(blocks, number), n_rounds=10)
        ggml = seconds(lambda: libggml.dequantize(kind.type_id, raw), n_rounds=30)
        times = [fastest(benchmark), gguf_py, ggml]
        table.append((kind.name, [x.size / each for each in times]))
