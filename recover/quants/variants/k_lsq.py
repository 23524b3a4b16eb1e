"""Q4_K and Q5_K whose scales and minima are fitted to the codes again, by least squares.

llama.cpp's encoder fits the scale and minimum of each sub-block, and then rounds them to multiples
of d and dmin without looking at the weights again. Here every superblock is worked on further, in
the way of llama.cpp pull request 4739, with the unweighted square error as the measure:

1. Scale and minimum of each sub-block, for now any numbers: least squares for the given codes and
   nearest codes for the given scale, in turns, from llama.cpp's stored ones on.
2. d and dmin: of some that are up to 20 % larger than those which let the largest scale (minimum)
   just fit, the one on whose multiples all eight fall best. Rounding the scale by e costs
   ``e**2 * (sum(q**2) - sum(q)**2 / n)`` when the minimum makes up for it, rounding the minimum
   ``n * e**2``.
3. The 6-bit scale and minimum of each sub-block: the best pair within four steps, with the nearest
   codes of every pair.

This is done three times, each from what the last one found. A superblock is changed only if that
makes the error of its decoded weights smaller.

The codes are ``nearest_int((x + dm) / d)`` with the stored scale and minimum, as llama.cpp's: the
cells of the types hold.
"""

from typing import Any, NamedTuple

import numpy as np

from recover._compiled.float16 import f16_to_f32, f32_to_f16
from recover._compiled.jit import inner, kernel
from recover._compiled.lanes import load, splat, store, where
from recover._compiled.memory import constant
from recover.quants._k_affine import Batch, encode_superblock, new_batch
from recover.quants._k_packed import pack_codes
from recover.quants._k_scales import pack_scales, unpack_scales
from recover.quants._search import FACTOR, transpose
from recover.quants.base import F32Array, U8Array
from recover.quants.q4_k import Q4_K
from recover.quants.q5_k import Q5_K
from recover.quants.variants import Variant

_N = np.float32(32)  # weights in a sub-block
_N_ROUNDS = 3
_N_FITS = 2
_N_UNITS = 41
_UNIT_STEP = np.float32(0.005)
_RADIUS = 4

# Rows of `_Work.rows`, a column per sub-block. Fitted numbers, and sums over the codes they give:
_SCALE, _MIN, _SUM_Q, _SUM_QQ = 0, 1, 2, 3
# Stored numbers at hand, and the error they give:
_D, _SC, _DMIN, _M, _ERROR = 4, 5, 6, 7, 8
_SCRATCH = 9


class _Work(NamedTuple):
    """Working memory for sixteen sub-blocks, those of two superblocks.

    Attributes
    ----------
    x : float32 (512,)
        Their weights, transposed.
    rows : float32 (10, 16)
        See the names of the rows.
    errors : float64 (2,)
        The smallest error so far of each superblock.
    batch : Batch
        Its first two superblocks hold the best scales and minima so far.
    header : uint8 (16,)
    scale, offset : float32 (16,)
    codes : uint8 (256,)
    """

    x: F32Array
    rows: F32Array
    errors: Any
    batch: Batch
    header: U8Array
    scale: F32Array
    offset: F32Array
    codes: U8Array


@inner
def _new_work() -> _Work:
    batch = new_batch()
    batch.found[FACTOR, :] = np.nan  # sub-blocks without a scale have the code 0 throughout
    return _Work(
        np.empty(512, np.float32),
        np.empty((10, 16), np.float32),
        np.empty(2),
        batch,
        np.empty(16, np.uint8),
        np.empty(16, np.float32),
        np.empty(16, np.float32),
        np.empty(256, np.uint8),
    )


@inner
def _inverse(value: Any) -> Any:
    """``1 / value`` in every lane, 0 for 0."""
    zero = splat(np.float32(0))
    return where(value == zero, zero, np.float32(1) / value)


@inner
def _rounded(value: Any) -> Any:
    """Numbers from 0 to 2**22 to integers, halves to even, still as float32."""
    return (value + np.float32(8388608)) - np.float32(8388608)


@inner
def _clipped(value: Any, highest: np.float32) -> Any:
    """The nearest integers from 0 to `highest`, as float32."""
    value = where(value < np.float32(0), np.float32(0), value)
    return _rounded(where(value > highest, highest, value))


@inner
def _code_sums(x: F32Array, scale: Any, minimum: Any, highest: np.float32) -> Any:
    """The sums of q, q**2 and q * x over the nearest codes q."""
    sum_q = sum_qq = sum_qx = splat(np.float32(0))
    factor = _inverse(scale)
    for i in range(0, 512, 16):
        value = load(x, i)
        q = _clipped((value + minimum) * factor, highest)
        sum_q = sum_q + q
        sum_qq = sum_qq + q * q
        sum_qx = sum_qx + q * value
    return sum_q, sum_qq, sum_qx


