"""All sets of a few formats, merged: what each input adds to the others."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from recover.containers.huggingface.formats import read_matrix
from recover.containers.huggingface.formats.base import is_soft
from recover.containers.huggingface.rows import Rows
from recover.containers.huggingface.scaled import ScaledMatrix, Scales
from recover.containers.huggingface.tensors import QuantizedTensor
from recover.containers.model import StoredTensor
from recover.estimators import _folder_sample as folders
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Source
from recover.inputs.foreign import measure_ratio
from recover.inputs.matching import typical_error
from recover.quants import F32Array, ScalarType, quantize, type_by_name
from tests.golden.make_sample_folders import ALL
from tests.support.foreign_modules import module_of
from tests.support.stated_intervals import tensor_of

OTHERS = "linear", "midpoint"
GGUF = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "Q2_K")


class Merged(NamedTuple):
    """What came of a set: the square errors of methods, and of what is left without an input."""

    names: tuple[str, ...]
    error: float
    """Of the posterior."""
    others: float
    """Of the best other method."""
    less: float
    """Of the posterior without the input without which it is the least; infinite for one input."""

    @property
    def added(self) -> float:
        """What the error is multiplied by where the last input comes to the others; at worst."""
        return self.error / self.less

    @property
    def behind(self) -> float:
        """The error over that of the best other method."""
        return self.error / self.others


def stored_as(name: str, x: F32Array) -> StoredTensor:
    """Weights (N, K) in a setting of the sample of folders, or as a type of GGUF."""
    if name not in ALL:
        return tensor_of(quantize(x.reshape(-1, 256), type_by_name(name)), name, x.size)
    setting = ALL[name]
    arrays = dict(setting.encode(x))
    columns = arrays.pop(folders.COLUMNS, None)
    matrix = read_matrix(module_of(arrays, setting.config, setting.recipe))
    assert matrix is not None
    if isinstance(matrix, ScaledMatrix) and columns is not None:
        matrix = matrix.with_scales(Scales(*columns))
    return QuantizedTensor("weight", x.shape[::-1], (Rows(matrix),), 0)


class Sets:
    """Merges of the same weights; each format is made once.

    Parameters
    ----------
    x : float32 (N, K)
        At most a tile, in BF16's numbers.
    names : sequence of str
        Settings of the sample of folders, and types of GGUF.
    """

    def __init__(self, x: F32Array, names: Sequence[str]) -> None:
        self._x = x.reshape(-1)
        self._made = {name: stored_as(name, x) for name in names}
        self._known: dict[tuple[str, ...], float] = {}

    def merged(self, n_most: int) -> Iterator[Merged]:
        """All sets of up to so many inputs, small ones first; not of two with the same type."""
        for n in range(1, n_most + 1):
            for names in combinations(self._made, n):
                if self._is_wanted(names):
                    yield self._merge(names)

    def sampled(self, n_inputs: int, n_sets: int, seed: int) -> Iterator[Merged]:
        """Some sets of so many inputs, drawn without two of the same."""
        sets = [names for names in combinations(self._made, n_inputs) if self._is_wanted(names)]
        for names in random.Random(seed).sample(sets, min(n_sets, len(sets))):
            yield self._merge(names)

    def _is_wanted(self, names: tuple[str, ...]) -> bool:
        """Whether all types differ."""
        return len({self._made[name].type.name for name in names}) == len(names)

    def _merge(self, names: tuple[str, ...]) -> Merged:
        error = self._posterior(names)
        others = min(self.error(names, method) for method in OTHERS)
        rests = [self._posterior(rest) for rest in combinations(names, len(names) - 1) if rest]
        return Merged(names, error, others, min(rests, default=np.inf))

    def _posterior(self, names: tuple[str, ...]) -> float:
        if names not in self._known:
            self._known[names] = self.error(names, "posterior")
        return self._known[names]

    def error(self, names: tuple[str, ...], method: str) -> float:
        """The square error of a merge."""
        tensors = self._inputs(names)
        sources = [Source(each.type, has_cells=has_cells(each)) for each in tensors]
        out = np.empty_like(self._x)
        UncorrectedTileEstimator(sources, method).estimate(tensors, 0, out.size, out)
        return float(np.sum(np.square(out - self._x, dtype=np.float64)))

    def _inputs(self, names: tuple[str, ...]) -> list[StoredTensor]:
        """As a merge has them: the finest first, beside which errors of compensated codes are."""
        tensors = [self._made[name] for name in names]
        tensors.sort(key=lambda each: typical_error(each.type))
        return with_errors(tensors)


def with_errors(tensors: Sequence[StoredTensor]) -> list[StoredTensor]:
    """Inputs with the errors of compensated codes as a merge finds them.

    Those are found beside the finest input with cells or, if there is none, beside a finer one
    whose errors are only typical themselves.
    """

    def error(tensor: StoredTensor) -> float:
        return typical_error(tensor.type)

    known = list(filter(has_cells, tensors))
    finest = min(known or tensors, key=error)
    return [
        _with_errors(each, finest, is_sure=bool(known))
        if isinstance(each, QuantizedTensor) and (known or error(finest) < error(each))
        else each
        for each in tensors
    ]


def _with_errors(tensor: QuantizedTensor, known: StoredTensor, *, is_sure: bool) -> QuantizedTensor:
    matrix = tensor.runs[0].matrix
    if not is_soft(matrix):
        return tensor
    told = matrix.with_noise(matrix.noise * measure_ratio(tensor, known, is_sure=is_sure))
    return replace(tensor, runs=(Rows(told),))


def has_cells(tensor: StoredTensor) -> bool:
    """Whether its codes confine the weights."""
    return isinstance(tensor.type, ScalarType) or bool(getattr(tensor, "has_cells", False))
