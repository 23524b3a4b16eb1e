"""AutoAWQ's recipe for a llama: scales of columns and rows, clipping, packing.

Everything is computed in float16, as there: AutoAWQ:awq/quantize/quantizer.py and scale.py.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.support.layer_inputs import Block

F32 = NDArray[np.float32]
GROUP = 128
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_N_TOKENS = 512


class Grid(NamedTuple):
    """Codes (N, K), steps and zero points (N, G)."""

    codes: F32
    steps: F32
    zeros: F32


class AwqBlock(NamedTuple):
    """The modules of a block by GGUF's names, its norms as stored, and the true scales.

    `columns` and `rows`: a stored weight is the original's times that of its column, over that of
    its row.
    """

    arrays: dict[str, dict[str, NDArray[Any]]]
    norms: dict[str, F32]
    columns: dict[str, F32]
    rows: dict[str, F32]


def half(x: NDArray[Any]) -> F32:
    with np.errstate(over="ignore"):
        return np.asarray(x, np.float32).astype(np.float16).astype(np.float32)


def grid_of(w: F32, group: int = GROUP) -> Grid:
    """Round to 16 steps between the ends of each group."""
    x = w.reshape(len(w), -1, group)
    high, low = x.max(2), x.min(2)
    steps = half(np.maximum(half(high - low), 1e-5) / np.float32(15))
    zeros = np.clip(-np.rint(half(low / steps)), 0, 15)
    codes = np.clip(np.rint(half(x / steps[..., None])) + zeros[..., None], 0, 15)
    return Grid(codes.reshape(w.shape), steps, zeros)


def decoded(grid: Grid) -> F32:
    n_rows, n_groups = grid.steps.shape
    x = grid.codes.reshape(n_rows, n_groups, -1) - grid.zeros[..., None]
    return half(x * grid.steps[..., None]).reshape(grid.codes.shape)


def _search_scales(w: F32, inputs: F32) -> F32:
    """Scales of the columns of matrices (N, K) with the same inputs."""
    x = inputs[:: max(1, len(inputs) // _N_TOKENS)]
    parts = np.abs(w.reshape(len(w), -1, GROUP))
    size = (parts / (parts.max(2, keepdims=True) + 1e-6)).reshape(w.shape).mean(0)
    of_inputs, right = np.abs(inputs).mean(0), x @ w.T
    least, best = np.inf, np.ones(w.shape[1], np.float32)
    for i in range(20):
        scales = np.maximum(of_inputs ** (i / 20) / (size ** (1 - i / 20) + 1e-4), 1e-4)
        scales = half(scales / np.sqrt(scales.max() * scales.min()))
        off = x @ (decoded(grid_of(half(w * scales))) / scales).T - right
        error = float((off * off).mean())
        if error < least:
            least, best = error, scales
    return best


def _clipped(w: F32, inputs: F32) -> F32:
    """Weights, each group clipped where that makes the least error."""
    n_rows, row_length = w.shape
    n_groups = row_length // GROUP
    x = inputs[:: max(1, len(inputs) // _N_TOKENS)].reshape(-1, n_groups, GROUP).transpose(1, 0, 2)
    parts = w.reshape(n_rows, n_groups, GROUP)
    largest = np.abs(parts).max(2, keepdims=True)
    right, best = x @ parts.transpose(1, 2, 0), largest.copy()
    least = np.full(best.shape, 1e9)
    for i in range(10):
        most = half(largest * np.float32(1 - i / 20))
        tried = decoded(grid_of(np.clip(parts, -most, most).reshape(w.shape)))
        off = x @ tried.reshape(parts.shape).transpose(1, 2, 0) - right
        error = (off * off).mean(1).T[..., None]
        least, best = np.where(error < least, error, least), np.where(error < least, most, best)
    return np.clip(parts, -best, best).reshape(w.shape)


def pack(grid: Grid) -> dict[str, NDArray[Any]]:
    """The arrays of a module in the layout "gemm"."""

    def words(numbers: F32) -> NDArray[np.int32]:
        nibbles = numbers.T.astype(np.uint32).reshape(numbers.shape[1], -1, 8)[..., list(_ORDER)]
        shifted = nibbles << np.arange(0, 32, 4, dtype=np.uint32)
        return np.bitwise_or.reduce(shifted, axis=2).view(np.int32)

    return {
        "qweight": words(grid.codes),
        "qzeros": words(grid.zeros),
        "scales": grid.steps.T.astype(np.float16),
    }


def quantize(block: Block) -> AwqBlock:
    """Quantize the matrices of a block."""
    weights = {name: half(w) for name, w in block.matrices.items()}
    inputs, norms = dict(block.inputs), {name: half(norm) for name, norm in block.norms.items()}
    columns = {name: np.ones(w.shape[1], np.float32) for name, w in weights.items()}
    rows = {name: np.ones(len(w), np.float32) for name, w in weights.items()}

    def scale(names: tuple[str, ...], norm: str | None, before: str | None) -> None:
        scales = _search_scales(np.concatenate([weights[name] for name in names]), inputs[names[0]])
        if norm is not None:
            norms[norm] = half(norms[norm] / scales)
        if before is not None:
            weights[before], rows[before] = half(weights[before] / scales[:, None]), scales
        for name in names:
            weights[name], columns[name] = half(weights[name] * scales), scales
            inputs[name] = inputs[name] / scales

    scale(("attn_q", "attn_k", "attn_v"), "attn_norm", None)
    if weights["attn_v"].shape == weights["attn_output"].shape:
        scale(("attn_output",), None, "attn_v")
    scale(("ffn_gate", "ffn_up"), "ffn_norm", None)
    scale(("ffn_down",), None, "ffn_up")
    for name in set(weights) - {"attn_q", "attn_k"}:
        weights[name] = _clipped(weights[name], inputs[name])
    arrays = {name: pack(grid_of(w)) for name, w in weights.items()}
    return AwqBlock(arrays, norms, columns, rows)