@inner
def _error(x: F32Array, scale: Any, minimum: Any, highest: np.float32) -> Any:
    """The square error of each sub-block with the nearest codes."""
    error = splat(np.float32(0))
    factor = _inverse(scale)
    for i in range(0, 512, 16):
        shifted = load(x, i) + minimum
        difference = scale * _clipped(shifted * factor, highest) - shifted
        error = error + difference * difference
    return error


@inner
def _fit(x: F32Array, rows: F32Array, highest: np.float32) -> None:
    """Least squares and nearest codes in turns, from the scales and minima in `rows` on."""
    zero = splat(np.float32(0))
    sum_x = zero
    for i in range(0, 512, 16):
        sum_x = sum_x + load(x, i)
    scale, minimum = load(rows[_SCALE], 0), load(rows[_MIN], 0)
    sum_q = sum_qq = zero
    for _ in range(_N_FITS):
        sum_q, sum_qq, sum_qx = _code_sums(x, scale, minimum, highest)
        det = sum_qq * _N - sum_q * sum_q
        fitted = (sum_qx * _N - sum_q * sum_x) / det
        fitted = where((det > zero) & (fitted > zero), fitted, scale)
        low = (fitted * sum_q - sum_x) / _N
        # No minimum above 0 can be stored.
        alone = where((sum_qq > zero) & (sum_qx > zero), sum_qx / sum_qq, scale)
        scale = where(low < zero, alone, fitted)
        minimum = where(low < zero, zero, low)
    store(rows[_SCALE], 0, scale)
    store(rows[_MIN], 0, minimum)
    store(rows[_SUM_Q], 0, sum_q)
    store(rows[_SUM_QQ], 0, sum_qq)


@inner
def _choose_unit(target: F32Array, weight: Any, unit: F32Array, scratch: F32Array) -> None:
    """For both superblocks the float16 on whose multiples 0..63 the targets fall best."""
    for first in range(0, 16, 8):
        largest = np.float32(0)
        for k in range(first, first + 8):
            largest = max(largest, target[k])
        unit[first : first + 8] = largest / np.float32(63)
    smallest, targets = load(unit, 0), load(target, 0)
    best_first = best_second = np.inf
    for a in range(_N_UNITS):
        candidate = smallest * (np.float32(1) + _UNIT_STEP * np.float32(a))
        multiple = candidate * _clipped(targets * _inverse(candidate), np.float32(63))
        store(scratch, 0, weight * (multiple - targets) * (multiple - targets))
        first, second = scratch[:8].sum(), scratch[8:].sum()
        store(scratch, 0, candidate)
        if first < best_first:
            best_first = first
            for k in range(8):
                unit[k] = scratch[k]
        if second < best_second:
            best_second = second
            for k in range(8, 16):
                unit[k] = scratch[k]
    for k in range(16):
        unit[k] = f16_to_f32(f32_to_f16(unit[k]))


@inner
def _choose_units(rows: F32Array) -> None:
    """Both units, and the multiples of them that are nearest to the fitted scales and minima."""
    zero, scratch = splat(np.float32(0)), rows[_SCRATCH]
    sum_q, sum_qq = load(rows[_SUM_Q], 0), load(rows[_SUM_QQ], 0)
    _choose_unit(rows[_SCALE], sum_qq - sum_q * sum_q / _N, rows[_D], scratch)
    d, scale = load(rows[_D], 0), load(rows[_SCALE], 0)
    sc = _clipped(scale * _inverse(d), np.float32(63))
    store(rows[_SC], 0, sc)
    minimum = load(rows[_MIN], 0) + (d * sc - scale) * sum_q / _N
    store(rows[_MIN], 0, where(minimum < zero, zero, minimum))
    _choose_unit(rows[_MIN], splat(np.float32(1)), rows[_DMIN], scratch)
    factor = _inverse(load(rows[_DMIN], 0))
    store(rows[_M], 0, _clipped(load(rows[_MIN], 0) * factor, np.float32(63)))


