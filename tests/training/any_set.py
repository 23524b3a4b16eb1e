"""Train the network of the method `joint` for any set of types, and see what it gains on which.

``python -m tests.training.any_set DATA OUT --kinds plain --begin NETS.pt --seconds 500`` trains on
a GPU, after ``python -m tests.training.prepare DATA``; ``--resume OUT/any.pt`` goes on,
``--begin OUT/any.pt --width 56`` begins as a wider one, ``--begin recover/data/joint/any.npz
--width 56`` as what is there. At the end
it writes what the network gains on each set, as JSON. See docs/joint.md. It needs torch.
"""

import argparse
import itertools
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recover.estimators._joint_files import read_terms
from recover.estimators._joint_torch import Terms, assemble, begin, columns_of, for_any
from recover.inputs.matching import typical_error
from recover.quants import F32Array, type_by_name
from recover.training.learner import Batch, Learner, look
from recover.training.of_set import again, ahead, batch_of, begin_as
from recover.training.of_set import in_order as in_order_made
from recover.training.of_set import to_device as bring
from recover.training.simulate import N_SUPERBLOCKS, draw, pool_from, simulate
from tests.training.joint import widened

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
K_QUANTS = "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K"
FOUR_BITS = "IQ4_NL", "IQ4_XS"
OTHERS = "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"
WEIGHTED = tuple(f"{name}*" for name in (*K_QUANTS, *FOUR_BITS))
TYPES = {
    "plain": (*K_QUANTS, *FOUR_BITS, *OTHERS),
    "weighted": (*WEIGHTED, *K_QUANTS, *FOUR_BITS, *OTHERS),
}
LOOKED_AT = {
    "plain": (
        "Q5_K+Q4_K+Q2_K",
        "Q5_K+Q4_K",
        "Q6_K+Q4_K",
        "Q8_0+Q6_K+Q5_K+Q4_K+Q2_K",
        "Q4_K",
        "Q2_K",
        "Q5_K+Q3_K",
        "Q4_K+Q3_K",
        "Q4_K+Q4_0",
        "IQ4_XS+Q3_K",
        "Q4_K+IQ4_XS+Q3_K",
        "Q8_0+Q4_K",
        "Q6_K+Q5_K+Q4_K+Q3_K+Q2_K",
        "Q5_0+Q4_0",
        "Q5_1+Q4_K+Q2_K",
        "Q6_K+Q5_K",
    ),
    "weighted": (
        "Q5_K*+Q4_K*+Q2_K*",
        "Q5_K*+Q4_K*",
        "Q6_K*+Q4_K*",
        "Q8_0+Q6_K*+Q5_K*+Q4_K*+Q2_K*",
        "Q4_K*+Q3_K*",
        "Q4_K*+IQ4_XS*+Q3_K*",
        "Q5_K*+Q4_K",
        "Q5_K+Q4_K*",
        "Q4_K+Q4_K*",
        "Q5_K*+Q5_K**+Q5_K***",
        "Q4_K*+Q4_K**",
        "Q8_0+Q4_K*",
        "Q4_K*+Q4_0",
        "Q3_K*+Q2_K*",
    ),
}
RANK = 8
N_TIMES = 4  # that a GPU learns from a batch
N_MEASURED = 1024
FAST_TYPES = {name: 1.0 if name in K_QUANTS else 0.55 for name in TYPES["plain"]}


def compile_type(name: str) -> None:
    """Have the kernels of a type compiled, and kept on the disk."""
    ones = np.ones((16, 256), np.float32)
    simulate(ones, [name], ones[None])


def to_device(batch: Batch) -> Batch:
    return bring(batch, DEVICE)


def in_order(names: Sequence[str]) -> tuple[str, ...]:
    """Finest first; plain before weighted ones."""
    return tuple(sorted(names, key=lambda n: (typical_error(type_by_name(n.rstrip("*"))), n)))


