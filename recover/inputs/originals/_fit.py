"""Integers times a scale, found in stored floats: what can be said of one run of weights.

Every stored float is the rounding of all the numbers in an interval, its preimage. A run lies on a
grid if one scale S and integer codes c exist such that every ``c * S`` lies in the preimage of its
weight. Signs do not matter: all this is about magnitudes.
"""

from math import ceil, floor, frexp
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import inlined, inner, kernel

F64Array = NDArray[np.float64]
Words = NDArray[Any]

MAX_CODE = 128
"""The largest magnitude of a code: the -128 of int8."""

MAX_DISTINCT = MAX_CODE + 64
"""Distinct nonzero magnitudes of a run, beyond which there can be no grid (pigeonhole: one per
code, and some that are off the grid)."""

OFF_GRID = -32768
"""In the place of a code."""

NONE, ZERO, ON_GRID, PATCHED, INEXACT = range(5)
"""What a run is: on no grid; all zeros; on a grid throughout; on a grid but for a few weights; on
a grid whose scale is no F16 number."""

# Rounding of float64 quotients, generously; claims rest on products, which are exact.
_SLACK = 1e-14
_MAX_STACK = 256
_MAX_ANCHORS = 8
# So many magnitudes that are codes up to 16 of some scale are no coincidence.
_FEWEST, _FEW_CODES = 5, 16
_FREE = np.uint8(255)
_FIRST_POWER = -220
_POWERS = np.ldexp(1.0, np.arange(_FIRST_POWER, -_FIRST_POWER))
_SMALLEST_F16 = 2.0**-24
_LARGEST_F16 = 65504.0


class Storage(NamedTuple):
    """A float format, as far as rounding to it goes."""

    mantissa_bits: int
    """Without the implicit one."""
    unit: int
    """Exponent of the smallest positive number."""
    non_finite: int
    """Magnitude bits from here on are infinite or NaN."""
    sign: int
    """The bit of the sign."""


STORAGES = {
    "F32": Storage(23, -149, 0x7F800000, 0x80000000),
    "F16": Storage(10, -24, 0x7C00, 0x8000),
    "BF16": Storage(7, -133, 0x7F80, 0x8000),
}
"""By the name of the tensor type."""


class Expected(NamedTuple):
    """What a run is expected to be; a run that is not is searched for anything else last."""

    max_code: int
    """Largest magnitude of a code, at most `MAX_CODE`."""
    scale_bits: int
    """Mantissa bits of the scale: 7 (BF16) or 10 (F16)."""
    most_off: int
    """Weights that may lie off the grid."""
    extreme: int
    """The code that the largest magnitude of a run has, in nearly all of them; 0 if there is none.

    It tells the scale of a run whose codes have a factor in common."""


class Scratch(NamedTuple):
    """Memory of one thread for one run's distinct magnitudes."""

    slots: NDArray[np.uint8]
    """(512,) hash table: index of a magnitude in the order of the weights, or 255."""
    bits: NDArray[np.int64]
    """(MAX_DISTINCT,) magnitude bits, ascending."""
    counts: NDArray[np.int64]
    """(MAX_DISTINCT,) how often each occurs, in the order of the weights."""
    origin: NDArray[np.int64]
    """(MAX_DISTINCT,) its index in the order of the weights."""
    code: NDArray[np.int64]
    """(MAX_DISTINCT,) the codes, in the order of the weights."""
    low: F64Array
    """(MAX_DISTINCT,) lower end of its preimage."""
    high: F64Array
    """(MAX_DISTINCT,) upper end of its preimage."""
    stack: F64Array
    """(256, 3) intervals of the scale that are still to be followed, and from which weight on."""


def scratch() -> Scratch:
    """New memory for a thread."""
    bits, counts, origin, code = np.empty((4, MAX_DISTINCT), np.int64)
    low, high = np.empty((2, MAX_DISTINCT))
    slots, stack = np.empty(512, np.uint8), np.empty((_MAX_STACK, 3))
    return Scratch(slots, bits, counts, origin, code, low, high, stack)


class Fit(NamedTuple):
    """What was found of one run."""

    status: int
    """`NONE`, `ZERO`, `ON_GRID`, `PATCHED` or `INEXACT`."""
    scale: float
    """An F16 number if the status is `ON_GRID` or `PATCHED`, some number if it is `INEXACT`, else
    0."""
    n_off: int
    """Weights off the grid."""
    max_code: int
    """Weights with larger codes are off the grid."""