@inner
def _search(x: F32Array, rows: F32Array, highest: np.float32) -> None:
    """The best 6-bit scales and minima within some steps of those in `rows`."""
    d, dmin = load(rows[_D], 0), load(rows[_DMIN], 0)
    sc, m = load(rows[_SC], 0), load(rows[_M], 0)
    best_sc, best_m, best = sc, m, splat(np.float32(np.inf))
    for a in range(-_RADIUS, _RADIUS + 1):
        its_sc = _clipped(sc + np.float32(a), np.float32(63))
        for b in range(-_RADIUS, _RADIUS + 1):
            its_m = _clipped(m + np.float32(b), np.float32(63))
            error = _error(x, d * its_sc, dmin * its_m, highest)
            better = error < best
            best = where(better, error, best)
            best_sc = where(better, its_sc, best_sc)
            best_m = where(better, its_m, best_m)
    store(rows[_SC], 0, best_sc)
    store(rows[_M], 0, best_m)
    store(rows[_ERROR], 0, best)
    store(rows[_SCALE], 0, d * best_sc)
    store(rows[_MIN], 0, dmin * best_m)


@inner
def _keep_better(work: _Work) -> None:
    """The stored numbers at hand of each superblock, if they are the best so far."""
    rows, batch = work.rows, work.batch
    for b in range(2):
        error = np.float64(0)
        for k in range(8 * b, 8 * b + 8):
            error += rows[_ERROR, k]
        if error < work.errors[b]:
            work.errors[b] = error
            batch.d[b], batch.dmin[b] = rows[_D, 8 * b], rows[_DMIN, 8 * b]
            for j in range(8):
                batch.scale_codes[16 * j + b] = np.uint8(rows[_SC, 8 * b + j])
                batch.min_codes[16 * j + b] = np.uint8(rows[_M, 8 * b + j])


@inner
def _search_pair(
    x: F32Array, raw: U8Array, type_size: int, at: int, highest: int, w: _Work
) -> None:
    """New scales and minima for the superblocks `at` and, if there is one, ``at + 1``."""
    transpose(x, 256 * at, 32, w.x)
    for b in range(2):
        block = raw[type_size * ((at + b) % (x.size // 256)) :]
        unpack_scales(block[:16], w.scale, w.offset)
        for j in range(8):
            w.rows[_SCALE, 8 * b + j] = w.scale[2 * j]
            w.rows[_MIN, 8 * b + j] = -w.offset[2 * j]
        w.errors[b] = np.inf
    for _ in range(_N_ROUNDS):
        _fit(w.x, w.rows, np.float32(highest))
        _choose_units(w.rows)
        _search(w.x, w.rows, np.float32(highest))
        _keep_better(w)


@inner
def _encode(x: F32Array, header: U8Array, highest: int, w: _Work) -> float:
    """The codes of a superblock for a stored header; the square error of what they decode to."""
    unpack_scales(header, w.scale, w.offset)
    encode_superblock(x, w.scale, w.offset, w.batch.found, 0, 32, highest, w.codes)
    error = 0.0
    for i in range(256):
        decoded = w.scale[i // 16] * np.float32(w.codes[i]) + w.offset[i // 16]
        difference = np.float64(decoded) - np.float64(x[i])
        error += difference * difference
    return error


@inner
def _replace_header(x: F32Array, header: U8Array, b: int, highest: int, w: _Work) -> bool:
    """Whether what was found for superblock `b` is better; if so, its header and codes."""
    if not np.isfinite(w.errors[b]):
        return False
    before = _encode(x, header, highest, w)
    pack_scales(w.batch, b, 63, w.header)
    if not _encode(x, w.header, highest, w) < before:
        return False
    for i in range(header.size):
        header[i] = w.header[i]
    return True


@kernel
def _improve(x: F32Array, raw: U8Array, type_size: int, highest: int) -> None:
    """Superblocks of llama.cpp's to better ones; `highest` is the highest code of the type."""
    x, work = x.reshape(x.size), _new_work()
    n_blocks = x.size // 256
    for at in range(0, n_blocks, 2):
        _search_pair(x, raw, type_size, at, highest, work)
        for b in range(min(2, n_blocks - at)):
            weights, block = x[256 * (at + b) :][:256], raw[type_size * (at + b) :][:type_size]
            if _replace_header(weights, block[:16], b, highest, work):
                pack_codes(work.codes, highest, block[16:])


def _quantize_q4_k(x: F32Array, raw: U8Array) -> None:
    Q4_K.quantize(x, constant(np.empty(0, np.float32)), raw)
    _improve(x, raw, Q4_K.type_size, 15)


def _quantize_q5_k(x: F32Array, raw: U8Array) -> None:
    Q5_K.quantize(x, constant(np.empty(0, np.float32)), raw)
    _improve(x, raw, Q5_K.type_size, 31)


K_LSQ = Variant(name="k-lsq", encoders={"Q4_K": _quantize_q4_k, "Q5_K": _quantize_q5_k})
