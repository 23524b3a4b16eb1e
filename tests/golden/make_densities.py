"""Makes ``recover/data/densities.json`` again: ``python -m tests.golden.make_densities``.

Our own encoders draw the scalar formats, libggml those that we only decode.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from recover.calibration import simulate
from recover.quants import (
    F32Array,
    ScalarType,
    TensorType,
    U8Array,
    VectorType,
    all_types,
    dequantize,
    quantize,
)
from tests.oracle import libggml

TABLE = Path(__file__).parents[2] / "recover" / "data" / "densities.json"


def rounded(numbers: Iterable[float]) -> list[float]:
    return [float(f"{number:.6g}") for number in numbers]


def encode(kind: TensorType, x: F32Array, importance: F32Array | None = None) -> U8Array:
    if isinstance(kind, ScalarType):
        return quantize(x, kind, importance)
    if importance is None:
        importance = np.ones(x.shape[1], np.float32)
    return libggml.quantize(kind.type_id, x, importance)


def likelihood(kind: VectorType) -> list[float]:
    x = simulate.student_t()(0)
    return rounded(simulate.find_likelihood(dequantize(encode(kind, x), kind), x))


def correlations(kinds: list[VectorType]) -> dict[str, dict[str, float]]:
    x = simulate.student_t()(0)
    other = simulate.importance(simulate.SEED, 1, x.shape[1])
    plain, weighted = (
        [dequantize(encode(kind, x, importance), kind) for kind in kinds]
        for importance in (None, other)
    )
    table: dict[str, dict[str, float]] = {kind.name: {} for kind in kinds}
    for i, one in enumerate(kinds):
        for j, two in enumerate(kinds):
            values = weighted[j] if i == j else plain[j]
            found = simulate.find_correlation(plain[i], values, x)
            table[one.name][two.name] = float(f"{found:.6g}")
    return table


def main() -> None:
    scalars = [kind for kind in all_types() if isinstance(kind, ScalarType)]
    vector_types = [kind for kind in all_types() if isinstance(kind, VectorType)]
    vectors = {kind.name: likelihood(kind) for kind in vector_types}
    document: dict[str, Any] = {
        "version": 7,
        "prior": f"Student's t, {simulate.DEGREES_OF_FREEDOM} degrees of freedom",
        "n_weights": simulate.N_CHUNKS * math.prod(simulate.CHUNK),
        "seed": simulate.SEED,
        "types": {},
        "shares": {},
        "pairs": {},
        "unproven": {},
        "vectors": vectors,
        "correlations": correlations(vector_types),
    }
    for kind in scalars:
        draw = simulate.student_t(as_trained=kind.scales_are_coarse)
        document["types"][kind.name] = {
            name: [rounded(row) for row in simulate.simulate(kind, draw, weighted=weighted)]
            for name, weighted in (("plain", False), ("weighted", True))
        }
    TABLE.write_text(json.dumps(document, indent=1) + "\n")
    for kind in scalars:  # these look at the densities
        document["shares"][kind.name] = rounded(simulate.find_shares(kind))
    kinds = [kind for kind in all_types() if isinstance(kind, ScalarType | VectorType)]
    for name, find in (
        ("pairs", simulate.find_pair_shares),
        ("unproven", simulate.find_unproven_shares),
    ):
        document[name] = {
            coarse: dict(zip(shares, rounded(shares.values()), strict=True))
            for coarse, shares in find(kinds, encode).items()
        }
    TABLE.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
