"""What published ideas for choosing scales of K-quants are worth beside ours, on trained weights.

    python -m tests.benchmarks.encoder_ideas MODEL.gguf [--superblocks 400] [--types Q4_K Q5_K]

From llama.cpp's blocks on, relative to their mean square error:

- neighbours: the stored scale and minimum of each sub-block, or those next to them, whichever
  comes nearest (the idea of ik_llama.cpp's pull request 624);
- k-lsq: ours;
- no rounding: scales and minima of each sub-block that are any float32, the best of a search from
  64 scales on (the idea of llama.cpp's pull request 12557 is such a search, over every scale at
  which a code changes). Scales of 6 bits are not asked to reach that.

Written from the descriptions of these pull requests, in NumPy.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recover.evidence.buffer import EvidenceBuffer, Source
from recover.quants import ScalarType, quantize, type_by_name
from tests.oracle.weights import gguf_weights

F64 = NDArray[np.float64]


def blocks_of(model: Path, n: int) -> NDArray[np.float32]:
    """Superblocks (n, 256), evenly spaced over all matrices."""
    rows = [x.reshape(-1, 256) for x in gguf_weights(model) if x.size % 256 == 0]
    every = np.concatenate(rows)
    return np.ascontiguousarray(every[:: max(1, len(every) // n)][:n])


def parts(kind: ScalarType, raw: NDArray[np.uint8], n: int) -> tuple[F64, F64]:
    """Scale and minimum of each sub-block of 32, as stored (n / 32,)."""
    evidence = EvidenceBuffer([Source(kind)]).load([raw], n)
    scale, minimum = evidence.scale[0, ::2], -evidence.offset[0, ::2]
    return scale.astype(np.float64), minimum.astype(np.float64)


def error(x: F64, scale: F64, minimum: F64, highest: int) -> F64:
    """The square error of sub-blocks (n, 32) with the nearest codes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(scale > 0, (x + minimum) / scale, 0)
    codes = np.clip(np.rint(codes), 0, highest)
    return np.square(scale * codes - minimum - x).sum(-1)


def neighbours(x: F64, scale: F64, minimum: F64, units: tuple[F64, F64], highest: int) -> F64:
    """The least error of a sub-block among nine pairs."""
    best = np.full(len(x), np.inf)
    for a in (-1, 0, 1):
        for b in (-1, 0, 1):
            s, m = (
                np.clip(v + k * u, 0, 63 * u)
                for v, k, u in zip((scale, minimum), (a, b), units, strict=True)
            )
            best = np.minimum(best, error(x, s[:, None], m[:, None], highest))
    return best


def unrounded(x: F64, highest: int) -> F64:
    """The least error that any scale and minimum was found to have."""
    best = np.full(len(x), np.inf)
    low, high = np.minimum(x.min(-1), 0), x.max(-1)
    for factor in np.linspace(0.6, 1.25, 64):
        scale, minimum = factor * (high - low) / highest, -low
        for _ in range(6):
            with np.errstate(divide="ignore", invalid="ignore"):
                codes = np.where(scale[:, None] > 0, (x + minimum[:, None]) / scale[:, None], 0)
            q = np.clip(np.rint(codes), 0, highest)
            mean_q, mean_x = q.mean(-1), x.mean(-1)
            spread = np.square(q - mean_q[:, None]).sum(-1)
            fitted = ((q - mean_q[:, None]) * x).sum(-1) / np.where(spread > 0, spread, 1)
            scale = np.where((spread > 0) & (fitted > 0), fitted, scale)
            minimum = np.maximum(scale * mean_q - mean_x, 0)
            best = np.minimum(best, error(x, scale[:, None], minimum[:, None], highest))
    return best


def main() -> None:
    """Print a line for each type."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--superblocks", type=int, default=400)
    parser.add_argument("--types", nargs="+", default=["Q4_K", "Q5_K"])
    args = parser.parse_args()
    weights = blocks_of(args.model, args.superblocks)
    x = weights.astype(np.float64).reshape(-1, 32)
    print("type  llama.cpp  neighbours  k-lsq  no rounding")
    for name in args.types:
        kind = type_by_name(name)
        assert isinstance(kind, ScalarType)
        highest = 31 if name == "Q5_K" else 15
        raw, ours = (quantize(weights, kind, quantizer=each) for each in ("llama.cpp", "k-lsq"))
        scale, minimum = parts(kind, raw, weights.size)
        halves = raw.reshape(len(weights), -1)[:, :4].copy().view(np.float16).astype(np.float64)
        units = (halves[:, :1].repeat(8, 1).ravel(), halves[:, 1:].repeat(8, 1).ravel())
        base = error(x, scale[:, None], minimum[:, None], highest).sum()
        near = neighbours(x, scale, minimum, units, highest).sum()
        scale, minimum = parts(kind, ours, weights.size)
        lsq = error(x, scale[:, None], minimum[:, None], highest).sum()
        least = unrounded(x, highest).sum()
        print(f"{name}  {1:9.4f}  {near / base:10.4f}  {lsq / base:.4f}  {least / base:11.4f}")


if __name__ == "__main__":
    main()
