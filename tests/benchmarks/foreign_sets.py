"""What every format adds to every set of others.

    python -m tests.benchmarks.foreign_sets MODEL.gguf [--block N] [--most N] [--sample N] [NAME...]

quantizes some rows of the matrices of one block of an unquantized model in all settings of the
shipped sample of folders (see `tests.golden.make_sample_folders`) and some types of GGUF, and
merges all sets of up to 3 of them, or with ``--sample`` so many of 3 that are drawn. Prints by
number of inputs how much an input that is added lowers the error of the posterior or raises it, how
far the posterior is behind the best other method, and the sets where either is worse than by half a
percent, or a tenth. Rows of all matrices together have to be whole 32.
"""

import argparse
import math
from pathlib import Path

import numpy as np

from recover.containers.gguf.reader import open_gguf
from recover.quants import F32Array
from tests.golden.make_sample_folders import ALL
from tests.support.all_sets import GGUF, Sets

_WORSE, _BEHIND = 1.005, 1.001
_WIDTH = 512


def some_rows(path: Path, block: int, n_rows: int) -> F32Array:
    """Rows of 512 weights (n, 512), as many of each matrix."""
    return np.concatenate(
        [
            tensor.read(0, n_rows * _WIDTH).reshape(-1, _WIDTH)
            for tensor in open_gguf(path).tensors.values()
            if tensor.name.startswith(f"blk.{block}.") and len(tensor.info.dims) == 2
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help="formats; all if left out")
    parser.add_argument("--block", type=int, default=5, help="default: 5")
    parser.add_argument("--most", type=int, default=3, help="inputs of a set, default: 3")
    parser.add_argument("--rows", type=int, default=64, help="of each matrix, default: 64")
    parser.add_argument("--sample", type=int, help="sets to draw, all of the largest size")
    parser.add_argument("--seed", type=int, default=1, help="of the draw, default: 1")
    args = parser.parse_args()
    x = some_rows(args.model, args.block, args.rows)
    sets = Sets(x, args.names or [*ALL, *GGUF])
    if args.sample:
        found = list(sets.sampled(args.most, args.sample, args.seed))
    else:
        found = list(sets.merged(args.most))
    print(f"{x.size:,} weights, {len(found):,} sets")
    for n in range(1, args.most + 1):
        of_size = [each for each in found if len(each.names) == n]
        if not of_size:
            continue
        print(f"\nsets of {n}: {len(of_size)}")
        for title, limit, ratios in (
            ("an input that is added", _WORSE, [each.added for each in of_size if n > 1]),
            ("beside the best other method", _BEHIND, [each.behind for each in of_size]),
        ):
            if ratios:
                mean, n_worse = math.exp(np.mean(np.log(ratios))), sum(r > limit for r in ratios)
                print(f"{title}: mean {mean:.4f}, worst {max(ratios):.4f}, {n_worse} over {limit}")
    for each in sorted(found, key=lambda each: -each.added):
        if each.added > _WORSE:
            print(f"adds {each.added:.4f}  {'+'.join(each.names)}")
    for each in sorted(found, key=lambda each: -each.behind):
        if each.behind > _BEHIND:
            print(f"behind {each.behind:.4f}  {'+'.join(each.names)}")


if __name__ == "__main__":
    main()
