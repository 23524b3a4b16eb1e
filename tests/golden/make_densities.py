"""Makes ``recover/data/densities.json`` again: ``python -m tests.golden.make_densities``.

Our own encoders draw the scalar formats, libggml those that we only decode.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from recover import simulate
from recover.quants import ScalarType, VectorType, all_types, dequantize
from tests.oracle import libggml

TABLE = Path(__file__).parents[2] / "recover" / "data" / "densities.json"


def rounded(numbers: Iterable[float]) -> list[float]:
    return [float(f"{number:.6g}") for number in numbers]


def likelihood(kind: VectorType) -> list[float]:
    x = simulate.student_t()(0)
    raw = libggml.quantize(kind.type_id, x, np.ones(x.shape[1], np.float32))
    return rounded(simulate.find_likelihood(dequantize(raw, kind), x))


def main() -> None:
    scalars = [kind for kind in all_types() if isinstance(kind, ScalarType)]
    vectors = {k.name: likelihood(k) for k in all_types() if isinstance(k, VectorType)}
    document: dict[str, Any] = {
        "version": 4,
        "prior": f"Student's t, {simulate.DEGREES_OF_FREEDOM} degrees of freedom",
        "n_weights": simulate.N_CHUNKS * math.prod(simulate.CHUNK),
        "seed": simulate.SEED,
        "types": {},
        "shares": {},
        "vectors": vectors,
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
    TABLE.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
