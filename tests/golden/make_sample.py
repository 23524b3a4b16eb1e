"""Makes ``recover/data/sample.npz`` again: ``python -m tests.golden.make_sample``.

As for the densities, our own encoders make the scalar types and libggml the others.
"""

from pathlib import Path

import numpy as np

from recover.calibration.simulate import DEGREES_OF_FREEDOM, importance
from recover.estimators.error_calibration import WEIGHTS, sample_name
from recover.quants import F32Array, ScalarType, TensorType, U8Array, VectorType, all_types
from tests.golden import make_densities
from tests.oracle import libggml

SAMPLE = Path(__file__).parents[2] / "recover" / "data" / "sample.npz"
# Of 1 to 16 the one whose factors are nearest to the mean; see
# `recover.estimators.error_calibration`.
SEED = 7
SHAPE = (64, 1024)
HEAVY = 5  # degrees of freedom of the second half
N_IMPORTANCES, N_IMPORTANCES_K = 3, 7  # several uploads of one type are mostly K-quants
SIZES = (-6, -4.5)  # binary logarithms of the deviations of rows


def draw(seed: int = SEED) -> F32Array:
    """Weights as large as trained ones, for the types whose scales are coarse."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    halves = []
    for degrees in (DEGREES_OF_FREEDOM, HEAVY):
        x = generator.standard_t(degrees, SHAPE)
        halves.append(x * np.exp2(generator.uniform(*SIZES, (SHAPE[0], 1))))
    return np.concatenate(halves).astype(np.float32)


def encode(x: F32Array, kind: TensorType, number: int, seed: int = SEED) -> U8Array:
    """With an importance matrix of that number, or plainly if it is 0."""
    columns = importance(seed, number, x.shape[1]) if number else None
    return make_densities.encode(kind, x, columns)


def encoded_types() -> list[ScalarType | VectorType]:
    """The types that libggml encodes, by which the numbers of other programs are not meant."""
    kinds = [kind for kind in all_types() if isinstance(kind, ScalarType | VectorType)]
    return [
        kind for kind in kinds if kind.type_id is not None and kind.type_id <= libggml.LAST_TYPE_ID
    ]


def main() -> None:
    x = draw()
    sample: dict[str, F32Array | U8Array] = {WEIGHTS: x}
    for kind in encoded_types():
        n = N_IMPORTANCES_K if kind.name.endswith("_K") else N_IMPORTANCES
        for number in range(1 + n):
            raw = encode(x, kind, number)
            if number and np.array_equal(raw, sample[sample_name(kind, 0)]):
                break  # the encoder takes no notice
            sample[sample_name(kind, number)] = raw
    np.savez(SAMPLE, allow_pickle=False, **sample)


if __name__ == "__main__":
    main()
