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
the K-quants and IQ4 choose the codes last, whatever chose their scales.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from recover.containers.gguf.metadata import IMATRIX_PREFIX, QUANTIZER_KEY
from recover.containers.gguf.reader import Model, Tensor
from recover.evidence.buffer import Witness
from recover.inputs.originals.origin import is_original
from recover.quants import GROUP, F32Array, FloatType, ScalarType, TensorType, U8Array

Mask = NDArray[np.bool_]

# Blocks that are looked at: so many runs, evenly spaced, of so many blocks.
_N_RUNS = 16
_RUN = 256

_MOST_IMATRIX_KEYS = 16  # llama.cpp writes four

_HOLDS_ALWAYS = ("Q8_0", "Q6_K", "IQ4_XS")
_CODES_CHOSEN_FIRST = ("Q4_0", "Q5_0", "Q4_1", "Q5_1", "Q8_0")
_SIGNED = ("Q4_0", "Q5_0")
_WITH_MINIMA = ("Q4_1", "Q5_1")
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

    @property
    def fraction_without(self) -> float:
        """Share of the blocks that llama.cpp without an importance matrix cannot have made."""
        return self.n_without / self.n_blocks if self.n_blocks else 0.0


def encoder_marks(raw: U8Array, tensor_type: TensorType) -> Marks | None:
    """Look for the marks of llama.cpp's encoder in a bounded number of blocks.

    Parameters
    ----------
    raw : uint8 (n_blocks * type_size,)
        The stored bytes. At most 4096 blocks, evenly spaced, are looked at: always the same.
    tensor_type : TensorType
        What they are.

    Returns
    -------
    Marks or None
        None for types that bear no marks.
    """
    if tensor_type.name not in _MARKED:
        return None
    return count_marks(sample_blocks(raw, tensor_type.type_size).reshape(-1), tensor_type)


def marks_of(tensor: Tensor) -> Marks | None:
    """As `encoder_marks`; asked for again, the bytes are not looked at again."""
    if tensor not in _FOUND:
        _FOUND[tensor] = encoder_marks(tensor.raw, tensor.type)
    return _FOUND[tensor]


def count_marks(raw: U8Array, tensor_type: TensorType) -> Marks | None:
    """As `encoder_marks`, of all blocks."""
    if not isinstance(tensor_type, ScalarType) or tensor_type.name not in _MARKED:
        return None
    blocks = raw.reshape(-1, tensor_type.type_size)
    usable, marked = _MARKED[tensor_type.name](blocks, tensor_type)
    return Marks(int(np.count_nonzero(usable)), int(np.count_nonzero(usable & ~marked)))


def marks_hold_with_imatrix(tensor_type: TensorType) -> bool:
    """Whether blocks made with an importance matrix have the mark of their type as well."""
    return tensor_type.name in _HOLDS_ALWAYS


def codes_are_plain(raw: U8Array, tensor_type: TensorType) -> bool:
    """Whether the codes can be those of llama.cpp's encoder without an importance matrix.

    Looked at are the types whose codes confine the weights only then, in a bounded number of
    blocks (see `encoder_marks`); for the others the answer is always yes.
    """
    if tensor_type.name not in _CODES_CHOSEN_FIRST:
        return True
    marks = encoder_marks(raw, tensor_type)
    return marks is None or marks.n_without == 0


def is_plain(tensor: Tensor) -> bool:
    """As `codes_are_plain`; asked for again, the bytes are not looked at again."""
    if tensor.type.name not in _CODES_CHOSEN_FIRST:
        return True
    marks = marks_of(tensor)
    return marks is None or marks.n_without == 0


def uses_imatrix(model: Model) -> bool:
    """Whether the metadata say that the file was quantized with an importance matrix."""
    return bool(model.keys_of(IMATRIX_PREFIX))


def is_searched(model: Model) -> bool:
    """Whether the metadata name an importance matrix or a quantizer other than llama.cpp's own."""
    return uses_imatrix(model) or QUANTIZER_KEY in model.metadata


