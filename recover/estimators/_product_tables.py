"""What the kernels of the posterior are given: inputs as flat arrays and small tables."""

import math
import operator
import threading
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import bare_kernel
from recover.evidence.buffer import Evidence
from recover.evidence.densities import ABOVE, ATOM, BELOW, HIGHEST, INTERIOR, LOWEST, VARYING
from recover.quants import F32Array, U8Array

H = 0.4262
"""Distance of the nodes of the rule of `recover.estimators._product`."""
CURVATURE_UNIT, CENTER_UNIT = np.float32(H * H / 16), np.float32(2 / H)
"""Second derivatives of a log density are kept in the first unit, places at which the first one is
taken in the second and the first one in the product: so they lead to an eighth of what the log
density differs by at the inner nodes of the rule."""
_F16_RELATIVE = np.float32(2.0**-11)
_INFINITE = np.float32(np.inf)


class Scalars(NamedTuple):
    """The evidence of the K scalar inputs, for the kernels; rows are joined where sizes are given.

    Attributes
    ----------
    codes : uint8 (K * n,)
    scale, offset, scale_error, offset_error : float32 (K * n / 16,)
    noise : float32 (K,)
        Mean square error in units of the squared scale.
    levels, near, far : float32 (K * 256,)
        Levels, and how far the integration goes below and above them.
    lower_levels, upper_levels : float32 (K * 256,)
    ends : int32 (K * 2,)
    extremes : int32 (K * 4,)
    simple : bool (K,)
        Whether levels are consecutive integers and `near` and `far` differ at the ends only.
    varies : bool (K,)
        Whether interior codes differ in the second coefficient of their density.
    lost : float32 (K * 3,)
        See `recover.evidence.tile.Evidence.lost`.
    rows : float32 (K * 22,)
        See `_describe` and `recover.estimators._coarse`.
    """

    codes: U8Array
    scale: F32Array
    offset: F32Array
    scale_error: F32Array
    offset_error: F32Array
    noise: F32Array
    levels: F32Array
    near: F32Array
    far: F32Array
    lower_levels: F32Array
    upper_levels: F32Array
    ends: NDArray[np.int32]
    extremes: NDArray[np.int32]
    simple: NDArray[np.bool_]
    varies: NDArray[np.bool_]
    lost: F32Array
    rows: F32Array


class Others(NamedTuple):
    """The evidence of the V other inputs.

    Attributes
    ----------
    values : float32 (V * n,)
        What each says.
    mean : float32 (n,)
        What they say together.
    variance : float32 (n / 16,)
        Typical variance of weights around that.
    tempering : float
        The power to which this density is taken beside the scalar inputs.
    """

    values: F32Array
    mean: F32Array
    variance: F32Array
    tempering: np.float32


_NONE = np.empty(0, np.float32)
NO_OTHERS = Others(_NONE, _NONE, _NONE, np.float32(1))
"""Where V is 0: a record as well, so that kernels are compiled for one type."""


class Spans(NamedTuple):
    """The evidence of the I interval inputs; rows are joined.

    Attributes
    ----------
    values, lower, upper, variance : float32 (I * n,)
        See `recover.evidence.buffer.Evidence`.
    noise : float32 (I,)
        Mean square error in units of the squared step.
    densities : float32 (I * 16,)
        Of weights with both bounds, without a lower one, without an upper one and with neither: the
        derivatives of the log density at 0, the first and the second, in `CURVATURE_UNIT`, and the
        reach below and above.
    fitted : float32 (I,)
        Whether weights with both bounds have a density with the variance that is stated: a normal
        one, raised to this power, or if it is negative a uniform one; 0 if `densities` has it.
    peaked : bool (I,)
        Whether that density has its peak at the value, not in the middle of the bounds.
    lead : bool
        Whether the first of them is taken where the inputs contradict each other.
    zero_odds : float
        What the odds of weights to be 0 are multiplied by (see `_zero_odds`).
    """

    values: F32Array
    lower: F32Array
    upper: F32Array
    variance: F32Array
    noise: F32Array
    densities: F32Array
    fitted: F32Array
    peaked: NDArray[np.bool_]
    lead: bool
    zero_odds: np.float32


