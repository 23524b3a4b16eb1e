"""GPTQ as AutoGPTQ has it (fasterquant), and its packing; EXL2's by the same codes."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
_BLOCK = 128


class Codes(NamedTuple):
    """Codes (N, K), scales and zero points (N, G), the group of each column (K,)."""

    codes: NDArray[np.int64]
    scales: F32
    zeros: NDArray[np.int64]
    groups: NDArray[np.int64]

    @property
    def values(self) -> F32:
        """What the codes stand for."""
        numbers = self.codes - self.zeros[:, self.groups]
        return (numbers * self.scales[:, self.groups]).astype(np.float32)


def _grid(x: F32, n_bits: int, symmetric: bool) -> tuple[F32, F32]:
    """Scales and zero points (N,) of a group; scales as they are stored."""
    low, high = np.minimum(x.min(1), 0), np.maximum(x.max(1), 0)
    if symmetric:
        high = np.maximum(-low, high)
        low = np.where(low < 0, -high, low)
    scale = (high - low) / np.float32((1 << n_bits) - 1)
    scale = np.where(scale == 0, 1, scale).astype(np.float16).astype(np.float32)
    half = np.full_like(scale, 1 << (n_bits - 1))
    return scale, half if symmetric else np.rint(-low / scale)


def quantize(
    w: F32,
    inputs: F32,
    n_bits: int = 4,
    group: int = 128,
    *,
    act_order: bool = False,
    symmetric: bool = True,
    damp: float = 0.01,
) -> Codes:
    """Codes that make up for each other's errors on inputs (n_tokens, K).

    A group of -1 is a whole row. With `act_order` columns with large inputs come first.
    """
    (n_rows, row_length), most = w.shape, (1 << n_bits) - 1
    group = row_length if group < 0 else group
    x = inputs.astype(np.float64)
    hessian = x.T @ x / len(x)
    order = np.argsort(-np.diag(hessian), kind="stable") if act_order else np.arange(row_length)
    hessian = hessian[np.ix_(order, order)]
    hessian[np.diag_indices(row_length)] += damp * np.diag(hessian).mean()
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T.astype(np.float32)
    left = w[:, order].astype(np.float32)
    codes = np.empty((n_rows, row_length), np.int64)
    scales = np.empty((n_rows, -(-row_length // group)), np.float32)
    zeros = np.empty(scales.shape, np.int64)
    errors = np.empty((n_rows, _BLOCK), np.float32)
    for start in range(0, row_length, _BLOCK):
        end = min(start + _BLOCK, row_length)
        for k in range(start, end):
            g = k // group
            if k % group == 0:
                scales[:, g], zeros[:, g] = _grid(left[:, k : k + group], n_bits, symmetric)
            s, z = scales[:, g], zeros[:, g]
            codes[:, k] = np.clip(np.rint(left[:, k] / s) + z, 0, most)
            error = (left[:, k] - (codes[:, k] - z) * s) / upper[k, k]
            left[:, k:end] -= error[:, None] * upper[k, k:end]
            errors[:, k - start] = error
        left[:, end:] -= errors[:, : end - start] @ upper[start:end, end:]
    places = np.argsort(order)
    return Codes(codes[:, places], scales, zeros, places // group)


def _packed(numbers: NDArray[Any], n_bits: int) -> NDArray[np.uint32]:
    """Each row of numbers (m, n), end to end, as words."""
    bits = (numbers.astype(np.uint64)[..., None] >> np.arange(n_bits, dtype=np.uint64)) & 1
    flat = bits.astype(np.uint8).reshape(len(numbers), -1)
    flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 32)))
    return np.ascontiguousarray(np.packbits(flat, axis=1, bitorder="little")).view("<u4")


def pack(found: Codes, n_bits: int = 4, *, v2: bool = False) -> dict[str, NDArray[Any]]:
    """The arrays of a module."""
    stored = found.zeros.T - (0 if v2 else 1)
    return {
        "qweight": np.ascontiguousarray(_packed(found.codes, n_bits).T).view(np.int32),
        "qzeros": _packed(stored, n_bits).view(np.int32),
        "scales": found.scales.T.astype(np.float16),
        "g_idx": found.groups.astype(np.int32),
    }


class Exl2(NamedTuple):
    """The arrays of an EXL2 module, and what they stand for (N, K)."""

    arrays: dict[str, NDArray[Any]]
    values: F32


def exl2(w: F32, inputs: F32, bits: tuple[int, ...] = (5, 4), group: int = 128) -> Exl2:
    """Columns with large inputs first, in groups of falling numbers of bits; 12% damping.

    The scale of a group and row is the square of 1 to 16 sixteenths, times the group's largest one
    (exllamav2:conversion/adaptivegptq.py). Groups take turns of equal length in `bits`.
    """
    (n_rows, row_length), x = w.shape, inputs.astype(np.float64)
    hessian = x.T @ x / len(x)
    order = np.argsort(-np.diag(hessian), kind="stable")
    hessian = hessian[np.ix_(order, order)]
    hessian[np.diag_indices(row_length)] += 0.12 * np.diag(hessian).mean()
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T.astype(np.float32)
    left, n_groups = w[:, order].astype(np.float32), -(-row_length // group)
    values, groups, steps, largest = np.empty_like(left), [], [], []
    words: list[NDArray[np.int32]] = []
    for g in range(n_groups):
        n_bits, start = bits[g * len(bits) // n_groups], g * group
        end, half = min(start + group, row_length), 1 << (n_bits - 1)
        base = np.abs(left[:, start:end]).max(1) / (half - 0.5) + 1e-12
        most = np.float32(np.float16(base.max()) / np.float16(256))
        step = np.clip(np.rint(np.sqrt(base / most)), 1, 16)
        scale = (step * step * most).astype(np.float16).astype(np.float32)
        codes = np.empty((n_rows, end - start), np.int64)
        for k in range(start, end):
            codes[:, k - start] = np.clip(np.rint(left[:, k] / scale) + half, 0, 2 * half - 1)
            values[:, k] = (codes[:, k - start] - half) * scale
            error = (left[:, k] - values[:, k]) / upper[k, k]
            left[:, k:] -= error[:, None] * upper[k, k:]
        groups += [n_bits, sum(map(len, words))]
        words.append(np.ascontiguousarray(_packed(codes, n_bits).T).view(np.int32))
        steps.append(step - 1)
        largest.append(np.float16(most * 256))
    places = np.argsort(order)
    arrays: dict[str, NDArray[Any]] = {
        "q_weight": np.concatenate(words),
        "q_invperm": places.astype(np.int32),
        "q_scale": _packed(np.array(steps), 4).view(np.int32),
        "q_scale_max": np.array(largest, np.float16),
        "q_groups": np.array(groups, np.int16),
    }
    return Exl2(arrays, values[:, places])