def draw_set(rng: np.random.Generator, kinds: str) -> tuple[str, ...]:
    """A set of types; of weighted ones a third share a matrix, the others are of any kind."""
    size = int(rng.choice([1, 2, 3, 4, 5, 6], p=[0.07, 0.33, 0.33, 0.14, 0.1, 0.03]))
    chances = np.array([FAST_TYPES[name] for name in TYPES["plain"]])
    names = rng.choice(TYPES["plain"], size, replace=False, p=chances / chances.sum())
    if kinds == "plain":
        return in_order(names.tolist())
    of_one = rng.random() < 0.5
    if not of_one and rng.random() < 0.4:  # one type several times
        repeated = rng.choice([*K_QUANTS, *FOUR_BITS])
        names[: int(rng.integers(2, 4))] = repeated
    can = [f"{name}*" in WEIGHTED for name in names]
    if of_one:
        found = {f"{name}*" if ok else name for name, ok in zip(names, can, strict=True)}
        found = {name for name in found if name.endswith("*") or name == "Q8_0"}
    else:
        matrices = rng.choice([0, 1, 1, 2, 3], size)
        pairs = zip(names, can, matrices, strict=True)
        found = {name + "*" * (int(m) if ok else 0) for name, ok, m in pairs}
    if not any("*" in name for name in found):
        found |= {"Q4_K*"}
    return in_order(renumbered(sorted(found)))


def renumbered(names: Sequence[str]) -> list[str]:
    """Matrices are numbered in the order of the inputs."""
    known: dict[int, int] = {0: 0}
    found = []
    for name in in_order(names):
        n = name.count("*")
        known.setdefault(n, len(known))
        found.append(name.rstrip("*") + "*" * known[n])
    return found


def batch_of_any(pool: F32Array, kinds: str, seed: int, size: int, i: int) -> Batch:
    """Batch number `i`, of a set that is drawn; the rows of its types come last."""
    rng = np.random.default_rng((seed, i))
    names = draw_set(rng, kinds)
    batch = batch_of(rng, draw(rng, pool, size), names)
    batch.append(rows_of(names, kinds, "cpu"))
    return [each.pin_memory() for each in batch] if DEVICE == "cuda" else batch


def rows_of(names: Sequence[str], kinds: str, device: str = DEVICE) -> Any:
    types = list(TYPES[kinds])
    starred = [name.rstrip("*") + "*" * ("*" in name) for name in names]
    return torch.tensor([types.index(name) for name in starred], device=device)


def first_terms(path: Path | None, kinds: str, width: int) -> Terms:
    """Those of trained networks for sets, as far as their types are known.

    Or of a network for any set, as wide as `width`.
    """
    types = TYPES[kinds]
    known: dict[str, Any] = {}
    if path is not None and path.suffix == ".npz":
        with path.open("rb") as file:
            known = {"mean": begin_as(read_terms(file))}
    elif path is not None:
        known = torch.load(path, "cpu", weights_only=False)
    if "mean" in known:
        own = {name: each.float() for name, each in known["mean"].items()}
        n_rounds = sum(name.endswith("enter.bias") for name in own)
        return widened(own, begin(width, n_rounds, 1))
    for record in known.values():
        record["mean"] = {k: v.float() for k, v in record["mean"].items()}
    columns: dict[str, Any] = {}
    for record in known.values():
        for i, name in enumerate(record["types"]):
            columns.setdefault(name, columns_of(record["mean"], i))
    first = "Q5_K*+Q4_K*+Q2_K*" if kinds == "weighted" else "Q5_K+Q4_K+Q2_K"
    body = known[f"{first} 48x3"]["mean"] if known else begin(48, 3, 1)
    spare = columns_of(body, 0)
    for name in types:
        plain = name.rstrip("*")
        near = {"Q5_0": "Q5_K", "Q5_1": "Q5_K"}.get(plain, plain if plain in K_QUANTS else "Q4_K")
        columns.setdefault(name, columns.get(plain, columns.get(near, spare)))
    return for_any(body, [columns[name] for name in types], RANK)


def all_sets(kinds: str) -> list[tuple[str, ...]]:
    """All sets that are measured."""
    if kinds == "plain":
        sets = [c for k in range(1, 6) for c in itertools.combinations(TYPES["plain"], k)]
        return [in_order(each) for each in sets]
    of_one = [*WEIGHTED, "Q8_0"]
    sets = [c for k in range(1, 7) for c in itertools.combinations(of_one, k)]
    others = (*WEIGHTED, *K_QUANTS, *FOUR_BITS, *OTHERS)
    sets += [c for k in (2, 3) for c in itertools.combinations(others, k)]
    repeated = [f"{name}**" for name in K_QUANTS + FOUR_BITS]
    more = (*WEIGHTED, *repeated, "Q8_0")
    sets += [c for k in (2, 3) for c in itertools.combinations(more, k)]
    sets += [(name, f"{name}*", f"{name}**") for name in WEIGHTED]
    found = {in_order(renumbered(each)) for each in sets if any("*" in name for name in each)}
    return sorted(found)


