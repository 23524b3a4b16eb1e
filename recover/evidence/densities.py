"""Where in its cell a weight lies: densities from a Monte Carlo of the quantizer.

A stored code says that the weight lies in a cell; the search for the scale that came before makes
some places in the cell more likely than others. For ``u = (x - value) / scale`` and each class of
code (interior, lowest, highest) the logarithm of the density of `u` is kept as a polynomial of
degree 2 without its constant. Those of interior codes vary with ``z``, which runs from -1 at the
lowest to 1 at the highest code: the first coefficient with z, the second with its square. (Where
levels are few and evenly spaced the second does not vary: it would tell little and take time.)
The weights' own distribution, normal in each superblock, is taken out: the tables hold what the
code alone says (a likelihood), so that those of several inputs can be multiplied. Where a format
gives an extreme weight of the block exactly an end code (`ScalarType.extremes`), there is an atom
at ``u = 0`` as well: one of the n weights of the block with such a code is there, so that the odds
are 1 to n - 1; the table has the mass of the rest over its density at that place. (Of n = 1 the
cells tell.) A weight is looked for within the reach: the cell or, where that is open, where weights
were seen.

Inputs of one original share some of their errors, those of one type most of their search: together
they say less than independent ones. Their densities are therefore tempered: raised to a power,
which was found where what is claimed of the error is what is measured: for several inputs of
one type, and for the coarser of two types. Codes that prove nothing, of an encoder that fits the
scale last, have a density that is nearly flat within soft edges, which tells more beside another
than its quadratic logarithm does: their power may exceed 1.

Errors of codes differ: large weights lie nearer to their levels than small ones, and end codes have
another error than those between. The table has the mean square error by code, over that of all
codes (see `errors_by_code`).

Each type has a table of its own, ``recover/data/densities/NAME.json``, which is made by
`recover.calibration.simulate` and ``python -m tests.golden.make_densities``; a type of another
package may say where its table is (`ScalarType.densities`). What two types count beside each other
is in the table of the coarser one; in that of the finer one only if the coarser one does not know
it.

Of a type without a table the least is assumed that its declaration allows:

- A weight of a scalar type lies anywhere in its cell, all places being as likely. Where the cell is
  open, or nothing is proven, it is off by a normal error with the mean square `ScalarType.noise`.
- A weight of a vector type is off by a normal error with the mean square `VectorType.relative_mse`;
  the errors of several such types are independent, of one type with other importance matrices
  correlated by a half.
- Inputs beside each other count in full.
"""

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover.quants import (
    ROUNDED,
    BlockIntervals,
    F32Array,
    IntervalType,
    ScalarType,
    TensorType,
    VectorType,
)

INTERIOR, LOWEST, HIGHEST, VARYING = range(4)
"""Rows of a table: the classes of codes, and what interior codes add times z or z squared."""
DEGREE = 2
ATOM, BELOW, ABOVE = range(DEGREE, DEGREE + 3)
"""Columns of a table after those of the coefficients."""
SHAPE = (4, DEGREE + 3)
N_ALIKE = (2, 4, 8)
"""Numbers of inputs of one type for which the table has the shares."""

_FEW_LEVELS = 32
_DEVIATIONS = 4  # how far a normal density reaches
_CORRELATION = 0.5  # of the errors of inputs of one type, where nobody has measured it


def density(
    kind: ScalarType,
    *,
    weighted: bool = False,
    has_cells: bool = True,
    beside: Sequence[TensorType] = (),
) -> F32Array:
    """What the codes of a format say of the weights, by class of code.

    Parameters
    ----------
    kind : ScalarType
        How the weights are stored.
    weighted : bool
        Whether the encoder had an importance matrix.
    has_cells : bool
        If not, the codes prove nothing: weights are looked for wherever they were seen.
    beside : sequence of TensorType
        How the other inputs store them. Inputs of one type differ in their importance matrices.

    Returns
    -------
    float32 (4, 5)
        For interior, lowest and highest codes: the coefficients of ``u`` and ``u**2`` in the
        logarithm of the density, the atom, and how far `u` reaches below and above 0. Then what is
        added to the two coefficients of an interior code, times z and z**2.
    """
    # Of inputs of one type all but one had an importance matrix. Where that leaves no cells, those
    # that have them had none.
    alike = any(other.name == kind.name for other in beside) and not kind.refits_scale_with_imatrix
    which = "weighted" if weighted or not has_cells or alike else "plain"
    if not has_cells and not kind.refits_scale_with_imatrix:
        table = normal_density(kind.noise).astype(np.float64)
    elif which in table_of(kind):
        table = np.array(table_of(kind)[which])
    else:
        table = _untold_density(kind, has_cells=has_cells)
    table[:, :DEGREE] *= tempering(kind, beside, has_cells=has_cells)
    return table.astype(np.float32)


def errors_by_code(kind: ScalarType, *, weighted: bool = False, has_cells: bool = True) -> F32Array:
    """Mean square errors of the codes of a format, over that of all of them.

    Parameters
    ----------
    kind, weighted, has_cells
        As for `density`.

    Returns
    -------
    float32 (256,)
        In units of the squared scale times `ScalarType.noise`; 1 where nobody has drawn it.
    """
    errors = np.ones(256, np.float32)
    which = "weighted" if weighted or not has_cells else "plain"
    known = table_of(kind).get("errors", {}).get(which, [])
    first, _ = end_codes(kind)
    errors[first : first + len(known)] = known
    return errors


def normal_density(noise: float) -> F32Array:
    """As `density`: a normal error with that mean square, in units of the squared scale."""
    reach = _DEVIATIONS * noise**0.5
    row = [0.0, -0.5 / noise, 0.0, -reach, reach]
    return np.array([row] * 3 + [[0.0] * len(row)], np.float32)


