"""What is said of sets of inputs of which one tensor is from elsewhere, and of right sets.

    python -m tests.benchmarks.from_elsewhere [TYPE+TYPE...] [--model FILE] [--method NAME...]

prints, for each set of types, which of 27 changes of a tensor in either input pass without a word:
neither is the merge refused, nor does a warning name the tensor. Before that, whether the set is
taken without alarm where nothing was changed.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recover.containers.gguf.reader import open_gguf
from recover.errors import RecoverError
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from tests.support.gguf_files import stored, write_gguf
from tests.support.models import TINY

F32Array = NDArray[np.float32]
Weights = dict[str, F32Array]
Change = Callable[[F32Array, np.random.Generator], NDArray[np.floating]]

SETS = "Q8_0+Q4_K", "Q5_K+Q4_K", "Q3_K+Q2_K", "IQ4_XS+Q5_0", "F16+Q4_0", "Q8_0+IQ3_S", "Q4_K+TQ2_0"
ALARMS = "contradict", "disagree", "quantized from"
NORM, Q, V, UP, DOWN = (
    f"blk.0.{each}.weight" for each in ("attn_norm", "attn_q", "attn_v", "ffn_up", "ffn_down")
)
EMBEDDINGS, EXPERTS = "token_embd.weight", "blk.1.ffn_up_exps.weight"


def low_rank(
    x: F32Array, rng: np.random.Generator, size: float, rank: int = 4
) -> NDArray[np.floating]:
    change = rng.standard_normal((len(x), rank)) @ rng.standard_normal((rank, x.shape[1]))
    return x + change * size * np.sqrt(np.mean(x**2) / np.mean(change**2))


def noisy(x: F32Array, rng: np.random.Generator, size: float) -> NDArray[np.floating]:
    return x + size * x.std() * rng.standard_normal(x.shape)


def swapped(x: F32Array, rng: np.random.Generator, one: int, two: int) -> F32Array:
    x[[one, two]] = x[[two, one]]
    return x


def with_row(x: F32Array, rng: np.random.Generator, factor: float) -> NDArray[np.floating]:
    return x * np.where(np.arange(len(x)) == 33, factor, 1)[:, None]


def pruned(x: F32Array, rng: np.random.Generator) -> F32Array:
    return np.where(np.abs(x) < np.quantile(np.abs(x), 0.2), np.float32(0), x)


def in_another_order(x: F32Array, rng: np.random.Generator) -> F32Array:
    x[50, :64] = rng.permutation(x[50, :64])
    return x


def changed_expert(x: F32Array, rng: np.random.Generator) -> NDArray[np.floating]:
    x[3] = low_rank(x[3], rng, 1e-2)
    return x


CHANGES: dict[str, tuple[str, Change]] = {
    "rows permuted": (V, lambda x, rng: rng.permutation(x)),
    "columns permuted": (Q, lambda x, rng: x[:, rng.permutation(x.shape[1])]),
    "two rows swapped": (UP, partial(swapped, one=7, two=200)),
    "two columns swapped": (DOWN, lambda x, rng: swapped(x.T, rng, 7, 200).T),
    "64 weights permuted": (UP, in_another_order),
    "transposed": (Q, lambda x, rng: x.T),
    "heads' halves woven": (Q, lambda x, _: x.reshape(-1, 2, 32, 256).swapaxes(1, 2)),
    "negated": (V, lambda x, _: -x),
    "row negated": (UP, partial(with_row, factor=-1)),
    "row of zeros": (UP, partial(with_row, factor=0)),
    "embeddings shifted by one": (EMBEDDINGS, lambda x, _: np.roll(x, 1, 0)),
    "one embedding left out": (EMBEDDINGS, lambda x, _: np.concatenate([x[:400], x[401:], x[:1]])),
    "experts swapped": (EXPERTS, partial(swapped, one=0, two=2)),
    "LoRA 1e-2 of an expert": (EXPERTS, changed_expert),
    "LoRA 1e-3": (Q, partial(low_rank, size=1e-3)),
    "LoRA 1e-2": (V, partial(low_rank, size=1e-2)),
    "LoRA 1e-1 of rank 1": (DOWN, partial(low_rank, size=1e-1, rank=1)),
    "times 1.02": (UP, lambda x, _: 1.02 * x),
    "times 1.3": (UP, lambda x, _: 1.3 * x),
    "times 0.5": (DOWN, lambda x, _: 0.5 * x),
    "row times 1.5": (UP, partial(with_row, factor=1.5)),
    "noise of 1%": (V, partial(noisy, size=0.01)),
    "noise of 10%": (V, partial(noisy, size=0.1)),
    "clipped": (DOWN, lambda x, _: np.clip(x, -2.5 * x.std(), 2.5 * x.std())),
    "20% pruned": (UP, pruned),
    "norm times 1.05": (NORM, lambda x, _: 1.05 * x),
    "norm plus 1": (NORM, lambda x, _: 1 + x),
}


def truth_of(model: Path) -> Weights:
    """Some tensors of a model, and a stack of experts."""
    tensors = open_gguf(model).tensors

    def read(name: str) -> F32Array:
        tensor = tensors[name]
        rows = tensor.read(0, tensor.n_weights).reshape(tensor.dims[::-1])
        return np.ascontiguousarray(rows if rows.ndim == 1 else rows[:512, :256])

    weights = {name: read(name) for name in (EMBEDDINGS, NORM, Q, V, UP, DOWN)}
    weights[Q], weights[UP], weights[DOWN] = (weights[each][:256] for each in (Q, UP, DOWN))
    return weights | {EXPERTS: read("blk.1.ffn_up.weight").reshape(4, -1, 256)}


def write(path: Path, kind: str, weights: Weights) -> Path:
    kinds = {name: "F32" if x.ndim == 1 else kind for name, x in weights.items()}
    return write_gguf(path, {name: stored(kinds[name], x) for name, x in weights.items()})


def said(paths: list[Path], method: str) -> str:
    """What a merge says, whether it succeeds or not."""
    try:
        plan = plan_merge(paths, paths[0].parent / "out.gguf", method=method)
        result = execute_merge(plan)
    except RecoverError as error:
        return str(error)
    return "\n".join([*plan.warnings, *result.warnings])


def silent(kinds: list[str], truth: Weights, folder: Path, method: str) -> list[str]:
    """The changes that pass, and alarms without a change."""
    right = [write(folder / f"right-{kind}.gguf", kind, truth) for kind in kinds]
    text = said(right, method)
    found = [f"false alarm: {text}"] if any(each in text for each in ALARMS) else []
    for number, (label, (name, change)) in enumerate(CHANGES.items()):
        x = np.array(change(truth[name].copy(), np.random.default_rng(number)))
        changed = truth | {name: x.reshape(truth[name].shape).astype(np.float32)}
        for odd, kind in enumerate(kinds):
            paths = [*right]
            paths[odd] = write(folder / "odd.gguf", kind, changed)
            if name not in said(paths, method):
                found.append(f"{label} in {kind}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sets", nargs="*", default=SETS, metavar="TYPE+TYPE")
    parser.add_argument("--model", type=Path, default=TINY)
    parser.add_argument("--method", nargs="*", default=["posterior"])
    args = parser.parse_args()
    truth = truth_of(args.model)
    for text in args.sets:
        kinds = text.split("+")
        for method in args.method:
            with tempfile.TemporaryDirectory() as folder:
                found = silent(kinds, truth, Path(folder), method)
            n = len(CHANGES) * len(kinds)
            print(f"{text}, {method}: {len(found)} of {n} pass: {'; '.join(found) or '-'}")


if __name__ == "__main__":
    main()
