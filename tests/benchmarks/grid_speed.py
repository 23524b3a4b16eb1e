"""Speed of the search for hidden grids and for the originals of naive Q8_0, and how much is found.

    python -m tests.benchmarks.grid_speed [--weights 4e6]

makes integers times BF16 scales, stores them as F32, F16 and BF16 or as naive Q8_0 (by libggml),
and looks for them on one thread. The speed is weights per second of CPU time, sampling, search and
proof included; a tensor without a grid is read in part only.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from recover.containers.model import ArrayTensor
from recover.inputs.originals._requantized import read_groups, tables
from recover.inputs.originals.grid import Floats, find_grid, read
from recover.inputs.originals.requantized import CHAINS, find_second_hand
from recover.quants import type_by_name
from tests.naive.grids import TYPES, rounded, stored_bytes
from tests.oracle import libggml

ROW = 6144
T = TypeVar("T")


def integers(n_rows: int, run: int, largest: int) -> tuple[NDArray[np.float64], ...]:
    """Codes and scales (n_rows, n_runs, run or 1)."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((n_rows, ROW // run, run))
    codes = np.rint(x / np.abs(x).max(-1, keepdims=True) * largest)
    scales = 0.06 / largest * np.exp(rng.standard_normal((n_rows, ROW // run, 1)) / 2)
    return codes, scales.astype(TYPES["BF16"]).astype(np.float64)


def cpu_seconds(work: Callable[[], T]) -> tuple[T, float]:
    """The result and CPU time of the second call: the first compiles."""
    work()
    start = time.process_time()
    return work(), time.process_time() - start


def hidden(n_rows: int) -> None:
    print(
        f"{'hidden grid':24}{'found':>8}{'scales right':>14}{'codes right':>13}{'M weights/s':>13}"
    )
    for type_name in TYPES:
        for largest, run in ((127, 32), (127, 128), (127, 6144), (7, 32), (7, 128)):
            codes, scales = integers(n_rows, run, largest)
            raw = stored_bytes((codes * scales).reshape(-1), type_name)
            stored = Floats(raw, type_name, ROW)
            grid, seconds = cpu_seconds(partial(find_grid, stored, n_threads=1))
            assert grid is not None
            runs = read(stored.words(0, codes.size), type_name, grid.run_length, grid.expected)
            is_run = grid.run_length == run
            scales_right = (runs.scales == scales.reshape(-1)).mean() if is_run else 0.0
            codes_right = (runs.codes == codes.reshape(-1)).mean()
            name = f"{type_name} {'int8' if largest == 127 else 'int4'} / {run}"
            print(f"{name:24}{'yes' if is_run else 'no':>8}{scales_right:14.4%}", end="")
            print(f"{codes_right:13.4%}{codes.size / seconds / 1e6:13.1f}")
        noise = np.random.default_rng(2).standard_normal(n_rows * ROW)
        stored = Floats(stored_bytes(noise, type_name), type_name, ROW)
        grid, seconds = cpu_seconds(partial(find_grid, stored, n_threads=1))
        speed = noise.size / seconds / 1e6
        print(f"{type_name + ' normal':24}{'no' if grid is None else 'YES':>8}{speed:40.1f}")


def second_hand(n_rows: int) -> None:
    print(f"\n{'second hand':24}{'found as':>14}{'scales right':>14}{'codes right':>13}", end="")
    print(f"{'proven':>11}{'whole groups':>14}{'M weights/s':>13}")
    cases = [(127, group) for group in (128, 768, 6144)] + [(7, 32)]
    for number, chain in enumerate(CHAINS):
        for largest, group in cases:
            codes, scales = integers(n_rows, group, largest)
            weights = rounded(codes * scales, chain).astype(np.float32)
            raw = libggml.quantize(8, weights.reshape(n_rows, ROW))
            tensor = ArrayTensor("t", (ROW, n_rows), type_by_name("Q8_0"), raw)
            found, seconds = cpu_seconds(partial(find_second_hand, tensor, n_threads=1))
            name = f"{chain} int{8 if largest == 127 else 4} / {group}"
            if found is None:
                print(f"{name:24}{'no':>14}")
                continue
            as_what = f"{found.chain} / {found.group}"
            found_codes, found_scales = np.empty(codes.size, np.int16), np.empty(scales.size)
            read_groups(raw, number, found.max_code, 0.0, tables(), found_codes, found_scales)
            right = found_codes.reshape(codes.shape) == codes
            print(f"{name:24}{as_what:>14}", end="")
            print(
                f"{(found_scales == scales.reshape(-1)).mean():14.4%}{right.mean():13.4%}", end=""
            )
            print(f"{1 - found.n_unproven / codes.size:11.4%}{right.all(-1).mean():14.2%}", end="")
            print(f"{codes.size / seconds / 1e6:13.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=float, default=4e6)
    n_rows = max(8, int(parser.parse_args().weights) // ROW)
    hidden(n_rows)
    second_hand(n_rows)


if __name__ == "__main__":
    main()
