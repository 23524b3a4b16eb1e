"""Whether codes that make up for each other's errors may be of the weights that another input says.

Such codes (GPTQ's, EXL2's) confine no weight, and how far they are off is not known before: weights
of another revision look like larger errors. But an encoder begins with some column, whose codes
make up for nothing: they are rounded weights, and no other input contradicts the cells of these.
Where columns are in order it is the first one, and where they were sorted it is one of the first
group; some encoders do not tell their order. So what the file says is tried first, which takes the
codes of these columns alone. If every column contradicts the other input on some weights, the codes
are of others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from typing import NamedTuple

import numpy as np

from recover.containers.huggingface.formats._compensated import CompensatedMatrix
from recover.containers.huggingface.formats.base import as_rounded
from recover.containers.huggingface.rows import Rows
from recover.containers.huggingface.tensors import QuantizedTensor
from recover.containers.model import Model, StoredTensor
from recover.evidence.intervals import PART, Intervals
from recover.inputs.alignment import is_absent
from recover.inputs.provenance import confines
from recover.quants import TILE, Stated

_MOST_PARTS = 16  # of a matrix, of up to `PART` weights
_PARTS_OF_FIRST = 12
_FEW_PARTS = 4
_MOST_MATRICES = 4  # of a tensor
_ENOUGH = 64  # conflicts in each column


def is_compensated(tensor: StoredTensor) -> bool:
    """Whether all codes of a tensor make up for the errors of others."""
    return isinstance(tensor, QuantizedTensor) and all(
        as_rounded(run.matrix) is not None for run in tensor.runs
    )


class Contradicted(NamedTuple):
    """A tensor of compensated codes that contradicts another input in every column."""

    name: str
    tensor: int
    known: int
    """The inputs, of the codes and of the other."""
    n_weights: int
    """See `n_contradicted`."""


def contradicted(models: Sequence[Model], names: Sequence[str]) -> Iterator[Contradicted]:
    """A quick look at all tensors of some names: compensated codes that are of other weights."""
    for name in names:
        tensors = [model.tensors[name] for model in models]
        is_soft = [not is_absent(tensor) and is_compensated(tensor) for tensor in tensors]
        if not any(is_soft):
            continue
        for one, other in permutations(range(len(models)), 2):
            tensor, known = tensors[one], tensors[other]
            if is_soft[one] and not is_absent(known) and confines(models[other], known):
                n = n_contradicted(tensor, known, most_parts=_FEW_PARTS)
                if n:
                    yield Contradicted(name, one, other, n)


def n_contradicted(tensor: StoredTensor, known: StoredTensor, most_parts: int = _MOST_PARTS) -> int:
    """On how many weights a tensor of compensated codes contradicts another input at least.

    Parameters
    ----------
    tensor : StoredTensor
        For which `is_compensated` holds.
    known : StoredTensor
        The same weights from an input that confines them.
    most_parts : int
        So many parts of a matrix are looked at, where the columns that come first by the file do
        contradict the other input.

    Returns
    -------
    int
        In the column with the fewest conflicts, added up over matrices; 0 if both may be of one
        original. Of large matrices it is some rows that are looked at.
    """
    assert isinstance(tensor, QuantizedTensor)
    rounded = [replace(run, matrix=as_rounded(run.matrix)) for run in tensor.runs]
    whole = replace(tensor, runs=tuple(rounded))
    alone, both = Intervals(), Intervals()
    alone.look_at([known])
    both.look_at([whole, known])
    n_found, at, spread = 0, 0, -(-len(rounded) // _MOST_MATRICES)
    for number, run in enumerate(rounded):
        if number % spread == 0 and _of_first_columns(alone, at, whole, run) != 0:
            n_found += _of_any_column(both, at, run, most_parts)
        at += run.n_rows * run.matrix.row_length
    return n_found


def _of_first_columns(known: Intervals, at: int, tensor: QuantizedTensor, run: Rows) -> int | None:
    """Conflicts of the column with the fewest, of those that come first by the file.

    The matrix begins with weight `at` of the tensor. None if the file says nothing.
    """
    matrix = run.matrix
    if not isinstance(matrix, CompensatedMatrix) or not matrix.first_columns.size:
        return None
    columns = matrix.first_columns
    strip = replace(run, matrix=matrix.strip(columns))
    own = replace(tensor, dims=(columns.size, run.n_rows), runs=(strip,))
    counts = np.zeros(columns.size, np.int64)
    for first, last in _parts(run, _PARTS_OF_FIRST):
        stated = Stated.of((last - first) * columns.size)
        own.intervals(first * columns.size, last * columns.size, stated)
        length = matrix.row_length
        lower, upper = (
            each.reshape(-1, length)[:, columns]
            for each in known.bound(at + first * length, at + last * length)
        )
        is_apart = stated.lower.reshape(lower.shape) > upper
        is_apart |= lower > stated.upper.reshape(lower.shape)
        counts += np.count_nonzero(is_apart, axis=0)
        if counts.min():
            break
    return int(counts.min())


def _of_any_column(both: Intervals, at: int, run: Rows, most_parts: int) -> int:
    """Conflicts of the column that has the fewest, of all of a matrix."""
    length = run.matrix.row_length
    counts = np.zeros(length, np.int64)
    for first, last in _parts(run, most_parts):
        lower, upper = both.bound(at + first * length, at + last * length)
        counts += np.count_nonzero((lower > upper).reshape(-1, length), axis=0)
        if counts.min() >= _ENOUGH:
            break
    return int(counts.min())


def _parts(run: Rows, most: int) -> Iterator[tuple[int, int]]:
    """Evenly spaced runs of rows, from and to; all if they are few."""
    length = run.matrix.row_length
    if length > TILE:
        return
    n_each = max(1, PART // length)
    n_parts = -(-run.n_rows // n_each)
    for part in np.linspace(0, n_parts - 1, min(n_parts, most)).astype(int).tolist():
        yield part * n_each, min((part + 1) * n_each, run.n_rows)