# Columns of a row: numbers of one input that the kernels need in a small piece of memory.
LEVEL, NEAR, NEAR_END, FAR_OFF, FAR_END = range(5)
GRADIENT, CURVATURE = (
    5,
    9,
)  # at code 0, per code, lowest, highest; at code 0 and the two powers, ...
ATOMS = 14  # lowest, highest
# See `recover.estimators._coarse`: the largest l, L over that, with the usual r both factors;
# whether the type has minima, and the square of the r that these may have.
STEPS, COARSE, PER_USUAL, USUAL_SHIFT, MINIMA, WIDE_MINIMA = range(16, 22)
N_COLUMNS = WIDE_MINIMA + 1
SHIFT = math.pi**2 / 18
_USUAL = np.float32(1 / 0.7)
"""The largest l over the usual one."""
_PLACES = (np.arange(16) + 0.5) / 16  # between the middle of a cell and its edge
_WIDE = 2  # times the usual r: minima that are rounded more than that count


class _Fixed(NamedTuple):
    """What of `Scalars` is the same for all tiles of a tensor, and what it was made of."""

    sources: tuple[NDArray[Any], ...]
    tables: dict[str, NDArray[Any]]


class _Memory(threading.local):
    """Of each thread what it needed last."""

    fixed = _Fixed((), {})


_memory = _Memory()


def tabulate(evidence: Evidence) -> Scalars:
    """What the kernels need of the scalar inputs."""
    sources = (
        evidence.noise,
        evidence.levels,
        evidence.lower_levels,
        evidence.upper_levels,
        evidence.density,
        evidence.end_codes,
        evidence.extremes,
        evidence.scale_steps,
        evidence.lost,
    )
    known = _memory.fixed.sources
    if len(known) != len(sources) or any(map(operator.is_not, known, sources)):
        _memory.fixed = _Fixed(sources, _fixed_tables(evidence))
    return Scalars(
        evidence.codes.reshape(-1),
        evidence.scale.reshape(-1),
        evidence.offset.reshape(-1),
        evidence.scale_error.reshape(-1),
        evidence.offset_error.reshape(-1),
        **_memory.fixed.tables,
    )


def _fixed_tables(evidence: Evidence) -> dict[str, NDArray[Any]]:
    """What does not depend on the tile."""
    n_inputs = len(evidence.levels)
    near, far = evidence.lower_levels - evidence.levels, evidence.upper_levels - evidence.levels
    simple, rows = np.empty(n_inputs, np.bool_), np.empty((n_inputs, N_COLUMNS), np.float32)
    for k in range(n_inputs):
        density, ends = evidence.density[k], evidence.end_codes[k]
        rows[k, STEPS], rows[k, COARSE] = _coarseness(evidence, k, near[k], far[k])
        one, usual = np.float32(1), rows[k, COARSE] * _USUAL
        rows[k, PER_USUAL] = one / (one + np.float32(0.5) * usual * usual)
        rows[k, USUAL_SHIFT] = one + np.float32(SHIFT) * usual * usual
        rows[k, MINIMA] = evidence.levels[k, ends[0]] == 0
        rows[k, WIDE_MINIMA] = (_WIDE * usual) ** 2
        simple[k] = _describe(evidence.levels[k], density, ends, near[k], far[k], rows[k])
    return {
        "noise": evidence.noise.astype(np.float32),
        "levels": evidence.levels.reshape(-1),
        "near": near.reshape(-1),
        "far": far.reshape(-1),
        "lower_levels": evidence.lower_levels.reshape(-1),
        "upper_levels": evidence.upper_levels.reshape(-1),
        "ends": evidence.end_codes.reshape(-1),
        "extremes": evidence.extremes.reshape(-1),
        "simple": simple,
        "varies": evidence.density[:, VARYING, 1] != 0,
        "lost": evidence.lost.astype(np.float32).reshape(-1),
        "rows": rows.reshape(-1),
    }


def _coarseness(evidence: Evidence, k: int, near: F32Array, far: F32Array) -> tuple[float, float]:
    """The largest integer scale of a type, and the levels' half range in end steps over that.

    Zeros where scales are no integers, or a cell at the end has both edges.
    """
    first, last = evidence.end_codes[k]
    steps = float(evidence.scale_steps[k])
    if not (steps and np.isinf(near[first]) and np.isinf(far[last])):
        return 0.0, 0.0
    half_range = (evidence.levels[k, last] - evidence.levels[k, first]) / 2
    return steps, float(half_range / (far[first] - near[last])) / steps


def tabulate_intervals(evidence: Evidence) -> Spans | None:
    """What the kernels need of the interval inputs, if there are any."""
    if len(evidence.interval_values) == 0:
        return None
    units = np.array([CURVATURE_UNIT, 2 * CURVATURE_UNIT, 1, 1], np.float32)
    return Spans(
        evidence.interval_values.reshape(-1),
        evidence.interval_lower.reshape(-1),
        evidence.interval_upper.reshape(-1),
        evidence.interval_variance.reshape(-1),
        evidence.interval_noise.astype(np.float32),
        (evidence.interval_density[:, :, [0, 1, BELOW, ABOVE]] * units).reshape(-1),
        evidence.interval_density[:, INTERIOR, ATOM],
        evidence.interval_density[:, VARYING, ATOM] > 0,
        evidence.finest >= len(evidence.codes),
        _zero_odds(evidence),
    )


