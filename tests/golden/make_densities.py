"""Makes the tables of densities again: ``python -m tests.golden.make_densities [TYPE ...]``.

Without names, those of all types. Our own encoders draw the scalar formats, libggml those that we
only decode. The table of one type is made without a change to the others: what its table and
another one could both say is left to that of the coarser type, if it is there already. That of a
type of another package is written to where the type says that it is.
"""

import argparse
import json
import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from recover.calibration import simulate, tempering
from recover.evidence.densities import forget_tables, table_of
from recover.quants import (
    F32Array,
    ScalarType,
    TensorType,
    U8Array,
    VectorType,
    all_types,
    dequantize,
    quantize,
    type_by_name,
)
from tests.oracle import libggml

FOLDER = Path(__file__).parents[2] / "recover" / "data" / "densities"
VERSION = 8

Kind = ScalarType | VectorType
Table = dict[str, Any]


def rounded(numbers: Iterable[float]) -> list[float]:
    return [float(f"{number:.6g}") for number in numbers]


def encode(kind: TensorType, x: F32Array, importance: F32Array | None = None) -> U8Array:
    if isinstance(kind, ScalarType):
        return quantize(x, kind, importance)
    if importance is None:
        importance = np.ones(x.shape[1], np.float32)
    assert kind.type_id is not None
    return libggml.quantize(kind.type_id, x, importance)


class Encoder:
    """As `encode`, without an importance matrix; of the same weights only once."""

    def __init__(self) -> None:
        self._made: dict[tuple[TensorType, bytes], U8Array] = {}

    def __call__(self, kind: TensorType, x: F32Array) -> U8Array:
        key = kind, x[:2].tobytes()
        if key not in self._made:
            self._made[key] = encode(kind, x)
        return self._made[key]


def alone(kind: Kind) -> Table:
    """What is drawn of a type by itself."""
    table: Table = {
        "version": VERSION,
        "type": kind.name,
        "prior": f"Student's t, {simulate.DEGREES_OF_FREEDOM} degrees of freedom",
        "n_weights": simulate.N_CHUNKS * math.prod(simulate.CHUNK),
        "seed": simulate.SEED,
    }
    if isinstance(kind, VectorType):
        x = simulate.student_t()(0)
        likelihood = tempering.find_likelihood(dequantize(encode(kind, x), kind), x)
        return table | {"likelihood": rounded(likelihood)}
    draw = simulate.student_t(as_trained=kind.scales_are_coarse)
    for name, weighted in (("plain", False), ("weighted", True)):
        rows = simulate.simulate(kind, draw, weighted=weighted)
        table[name] = [rounded(row) for row in rows]
    return table | {"errors": errors(kind)}


def errors(kind: ScalarType) -> dict[str, list[float]]:
    """Of codes, plain and weighted."""
    draw, found = simulate.student_t(as_trained=kind.scales_are_coarse), {}
    for name, weighted in (("plain", False), ("weighted", True)):
        drawn = simulate.errors_by_code(kind, draw, weighted=weighted)
        found[name] = [float(f"{each:.4g}") for each in drawn]
    return found


def correlations(kind: VectorType, kinds: Iterable[VectorType]) -> dict[str, float]:
    x = simulate.student_t()(0)
    importance = simulate.importance(simulate.SEED, 1, x.shape[1])
    mine = dequantize(encode(kind, x), kind)
    found = {}
    for other in kinds:
        raw = encode(other, x, importance if other is kind else None)
        correlation = tempering.find_correlation(mine, dequantize(raw, other), x)
        found[other.name] = float(f"{correlation:.6g}")
    return found


def beside(kind: Kind, kinds: Collection[Kind], encoder: Encoder, told: Collection[str]) -> Table:
    """What a type counts beside finer ones; and coarser ones beside it, but for those of `told`.

    Densities are looked at.
    """
    table: Table = {}
    for name, find in (
        ("pairs", tempering.find_tempering_of_pairs),
        ("unproven", tempering.find_unproven_tempering_of_pairs),
    ):
        mine: dict[str, float] = {}
        coarser: dict[str, float] = {}
        for other in kinds:
            found = find([each for each in kinds if each in (kind, other)], encoder)
            mine |= found.get(kind.name, {})
            if other.name not in told and kind.name in found.get(other.name, {}):
                coarser[other.name] = found[other.name][kind.name]
        if name == "pairs" or (isinstance(kind, ScalarType) and kind.refits_scale_with_imatrix):
            table[name] = dict(zip(mine, rounded(mine.values()), strict=True))
        if coarser:
            table[f"{name} of coarser"] = dict(zip(coarser, rounded(coarser.values()), strict=True))
    return table


def path_of(kind: Kind) -> Path:
    return FOLDER / f"{kind.name}.json" if kind.densities is None else Path(str(kind.densities))


def make(wanted: Collection[Kind], kinds: Collection[Kind]) -> None:
    """Make the tables of some types beside those of all."""
    tables: dict[Kind, Table] = {}

    def write() -> None:
        for kind, table in tables.items():
            path_of(kind).write_text(json.dumps(table, indent=1) + "\n")
        forget_tables()

    for kind in wanted:
        tables[kind] = alone(kind)
    write()  # the following looks at the densities
    vectors = [kind for kind in kinds if isinstance(kind, VectorType)]
    for kind in wanted:
        if isinstance(kind, ScalarType):
            tables[kind]["shares"] = rounded(tempering.find_tempering(kind))
        else:
            tables[kind]["correlations"] = correlations(kind, vectors)
    write()
    encoder = Encoder()
    for kind in wanted:
        told = [
            other.name
            for other in kinds
            if other in wanted or kind.name in table_of(other).get("pairs", {})
        ]
        tables[kind] |= beside(kind, kinds, encoder, told)
    write()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", metavar="TYPE", type=type_by_name)
    args = parser.parse_args()
    kinds = [kind for kind in all_types() if isinstance(kind, ScalarType | VectorType)]
    make([kind for kind in kinds if kind in (args.types or kinds)], kinds)


if __name__ == "__main__":
    main()