def is_foreign(model: Model, tensor: Tensor) -> bool:
    """Whether another encoder than llama.cpp's gave the codes, as a sample of the scales tells.

    Parameters
    ----------
    model : Model
        Whose metadata may name an importance matrix, or a quantizer, as the reason.
    tensor : Tensor
        Of any type; types that have a scale per 32 weights are looked at.
    """
    if tensor.type.name not in _CODES_CHOSEN_FIRST or is_searched(model):
        return False
    # A weight of largest magnitude may be positive throughout, and magnitudes few: then the marks
    # are there.
    if tensor.n_weights < _FEWEST_BLOCKS * tensor.type.block_size or is_plain(tensor):
        return False
    blocks = sample_blocks(tensor.raw, tensor.type.type_size)
    d = np.ascontiguousarray(blocks[:, :2]).view("<u2")[:, 0]
    used = (d & 0x7FFF) > 0
    if np.count_nonzero(used) < _FEWEST_BLOCKS:
        return False
    if tensor.type.name in _SIGNED and not np.any(d[used] & 0x8000):
        return True
    repeats = np.mean((d[1:] == d[:-1])[used[1:]]) > _REPEATED
    return bool(repeats) or tensor.type.name in _WITH_MINIMA


def imatrix_of(model: Model) -> dict[str, Any]:
    """What the metadata say of the importance matrix: its file, data, and sizes."""
    keys = model.keys_of(IMATRIX_PREFIX)[:_MOST_IMATRIX_KEYS]
    return {key.removeprefix(IMATRIX_PREFIX): model.get(key) for key in keys}


def has_cells(model: Model, tensor: Tensor) -> bool:
    """Whether the codes of a tensor confine the original weights (see `recover.evidence.cells`)."""
    return witness_of(model, tensor).has_cells


def confines(model: Model, tensor: Tensor) -> bool:
    """Whether an input's tensor gives an interval for each of the original weights."""
    return isinstance(tensor.type, FloatType) or has_cells(model, tensor)


def witness_of(model: Model, tensor: Tensor) -> Witness:
    """A tensor of a model as a witness: whether its codes prove something, and how it was made."""
    kind = tensor.type
    marks = marks_of(tensor)
    has_marks = marks is None or marks.n_without == 0
    return Witness(
        kind,
        has_cells=_has_cells(model, kind, has_marks=has_marks),
        weighted=uses_imatrix(model) or not (has_marks or marks_hold_with_imatrix(kind)),
        imatrix=str(sorted(imatrix_of(model).items())),
        side_scaled=tensor.scales is not None,
    )


def _has_cells(model: Model, kind: TensorType, *, has_marks: bool) -> bool:
    if not isinstance(kind, ScalarType):
        return False
    if kind.refits_scale_with_imatrix and is_searched(model):
        return False
    return has_marks or kind.name not in _CODES_CHOSEN_FIRST


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
        if not is_original(each) and not is_plain(each) and not is_foreign(model, each)
    ]


def sample_blocks(raw: U8Array, type_size: int) -> U8Array:
    """Blocks (n, type_size) to look at; only ranges of `raw` are taken."""
    n_blocks = raw.size // type_size
    if n_blocks <= _N_RUNS * _RUN:
        return raw[: n_blocks * type_size].reshape(-1, type_size)
    starts = np.linspace(0, n_blocks - _RUN, _N_RUNS).astype(np.int64) * type_size
    runs = [raw[start : start + _RUN * type_size] for start in starts]
    return np.concatenate(runs).reshape(-1, type_size)


def _f16(blocks: U8Array, at: int) -> F32Array:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2")[:, 0].astype(np.float32)


def _is_scale(d: F32Array) -> Mask:
    usable: Mask = np.isfinite(d) & (d != 0)
    return usable


