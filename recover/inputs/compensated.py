"""Whether codes that make up for each other's errors may be of the weights that another input says.

Such codes (GPTQ's, EXL2's) confine no weight, and how far they are off is not known before: weights
of another revision look like larger errors. But an encoder begins with some column, whose codes
make up for nothing: they are rounded weights, and no other input contradicts the cells of these.
Where columns are in order it is the first one; files do not tell the order of those that were
sorted. If every column contradicts the other input on some weights, the codes are of others.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from recover.containers.huggingface.formats.base import as_rounded
from recover.containers.huggingface.tensors import QuantizedTensor
from recover.containers.model import StoredTensor
from recover.evidence.intervals import Intervals
from recover.quants import TILE

_MOST_PARTS = 8  # of a matrix, of up to `TILE` weights
_MOST_MATRICES = 4  # of a tensor
_ENOUGH = 64  # conflicts in each column


def is_compensated(tensor: StoredTensor) -> bool:
    """Whether all codes of a tensor make up for the errors of others."""
    return isinstance(tensor, QuantizedTensor) and all(
        as_rounded(run.matrix) is not None for run in tensor.runs
    )


def n_contradicted(tensor: StoredTensor, known: StoredTensor) -> int:
    """On how many weights a tensor of compensated codes contradicts another input at least.

    Parameters
    ----------
    tensor : StoredTensor
        For which `is_compensated` holds.
    known : StoredTensor
        The same weights from an input that confines them.

    Returns
    -------
    int
        In the column with the fewest conflicts, added up over matrices; 0 if both may be of one
        original. Of large matrices it is some rows that are looked at.
    """
    assert isinstance(tensor, QuantizedTensor)
    rounded = [replace(run, matrix=as_rounded(run.matrix)) for run in tensor.runs]
    intervals = Intervals()
    intervals.look_at([replace(tensor, runs=tuple(rounded)), known])
    n_found, first, spread = 0, 0, -(-len(rounded) // _MOST_MATRICES)
    length = tensor.dims[0]
    for number, run in enumerate(rounded):
        if number % spread == 0:
            n_found += _in_any_column(intervals, first, run.n_rows, length)
        first += run.n_rows * length
    return n_found


def _in_any_column(intervals: Intervals, first: int, n_rows: int, length: int) -> int:
    """Conflicts of the column that has the fewest, in rows from weight `first` on."""
    counts = np.zeros(length, np.int64)
    for start, end in _parts(n_rows, length):
        lower, upper = intervals.bound(first + start * length, first + end * length)
        counts += np.count_nonzero((lower > upper).reshape(-1, length), axis=0)
        if counts.min() >= _ENOUGH:
            break
    return int(counts.min())


def _parts(n_rows: int, length: int) -> Iterator[tuple[int, int]]:
    """Evenly spaced runs of rows, from and to; all if they are few."""
    n_each = TILE // length
    if not n_each:
        return
    n_parts = -(-n_rows // n_each)
    for part in np.linspace(0, n_parts - 1, min(n_parts, _MOST_PARTS)).astype(int).tolist():
        yield part * n_each, min((part + 1) * n_each, n_rows)
