"""What the posterior makes of weights of which many are 0.

    python -m tests.benchmarks.pruned [--sets LABEL ...] [--further | --leverage | --speed]
        [--superblocks N] [--seed N] [FILE ...]

prints for each set, and each way to prune normal weights (and the matrices of a GGUF file in BF16,
or of safetensors, ONNX or npz in float32), the square errors of the posterior and of `linear` over
that of the finest input, what both claim over what is measured, and how many estimates of the
posterior are outside of their cells. At the end it prints how many of these rows are worse than the
finest input or `linear`, and how many claims are near, without the rows where small weights are not
0. With --further weights are pruned further, or by blocks, or have few and far outliers (those with
a single one are not counted), and files are looked at alone. With --leverage instead: what is left
of the mean square error of types, by 1 - h (see `recover.estimators._few`). With --speed instead:
processor time of a tile of which 90% is pruned, without and with corrected errors, and the same of
normal weights.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recover.estimators import TileEstimator
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.quants import TILE, F32Array, U8Array
from tests.support.float_files import matrices_in
from tests.support.joint_inputs import encode, run, sources_of
from tests.support.sparse_weights import (
    at_random,
    blocks_at_random,
    by_column,
    by_size,
    by_size_of_rows,
    with_large_columns,
    with_one_outlier,
    with_outliers,
)

SETS = (
    *("Q6_K+Q2_K", "Q6_K+Q3_K", "Q3_K*+Q2_K*", "Q3_K+Q2_K", "Q4_K+Q3_K", "IQ4_XS+Q3_K"),
    *("Q5_K+Q4_K", "Q5_K+Q4_K+Q2_K", "Q4_K+Q2_K", "Q4_0+Q3_K", "Q8_0+Q4_K"),
)
TYPES = "Q6_K", "Q3_K", "Q3_K*", "Q2_K", "Q2_K*", "Q4_K", "Q4_K*", "Q5_K", "IQ4_XS"
SIZES = {"Q6_K": 16, "Q3_K": 16, "Q2_K": 16}  # of a sub-block, others have 32
SEED = 5
MADE_SMALL = "90% made small"
N_ROWS = 512  # superblocks that are looked at, of each matrix


def made_small(x: F32Array, share: float, seed: int) -> F32Array:
    """Not 0, but a hundredth."""
    return at_random(x, share, seed) * np.float32(0.99) + x * np.float32(0.01)


def _by_size(x: F32Array, share: float, seed: int) -> F32Array:
    return by_size(x, share)


Way = Callable[..., F32Array]  # of weights and, by name, a seed
WAYS: dict[str, Way] = {
    **{f"{share:.0%} at random": partial(at_random, share=share) for share in (0.3, 0.5, 0.7, 0.9)},
    **{f"{share:.0%} by size": partial(_by_size, share=share) for share in (0.5, 0.7, 0.9)},
    MADE_SMALL: partial(made_small, share=0.9),
    **{f"{share:.0%} of columns": partial(by_column, share=share) for share in (0.4, 0.9)},
}
FURTHER: dict[str, Way] = {
    **{f"{share:.0%} at random": partial(at_random, share=share) for share in (0.95, 0.97)},
    **{f"{share:.0%} by size": partial(_by_size, share=share) for share in (0.95, 0.97)},
    "95% by size of rows": partial(by_size_of_rows, share=0.95),
    **{f"{share:.0%} of blocks": partial(blocks_at_random, share=share) for share in (0.5, 0.9)},
    **{
        f"{share:.2%} times {factor}": partial(with_outliers, share=share, factor=factor)
        for share, factor in ((1e-3, 100), (2e-4, 100), (1e-3, 30))
    },
    "1% of columns times 30": partial(with_large_columns, share=0.01, factor=30),
}
ONE = "one outlier"  # whose own error is chance


def drawn(n_rows: int, seed: int) -> dict[str, list[F32Array]]:
    shape = n_rows, 256
    tails = 0.02 * np.random.default_rng(seed - 1).standard_t(4, shape)
    normal = 0.05 * np.random.default_rng(seed - 2).standard_normal(shape)
    return {"normal": [normal.astype(np.float32)], "heavy tails": [tails.astype(np.float32)]}


def of_file(path: Path, n_rows: int) -> Iterator[F32Array]:
    for x in matrices_in(path):
        yield np.ascontiguousarray(x[: min(len(x), n_rows) // 2 * 2], np.float32)


def compare(name: str, x: F32Array) -> tuple[float, ...]:
    """Square errors of the finest input, posterior and linear; both claims; weights outside."""
    sources = sources_of(name)
    raws, truth = encode(sources, x), x.reshape(-1).astype(np.float64)
    first = run("best", sources[:1], raws[:1], x.size)[0]
    done = [run(method, sources, raws, x.size) for method in ("posterior", "linear")]
    errors = [float(np.sum((out - truth) ** 2)) for out in (first, done[0][0], done[1][0])]
    return (*errors, done[0][2].variance, done[1][2].variance, float(not done[0][3]))


def print_leverage(name: str) -> None:
    rng = np.random.default_rng(7)
    x = (0.05 * rng.standard_normal((2 * N_ROWS, 256))).astype(np.float32)
    share = rng.choice([0.5, 0.7, 0.8, 0.9, 0.95], (len(x), 1))
    x = np.where(rng.random(x.shape) < share, np.float32(0), x)
    sources = sources_of(name)
    tile = TileEstimator(sources, "posterior")
    tile.estimate(encode(sources, x), 0, x.size, np.empty(x.size, np.float32))
    evidence, truth = tile.evidence, x.reshape(-1)
    scale, offset = evidence.scale[0].repeat(16), evidence.offset[0].repeat(16)
    value = evidence.levels[0][evidence.codes[0]] * scale + offset
    squares = np.where(truth != 0, np.square(value, dtype=np.float64), 0)
    of_block = squares.reshape(-1, SIZES.get(name.rstrip("*"), 32)).sum(1)
    left = 1 - squares / np.maximum(of_block, 1e-30).repeat(x.size // of_block.size)
    line = []
    for middle in (0.25, 0.45, 0.65, 0.85, 0.97):
        near = (truth != 0) & (scale != 0) & (abs(left - middle) < min(0.05, 1 - middle))
        error = np.sum(np.square(value - truth, dtype=np.float64)[near])
        square = np.sum(np.square(scale, dtype=np.float64)[near])
        line.append(f"{middle} {error / square / evidence.noise[0]:.2f}")
    print(f"{name}: {', '.join(line)}", flush=True)


def print_speed(name: str) -> None:
    sources, rng = sources_of(name), np.random.default_rng(8)
    x = (0.05 * rng.standard_normal((TILE // 256, 256))).astype(np.float32)
    for kind, weights in {"pruned": at_random(x, 0.9, SEED), "normal": x}.items():
        raws, out = encode(sources, weights), np.empty(x.size, np.float32)
        line = []
        for method in ("posterior", "linear"):
            tiles = UncorrectedTileEstimator(sources, method), TileEstimator(sources, method)
            rounds = np.array([[seconds(tile, raws, out) for tile in tiles] for _ in range(11)])
            before, after = np.median(rounds[1:], axis=0)
            line.append(
                f"{method} {1e3 * before:.2f} -> {1e3 * after:.2f} ms ({after / before:.2f})"
            )
        print(f"{name}, {kind}: {', '.join(line)}", flush=True)


def seconds(tile: UncorrectedTileEstimator, raws: list[U8Array], out: F32Array) -> float:
    start = time.process_time()
    tile.estimate(raws, 0, out.size, out)
    return time.process_time() - start


def print_summary(rows: NDArray[np.float64]) -> None:
    first, posterior, linear, claim, other, outside = rows.T
    worse = [np.count_nonzero(posterior > errors) for errors in (first, linear)]
    print(
        f"{len(rows)} rows: worse than the finest input {worse[0]}, than linear {worse[1]}, with"
        f" estimates outside {np.count_nonzero(outside)}"
    )
    for method, claims in {"posterior": claim / posterior, "linear": other / linear}.items():
        near = [np.count_nonzero(abs(claims - 1) <= most) for most in (0.03, 0.1)]
        print(
            f"{method}: claims within 3% {near[0]}, within 10% {near[1]}, from {claims.min():.2f}"
            f" to {claims.max():.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--further", action="store_true")
    parser.add_argument("--leverage", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--superblocks", type=int, default=N_ROWS, help="of each matrix")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    if args.speed:
        for name in args.sets:
            print_speed(name)
        return
    if args.leverage:
        for name in TYPES:
            print_leverage(name)
        return
    kinds = {path.stem: list(of_file(path, args.superblocks)) for path in args.files}
    if not (args.further and args.files):
        kinds = drawn(args.superblocks, args.seed) | kinds
    ways = FURTHER | {ONE: partial(with_one_outlier, factor=1e5)} if args.further else WAYS
    rows: list[tuple[float, ...]] = []
    for name in args.sets:
        for kind, matrices in kinds.items():
            for way, change in ways.items():
                each = [
                    compare(name, change(x, seed=args.seed + i)) for i, x in enumerate(matrices)
                ]
                row = first, posterior, linear, claim, other, outside = tuple(
                    map(sum, zip(*each, strict=True))
                )
                if way not in (MADE_SMALL, ONE):
                    rows.append(row)
                print(
                    f"{name}, {kind}, {way}: posterior {posterior / first:.4f} "
                    f"(claims {claim / posterior:.3f}), linear {linear / first:.4f} "
                    f"({other / linear:.3f}){f', {outside:.0f} outside' if outside else ''}",
                    flush=True,
                )
    print_summary(np.array(rows))


if __name__ == "__main__":
    main()
