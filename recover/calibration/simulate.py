"""The Monte Carlo of the quantizer: makes what `recover.evidence.densities` ships.

Weights are drawn from a prior or taken from a model, encoded, and the place of each in its cell is
counted by code. The draws are counter-based: they depend on the seed and on the number of the chunk
alone, whatever the threads.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from recover._compiled.memory import constant
from recover.evidence.densities import (
    ATOM,
    BELOW,
    DEGREE,
    HIGHEST,
    INTERIOR,
    LOWEST,
    SHAPE,
    VARYING,
    curve_varies,
    end_codes,
)
from recover.quants import GROUP, F32Array, ScalarType, U8Array, dequantize, quantize

SEED = 8
N_CHUNKS = 32
CHUNK = (128, 2048)
DEGREES_OF_FREEDOM = 20  # of Student's t; trained weights are nearly normal in a superblock
_TRAINED_SIZES = (-7, -3)  # binary logarithms of the deviations of rows of trained weights
_PENALTY = 10  # how firmly every coefficient is kept at 0
_MOST_GROUPS = 16  # of neighbouring codes with a histogram of their own
_N_BINS = 512
_N_NEWTON, _LARGEST_STEP = 40, 2.0
_FEWEST, _LEAST_SHARE = 5, 2.4e-6  # weights in a bin where some are seen; of all weights
_FEWEST_OF_A_CODE = 200  # weights whose errors tell that of the code
_FEWEST_WEIGHTS, _FEWEST_BINS = 100_000, 16  # of a class of codes that can be seldom

Draw = Callable[[int], F32Array]
"""Weights (n_rows, ne0) of a numbered chunk."""


def student_t(seed: int = SEED, *, as_trained: bool = False) -> Draw:
    """Random weights; the numbers depend on the seed and the chunk alone.

    They have a variance of about 1 or, `as_trained`, rows as large as those of trained weights.
    """

    def draw(chunk: int) -> F32Array:
        generator = np.random.Generator(np.random.Philox(key=[seed, chunk]))
        x = generator.standard_t(DEGREES_OF_FREEDOM, CHUNK)
        if as_trained:
            x *= np.exp2(generator.uniform(*_TRAINED_SIZES, (CHUNK[0], 1)))
        return x.astype(np.float32)

    return draw


def simulate(
    kind: ScalarType, draw: Draw, *, weighted: bool = False, n_chunks: int = N_CHUNKS
) -> F32Array:
    """Densities of a format, as `recover.evidence.densities.density` returns them.

    Parameters
    ----------
    kind : ScalarType
        The format.
    draw : Callable
        Gives weights, which are encoded.
    weighted : bool
        Whether the encoder gets importance matrices, drawn per column from lognormal(0, 1).
    n_chunks : int
        How many chunks to draw.
    """
    counts = Counts(kind, is_hard=not (weighted and kind.refits_scale_with_imatrix))
    for chunk in range(n_chunks):
        x = draw(chunk)
        counts.add(x, quantize(x, kind, importance(SEED, chunk, x.shape[1]) if weighted else None))
    return counts.table()


def errors_by_code(
    kind: ScalarType, draw: Draw, *, weighted: bool = False, n_chunks: int = N_CHUNKS // 4
) -> NDArray[np.float64]:
    """Mean square errors of the codes of a format over that of all, as they are shipped.

    Parameters
    ----------
    kind, draw, weighted, n_chunks
        As for `simulate`.

    Returns
    -------
    float64 (n_codes,)
        From the lowest code to the highest: the sum of the square errors over that of the squared
        scales, over the same of all codes; 1 of those that are hardly ever seen.
    """
    sums = np.zeros((3, 256))  # of square errors, of squared scales, of 1
    for chunk in range(n_chunks):
        x = draw(chunk)
        raw = quantize(x, kind, importance(SEED, chunk, x.shape[1]) if weighted else None)
        codes = np.empty(x.size, np.uint8)
        scale, offset = np.empty((2, x.size // GROUP), np.float32)
        kind.unpack(constant(raw), codes, scale, offset)
        off = dequantize(raw, kind).astype(np.float64) - x.reshape(-1)
        squares = np.repeat(np.square(scale.astype(np.float64)), GROUP)
        usable = squares > 0
        for row, each in enumerate((np.square(off), squares, np.ones(x.size))):
            sums[row] += np.bincount(codes[usable], each[usable], minlength=256)
    first, last = end_codes(kind)
    errors, scales, counts = sums[:, first : last + 1]
    relative = np.ones(last + 1 - first)
    whole = sums[0].sum() / sums[1].sum()
    np.divide(errors, scales * whole, out=relative, where=counts >= _FEWEST_OF_A_CODE)
    return relative


def importance(seed: int, number: int, n_columns: int) -> F32Array:
    """A random importance matrix (n_columns,) that depends on seed and number alone."""
    generator = np.random.Generator(np.random.Philox(key=[seed, (1 << 32) + number]))
    return generator.lognormal(size=n_columns).astype(np.float32)


class Counts:
    """Where in their cells weights of a format were seen.

    Parameters
    ----------
    kind : ScalarType
        The format.
    is_hard : bool
        Whether the codes confine the weights to their cells.
    """

    def __init__(self, kind: ScalarType, *, is_hard: bool) -> None:
        self._kind = kind
        self._is_hard = is_hard
        first, last = self._ends = end_codes(kind)
        reach = 2 * float(np.max(np.diff(kind.levels[first : last + 1])))
        self._bins = bins = np.linspace(-reach, reach, _N_BINS + 1)
        self._counts = np.zeros((256, bins.size - 1))
        self._prior = np.zeros((256, 3))  # sums of 1 and of the normal prior's two coefficients

    def add(self, x: F32Array, raw: U8Array) -> None:
        """Count weights, of which there are whole superblocks, and what they were encoded to."""
        kind, n_bins = self._kind, self._bins.size - 1
        codes = np.empty(x.size, np.uint8)
        scale, offset = np.empty((2, x.size // GROUP), np.float32)
        kind.unpack(constant(raw), codes, scale, offset)
        scales = np.repeat(scale, GROUP).astype(np.float64)
        usable = scales != 0
        value = dequantize(raw, kind).astype(np.float64)
        variance = np.repeat(np.square(value.reshape(-1, 256)).mean(axis=1), 256)
        usable &= variance > 0
        if self._is_hard:
            usable &= ~_alone(codes, kind)
        codes, scales, value, variance = (each[usable] for each in (codes, scales, value, variance))
        u = (x.reshape(-1)[usable] - value) / scales
        on_atom = np.abs(u) <= self._atom_widths()[codes]
        place = np.clip(np.searchsorted(self._bins, u, "right") - 1, 0, n_bins - 1)
        inside = ~on_atom & (u >= self._bins[0]) & (u < self._bins[-1])
        cell = codes[inside].astype(np.int64) * n_bins + place[inside]
        self._counts += np.bincount(cell, minlength=256 * n_bins).reshape(256, n_bins)
        for column, share in enumerate(
            (None, value * scales / variance, 0.5 * scales**2 / variance)
        ):
            self._prior[:, column] += np.bincount(codes, share, minlength=256)

    def _atom_widths(self) -> NDArray[np.float64]:
        widths = np.full(256, -1.0)
        if self._is_hard:
            widths[_extreme_codes(self._kind)] = _atom_width(self._kind)
        return widths

    def table(self, seldom: F32Array | None = None) -> F32Array:
        """Densities, as `recover.evidence.densities.density` returns them.

        Parameters
        ----------
        seldom : float32 (4, 5), optional
            What to return for classes of codes of which too few weights were counted for a fit.
        """
        table = np.zeros(SHAPE, np.float32) if seldom is None else seldom.copy()
        for row, codes in self._classes.items():
            if seldom is None or self._suffice(codes):
                rows = [INTERIOR, VARYING] if row == INTERIOR else [row]
                table[rows] = self._fit_class(codes)[: len(rows)]
        return table

    @property
    def n_weights(self) -> tuple[int, ...]:
        """How many weights of each class of codes were counted."""
        return tuple(int(self._prior[list(codes), 0].sum()) for codes in self._classes.values())

    @property
    def _classes(self) -> dict[int, Sequence[int]]:
        first, last = self._ends
        return {INTERIOR: range(first + 1, last), LOWEST: [first], HIGHEST: [last]}

    def _suffice(self, codes: Sequence[int]) -> bool:
        n_bins = np.count_nonzero(self._counts[list(codes)].sum(axis=0) >= _FEWEST)
        n_weights = self._prior[list(codes), 0].sum()
        return bool(n_bins >= _FEWEST_BINS and n_weights >= _FEWEST_WEIGHTS)

    def _fit_class(self, codes: Sequence[int]) -> NDArray[np.float64]:
        """Rows (2, 5) of a table for codes of one class: constant and varying."""
        rows = np.zeros((2, SHAPE[1]))
        bins = self._bins
        counts = self._counts[list(codes)]
        middle = (bins[1:] + bins[:-1]) / 2
        fewest = max(_FEWEST, _LEAST_SHARE * float(self._prior[:, 0].sum()))
        seen = counts.sum(axis=0) >= fewest
        rows[0, BELOW:] = _reach(self._kind, codes, bins[:-1][seen], is_hard=self._is_hard)
        height, rows[:, :DEGREE] = _fit(
            self._kind, codes, middle, counts, fewest, is_hard=self._is_hard
        )
        n, slope, curve = self._prior[list(codes)].T
        z = _relative(codes, self._ends)
        weight = np.sqrt(n)
        for column, total in ((0, slope), (1, curve)):
            varies = len(codes) > 1 and (column == 0 or curve_varies(self._kind))
            powers = np.stack([np.ones_like(z), z ** (column + 1)], axis=1)[:, : 1 + varies]
            mean = total / np.maximum(n, 1)
            removed = np.linalg.lstsq(powers * weight[:, None], mean * weight, rcond=None)[0]
            rows[: len(removed), column] += removed
        if self._is_hard and codes[0] in _extreme_codes(self._kind):
            rows[0, ATOM] = counts.sum() / height * (bins[1] - bins[0])
        return rows


def _relative(codes: Sequence[int], ends: tuple[int, int]) -> NDArray[np.float64]:
    """Codes as z, from -1 to 1."""
    return (2 * np.asarray(codes, np.float64) - sum(ends)) / (ends[1] - ends[0])


def _extreme_codes(kind: ScalarType) -> list[int]:
    return [code for pair in kind.extremes for code in pair]


def _alone(codes: U8Array, kind: ScalarType) -> NDArray[np.bool_]:
    """Weights of which the cells tell that they are the extreme one of their block."""
    blocks = codes.reshape(-1, 32)
    alone = np.zeros(blocks.shape, np.bool_)
    for pair in kind.extremes:
        extreme = np.isin(blocks, pair)
        alone |= extreme & (extreme.sum(axis=1, keepdims=True) == 1)
    return alone.reshape(-1)


def _atom_width(kind: ScalarType) -> float:
    """How far rounding may move a weight that is exactly the block's extreme from its end code."""
    ends = np.abs(kind.levels[list(end_codes(kind))]).max()
    return float(ends * 2.0**-11 * (1.6 if kind.rounds_offset_last else 1.0))


