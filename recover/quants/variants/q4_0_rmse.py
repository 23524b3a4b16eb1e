"""Q4_0 whose stored block has the smallest square error that any Q4_0 block can have.

llama.cpp's encoder gives the weight of largest magnitude the code of level -8 and takes the scale
from it. Here the scale is searched, exactly and unweighted, in the way of llama.cpp pull request
835. As ``1 / |d|`` grows from 0, a weight's level goes from k to k + 1 in magnitude at
``(k + 1/2) / |x|``: so all levels that can be nearest for any d are met one after the other, by
sorting these change-overs. For given levels k the error is
``sum(x**2) - s**2 / n + n * (d - s / n)**2`` with ``s = sum(x * k)`` and ``n = sum(k * k)``, a
parabola in d; the best stored d for these levels is the float16 nearest to ``s / n``, whatever d
they are nearest for. With the nearest codes for that float16 the error is the same or smaller. So
the optimum is among these, one per change-over and sign of d (the signs differ, as the levels go
from -8 to 7); only those whose ``s**2 / n`` is not below what is already achieved are computed.

The codes are the nearest for the stored d: the cell of level k is ``k - 1/2 .. k + 1/2`` in units
of the stored d, without widening for its rounding, and both end cells are open. That is another
cell than the one which `recover.quants.q4_0` declares for llama.cpp's encoder: there no weight is
beyond 8 d, here the largest ones may be.
"""

import numpy as np
from numpy.typing import NDArray

from recover._compiled.float16 import f16_to_f32, f32_to_f16, read_f16, write_f16
from recover._compiled.jit import inner, kernel
from recover._compiled.memory import constant
from recover.quants._legacy import join_nibbles
from recover.quants.base import F32Array, U8Array
from recover.quants.q4_0 import Q4_0
from recover.quants.variants import Variant

F64Array = NDArray[np.float64]

_N_EVENTS = 256  # a level grows at most 8 times in magnitude, for 32 weights
_N_BUCKETS = 128
_LARGEST = 65504.0  # of float16
_SLACK = 1e-12  # of the sum of squares: far above the rounding of the running sums


@inner
def _error(x: F32Array, d: float) -> float:
    """The square error of a block with the nearest codes for `d`."""
    error = 0.0
    factor = 1 / d if d != 0 else 0.0
    for i in range(32):
        value = np.float64(x[i])
        difference = value - d * min(max(np.rint(value * factor), -8.0), 7.0)
        error += difference * difference
    return error


@inner
def _nearest_f16(value: float) -> float:
    """The finite float16 nearest to a float64, which is not rounded to float32 on the way."""
    half = f32_to_f16(np.float32(min(abs(value), _LARGEST)))
    best = np.float64(f16_to_f32(half))
    for other in (half - 1, half + 1):
        if 0 <= other < 0x7C00:
            candidate = np.float64(f16_to_f32(np.uint16(other)))
            if abs(candidate - abs(value)) < abs(best - abs(value)):
                best = candidate
    return best if value >= 0 else -best


@inner
def _change_overs(x: F32Array, limit: float, at: F64Array, what: NDArray[np.int16]) -> int:
    """The events ``1 / |d|`` up to `limit` at which a level grows, and ``8 * weight + level``."""
    n = 0
    for i in range(32):
        if x[i] != 0:
            step = 1 / abs(np.float64(x[i]))
            for k in range(8):
                if (k + 0.5) * step > limit:
                    break
                at[n] = (k + 0.5) * step
                what[n] = 8 * i + k
                n += 1
    return n


@inner
def _bucket(position: float) -> int:
    return int(min(position, _N_BUCKETS - 1.0))


@inner
def _sort(
    at: F64Array, n: int, limit: float, starts: NDArray[np.int16], order: NDArray[np.int16]
) -> None:
    """The order of `n` numbers between 0 and `limit`: into buckets, then by insertion."""
    factor = _N_BUCKETS / limit
    starts[:] = 0
    for e in range(n):
        starts[1 + _bucket(at[e] * factor)] += 1
    for b in range(_N_BUCKETS):
        starts[b + 1] += starts[b]
    for e in range(n):
        b = _bucket(at[e] * factor)
        order[starts[b]] = e
        starts[b] += 1
    for e in range(1, n):
        moved = order[e]
        k = e
        while k > 0 and at[order[k - 1]] > at[moved]:
            order[k] = order[k - 1]
            k -= 1
        order[k] = moved