def _codes(blocks: U8Array, kind: ScalarType) -> U8Array:
    """Codes (n_blocks, block_size)."""
    n = len(blocks) * kind.block_size
    codes = np.empty(n, np.uint8)
    scale, offset = np.empty((2, n // GROUP), np.float32)
    kind.unpack(np.ascontiguousarray(blocks).reshape(-1), codes, scale, offset)
    return codes.reshape(-1, kind.block_size)


def _marks_extreme(blocks: U8Array, kind: ScalarType) -> tuple[Mask, Mask]:
    """`quantize_row_q4_0_ref`: d = max / -8, so that max is given code 0; q5_0 alike."""
    return _is_scale(_f16(blocks, 0)), (_codes(blocks, kind) == 0).any(1)


def _marks_range(blocks: U8Array, kind: ScalarType) -> tuple[Mask, Mask]:
    """`quantize_row_q4_1_ref`: d = (max - min) / 15, code 0 for min and 15 for max; q5_1 alike."""
    d, codes = _f16(blocks, 0), _codes(blocks, kind)
    highest = 15 if kind.name == "Q4_1" else 31
    both = (codes == 0).any(1) & (codes == highest).any(1)
    return _is_scale(d), both & (d > 0)


def _marks_q8_0(blocks: U8Array, kind: ScalarType) -> tuple[Mask, Mask]:
    """`quantize_row_q8_0_ref`: d = max(abs) / 127."""
    d, codes = _f16(blocks, 0), _codes(blocks, kind)
    largest = ((codes == 1) | (codes == 255)).any(1)  # codes count from -128
    return _is_scale(d), largest & ~(codes == 0).any(1) & (d > 0)


def _scales_and_minima(
    d: F32Array, dmin: F32Array, full: Mask, full_min: Mask
) -> tuple[Mask, Mask]:
    usable = np.isfinite(d) & np.isfinite(dmin) & ((d != 0) | (dmin != 0))
    return usable, (full | (d == 0)) & (full_min | (dmin == 0))


def _marks_q2_k(blocks: U8Array, _kind: ScalarType) -> tuple[Mask, Mask]:
    """`quantize_row_q2_K_ref`: d = max_scale / 15, dmin = max_min / 15."""
    scales = blocks[:, :16]
    full, full_min = ((scales & 15) == 15).any(1), ((scales >> 4) == 15).any(1)
    return _scales_and_minima(_f16(blocks, 80), _f16(blocks, 82), full, full_min)


def _marks_q3_k(blocks: U8Array, _kind: ScalarType) -> tuple[Mask, Mask]:
    """`quantize_row_q3_K_ref`: d = max_scale / -32."""
    low = np.concatenate([blocks[:, 96:104] & 15, blocks[:, 96:104] >> 4], 1)
    packed = blocks[:, 104:108]
    high = np.concatenate([(packed >> shift) & 3 for shift in (0, 2, 4, 6)], 1)
    return _is_scale(_f16(blocks, 108)), ((low == 0) & (high == 0)).any(1)


def _marks_q4_k(blocks: U8Array, _kind: ScalarType) -> tuple[Mask, Mask]:
    """`quantize_row_q4_K_ref`: d = max_scale / 63, dmin = max_min / 63; q5_K alike."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], 1)
    minima = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], 1)
    full, full_min = (scales == 63).any(1), (minima == 63).any(1)
    return _scales_and_minima(_f16(blocks, 0), _f16(blocks, 2), full, full_min)


def _marks_q6_k(blocks: U8Array, _kind: ScalarType) -> tuple[Mask, Mask]:
    """`quantize_row_q6_K_ref`: d = max_scale / -128."""
    return _is_scale(_f16(blocks, 208)), (blocks[:, 192:208] == 128).any(1)


def _marks_iq4_xs(blocks: U8Array, _kind: ScalarType) -> tuple[Mask, Mask]:
    """`quantize_row_iq4_nl_impl`: d = max_scale / -32."""
    packed = blocks[:, 4:8]
    low = np.stack([packed & 15, packed >> 4], 2).reshape(len(blocks), 8)
    high_bits = np.ascontiguousarray(blocks[:, 2:4]).view("<u2")
    high = (high_bits >> np.arange(0, 16, 2, dtype=np.uint16)) & 3
    return _is_scale(_f16(blocks, 0)), ((low == 0) & (high == 0)).any(1)


_FOUND: WeakKeyDictionary[Tensor, Marks | None] = WeakKeyDictionary()
_MARKED: dict[str, Callable[[U8Array, ScalarType], tuple[Mask, Mask]]] = {
    "Q4_0": _marks_extreme,
    "Q5_0": _marks_extreme,
    "Q4_1": _marks_range,
    "Q5_1": _marks_range,
    "Q8_0": _marks_q8_0,
    "Q2_K": _marks_q2_k,
    "Q3_K": _marks_q3_k,
    "Q4_K": _marks_q4_k,
    "Q5_K": _marks_q4_k,
    "Q6_K": _marks_q6_k,
    "IQ4_XS": _marks_iq4_xs,
}