def _edges(kind: ScalarType, code: int) -> tuple[float, float]:
    """Where a cell ends, from the value; infinite if open."""
    level = kind.levels[code]
    return float(kind.lower_levels[code] - level), float(kind.upper_levels[code] - level)


def _surely_inside(kind: ScalarType, code: int, u: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Places that rounding of the scale cannot have moved over an edge of the cell."""
    lower, upper = _edges(kind, code)
    largest = np.abs(kind.levels[list(end_codes(kind))]).max()
    fuzz = 1 / 128 + (2.0**-10 * float(largest) if kind.rounds_scale_last else 0)
    inside: NDArray[np.bool_] = (u > lower + fuzz) & (u < upper - fuzz)
    return inside


def _reach(
    kind: ScalarType, codes: Sequence[int], seen: NDArray[np.float64], *, is_hard: bool
) -> tuple[float, float]:
    """The widest cell, not widened; where it is open, how far weights were seen from the value."""
    if not is_hard:
        return float(seen.min()), float(seen.max())
    lower = min(_edges(kind, code)[0] for code in codes)
    upper = max(_edges(kind, code)[1] for code in codes)
    return (
        float(seen.min()) if np.isinf(lower) else lower,
        float(seen.max()) if np.isinf(upper) else upper,
    )


def _fit(
    kind: ScalarType,
    codes: Sequence[int],
    u: NDArray[np.float64],
    counts: NDArray[np.float64],
    fewest: float,
    *,
    is_hard: bool,
) -> tuple[float, NDArray[np.float64]]:
    """Height at u = 0 of the first and coefficients (2, 2) of the logarithm of all histograms.

    The coefficients are a constant and a varying part. Bins count from the first to the last with
    at least `fewest` weights.

    Maximum likelihood over the histograms (n_codes, n_bins) of neighbouring codes, so that the
    densities have the mean and the mean square that were seen.
    """
    groups = np.array_split(np.arange(len(codes)), min(len(codes), _MOST_GROUPS))
    z = _relative(codes, end_codes(kind))
    totals = [counts[group].sum(axis=0) for group in groups]
    usable = [
        np.all([_surely_inside(kind, codes[i], u) | ~np.array(is_hard) for i in group], axis=0)
        & _between(total >= fewest)
        for group, total in zip(groups, totals, strict=True)
    ]
    unit = max(float(np.abs(u[enough]).max(initial=0)) for enough in usable) or 1.0
    degrees = np.arange(1, DEGREE + 1)
    powers = (u / unit)[:, None] ** degrees
    varies = np.array([len(groups) > 1, len(groups) > 1 and curve_varies(kind)])
    varying = [np.mean(z[group]) ** degrees * varies for group in groups]
    features = [
        np.hstack([powers[enough], powers[enough] * each])
        for each, enough in zip(varying, usable, strict=True)
    ]
    seen = [total[enough] for total, enough in zip(totals, usable, strict=True)]
    solution = _most_likely(features, seen)
    shape = np.exp(features[0] @ solution)
    height = seen[0].sum() / shape.sum() if seen[0].size else 1.0
    return float(height), solution.reshape(2, DEGREE) / unit**degrees


def _between(seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """From the first to the last that is true."""
    return np.logical_or.accumulate(seen) & np.logical_or.accumulate(seen[::-1])[::-1]


def _most_likely(
    features: Sequence[NDArray[np.float64]], counts: Sequence[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Coefficients (F,) of histograms whose heights go as ``exp(features @ coefficients)``.

    Newton's method; `features` (n_bins, F) and `counts` (n_bins,) of each histogram. A penalty
    leaves at 0 what narrow or sparse histograms do not tell.
    """
    n_features = features[0].shape[1]
    solution = np.zeros(n_features)
    for _ in range(_N_NEWTON):
        gradient, curvature = -_PENALTY * solution, _PENALTY * np.eye(n_features)
        for x, n in zip(features, counts, strict=True):
            logs = x @ solution
            share = np.exp(logs - logs.max(initial=-np.inf))
            share /= max(share.sum(), 1.0)
            mean = share @ x
            gradient = gradient + n @ x - n.sum() * mean
            curvature = curvature + n.sum() * (x.T @ (x * share[:, None]) - np.outer(mean, mean))
        step = np.linalg.solve(curvature, gradient)
        solution = solution + step / max(1.0, float(np.abs(step).max()) / _LARGEST_STEP)
    return solution