@inlined
def _power(exponent: int) -> float:
    """2 to an exponent of at most 219 in magnitude."""
    return _POWERS[exponent - _FIRST_POWER]


@inlined
def magnitude(bits: int, storage: Storage) -> float:
    """The number that magnitude bits stand for."""
    exponent = bits >> storage.mantissa_bits
    mantissa = bits & ((1 << storage.mantissa_bits) - 1)
    if exponent:
        mantissa += 1 << storage.mantissa_bits
    return mantissa * _power(storage.unit + max(exponent, 1) - 1)


@inlined
def preimage(bits: int, storage: Storage) -> tuple[float, float]:
    """The interval of the numbers that are rounded to these magnitude bits; exact.

    Its ends belong to it if the bits are even.
    """
    exponent = bits >> storage.mantissa_bits
    unit = _power(storage.unit + max(exponent, 1) - 1)
    value = magnitude(bits, storage)
    # Below a power of two the numbers are twice as close.
    is_power = exponent > 1 and bits & ((1 << storage.mantissa_bits) - 1) == 0
    return value - unit * (0.25 if is_power else 0.5), value + unit * 0.5


@inlined
def is_rounded_to(product: float, bits: int, storage: Storage) -> bool:
    """Whether a magnitude, rounded to nearest even, is stored as these magnitude bits."""
    low, high = preimage(bits, storage)
    if bits & 1:
        return low < product < high
    return low <= product <= high


@inlined
def code_of(bits: int, scale: float, max_code: int, storage: Storage) -> int:
    """The smallest code whose product with the scale is stored as these bits; -1 if none is.

    Found through the preimage, not by rounding. A stored zero is code 0.
    """
    if bits == 0:
        return 0
    low, high = preimage(bits, storage)
    code = max(1, ceil(low / scale - 0.001))
    while code <= max_code and code * scale <= high:
        if is_rounded_to(code * scale, bits, storage):
            return code
        code += 1
    return -1


@inner
def _collect(words: Words, storage: Storage, found: Scratch, codes: NDArray[np.int16]) -> int:
    """Distinct nonzero magnitudes, ascending, with their preimages; -1 if too many or not finite.

    words (n,) stored bits, unsigned; codes (n,) is given the index of each weight's magnitude, in
    the order of the weights and counted from 1, with the weight's sign; 0 for zeros.
    """
    found.slots[:] = _FREE
    n = 0
    for i in range(words.size):
        word = np.int64(words[i])
        bits = word & np.int64(storage.sign - 1)
        codes[i] = 0
        if bits == 0:
            continue
        if bits >= storage.non_finite:
            return -1
        slot = ((bits * 40503) >> 7) & 511
        while found.slots[slot] != _FREE and found.bits[found.slots[slot]] != bits:
            slot = (slot + 1) & 511
        if found.slots[slot] == _FREE:
            if n == MAX_DISTINCT:
                return -1
            found.slots[slot], found.bits[n], found.counts[n] = n, bits, 0
            n += 1
        index = np.int64(found.slots[slot])
        found.counts[index] += 1
        codes[i] = index + 1 if word == bits else -index - 1
    for i in range(n):
        found.origin[i] = found.bits[i] << 8 | i
    _sort(found.origin, n)
    for i in range(n):
        found.bits[i] = found.origin[i] >> 8
        found.origin[i] &= 255
        found.low[i], found.high[i] = preimage(found.bits[i], storage)
    return n


@inlined
def _sort(keys: NDArray[np.int64], n: int) -> None:
    """Sort the first `n`: by insertion, as they are few."""
    for i in range(1, n):
        key, j = keys[i], i
        while j and keys[j - 1] > key:
            keys[j] = keys[j - 1]
            j -= 1
        keys[j] = key


@inner
def _first_scale(low: float, n_bits: int) -> tuple[float, float]:
    """The first F16 number of that precision (0: powers of two) from `low` on, and the step."""
    exponent = frexp(low)[1] - 1
    step = max(_power(max(exponent, -100) - n_bits), _SMALLEST_F16)
    return ceil(low / step * (1 - _SLACK)) * step, step


@inlined
def _all_have_codes(scale: float, n: int, storage: Storage, found: Scratch) -> bool:
    """Whether each of n magnitudes is the rounding of a code times a scale."""
    i = 0
    while i < n and code_of(found.bits[i], scale, MAX_CODE, storage) > 0:
        i += 1
    return i == n


