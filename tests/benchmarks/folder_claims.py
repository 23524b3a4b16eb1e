"""What is claimed of the error of sets with formats of Hugging Face folders, on any weights.

    python -m tests.benchmarks.folder_claims FILE [WORD...] [--rows N] [--block N] [--json OUT]

quantizes some rows of the matrices of a file (GGUF in BF16, or safetensors in float32) in all
settings of the shipped sample of folders (see `tests.golden.make_sample_folders`), alone, beside
types of GGUF and in larger sets. Prints for each method the error over that of the best input and
the expected over the measured error, those that are furthest off first. Weights are rounded to
BF16, as those of nearly all models are, unless `--as-stored` is given. Instead of a file the word
`heavy` means rows with heavy tails, `sparse` normal weights of which 30% are 0, and `columns`
normal weights of which 2% of the columns are 12 times as large. WORDs choose the sets that have one
of them as an input.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np

from recover.containers.gguf.reader import open_gguf
from recover.containers.model import StoredTensor
from recover.estimators.tile import TileEstimator
from recover.evidence.buffer import Source, tells_errors
from recover.inputs.matching import typical_error
from recover.quants import F32Array
from tests.benchmarks.foreign import METHODS
from tests.golden.make_sample_folders import ALL
from tests.support.all_sets import has_cells, stored_as, with_errors
from tests.support.foreign_modules import heavy_tailed, rounded

BESIDE = "Q8_0", "Q6_K", "Q4_K", "Q2_K"
LARGER = (
    ("GPTQ4-g128", "AWQ4-g128"),
    ("GPTQ4-g128", "NF4-nested"),
    ("AWQ4-g128", "NF4-nested"),
    ("AWQ4-g128", "NF4-nested", "Q4_K"),
    ("GPTQ4-g128", "AWQ4-g128", "Q4_K"),
    ("GPTQ4-g128", "AWQ4-g128", "NF4-nested", "Q4_K"),
    ("FP8-block", "NF4-nested", "Q4_K"),
    ("LLM.int8", "FP8-block", "Q6_K"),
    ("NF4-nested", "Q5_K", "Q4_K"),
    ("GPTQ4-g128", "Q5_K", "Q4_K", "Q2_K"),
    ("GPTQ4-g128", "EXL2-5"),
    ("GPTQ4-g128", "EXL2-5", "Q6_K"),
    ("NVFP4", "MXFP4"),
    ("HQQ4-g64", "MLX4-g64", "Q4_K"),
)


def sets() -> list[tuple[str, ...]]:
    """Each setting alone and beside each type, and larger sets."""
    alone = [(name,) for name in (*ALL, *BESIDE)]
    pairs = [(name, other) for name in ALL for other in BESIDE]
    return [*alone, *pairs, *LARGER]


def weights(path: Path, block: int, n_rows: int) -> F32Array:
    """As many rows of each matrix, of as many weights as the shortest has."""
    if path.name in _DRAWN:
        return _DRAWN[path.name](np.random.Generator(np.random.Philox(key=5)), 6 * n_rows)
    found = [x for x in _matrices(path, block) if x.ndim == 2 and min(x.shape) >= 128]
    width = min(x.shape[1] for x in found) // 128 * 128
    rows = [_spread(x, n_rows)[:, :width] for x in found]
    return np.ascontiguousarray(np.concatenate(rows), np.float32)


def _sparse(rng: np.random.Generator, n_rows: int) -> F32Array:
    drawn = rng.normal(0, 0.02, (n_rows, 512))
    return np.where(rng.random(drawn.shape) < 0.3, 0, drawn).astype(np.float32)


def _columns(rng: np.random.Generator, n_rows: int) -> F32Array:
    drawn = rng.normal(0, 0.02, (n_rows, 512))
    return (drawn * np.where(rng.random(512) < 0.02, 12, 1)).astype(np.float32)


_DRAWN: dict[str, Callable[[np.random.Generator, int], F32Array]] = {
    "heavy": lambda rng, n_rows: heavy_tailed(rng, n_rows, 512),
    "sparse": _sparse,
    "columns": _columns,
}


def _spread(x: F32Array, n_rows: int) -> F32Array:
    """Runs of 16 rows, at even distances."""
    n_runs = max(n_rows // 16, 1)
    starts = np.linspace(0, len(x) - 16, n_runs).astype(int)
    return np.concatenate([x[start : start + 16] for start in starts])


def _matrices(path: Path, block: int) -> Iterator[F32Array]:
    if path.suffix == ".gguf":
        for tensor in open_gguf(path).tensors.values():
            if tensor.name.startswith(f"blk.{block}."):
                yield tensor.read(0, tensor.n_weights).reshape(tensor.info.dims[::-1])
        return
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    for name, entry in json.loads(raw[8:start]).items():
        if name != "__metadata__" and f".{block}." in name and entry["dtype"] == "F32":
            first, last = entry["data_offsets"]
            found = np.frombuffer(raw[start + first : start + last], np.float32)
            yield found.reshape(entry["shape"])


def merge(
    tensors: Sequence[StoredTensor], x: F32Array, method: str
) -> tuple[float, float, list[float]]:
    """The error over that of the best input, the claim over the error, and those of the inputs."""
    out = np.empty(x.size, np.float32)
    tally = TileEstimator(sources_of(tensors), method).estimate(tensors, 0, x.size, out)
    error, own = _square(out, x), [_square(each.read(0, x.size), x) for each in tensors]
    claims = [claim / each for claim, each in zip(tally.alone, own, strict=True)]
    return error / min(own), tally.variance / error, claims


def sources_of(tensors: Sequence[StoredTensor]) -> list[Source]:
    """What takes part in a merge."""
    return [Source(each.type, has_cells=has_cells(each)) for each in tensors]


def _square(values: F32Array, x: F32Array) -> float:
    return float(np.sum(np.square(values - x, dtype=np.float64)))


def inputs(made: Sequence[StoredTensor]) -> list[StoredTensor]:
    """As a merge has them: the finest first, beside which errors of compensated codes are found."""
    tensors = sorted(made, key=lambda each: typical_error(each.type))
    return with_errors(tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("words", nargs="*", metavar="WORD", help="inputs of sets to choose")
    parser.add_argument("--block", type=int, default=3, help="default: 3")
    parser.add_argument("--rows", type=int, default=32, help="of each matrix, default: 32")
    parser.add_argument("--as-stored", action="store_true", help="weights are not rounded")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    args = parser.parse_args()
    x = weights(args.file, args.block, args.rows)
    x = x[: x.size // x.shape[1] // 16 * 16]
    x = x if args.as_stored else rounded(x, "BF16")
    of = cache(partial(stored_as, x=x))
    flat, found = x.reshape(-1), {}
    for names in sets():
        if args.words and not set(args.words) & set(names):
            continue
        tensors = inputs([of(name) for name in names])
        if not tells_errors(sources_of(tensors)):
            print(f"{'+'.join(names):40} no claim is made")
            continue
        for method in METHODS:
            found["+".join(names), method] = merge(tensors, flat, method)
    print(f"{x.shape[0]} rows of {x.shape[1]}")
    for (label, method), each in sorted(found.items(), key=lambda item: -abs(item[1][1] - 1)):
        own = ", ".join(f"{claim:.3f}" for claim in each[2])
        print(f"{label:40} {method:9} {each[0]:.4f}, claim {each[1]:.3f}; alone {own}")
    off = np.abs([each[1] - 1 for each in found.values()])
    within = ", ".join(f"{np.mean(off <= each):.3f} within {each:.0%}" for each in (0.03, 0.04))
    print(f"{off.size} claims: {within}")
    if args.json:
        args.json.write_text(json.dumps({" ".join(k): v for k, v in found.items()}))


if __name__ == "__main__":
    main()
