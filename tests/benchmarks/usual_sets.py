"""Sets of inputs as people have them: right ones pass, and a tensor from elsewhere is named.

    python -m tests.benchmarks.usual_sets [--sets 30] [--seed 0]

draws so many sets of two to five inputs of usual types, with and without an importance matrix, of
originals in F32, BF16 and F16, and merges each by one of the methods. Then the same sets with one
tensor of one input changed. Prints what is said of each set, how many right ones raise an alarm,
and how many changed tensors are named. A weight that a change leaves in its cells tells nothing:
a LoRA of 1e-3 in types of few bits may move none out of them.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from recover.containers.gguf.reader import open_gguf
from recover.quants import F32Array
from tests.benchmarks.from_elsewhere import (
    ALARMS,
    DOWN,
    NORM,
    UP,
    Change,
    Q,
    V,
    Weights,
    low_rank,
    said,
    swapped,
)
from tests.support.gguf_files import Stored, stored, write_gguf
from tests.support.models import SHARED, TINY
from tests.support.right_sets import FLOATS, Made, Rng, encode

K_TYPES = "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"
TYPES = *K_TYPES, "Q8_0", "IQ4_XS", "IQ3_S", "Q4_0", "IQ4_NL", "Q5_0"
METHODS = "posterior", "linear", "midpoint", "joint", "best"
MODELS = TINY, SHARED / "llama-29m-bf16.gguf"
N_MATRICES = 5


def another_row(x: F32Array, rng: Rng) -> F32Array:
    x[33] = x.std() * rng.standard_normal(x.shape[1])
    return x


CHANGES: dict[str, tuple[str, Change]] = {
    "rows permuted": (V, lambda x, rng: rng.permutation(x)),
    "one row replaced": (UP, another_row),
    "two rows swapped": (DOWN, partial(swapped, one=7, two=200)),
    "LoRA 1e-3": (Q, partial(low_rank, size=1e-3)),
    "norm times 1.05": (NORM, lambda x, _: 1.05 * x),
}


def drawn_weights(model: Path, rounding: str, rng: Rng) -> Weights:
    """Some tensors of a model, rounded to a float type; they had been BF16."""
    tensors = open_gguf(model).tensors
    matrices = sorted(
        name
        for name, each in tensors.items()
        if len(each.dims) == 2 and each.dims[0] % 256 == 0 and name not in (Q, V, UP, DOWN)
    )
    names = [NORM, Q, V, UP, DOWN, *map(str, rng.choice(matrices, N_MATRICES, replace=False))]
    weights = {}
    for name in names:
        tensor = tensors[name]
        x = tensor.read(0, tensor.n_weights).reshape(tensor.dims[::-1])[:512]
        if rounding != "BF16" and x.ndim == 2:
            x = x * (1 + np.float32(1e-3) * rng.standard_normal(x.shape, np.float32))
        weights[name] = x.astype(FLOATS[rounding] if x.ndim == 2 else x.dtype).astype(np.float32)
    return weights


def write(path: Path, made: Made, weights: Weights) -> Path:
    """A file; its importance matrix is that of every other file of such weights."""
    tensors = {}
    for number, (name, x) in enumerate(weights.items()):
        if x.ndim == 1:
            tensors[name] = stored("F32", x)
        else:
            kind, rows = encode(made, x, number)
            tensors[name] = Stored(kind.name, rows)
    return write_gguf(path, tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    n_alarms = n_named = 0
    for number in range(args.sets):
        model = MODELS[number % len(MODELS)]
        rounding, method = list(FLOATS)[number % len(FLOATS)], METHODS[number % len(METHODS)]
        weights = drawn_weights(model, rounding, rng)
        kinds = map(str, rng.choice(TYPES, rng.integers(2, 6), replace=False))
        inputs = [
            Made(kind, "smooth" if rng.random() < 0.5 and kind != "Q8_0" else "") for kind in kinds
        ]
        label, (name, change) = list(CHANGES.items())[(number // len(METHODS)) % len(CHANGES)]
        odd = int(rng.integers(len(inputs)))
        changed = np.asarray(change(weights[name].copy(), rng), np.float32)
        with tempfile.TemporaryDirectory() as folder:
            paths = [
                write(Path(folder, f"{i}.gguf"), made, weights) for i, made in enumerate(inputs)
            ]
            found = said(paths, method)
            is_alarm = any(each in found for each in ALARMS)
            write(paths[odd], inputs[odd], weights | {name: changed})
            is_named = name in said(paths, method)
        n_alarms += is_alarm
        n_named += is_named
        told = "named" if is_named else "passes"
        print(
            f"{model.stem} {rounding} {'+'.join(map(str, inputs))} {method}:"
            f" {'ALARM: ' + found if is_alarm else 'right'}; {label} in {inputs[odd]}: {told}",
            flush=True,
        )
    print(
        f"{n_alarms} of {args.sets} right sets raise an alarm; of as many changes {n_named} named"
    )


if __name__ == "__main__":
    main()
