"""Who quantized a tensor, and with what, as far as its bytes and the metadata prove it.

llama.cpp's encoders leave marks. Without an importance matrix the scale of a block is fitted to its
largest weight, which therefore gets an extreme code; the largest scale of a superblock gets the
extreme scale code in the same way. A block without its mark proves that another encoder was at
work, or one with an importance matrix. (A block with it proves nothing: others make such, too.)

==========  ============================================================  =============
type        every block with a scale other than 0 has                     holds for
==========  ============================================================  =============
Q4_0, Q5_0  a code 0                                                      no imatrix
Q4_1, Q5_1  a positive scale, a code 0 and a highest code (15, 31)        no imatrix
Q8_0        a positive scale, a code 127 or -127, and no code -128        all
Q2_K        a scale code 15, and a minimum code 15 unless dmin is 0       no imatrix
Q3_K        a scale code -32                                              no imatrix
Q4_K, Q5_K  a scale code 63, and a minimum code 63 unless dmin is 0       no imatrix
Q6_K        a scale code -128                                             all
IQ4_XS      a scale code -32                                              all
==========  ============================================================  =============

GPTQ, AWQ, MLX and others give 32, 64, 128 or more weights one scale, which is positive; files that
were re-blocked have it in several blocks. llama.cpp fits the scale of each block to its largest
weight, or searches it for each block, and in Q4_0 and Q5_0 its sign is that weight's. Q4_1 and Q5_1
without their mark, and without an importance matrix in the metadata, count as theirs, too.

For the types of the first three lines the mark also decides whether the codes confine the weights:
the K-quants and IQ4 choose the codes last, whatever chose their scales. The types know how to find
their marks, and what these mean (see `recover.quants.base.ScalarType`).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import numpy as np

from recover.containers.gguf.metadata import IMATRIX_PREFIX, QUANTIZER_KEY
from recover.containers.gguf.remote import is_spared
from recover.containers.mapping import sampled
from recover.containers.model import Model, StoredTensor
from recover.evidence.buffer import Source
from recover.quants import (
    FloatType,
    IntervalTensor,
    IntervalType,
    ScalarType,
    TensorType,
    U8Array,
    VectorType,
)

_FOUND: WeakKeyDictionary[StoredTensor, "Marks | None"] = WeakKeyDictionary()
_TOLD: WeakKeyDictionary[Model, "_Metadata"] = WeakKeyDictionary()

# Blocks that are looked at: so many runs, evenly spaced, of so many blocks.
_N_RUNS = 16
_RUN = 256
_FEW = 2, 16  # runs, and blocks of each, where servers are spared: a page or two each

_N_AT_ONCE = 256  # small tensors

_MOST_IMATRIX_KEYS = 16  # llama.cpp writes four

_FEWEST_BLOCKS = 32
_REPEATED = 0.3  # share of blocks with the scale of the one before; of llama.cpp's about 1 in 1000


@dataclass(frozen=True)
class Marks:
    """Whether blocks have the mark that llama.cpp's encoder leaves.

    Attributes
    ----------
    n_blocks : int
        Blocks that were looked at and whose scale is neither 0 nor broken.
    n_without : int
        Of these, blocks without the mark.
    """

    n_blocks: int
    n_without: int


def encoder_marks(tensor: StoredTensor) -> Marks | None:
    """Look for the marks of llama.cpp's encoder in a bounded number of blocks.

    Parameters
    ----------
    tensor : StoredTensor
        Of any type. At most 4096 blocks, evenly spaced, are looked at: always the same.

    Returns
    -------
    Marks or None
        None for types that bear no marks.
    """
    if not isinstance(tensor.type, ScalarType) or tensor.type.marks is None:
        return None
    return count_marks(sample_blocks(tensor).reshape(-1), tensor.type)


def marks_of(tensor: StoredTensor) -> Marks | None:
    """As `encoder_marks`; asked for again, the bytes are not looked at again."""
    try:
        return _FOUND[tensor]
    except KeyError:
        found = _FOUND[tensor] = encoder_marks(tensor)
        return found


def look_at_marks(models: Iterable[Model], names: Sequence[str]) -> None:
    """Look for the marks in many tensors at once, for `marks_of` to be asked for.

    What that says is the same without; but a look at a few blocks takes far less time if it is one
    at those of many small tensors.
    """
    tensors = [
        tensor
        for model in models
        for tensor in map(model.tensors.__getitem__, names)
        if isinstance(tensor.type, ScalarType)
        and tensor.type.marks is not None
        and tensor not in _FOUND
    ]
    for kind, together in _small_together(tensors):
        _look_at(together, kind)


def _small_together(
    tensors: Iterable[StoredTensor],
) -> Iterator[tuple[ScalarType, Sequence[StoredTensor]]]:
    """Those of some tensors of scalar types that are small: of one type together, but not many."""
    small: dict[ScalarType, list[StoredTensor]] = {}
    for tensor in tensors:
        kind = cast(ScalarType, tensor.type)
        if tensor.n_weights // kind.block_size <= _N_RUNS * _RUN:
            small.setdefault(kind, []).append(tensor)
    for kind, alike in small.items():
        for first in range(0, len(alike), _N_AT_ONCE):
            yield kind, alike[first : first + _N_AT_ONCE]


def joined_samples(tensors: Sequence[StoredTensor]) -> Iterator[tuple[U8Array, ScalarType]]:
    """What `sample_blocks` gives of tensors of scalar types, that of small ones joined."""
    for tensor in tensors:
        if tensor.n_weights // tensor.type.block_size > _N_RUNS * _RUN:
            yield sample_blocks(tensor).reshape(-1), cast(ScalarType, tensor.type)
    for kind, together in _small_together(tensors):
        yield _joined([sample_blocks(each).reshape(-1) for each in together]), kind


def _look_at(tensors: Sequence[StoredTensor], kind: ScalarType) -> None:
    """Look for the marks in small tensors of one type."""
    assert kind.marks is not None
    blocks = [sample_blocks(tensor) for tensor in tensors]
    usable, marked = kind.marks(_joined(blocks))
    starts = np.cumsum([0, *map(len, blocks[:-1])])
    n_usable, n_without = (
        np.add.reduceat(each, starts, dtype=np.int64).tolist()
        for each in (usable, usable & ~marked)
    )
    _FOUND.update(zip(tensors, map(Marks, n_usable, n_without), strict=True))


def count_marks(raw: U8Array, tensor_type: TensorType) -> Marks | None:
    """As `encoder_marks`, of all blocks."""
    if not isinstance(tensor_type, ScalarType) or tensor_type.marks is None:
        return None
    usable, marked = tensor_type.marks(raw.reshape(-1, tensor_type.type_size))
    return Marks(int(np.count_nonzero(usable)), int(np.count_nonzero(usable & ~marked)))


def marks_hold_with_imatrix(tensor_type: TensorType) -> bool:
    """Whether blocks made with an importance matrix have the mark of their type as well."""
    return isinstance(tensor_type, ScalarType) and tensor_type.marks_hold_with_imatrix


def is_plain(tensor: StoredTensor) -> bool:
    """Whether the codes can be those of llama.cpp's encoder without an importance matrix.

    Looked at are the types whose codes confine the weights only then, in a bounded number of
    blocks (see `encoder_marks`); for the others the answer is always yes. Asked for again, the
    bytes are not looked at again.
    """
    if not (isinstance(tensor.type, ScalarType) and tensor.type.cells_need_marks):
        return True
    return has_marks(tensor)


def has_marks(tensor: StoredTensor) -> bool:
    """Whether no block lacks the mark of llama.cpp's encoder; also of types that bear none."""
    marks = marks_of(tensor)
    return marks is None or marks.n_without == 0


