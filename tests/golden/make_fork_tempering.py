"""Make the tables of types of ik_llama.cpp: what they count beside other types.

Errors of two quantizations of one matrix are not quite independent. Both inputs of a pair are
raised to one power, which is found where the posterior's expected error is the measured one, in the
mean of some kinds of weights. Mainline's types are made of them by our encoders::

    python -m tests.golden.make_fork_tempering FOLDER [FOLDER ...]

The folders are those of `tests.golden.make_ik_folders`: of normal numbers, of Laplace's and of
Student's distribution, without importances; a pair is looked at where both types are. A power is
never above 1. Of several inputs of one type the powers are those of IQ4_XS.
"""

import json
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from recover.containers.gguf.reader import open_gguf
from recover.containers.model import ArrayTensor, StoredTensor
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence import densities
from recover.evidence.buffer import Source
from recover.quants import BlockIntervals, F32Array, quantize, type_by_name

OUT = Path(__file__).parents[2] / "recover" / "data" / "densities"
MAINLINE = (
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0"),
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS"),
)
Inputs = tuple[dict[str, F32Array], dict[str, list[StoredTensor]]]
_LEAST, _N_STEPS = 0.3, 6
_GOOD = 0.005


def inputs_of(folder: Path) -> Inputs:
    """The weights of each matrix, and how each type stores them."""
    originals = open_gguf(folder / "ik-truth.gguf").tensors
    truth = {name: each.read(0, each.n_weights) for name, each in originals.items()}
    found: dict[str, list[StoredTensor]] = {}
    for path in sorted(folder.glob("ik-*.gguf")):
        name = path.stem.removeprefix("ik-")
        tensors = open_gguf(path).tensors
        if name != "truth" and not name.endswith("R4"):
            found[name] = [tensors[each] for each in truth]
    dims = {name: each.dims for name, each in originals.items()}
    for name in MAINLINE:
        kind = type_by_name(name)
        found[name] = [
            ArrayTensor(each, dims[each], kind, quantize(x.reshape(-1, dims[each][0]), kind))
            for each, x in truth.items()
        ]
    return truth, found


def claim(truth: Sequence[F32Array], tensors: Sequence[Sequence[StoredTensor]]) -> float:
    """The posterior's expected over its measured error."""
    expected = measured = 0.0
    for place, x in enumerate(truth):
        inputs = [each[place] for each in tensors]
        sources = [
            Source(
                t.type, has_cells=t.type.has_cells if isinstance(t.type, BlockIntervals) else True
            )
            for t in inputs
        ]
        out = np.empty(x.size, np.float32)
        tally = UncorrectedTileEstimator(sources, "posterior").estimate(inputs, 0, x.size, out)
        expected += tally.variance
        measured += float(np.sum(np.square(out - x, dtype=np.float64)))
    return expected / measured


def mean_claim(kinds: Sequence[Inputs], names: Sequence[str]) -> float:
    """The mean of the claims of a set, over the kinds of weights that have all of its types."""
    claims = [
        claim(list(truth.values()), [found[name] for name in names])
        for truth, found in kinds
        if all(name in found for name in names)
    ]
    return sum(claims) / len(claims)


def _pair(one: str, other: str) -> tuple[str, str]:
    return min(one, other), max(one, other)


def main(folders: Sequence[Path]) -> None:
    """Write the tables again."""
    kinds = [inputs_of(folder) for folder in folders]
    names_of_all = list(dict.fromkeys(name for _, found in kinds for name in found))
    forks = [name for name in names_of_all if name not in MAINLINE]
    shares = densities.table_of(type_by_name("IQ4_XS"))["shares"]
    tables: dict[str, dict[str, object]] = {name: {} for name in forks}
    powers: dict[tuple[str, str], float] = {}
    known = densities._tempering_of_pair

    def pair(kind, other, *, has_cells):  # type: ignore[no-untyped-def]
        names = _pair(kind.name, other.name)
        return powers.get(names) or known(kind, other, has_cells=has_cells)

    densities._tempering_of_pair = pair
    for one, other in combinations(names_of_all, 2):
        if one not in forks and other not in forks:
            continue
        names = _pair(one, other)
        low, high = _LEAST, 1.0
        for step in range(_N_STEPS):
            powers[names] = high if step == 0 else (low + high) / 2
            got = mean_claim(kinds, (one, other))
            if (got > 1 - _GOOD and step == 0) or abs(got - 1) < _GOOD:
                break
            if got < 1:
                high = powers[names]
            else:
                low = powers[names]
        print(one, other, round(powers[names], 3), round(got, 4), flush=True)
    for (one, other), power in sorted(powers.items()):
        if power < 1:
            for own, its in ((one, other), (other, one)):
                if own in forks:
                    tables[own].setdefault("pairs", {})[its] = round(power, 3)  # type: ignore[index]
                    if its not in forks:
                        coarser = tables[own].setdefault("pairs of coarser", {})
                        coarser[its] = round(power, 3)  # type: ignore[index]
    for name, table in tables.items():
        text = json.dumps({"shares": shares, **table}, indent=1)
        (OUT / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main([Path(each) for each in sys.argv[1:]])
