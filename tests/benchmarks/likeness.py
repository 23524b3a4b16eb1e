"""How alike quantizations of one original are, and how little a changed model shows.

Prints, on trained weights (``python -m tests.benchmarks.likeness MODEL.gguf``, default: the small
model that comes with the package):

- the share of weights whose cells contradict each other where one of two inputs was made from
  weights that a LoRA of a thousandth of their size changed,
- the smallest correlation of two inputs in a superblock, the largest square difference over what
  `recover.merge.compare` expects, and the largest share of weights in superblocks whose slope is
  off, of a K-quant and each type without cells; and the smallest such share if it was made from 1.3
  times the weights.
"""

import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from recover.evidence.buffer import EvidenceBuffer, Source
from recover.merge.columns import Rows
from recover.merge.compare import compare_unproven, count_conflicts
from recover.merge.likeness import Likeness
from recover.quants import TILE, dequantize, type_by_name
from tests.oracle import libggml
from tests.oracle.weights import gguf_weights
from tests.support.models import TINY

F32Array = NDArray[np.float32]

PAIRS = (("Q8_0", "Q6_K"), ("Q6_K", "Q5_K"), ("Q5_K", "Q4_K"), ("Q4_K", "Q3_K"), ("Q4_K", "Q2_K"))
LEGACY = ("Q4_0", "Q5_0", "Q4_1", "Q5_1")
VECTOR = ("IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")
N_ROWS = 512


def encode(name: str, x: F32Array, imatrix: F32Array | None = None) -> NDArray[np.uint8]:
    return libggml.quantize(GGMLQuantizationType[name], x, imatrix).reshape(-1)


def low_rank(x: F32Array, rng: np.random.Generator) -> F32Array:
    change = rng.standard_normal((len(x), 8)) @ rng.standard_normal((8, x.shape[1]))
    change *= 1e-3 * np.sqrt(np.mean(x**2) / np.mean(change**2))
    return (x + change).astype(np.float32)


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else TINY
    rng = np.random.default_rng(0)
    matrices = [
        np.ascontiguousarray(x[:N_ROWS])
        for x in gguf_weights(path)
        if x.ndim == 2 and x.shape[1] % 256 == 0 and x[:N_ROWS].size <= TILE
    ]
    changed = [low_rank(x, rng) for x in matrices]
    for one, two in PAIRS:
        buffer = EvidenceBuffer([Source(type_by_name(name)) for name in (one, two)])
        n = sum(
            int(count_conflicts(buffer.load([encode(one, x), encode(two, y)], x.size), 1)[0])
            for x, y in zip(matrices, changed, strict=True)
        )
        n_weights = sum(x.size for x in matrices)
        print(f"{one} + {two}: {n} of {n_weights:,} weights contradicted ({n / n_weights:.2g})")
    for name in (*LEGACY, *VECTOR):
        kind, fine = type_by_name(name), type_by_name("Q4_K")
        buffer = EvidenceBuffer([Source(fine), Source(kind, has_cells=False, weighted=True)])
        correlation, difference, off, off_scaled = 1.0, 0.0, 0.0, 1.0
        for x in matrices:
            importance = rng.lognormal(size=x.shape[1:]).astype(np.float32)
            raws = [encode("Q4_K", x), encode(name, x, importance)]
            a, b = (
                dequantize(raw, each).reshape(-1, 256).astype(np.float64)
                for raw, each in zip(raws, (fine, kind), strict=True)
            )
            norms = np.sqrt((a * a).sum(1) * (b * b).sum(1))
            known = norms > 0
            correlation = min(correlation, ((a * b).sum(1)[known] / norms[known]).min())
            likeness = Likeness(*compare_unproven(buffer.load(raws, x.size), Rows(x.shape[1:]))[0])
            difference = max(difference, likeness.square_difference / likeness.expected)
            off = max(off, likeness.n_off / x.size)
            raws[1] = encode(name, np.float32(1.3) * x, importance)
            scaled = Likeness(*compare_unproven(buffer.load(raws, x.size), Rows(x.shape[1:]))[0])
            off_scaled = min(off_scaled, scaled.n_off / x.size)
        print(
            f"Q4_K + {name}: correlation {correlation:.2f}, difference {difference:.2f}, off"
            f" {off:.3f}, of 1.3 times the weights {off_scaled:.3f}"
        )


if __name__ == "__main__":
    main()