def interval_density(kind: IntervalType, beside: Sequence[TensorType] = ()) -> F32Array:
    """As `density`, by the bounds of a weight: both, no lower one, no upper one, neither.

    A reach may be infinite: the weight is then looked for between its bounds. Of weights with both
    bounds the column `ATOM` tells whether a density that has the variance of the weight takes the
    place of the table's: if positive a normal one, raised to that power; if negative a uniform one.
    That of the last row is 1 if its peak is at the value, otherwise it is in the middle.
    """
    table = normal_density(kind.noise).astype(np.float64)
    table[VARYING] = table[INTERIOR]
    power = tempering(kind, beside)
    if kind.density is None:
        fitted = 0.0 if kind.is_uniform else -1.0 if kind.noise == ROUNDED else power
        table[INTERIOR] = 0, 0, fitted, -np.inf, np.inf
        table[VARYING, ATOM] = kind.is_peaked
    else:
        table[:VARYING, [0, 1, BELOW, ABOVE]] = kind.density
    table[:, :DEGREE] *= power
    return table.astype(np.float32)


def _untold_density(kind: ScalarType, *, has_cells: bool) -> NDArray[np.float64]:
    """As `density`, of a type without a table."""
    table = normal_density(kind.noise).astype(np.float64)
    if not has_cells:
        return table
    first, last = end_codes(kind)
    below, above = kind.lower_levels - kind.levels, kind.upper_levels - kind.levels
    interior = slice(first + 1, last)
    reach = below[interior].min(initial=0), above[interior].max(initial=0)
    if reach[0] < reach[1] and np.isfinite(reach).all():
        table[INTERIOR] = [0, 0, 0, *reach]
    for row, code in ((LOWEST, first), (HIGHEST, last)):
        if np.isfinite(below[code]):
            table[row, BELOW] = below[code]
        if np.isfinite(above[code]):
            table[row, ABOVE] = above[code]
        if np.isfinite(below[code]) and np.isfinite(above[code]):
            table[row, :DEGREE] = 0
    return table


def tempering(kind: TensorType, beside: Sequence[TensorType], *, has_cells: bool = True) -> float:
    """The power to which an input's density is raised beside others; 1 if it is the only one."""
    own, others = _tempered_as(kind), [_tempered_as(other) for other in beside]
    if own is None:
        return 1.0
    known = [other for other in others if other is not None]
    shared = min(
        (_tempering_of_pair(own, each, has_cells=has_cells) for each in known), default=1.0
    )
    return float(
        shared * _tempering_of_alike(own, 1 + sum(each.name == own.name for each in known))
    )


def _tempered_as(kind: TensorType) -> TensorType | None:
    """The type whose tempering holds for one; None if it shares no errors with any."""
    if isinstance(kind, IntervalType) and not isinstance(kind, BlockIntervals):
        return kind.alike
    return kind


def _tempering_of_pair(kind: TensorType, other: TensorType, *, has_cells: bool) -> float:
    """What one of two inputs counts, as its own table tells or, if it does not, the other's."""
    which = "pairs" if has_cells or "unproven" not in table_of(kind) else "unproven"
    known = table_of(kind).get(which, {}).get(other.name)
    if known is None:
        known = table_of(other).get(f"{which} of coarser", {}).get(kind.name, 1.0)
    return float(known)


def _tempering_of_alike(kind: TensorType, n_alike: int) -> float:
    """What one of several inputs of one type counts."""
    powers = [1.0, *table_of(kind).get("shares", [1.0] * len(N_ALIKE))]
    places = np.log([1, *N_ALIKE])
    if n_alike > N_ALIKE[-1]:  # as 1 / n from there on
        return powers[-1] * N_ALIKE[-1] / n_alike
    return float(np.exp(np.interp(np.log(n_alike), places, np.log(powers))))


def likelihood(kind: VectorType) -> tuple[float, float]:
    """What a decoded weight of a vector type says of the original, as a normal density.

    Its mean over the decoded value, and its variance over the mean square of the decoded values of
    the superblock; the weights' own distribution is in it.
    """
    gain, variance = table_of(kind).get("likelihood", (1.0, kind.relative_mse))
    return gain, variance


def correlation(one: VectorType, other: VectorType) -> float:
    """How the errors of two inputs go together, after the gain; of one type for other imatrices."""
    for kind, beside in ((one, other), (other, one)):
        found = table_of(kind).get("correlations", {}).get(beside.name)
        if found is not None:
            return float(found)
    return _CORRELATION if one is other else 0.0


@cache
def table_of(kind: TensorType) -> dict[str, Any]:
    """What was drawn of a type; nothing if nobody did."""
    path = None
    if isinstance(kind, ScalarType | VectorType | BlockIntervals):
        path = files("recover") / "data" / "densities" / f"{kind.name}.json"
    if isinstance(kind, ScalarType | VectorType) and kind.densities:
        path = kind.densities
    if path is None or not path.is_file():
        return {}
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table


def forget_tables() -> None:
    """Read the tables again when they are next asked for."""
    table_of.cache_clear()


def curve_varies(kind: ScalarType) -> bool:
    """Whether the second coefficient of interior codes varies: not if few levels are even."""
    first, last = end_codes(kind)
    return last - first >= _FEW_LEVELS or not kind.is_even


def end_codes(kind: ScalarType) -> tuple[int, int]:
    """The lowest and the highest code that the encoder gives."""
    used = np.flatnonzero(np.isfinite(kind.lower_levels) | np.isfinite(kind.upper_levels))
    return int(used[0]), int(used[-1])