def uses_imatrix(model: Model) -> bool:
    """Whether the metadata say that the file was quantized with an importance matrix."""
    return bool(model.keys_of(IMATRIX_PREFIX))


def is_searched(model: Model) -> bool:
    """Whether the metadata name an importance matrix or a quantizer other than llama.cpp's own."""
    return uses_imatrix(model) or QUANTIZER_KEY in model.metadata


def is_foreign(model: Model, tensor: StoredTensor) -> bool:
    """Whether another encoder than llama.cpp's gave the codes, as a sample of the scales tells.

    Parameters
    ----------
    model : Model
        Whose metadata may name an importance matrix, or a quantizer, as the reason.
    tensor : StoredTensor
        Of any type; those are looked at whose blocks have one scale, and cells only with a mark.
    """
    kind = tensor.type
    if not isinstance(kind, ScalarType) or not kind.cells_need_marks:
        return False
    # A weight of largest magnitude may be positive throughout, and magnitudes few: then the marks
    # are there.
    few = tensor.n_weights < _FEWEST_BLOCKS * kind.block_size
    if few or is_searched(model) or is_plain(tensor):
        return False
    blocks = sample_blocks(tensor)
    d = np.ascontiguousarray(blocks[:, kind.d_at : kind.d_at + 2]).view("<u2")[:, 0]
    used = (d & 0x7FFF) > 0
    if np.count_nonzero(used) < _FEWEST_BLOCKS:
        return False
    if kind.scale_has_sign and not np.any(d[used] & 0x8000):
        return True
    repeats = np.mean((d[1:] == d[:-1])[used[1:]]) > _REPEATED
    return bool(repeats) or kind.rounds_offset_last


