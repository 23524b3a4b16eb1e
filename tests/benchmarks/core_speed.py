"""Speed of a merge on one core, without the start of a process.

    python -m tests.benchmarks.core_speed [--method posterior] [--weights 200e6] [--folder DIR]
        [--json FILE]

makes three K-quant files of that many weights, as `tests.benchmarks.bounds_speed` does, and prints
weights per second of wall time and of processor time: of a tile in memory (unpack, estimate, encode
as F16), and of a whole merge on one thread, with reading, writing and flushing.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from recover.containers.gguf.reader import open_gguf
from recover.estimators import DEFAULT_METHOD, TileEstimator, method_names
from recover.evidence.buffer import Source
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from recover.quants import TILE, U8Array, quantize, type_by_name
from tests.benchmarks.bounds_speed import print_speeds
from tests.benchmarks.merge_speed import DATA, NAMES, grow
from tests.benchmarks.record import write_record

KINDS = ("Q5_K", "Q4_K", "Q2_K")
_N_TILES = 20


def first_tiles(paths: list[Path]) -> tuple[int, list[U8Array]]:
    """The first weights of the largest tensor that has these types, a tile at most.

    Their number, and their bytes in each file.
    """
    models = [open_gguf(path).tensors for path in paths]
    names = [n for n in models[0] if tuple(each[n].type.name for each in models) == KINDS]
    name = max(names, key=lambda name: models[0][name].n_weights)
    tensors = [each[name] for each in models]
    n = min(TILE, tensors[0].n_weights)
    return n, [tensor.raw[: tensor.type.n_bytes(n)] for tensor in tensors]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--method", choices=method_names(), default=DEFAULT_METHOD)
    parser.add_argument("--weights", type=float, default=200e6)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    sources = [Source(type_by_name(name)) for name in KINDS]
    estimator = TileEstimator(sources, args.method)
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        inputs = [Path(scratch) / f"{name}.gguf" for name in NAMES]
        for name, path in zip(NAMES, inputs, strict=True):
            grow(DATA / f"tiny-llama-3m-{name}.gguf", path, args.weights)
        n, raws = first_tiles(inputs)
        out, encoded = np.empty(n, np.float32), np.empty(2 * n, np.uint8)

        def work() -> None:
            for _ in range(_N_TILES):
                estimator.estimate(raws, 0, n, out)
                quantize(out.reshape(1, -1), type_by_name("F16"), out=encoded)

        def merge() -> None:
            plan = plan_merge(inputs, Path(scratch) / "out.gguf", method=args.method)
            execute_merge(plan, n_threads=1)

        merge()  # compile, and fill the page cache
        work()
        print("a tile in memory")
        tile = print_speeds(work, _N_TILES * n, args)
        print("a merge on one thread")
        whole = print_speeds(merge, open_gguf(inputs[0]).n_weights, args)
    if args.json:
        figures = {"method": args.method, "tile": tile, "merge": whole}
        write_record(args.json, "core_speed", figures)


if __name__ == "__main__":
    main()