@inner
def _scale_in(
    low: float, high: float, n: int, n_bits_most: int, storage: Storage, found: Scratch
) -> float:
    """A scale between two bounds that proves the grid: power of two, BF16 or F16; 0 if none does.

    Every magnitude must be the rounding of a code times that scale, bit for bit.
    """
    for n_bits in (0, 7, 10):
        if n_bits > n_bits_most:
            break
        scale, step = _first_scale(low, n_bits)
        for _ in range(1 if n_bits == 0 else 8):
            if scale > high * (1 + _SLACK) or scale > _LARGEST_F16:
                break
            if _all_have_codes(scale, n, storage, found):
                return scale
            scale += step
    return 0.0


@inlined
def _is_possible(k: int, n: int, ratios: tuple[float, float], found: Scratch) -> bool:
    """Whether, if the largest of n magnitudes has the code k, every other one has some code.

    ratios: the inverse of both ends of the largest magnitude's preimage, upper end first.
    """
    low, high = k * ratios[0], k * ratios[1]
    i = 0
    while i < n - 1 and max(ceil(found.low[i] * low), 1) <= found.high[i] * high:
        i += 1
    return i >= n - 1


@inner
def _fit_all(n: int, expected: Expected, storage: Storage, found: Scratch) -> tuple[float, float]:
    """The coarsest F16 scale for n magnitudes, and the coarsest of any kind; 0 if there is none.

    The largest magnitude is some code k times the scale, which confines the scale to its preimage
    over k; the expected k is tried first. Each other magnitude, smallest first, leaves of that
    interval what fits one of its possible codes; where several are possible, each is followed.
    """
    low, high, stack = found.low, found.high, found.stack
    ratios = (1 - _SLACK) / high[n - 1], (1 + _SLACK) / low[n - 1]
    any_scale = 0.0
    for trial in range(expected.max_code + 1):
        k = trial if trial > 0 else expected.extreme
        if any_scale > 0 and k > _FEW_CODES and n >= _FEWEST:
            break  # a finer grid would explain it, too, by chance
        if k == 0 or not _is_possible(k, n, ratios, found):
            continue
        stack[0, 0], stack[0, 1], stack[0, 2] = low[n - 1] / k, high[n - 1] / k, 0
        depth = 1
        while depth:
            depth -= 1
            a, b, i = stack[depth, 0], stack[depth, 1], int(stack[depth, 2])
            while i < n - 1 and a <= b * (1 + _SLACK):
                first = max(1, ceil(low[i] / b * (1 - _SLACK)))
                last = min(k, floor(high[i] / a * (1 + _SLACK)))
                if first > last:
                    break
                for code in range(first + 1, last + 1):
                    if depth < _MAX_STACK:
                        stack[depth, 0] = max(a, low[i] / code)
                        stack[depth, 1] = min(b, high[i] / code)
                        stack[depth, 2] = i + 1
                        depth += 1
                a, b = max(a, low[i] / first), min(b, high[i] / first)
                i += 1
            if i == n - 1 and a <= b * (1 + _SLACK):
                scale = _scale_in(a, b, n, expected.scale_bits, storage, found)
                if scale > 0:
                    return scale, scale
                if any_scale == 0 and _all_have_codes((a + b) / 2, n, storage, found):
                    any_scale = (a + b) / 2
    return 0.0, any_scale


@inner
def _n_misses(
    scale: float, n: int, max_code: int, most: int, storage: Storage, found: Scratch
) -> int:
    """Weights among n magnitudes that are off the grid of a scale; stops beyond `most`."""
    n_off = 0
    for i in range(n):
        if code_of(found.bits[i], scale, max_code, storage) < 0:
            n_off += found.counts[found.origin[i]]
            if n_off > most:
                break
    return n_off