def imatrix_of(model: Model) -> dict[str, Any]:
    """What the metadata say of the importance matrix: its file, data, and sizes."""
    keys = model.keys_of(IMATRIX_PREFIX)[:_MOST_IMATRIX_KEYS]
    return {key.removeprefix(IMATRIX_PREFIX): model.get(key) for key in keys}


def has_cells(model: Model, tensor: StoredTensor) -> bool:
    """Whether the codes of a tensor confine the original weights (see `recover.evidence.cells`)."""
    return source_of(model, tensor).has_cells


def confines(model: Model, tensor: StoredTensor) -> bool:
    """Whether an input's tensor gives an interval for each of the original weights."""
    return proves_alone(tensor.type) or has_cells(model, tensor)


def proves_alone(kind: TensorType) -> bool:
    """Whether numbers of a type prove bounds, whoever wrote them: floats, and ternary digits."""
    return isinstance(kind, FloatType) or (isinstance(kind, VectorType) and kind.narrow is not None)


def source_of(model: Model, tensor: StoredTensor) -> Source:
    """A tensor of a model as a source: whether its codes prove something, and how it was made."""
    kind = tensor.type
    if isinstance(kind, IntervalType):
        return Source(kind, has_cells=cast(IntervalTensor, tensor).has_cells)
    told = _metadata_of(model)
    return _source(told, kind, has_marks(tensor), tensor.scales is not None)


class _Metadata(NamedTuple):
    """What the metadata of a file say of its quantizer."""

    uses_imatrix: bool
    is_searched: bool
    imatrix: str


def _metadata_of(model: Model) -> _Metadata:
    """What the metadata of a model say; they are read once if the model can be told from others."""
    try:
        return _TOLD[model]
    except (KeyError, TypeError):
        pass
    imatrix = str(sorted(imatrix_of(model).items()))
    told = _Metadata(uses_imatrix(model), is_searched(model), imatrix)
    with suppress(TypeError):
        _TOLD[model] = told
    return told


@cache
def _source(told: _Metadata, kind: TensorType, marked: bool, side_scaled: bool) -> Source:
    """Tensors that are alike share a source, which is found and compared in no time then."""
    return Source(
        kind,
        has_cells=_has_cells(kind, is_searched=told.is_searched, has_marks=marked),
        weighted=told.uses_imatrix or not (marked or marks_hold_with_imatrix(kind)),
        imatrix=told.imatrix,
        side_scaled=side_scaled,
    )


def _has_cells(kind: TensorType, *, is_searched: bool, has_marks: bool) -> bool:
    if not isinstance(kind, ScalarType):
        return False
    if kind.refits_scale_with_imatrix and is_searched:
        return False
    return has_marks or not kind.cells_need_marks


def searched_tensors(model: Model, names: Iterable[str]) -> list[str]:
    """Tensors without cells because of their codes, of which the metadata tell nothing.

    Integer originals are not among them: they need no cells.
    """
    if is_searched(model):
        return []
    tensors = [model.tensors[name] for name in names]
    return [
        each.name
        for each in tensors
        if not each.is_original and not is_plain(each) and not is_foreign(model, each)
    ]


def sample_blocks(tensor: StoredTensor) -> U8Array:
    """Blocks (n, type_size) of a tensor to look at: evenly spaced runs, or all if they are few."""
    size = tensor.type.block_size
    n_blocks = tensor.n_weights // size
    n_runs, run = _FEW if is_spared(tensor) else (_N_RUNS, _RUN)
    if n_blocks <= n_runs * run:
        raw = tensor.part(0, n_blocks * size)
    else:
        starts = np.linspace(0, n_blocks - run, n_runs).astype(np.int64).tolist()
        with sampled():
            raw = _joined([tensor.part(first * size, (first + run) * size) for first in starts])
    return raw.reshape(-1, tensor.type.type_size)


def _joined(parts: Sequence[U8Array]) -> U8Array:
    """Read-only, as the bytes of files are: kernels are compiled for either."""
    joined = np.concatenate(parts)
    joined.flags.writeable = False
    return joined
