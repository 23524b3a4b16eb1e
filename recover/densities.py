"""Where in its cell a weight lies: densities from a Monte Carlo of the quantizer.

A stored code says that the weight lies in a cell; the search for the scale that came before makes
some places in the cell more likely than others. For ``u = (x - value) / scale`` and each class of
code (interior, lowest, highest) the logarithm of the density of `u` is kept as a polynomial of
degree 4 without its constant. Where a format gives an extreme weight of the block exactly an end
code, there is an atom at ``u = 0`` as well: its mass, over the density of the rest at that place.
A weight is looked for within the reach: the cell or, where that is open, where weights were seen.

The shipped table, ``recover/data/densities.json``, is made by ``python -m recover.densities``.
"""

import json
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recover.quants import GROUP, F32Array, ScalarType, all_types, dequantize, quantize

INTERIOR, LOWEST, HIGHEST = range(3)
"""Classes of codes."""
DEGREE = 4
N_BINS = 512
FEWEST = 20
"""Weights in a bin that counts in a fit."""

_SEED = 8
_N_WEIGHTS = 1 << 24
_CHUNK = (128, 2048)
_DEGREES_OF_FREEDOM = 8  # of Student's t, the prior
_MOST = 3000  # weights in a bin beyond which it counts no more: tails matter, too
_DEVIATIONS = 4  # how far a normal density reaches


def density(kind: ScalarType, *, has_cells: bool = True) -> F32Array:
    """What the codes of a format say of the weights, by class of code.

    Parameters
    ----------
    kind : ScalarType
        How the weights are stored.
    has_cells : bool
        If not, the codes prove nothing, and a normal density with the format's noise is taken.

    Returns
    -------
    float32 (3, 7)
        For interior, lowest and highest codes: the coefficients of ``u`` to ``u**4`` in the
        logarithm of the density, the atom, and how far `u` reaches below and above 0.
    """
    if not has_cells:
        reach = _DEVIATIONS * kind.noise**0.5
        row = [0, -0.5 / kind.noise, 0, 0, 0, -reach, reach]
        return np.array([row] * 3, np.float32)
    return np.array(_shipped()[kind.name], np.float32)


@cache
def _shipped() -> dict[str, list[list[float]]]:
    table: dict[str, list[list[float]]] = json.loads(_shipped_path().read_text())["types"]
    return table


def _shipped_path() -> Path:
    return Path(str(files("recover") / "data" / "densities.json"))


def end_codes(kind: ScalarType) -> tuple[int, int]:
    """The lowest and the highest code that the encoder gives."""
    used = np.flatnonzero(np.isfinite(kind.lower_levels) | np.isfinite(kind.upper_levels))
    return int(used[0]), int(used[-1])