@inner
def _fit_most(n: int, expected: Expected, storage: Storage, found: Scratch) -> tuple[float, int]:
    """The F16 scale that leaves the fewest weights off its grid, as few as expected; else 0.

    Tried are the BF16 numbers, then the F16 numbers (unless the weights are BF16: there would be
    too many), that make one of the largest magnitudes a code; of equally good ones the coarsest is
    taken. Weights beyond the largest code are off the grid.
    """
    n_nonzero = 0
    for i in range(n):
        n_nonzero += found.counts[i]
    most = min(expected.most_off, n_nonzero // 8)
    best, n_off = 0.0, most + 1
    n_anchors = min(n, most + 1, _MAX_ANCHORS) if most else 0
    for n_bits in (7, 10):
        if n_bits > min(expected.scale_bits, storage.mantissa_bits) or best > 0:
            break
        for anchor in range(n - 1, n - 1 - n_anchors, -1):
            for k in range(1, expected.max_code + 1):
                scale, step = _first_scale(found.low[anchor] / k, n_bits)
                while scale <= found.high[anchor] / k and scale <= _LARGEST_F16:
                    missed = _n_misses(scale, n, expected.max_code, n_off - 1, storage, found)
                    if missed < n_off:
                        best, n_off = scale, missed
                    scale += step
    return best, n_off


@inner
def _fit_run(n: int, expected: Expected, storage: Storage, found: Scratch) -> Fit:
    """The grid of a run of n distinct magnitudes; first of all an expected one."""
    scale, any_scale, n_off = 0.0, 0.0, 0
    if n <= MAX_CODE:
        scale, any_scale = _fit_all(n, expected, storage, found)
    if scale > 0:
        return Fit(ON_GRID, scale, 0, MAX_CODE)
    if any_scale > 0 and n >= _FEWEST and found.low[n - 1] < any_scale * (_FEW_CODES + 0.5):
        return Fit(INEXACT, any_scale, 0, MAX_CODE)
    scale, n_off = _fit_most(n, expected, storage, found)
    if scale > 0:
        return Fit(PATCHED, scale, n_off, expected.max_code)
    if n <= MAX_CODE:
        scale, any_scale = _fit_all(n, Expected(MAX_CODE, 10, 0, 0), storage, found)
    if scale > 0:
        return Fit(ON_GRID, scale, 0, MAX_CODE)
    if any_scale > 0:
        return Fit(INEXACT, any_scale, 0, MAX_CODE)
    return Fit(NONE, 0.0, 0, 0)


@inner
def _read_run(
    words: Words, storage: Storage, expected: Expected, found: Scratch, codes: NDArray[np.int16]
) -> Fit:
    """The grid of one run and its codes; words (n,), codes (n,)."""
    n = _collect(words, storage, found, codes)
    if n == 0:
        return Fit(ZERO, 0.0, 0, 0)
    fit = Fit(NONE, 0.0, 0, 0)
    if n > 0:
        fit = _fit_run(n, expected, storage, found)
    if fit.scale == 0:
        codes[:] = OFF_GRID
        return fit
    for i in range(n):
        found.code[found.origin[i]] = code_of(found.bits[i], fit.scale, fit.max_code, storage)
    for i in range(codes.size):
        index = codes[i]
        if index != 0:
            code = found.code[abs(index) - 1]
            codes[i] = OFF_GRID if code < 0 else (code if index > 0 else -code)
    return fit


@kernel
def read_runs(
    words: Words,
    storage: Storage,
    expected: Expected,
    found: Scratch,
    codes: NDArray[np.int16],
    fits: tuple[NDArray[np.int8], F64Array],
) -> int:
    """Scales and codes of consecutive runs; the number of weights off the grid of their run.

    words (n,); codes (n,), `OFF_GRID` for weights off the grid and all weights of runs without one;
    fits: status and scale, (n_runs,) each.
    """
    status, scales = fits
    length, n_failed, n_off = words.size // status.size, 0, 0
    for run in range(status.size):
        start, end = run * length, (run + 1) * length
        # Where several runs in a row have none, as in a row that was replaced, it is not searched
        # for long.
        most_off = expected.most_off if n_failed < 4 else 0
        limited = Expected(expected.max_code, expected.scale_bits, most_off, expected.extreme)
        fit = _read_run(words[start:end], storage, limited, found, codes[start:end])
        status[run], scales[run] = fit.status, fit.scale
        n_failed = n_failed + 1 if fit.status == NONE else 0
        n_off += fit.n_off
    return n_off


@kernel
def all_have_grids(
    words: Words, storage: Storage, expected: Expected, found: Scratch, length: int
) -> bool:
    """Whether each of consecutive runs of that length has a grid; stops at the first without."""
    codes = np.empty(length, np.int16)
    for start in range(0, words.size, length):
        part = words[start : start + length]
        if _read_run(part, storage, expected, found, codes).status == NONE:
            return False
    return True


@kernel
def reach(codes: NDArray[np.int16]) -> int:
    """The largest magnitude of a code; one more if a block of 32 has it with both signs.

    A type with codes from -h to h - 1 can hold what has a reach of h, as its scale may be negative.
    """
    largest = 0
    for start in range(0, codes.size, 32):
        low, high = 0, 0
        for code in codes[start : start + 32]:
            if code != OFF_GRID:
                low, high = min(low, code), max(high, code)
        largest = max(largest, max(high, -low) + (high == -low and high > 0))
    return largest
