"""Whether floats are nearer to an input than the weights can be that it was quantized from.

Weights lie anywhere in their cells: they are off the decoded ones by the root of a twelfth of the
cells' width, or a little less. What any merge of that input and others estimates is nearer, by all
that the others add. So a file that calls itself an original, and is a merge whose metadata were
lost, gives itself away, whichever method made it.

Weights that equal the decoded ones tell nothing, nor do cells with zero in them, where sparse
weights and small ones lie in the middle, nor weights of few values, which may fall anywhere. A
weight that is much of its group tells nothing either: an encoder fits the scale to such a one, so
that it lies next to its level, as those do that are left in pruned groups (see
`recover.estimators._few`).
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from recover._text import printable, quoted, some
from recover.containers.mapping import sampled
from recover.containers.model import Model, StoredTensor
from recover.inputs.metadata import METHOD_KEY
from recover.inputs.provenance import confines
from recover.inputs.samples import Sampler, runs
from recover.quants import GROUP, F32Array, FloatType, ScalarType

_N_RUNS = 8
_NEAR = 0.5  # of a twelfth of the squared width; of right inputs it is 0.69 and more
_EQUAL = 2.0**-6  # of the width
_FEWEST = 1024  # weights
_FEWEST_DIFFERENT = 256  # and their values
_SMALLEST = 2.0**-20  # width: the rounding of smaller scales widens cells
_LARGEST = 1 / 8  # of a weight's share of the squares of its group
_WIDEST = 1.5  # of the distance of levels: that of offsets does, where weights are nearly equal


def is_too_near(floats: StoredTensor, model: Model, quantized: StoredTensor) -> bool:
    """Whether floats are no original of a quantized tensor, but were made from it.

    Parameters
    ----------
    floats : StoredTensor
        Of a float type.
    model : Model
        The input that the other one is of.
    quantized : StoredTensor
        With as many weights.
    """
    if floats.n_weights < _FEWEST:
        return False
    if not isinstance(quantized.type, ScalarType) or not confines(model, quantized):
        return False
    sampler, places, values = Sampler(), list[NDArray[np.float64]](), list[F32Array]()
    with sampled():
        for start, end in runs(floats.n_weights, _N_RUNS):
            sample = sampler.read(0, quantized, True, start, end)
            x = floats.read(start, end)
            with np.errstate(invalid="ignore", over="ignore"):
                width = sample.upper - sample.lower
                tells = np.isfinite(width) & (width > _SMALLEST) & np.isfinite(x)
                tells &= width <= _WIDEST * _distances(sample.values)
                tells &= (sample.lower > 0) | (sample.upper < 0)
                tells &= _shares(sample.values) <= _LARGEST
            away = x[tells].astype(np.float64) - sample.values[tells]
            place = away / width[tells]
            differs = np.abs(place) > _EQUAL
            places.append(place[differs])
            values.append(x[tells][differs])
    place = np.concatenate(places)
    if place.size < _FEWEST or np.unique(np.concatenate(values)).size < _FEWEST_DIFFERENT:
        return False
    return 12 * float(np.mean(np.square(place))) < _NEAR


def _shares(values: F32Array) -> NDArray[np.float64]:
    """What part of the squares of their group weights (n,) have; not a number if all are 0."""
    squares = np.square(values.astype(np.float64)).reshape(-1, GROUP)
    return (squares / squares.sum(1, keepdims=True)).reshape(-1)


def _distances(values: F32Array) -> F32Array:
    """How far apart the next two different weights (n,) of a group are; 0 if all are equal."""
    gaps = np.diff(np.sort(values.reshape(-1, GROUP), axis=1), axis=1)
    least = np.where(gaps > 0, gaps, np.float32(np.inf)).min(1)
    return np.where(np.isfinite(least), least, np.float32(0)).repeat(GROUP)


def nearness_warnings(original: Model, models: Sequence[Model], names: Iterable[str]) -> list[str]:
    """A line for each model that the floats of what is called an original are too near to.

    Parameters
    ----------
    original : Model
        Of a merge that says so nothing is said.
    models : sequence of Model
        Others.
    names : iterable of str
        Tensors to look at; those that one lacks, or that have other sizes, are passed over.
    """
    if METHOD_KEY in original.metadata:
        return []
    floats = [
        original.tensors[name]
        for name in names
        if name in original.tensors and isinstance(original.tensors[name].type, FloatType)
    ]
    warnings = []
    for model in models:
        near = [
            quoted(each.name)
            for each in floats
            if (other := model.tensors.get(each.name)) is not None
            if other.dims == each.dims and is_too_near(each, model, other)
        ]
        if near:
            warnings.append(
                f"{printable(original.path)} is nearer to {printable(model.path)} than the original"
                f" can be, in {some(near)}: it holds estimates that were made from that file"
            )
    return warnings