@inner
def _sweep(
    x: F32Array, n: int, what: NDArray[np.int16], order: NDArray[np.int16], fits: F64Array
) -> None:
    """After each change-over: ``s**2 / n`` and ``s / n``, for d > 0 and for d < 0 in four rows."""
    plus_s, plus_n, minus_s, minus_n = 0.0, 0.0, 0.0, 0.0
    for e in range(n):
        i, k = what[order[e]] >> 3, what[order[e]] & 7
        # The eighth level exists only where x / d is negative.
        if k < 7 or x[i] < 0:
            plus_s += abs(np.float64(x[i]))
            plus_n += 2 * k + 1
        if k < 7 or x[i] > 0:
            minus_s -= abs(np.float64(x[i]))
            minus_n += 2 * k + 1
        fits[0, e] = plus_s * plus_s / max(plus_n, 1.0)
        fits[1, e] = plus_s / max(plus_n, 1.0)
        fits[2, e] = minus_s * minus_s / max(minus_n, 1.0)
        fits[3, e] = minus_s / max(minus_n, 1.0)


@inner
def _best_of(x: F32Array, fits: F64Array, d: float, error: float) -> float:
    """The best stored d of a sweep, if any is better than the given one.

    The most promising change-over first, so that hardly another one remains to be computed.
    """
    total = 0.0
    for i in range(32):
        total += np.float64(x[i]) * np.float64(x[i])
    for sign in range(2):
        gain, scale = fits[2 * sign], fits[2 * sign + 1]
        first = np.argmax(gain)
        for e in range(-1, gain.size):
            at = first if e < 0 else e
            if gain[at] < total - error - _SLACK * total:
                continue
            candidate = _nearest_f16(scale[at])
            if candidate == d:
                continue
            its_error = _error(x, candidate)
            if its_error < error:
                d, error = candidate, its_error
    return d


@inner
def _limit(x: F32Array, error: float) -> float:
    """How large ``1 / |d|`` can be where the error is not above `error`.

    The largest weight is at least ``max - 8 * |d|`` away from its decoded value.
    """
    largest, smallest = 0.0, np.inf
    for i in range(32):
        if x[i] != 0:
            largest = max(largest, abs(np.float64(x[i])))
            smallest = min(smallest, abs(np.float64(x[i])))
    limit = 7.5 / smallest
    rest = largest - np.sqrt(error)
    return min(limit, 8 / rest * (1 + 1e-9)) if rest > 0 else limit


@inner
def _write_block(x: F32Array, d: float, codes: U8Array, block: U8Array) -> None:
    """Stores `d`, a float16, and the nearest codes."""
    write_f16(block, 0, np.float32(d))
    factor = 1 / d if d != 0 else 0.0
    for i in range(32):
        level = min(max(np.rint(np.float64(x[i]) * factor), -8.0), 7.0)
        codes[i] = np.uint8(level + 8)
    join_nibbles(codes, block[2:18])


@kernel
def _improve(x: F32Array, raw: U8Array) -> None:
    """Blocks of llama.cpp's to the best ones."""
    at, fits = np.empty(_N_EVENTS), np.empty((4, _N_EVENTS))
    what, order = np.empty(_N_EVENTS, np.int16), np.empty(_N_EVENTS, np.int16)
    starts, codes = np.empty(_N_BUCKETS + 1, np.int16), np.empty(32, np.uint8)
    x = x.reshape(x.size)
    for b in range(x.size // 32):
        weights, block = x[32 * b : 32 * b + 32], raw[18 * b : 18 * b + 18]
        d, error = 0.0, _error(weights, 0.0)
        theirs = np.float64(read_f16(block, 0))
        if np.isfinite(theirs) and _error(weights, theirs) < error:
            d, error = theirs, _error(weights, theirs)
        limit = _limit(weights, error)
        n = _change_overs(weights, limit, at, what)
        if n:
            _sort(at, n, limit, starts, order)
            _sweep(weights, n, what, order, fits)
            d = _best_of(weights, fits[:, :n], d, error)
        _write_block(weights, d, codes, block)


def _quantize(x: F32Array, raw: U8Array) -> None:
    Q4_0.quantize(x, constant(np.empty(0, np.float32)), raw)
    _improve(x, raw)


Q4_0_RMSE = Variant(name="q4_0-rmse", encoders={"Q4_0": _quantize})
