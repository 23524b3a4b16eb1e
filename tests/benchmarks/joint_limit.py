"""What no estimator can be better than: the limit that the method `joint` comes near.

    python -m tests.benchmarks.joint_limit [--types Q5_K+Q4_K+Q2_K] [--moves 60000] [FILE ...]

Chains of weights that our encoders make the same bytes of: superblocks are encoded as all types; a
chain begins as the true weights, which are a fair draw of what they may be, and moves on, some
weights of one block of 32 at a time. A move is kept if every byte of every input stays what it is,
with the chance that the prior gives it (a normal density as wide as the superblock). The mean of a
chain's later part is the best estimate there is; what is left of its square error is the limit.

Printed are square errors over that of the finest input, and over that of the posterior, each with a
90% interval, drawn anew from the superblocks: of the posterior, of `joint`, of the means of the
chains, and the variance within them. A chain is finite, so that its mean is off by chance: a
quarter of the square distance between the means of its later part's two halves. That is too much
in the error of the means, and missing from the variance. Both so corrected are the limit; they come
from different things (only the first looks at the true weights). What a chain has not forgotten of
its beginning makes both too small: with more moves they rise to the limit.

Without files: weights of a normal density, of which the prior is known. Files are as for
`tests.benchmarks.joint`.
"""

import argparse
from pathlib import Path

import numpy as np

from recover.evidence.buffer import Source
from recover.quants import F32Array
from tests.support.float_files import matrices_in
from tests.support.joint_chains import BLOCK, N_BLOCKS, Chains, F64Array
from tests.support.joint_inputs import encode, run, sources_of

N_DRAWN = 2000  # times that superblocks are drawn anew


def limit(sources: list[Source], x: F32Array, n_moves: int, seed: int) -> None:
    """Print the limit for superblocks."""
    rng = np.random.default_rng(seed)
    raws, truth = encode(sources, x), x.astype(np.float64)

    def errors(method: str, n_inputs: int) -> F64Array:
        out = run(method, sources[:n_inputs], raws[:n_inputs], x.size)[0].reshape(x.shape)
        return np.sum((out - truth) ** 2, 1)

    alone = errors("best", 1)
    found = {name: errors(name, len(sources)) for name in ("posterior", "joint")}
    chains = Chains(sources, x, rng)
    chains.collect(n_moves // 5)  # in which they forget where they began
    halves = [chains.collect(n_moves * 2 // 5) for _ in range(2)]
    means = [each.first / each.n for each in halves]
    n = sum(each.n for each in halves)
    mean = sum(each.first for each in halves) / n
    found["means of chains"] = np.sum((mean - truth) ** 2, 1)
    found["variance within"] = np.sum(sum(e.second for e in halves) / n - mean**2, 1)
    chance = np.sum((means[0] - means[1]) ** 2, 1) / 4
    found["limit by means"] = found["means of chains"] - chance
    found["limit by spread"] = found["variance within"] + chance
    drawn = rng.integers(len(x), size=(N_DRAWN, len(x)))
    for name, each in found.items():
        over = [each[drawn].sum(1) / base[drawn].sum(1) for base in (alone, found["posterior"])]
        spread = [np.quantile(ratio, (0.05, 0.95)) for ratio in over]
        print(
            f"  {name:16} {each.sum() / alone.sum():.4f} ({spread[0][0]:.3f} .. {spread[0][1]:.3f})"
            f", over the posterior {each.sum() / found['posterior'].sum():.4f}"
            f" ({spread[1][0]:.4f} .. {spread[1][1]:.4f})",
            flush=True,
        )
    print(f"  {chains.n_kept / chains.n_tried:.0%} of {chains.n_tried:,} moves kept")


def weights_of(path: Path, n: int, seed: int) -> F32Array:
    """Superblocks of a file, drawn from all."""
    whole = np.concatenate(list(matrices_in(path)))
    return whole[np.random.default_rng(seed).choice(len(whole), n, replace=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--types", default="Q5_K+Q4_K+Q2_K")
    parser.add_argument("--superblocks", type=int, default=25)
    parser.add_argument("--moves", type=int, default=60_000, help="that are tried in each block")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    shape = args.superblocks, 256
    rng = np.random.default_rng(args.seed)
    kinds = {path.stem: weights_of(path, shape[0], args.seed) for path in args.files}
    if not kinds:
        kinds["normal"] = (0.02 * rng.standard_normal(shape)).astype(np.float32)
    for name, x in kinds.items():
        print(f"{name}, {args.types}, {shape[0] * N_BLOCKS} blocks of {BLOCK} weights", flush=True)
        limit(sources_of(args.types), x, args.moves, args.seed)


if __name__ == "__main__":
    main()