def measure(
    terms: Terms, kinds: str, held: dict[str, F32Array], workers: int
) -> dict[str, list[list[float]]]:
    """Of each set and each kind of weights: sums of square errors, and what is claimed."""

    def make(each: tuple[str, ...]) -> list[Batch]:
        return [batch_of(np.random.default_rng(7), x, each) for x in held.values()]

    found: dict[str, list[list[float]]] = {}
    sets = all_sets(kinds)
    with ThreadPoolExecutor(workers) as threads:
        for start in range(0, len(sets), 4 * workers):
            part = sets[start : start + 4 * workers]
            for each, made in zip(part, threads.map(make, part), strict=True):
                rows = rows_of(each, kinds)
                net = assemble(terms, rows, torch.ones(len(rows), device=DEVICE))
                found["+".join(each)] = [list(look(net, to_device(batch))) for batch in made]
    return found


def train(args: argparse.Namespace) -> None:
    start = time.time()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    workers = args.workers or max(1, min(15, (os.cpu_count() or 2) - 1))
    types = TYPES[args.kinds]
    with ProcessPoolExecutor(max(1, min(len(types), workers))) as processes:
        list(processes.map(compile_type, types))
    print(f"kernels after {time.time() - start:.0f} s", flush=True)
    pool = pool_from(str(args.data / "train.npy"))
    terms = first_terms(args.begin, args.kinds, args.width)
    learner = Learner(terms, DEVICE, args.rate, compiled=DEVICE == "cuda")
    first = 0
    if args.resume:
        record = torch.load(args.resume, "cpu", weights_only=False)
        learner.resume(record)
        first = record["next_batch"]
    weights = {
        name: pool_from(str(args.data / f"{name}.npy"))[:N_MEASURED]
        for name in ("llama", "held", "tiny")
    }
    looked_at = {
        name: to_device(batch_of(np.random.default_rng(5), weights["llama"], name.split("+")))
        for name in LOOKED_AT[args.kinds]
    }

    def show(progress: float) -> None:
        passed = time.time() - start
        print(f"{passed:.0f} s, {learner.n_steps} steps, progress {progress:.2f}", flush=True)
        for name, batch in looked_at.items():
            net = learner.network(rows_of(name.split("+"), args.kinds))
            alone, before, after, claimed = look(net, batch)
            print(
                f"  {name}: {before / alone:.4f} -> {after / alone:.4f}"
                f" ({after / before - 1:+.2%}), claims {claimed / after:.3f}",
                flush=True,
            )
        record = learner.record() | {"next_batch": step, "types": types}
        torch.save(record, args.out / "any.pt")

    warm, step, begun = 0.0, first, learner.n_steps
    marks = [120.0 * i for i in range(1, 100)]
    n_times = N_TIMES if DEVICE == "cuda" else 1
    make = partial(batch_of_any, pool, args.kinds, args.seed, args.size)
    fresh = ahead(in_order_made(make, first, workers), DEVICE)
    for i, batch in enumerate(again(fresh, n_times, args.seed)):
        step = first + i // n_times
        part = (time.time() - warm) / args.seconds if warm else 0.0
        if args.steps is not None:
            part = max(part, i / args.steps)
        if part >= 1:
            break
        progress = args.begins_at + (args.ends_at - args.begins_at) * part
        learner.step(batch[:-1], progress, batch[-1])
        if i == 5:
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            warm, begun = time.time(), learner.n_steps
            print(f"begins after {warm - start:.0f} s", flush=True)
        if warm and time.time() - warm > marks[0]:
            marks.pop(0)
            print(
                f"{(learner.n_steps - begun) / (time.time() - warm):.1f} steps a second", flush=True
            )
            show(progress)
    show(args.ends_at)
    if args.measure:
        found = measure(learner.mean, args.kinds, weights, workers)
        (args.out / "gains.json").write_text(json.dumps(found))
        print(f"measured after {time.time() - start:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, help="folder of any.pt and gains.json")
    parser.add_argument("--kinds", choices=TYPES, default="plain")
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--begins-at", type=float, default=0.0, help="how much was done before")
    parser.add_argument("--ends-at", type=float, default=1.0, help="how much will be done")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--steps", type=int, help="at most so many")
    parser.add_argument("--size", type=int, default=N_SUPERBLOCKS, help="superblocks of a batch")
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--begin", type=Path, help="nets.pt, any.pt or .npz to begin as")
    parser.add_argument("--resume", type=Path, help="any.pt to go on with")
    parser.add_argument("--measure", action="store_true", help="measure all sets at the end")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