def _zero_odds(evidence: Evidence) -> np.float32:
    """The mean density in a cell over that in its middle, ``exp(d u^2)``, of all scalar inputs.

    The search for a scale puts large weights near their levels. Zeros lie there as well, but so do
    the small weights of the same code: of these the density is flat, and tells them not apart.

    0 for one input alone: where a few weights are far larger, all others have the code of 0.
    """
    if len(evidence.interval_values) == 1 and not evidence.levels.any():
        return np.float32(0)
    odds = 1.0
    for k, (first, last) in enumerate(evidence.end_codes):
        middle = (int(first) + int(last)) // 2
        width = evidence.upper_levels[k, middle] - evidence.lower_levels[k, middle]
        if np.isfinite(width):
            exponent = float(evidence.density[k, INTERIOR, 1]) * (float(width) / 2 * _PLACES) ** 2
            odds *= float(np.mean(np.exp(exponent)))
    return np.float32(odds)


@bare_kernel
def _describe(
    levels: F32Array,
    density: F32Array,
    ends: NDArray[np.int32],
    near: F32Array,
    far: F32Array,
    row: F32Array,
) -> bool:
    """Fill the tables of one input, of which `near` and `far` have the cells; whether it is simple.

    See `Scalars`.
    """
    first, last = ends[0], ends[1]
    for q in range(256):
        which = LOWEST if q == first else HIGHEST if q == last else INTERIOR
        near[q] = near[q] if near[q] > -_INFINITE else density[which, BELOW]
        far[q] = far[q] if far[q] < _INFINITE else density[which, ABOVE]
        # Where a cell ends at its level, rounding the scale to f16 may have moved the latter.
        near[q] = near[q] if near[q] != 0 else -abs(levels[q]) * _F16_RELATIVE
        far[q] = far[q] if far[q] != 0 else abs(levels[q]) * _F16_RELATIVE
    simple = levels[255] == levels[0] + np.float32(255)
    for q in range(first + 1, last):
        simple = simple and near[q] == near[last] and far[q] == far[first]
    row[LEVEL], row[NEAR], row[FAR_OFF] = levels[0], near[last], far[first]
    row[NEAR_END], row[FAR_END] = near[first], far[last]
    # The gradient of c u + d u**2 is c + 2 d u; what is added to c and d varies with z = p + r q.
    p, r = -np.float32(first + last) / (last - first), np.float32(2) / (last - first)
    unit, twice = CURVATURE_UNIT, 2 * CURVATURE_UNIT
    c, d = unit * density[INTERIOR, 0], twice * density[INTERIOR, 1]
    cz, dz = unit * density[VARYING, 0], twice * density[VARYING, 1]
    row[GRADIENT], row[GRADIENT + 1] = c + cz * p, cz * r
    row[GRADIENT + 2], row[GRADIENT + 3] = unit * density[LOWEST, 0], unit * density[HIGHEST, 0]
    row[CURVATURE], row[CURVATURE + 1], row[CURVATURE + 2] = (
        d + dz * p * p,
        2 * dz * p * r,
        dz * r * r,
    )
    row[CURVATURE + 3], row[CURVATURE + 4] = twice * density[LOWEST, 1], twice * density[HIGHEST, 1]
    row[ATOMS], row[ATOMS + 1] = density[LOWEST, ATOM], density[HIGHEST, ATOM]
    return simple


def has_atoms(scalars: Scalars) -> NDArray[np.bool_]:
    """Which inputs (K,) have atoms."""
    return scalars.extremes[::4] >= 0


class Outputs(NamedTuple):
    """What is to be computed, and where it goes besides the estimates.

    Attributes
    ----------
    mode : bool
        Whether the estimate is the mode.
    plain : bool
        Whether it is the mean, and no input has atoms.
    atoms : bool (K,)
        Which inputs have atoms.
    variance : float32 (n / 16,)
        That of the finest input, which is taken where there is a conflict.
    deviation : float32 (n,) or (0,)
        To be filled with the standard deviations.
    errors : float32 ((1 + K + I + V) * 16,)
        Sums of the square errors to expect, of the estimates and of each input.
    n_groups : int
        Groups of weights that count: the last superblock may have been filled up.
    """

    mode: bool
    plain: bool
    atoms: NDArray[np.bool_]
    variance: F32Array
    deviation: F32Array
    errors: F32Array
    n_groups: int