def simulate(kind: ScalarType, *, n_weights: int = _N_WEIGHTS, seed: int = _SEED) -> F32Array:
    """Densities of a format, as `density` returns them, from random weights that it encodes.

    The random numbers depend on the seed and the chunk alone: not on threads or other formats.
    """
    ends = end_codes(kind)
    bins = histogram_bins(kind)
    counts, atoms = np.zeros((3, N_BINS)), np.zeros(3)
    for chunk in range(-(-n_weights // (_CHUNK[0] * _CHUNK[1]))):
        generator = np.random.Generator(np.random.Philox(key=[seed, chunk]))
        x = generator.standard_t(_DEGREES_OF_FREEDOM, _CHUNK).astype(np.float32)
        codes, u = _places(kind, x)
        for each, chosen in enumerate((~np.isin(codes, ends), codes == ends[0], codes == ends[1])):
            here = u[chosen]
            on_atom = np.abs(here) <= atom_width(kind, each)
            atoms[each] += np.count_nonzero(on_atom)
            counts[each] += np.histogram(here[~on_atom], bins)[0]
    rows = [fit_class(kind, each, counts[each], atoms[each]) for each in range(3)]
    return np.array(rows, np.float32)


def histogram_bins(kind: ScalarType) -> NDArray[np.float64]:
    """Edges (`N_BINS` + 1,) of the bins in which `fit_class` wants its counts."""
    first, last = end_codes(kind)
    reach = 2 * float(np.max(np.diff(kind.levels[first : last + 1])))
    return np.linspace(-reach, reach, N_BINS + 1)


def fit_class(
    kind: ScalarType,
    code_class: int,
    counts: NDArray[np.float64],
    atom: float,
    *,
    has_cells: bool = True,
) -> NDArray[np.float64]:
    """The row of a density (see `density`) for one class of code, from counts of weights.

    Parameters
    ----------
    kind : ScalarType
        How the weights are stored.
    code_class : int
        `INTERIOR`, `LOWEST` or `HIGHEST`.
    counts : float64 (N_BINS,)
        The weights by bin (`histogram_bins`) of ``(x - value) / scale``; some bins must hold as
        many as `FEWEST`.
    atom : float
        The weights within `atom_width` of their value, which are not in `counts`.
    has_cells : bool
        If not, weights may be anywhere.

    Returns
    -------
    float64 (7,)
    """
    bins = histogram_bins(kind)
    seen = bins[:-1][counts >= FEWEST]
    if not has_cells:
        row = _fit(bins, counts, atom, code_class)
        row[5:] = seen.min(), seen.max()
        return row
    inside = _surely_inside(kind, code_class, (bins[1:] + bins[:-1]) / 2)
    row = _fit(bins, np.where(inside, counts, 0), atom, code_class)
    row[5:] = _reach(kind, code_class, seen)
    if code_class == INTERIOR and _is_code_book(kind):
        row[:4] = 0  # the cells differ in width; within each, the density is about constant
    return row


def _places(kind: ScalarType, x: F32Array) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Codes of weights that have a scale, and ``(x - value) / scale``."""
    raw = quantize(x, kind)
    codes = np.empty(x.size, np.uint8)
    scale, offset = np.empty((2, x.size // GROUP), np.float32)
    kind.unpack(raw, codes, scale, offset)
    scales = np.repeat(scale, GROUP)
    error = x.reshape(-1).astype(np.float64) - dequantize(raw, kind)
    usable = scales != 0
    return codes[usable], error[usable] / scales[usable]


def atom_width(kind: ScalarType, code_class: int) -> float:
    """How far rounding may move a weight that is exactly the block's extreme from its end code."""
    bounded = np.isfinite(kind.lower_levels[end_codes(kind)[0]])
    if code_class == INTERIOR or not (kind.rounds_scale_last and bounded):
        return -1.0
    ends = np.abs(kind.levels[list(end_codes(kind))]).max()
    return float(ends * 2.0**-11 * (1.6 if kind.rounds_offset_last else 1.0))


def _is_code_book(kind: ScalarType) -> bool:
    first, last = end_codes(kind)
    return bool(np.ptp(np.diff(kind.levels[first : last + 1])) > 0)


def _edges(kind: ScalarType, each: int) -> tuple[float, float]:
    """Where the cells of a class end, from the value; infinite if open, or not all the same."""
    first, last = end_codes(kind)
    code = {INTERIOR: (first + last) // 2, LOWEST: first, HIGHEST: last}[each]
    if each == INTERIOR and _is_code_book(kind):
        return -np.inf, np.inf
    level = kind.levels[code]
    return float(kind.lower_levels[code] - level), float(kind.upper_levels[code] - level)


def _surely_inside(kind: ScalarType, each: int, u: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Places that rounding of the scale cannot have moved over an edge of the cell."""
    lower, upper = _edges(kind, each)
    largest = np.abs(kind.levels[list(end_codes(kind))]).max()
    fuzz = 1 / 128 + (2.0**-10 * float(largest) if kind.rounds_scale_last else 0)
    inside: NDArray[np.bool_] = (u > lower + fuzz) & (u < upper - fuzz)
    return inside


def _reach(kind: ScalarType, each: int, seen: NDArray[np.float64]) -> tuple[float, float]:
    """The cell, not widened; where it is open, how far weights were seen from the value."""
    lower, upper = _edges(kind, each)
    return (
        float(seen.min()) if np.isinf(lower) else lower,
        float(seen.max()) if np.isinf(upper) else upper,
    )


def _fit(
    bins: NDArray[np.float64], counts: NDArray[np.float64], atom: float, each: int
) -> NDArray[np.float64]:
    """Polynomial for the logarithm of a histogram (weighted least squares), and the atom."""
    middle, width = (bins[1:] + bins[:-1]) / 2, bins[1] - bins[0]
    enough = counts >= FEWEST
    powers = np.array([0, 2, 4] if each == INTERIOR else range(DEGREE + 1))
    u = middle[enough] / bins[-1]  # of order 1, for the sake of the solver
    weight = np.sqrt(np.minimum(counts[enough], _MOST))
    design = u[:, None] ** powers * weight[:, None]
    solution = np.linalg.lstsq(design, np.log(counts[enough]) * weight, rcond=None)[0]
    row = np.zeros(7)
    row[powers[1:] - 1] = (solution / bins[-1] ** powers)[1:]
    row[4] = atom / np.exp(solution[0]) * width
    return row


def main() -> None:
    """Make the shipped table again."""
    kinds = [kind for kind in all_types() if isinstance(kind, ScalarType)]
    document = {
        "version": 1,
        "prior": f"Student's t, {_DEGREES_OF_FREEDOM} degrees of freedom",
        "n_weights": _N_WEIGHTS,
        "seed": _SEED,
        "types": {kind.name: _rounded(simulate(kind)) for kind in kinds},
    }
    _shipped_path().write_text(json.dumps(document, indent=1) + "\n")


def _rounded(density: F32Array) -> list[list[float]]:
    return [[float(f"{number:.6g}") for number in row] for row in density]


if __name__ == "__main__":
    main()
