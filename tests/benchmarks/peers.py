"""What the benchmarks against other programs share."""

import time
from collections.abc import Callable, Sequence

from pytest_benchmark.fixture import BenchmarkFixture


def seconds(work: Callable[[], object], n_rounds: int) -> float:
    """The shortest of some runs."""
    best = float("inf")
    for _ in range(n_rounds):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def fastest(benchmark: BenchmarkFixture) -> float:
    """Seconds of the shortest round of a benchmark that has run."""
    assert benchmark.stats is not None
    return float(benchmark.stats.stats.min)


def print_speeds(peers: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]]) -> None:
    """Million weights/s of ours and each peer, and ours over each peer's."""
    print(
        f"\n\n{'million weights/s':18}{'ours':>10}" + "".join(f"{p:>12}{'ratio':>8}" for p in peers)
    )
    for name, (ours, *theirs) in rows:
        others = "".join(f"{each / 1e6:12.1f}{ours / each:8.2f}" for each in theirs)
        print(f"{name:18}{ours / 1e6:10.1f}{others}")
