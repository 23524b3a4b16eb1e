"""What every tensor type must do, asked of one type at a time: `checks` says which of it applies.

A type is asked through the functions of `recover.quants` alone, so a type of another package can be
asked as well: call each of ``checks(kind)`` with the type.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from recover.containers.gguf.header import TensorInfo
from recover.containers.gguf.tensor import Tensor
from recover.containers.rows import blocks_of
from recover.errors import QuantError
from recover.evidence.densities import ABOVE, ATOM, BELOW, density, end_codes
from recover.evidence.intervals import Intervals
from recover.inputs.matching import typical_error
from recover.inputs.provenance import count_marks
from recover.quants import (
    GROUP,
    BlockIntervals,
    FloatType,
    InterleavedType,
    OpaqueType,
    ScalarType,
    TensorType,
    U8Array,
    VectorType,
    all_types,
    dequantize,
    has_encoder,
    name_of_file_type,
    quantize,
    type_by_id,
    type_by_name,
    types_by_id,
    types_of_files,
)
from tests.support.type_checks import (
    check_likelihood,
    check_pickle,
    check_what_is_stated,
    check_what_it_counts,
)

F32 = NDArray[np.float32]
Check = Callable[[TensorType], None]

ROW = 2048
N_ROWS = 16


def weights(kind: TensorType, seed: int = 1) -> F32:
    """Rows of weights as large as trained ones, one of them with outliers, one of zeros."""
    rng = np.random.default_rng(seed)
    row = ROW // kind.block_size * kind.block_size
    x: F32 = rng.standard_normal((N_ROWS, row), np.float32)
    x *= np.exp2(rng.uniform(-7, -3, (N_ROWS, 1))).astype(np.float32)
    x[0, rng.integers(0, row, 8)] *= 20
    x[1] = 0
    return x


def columns(kind: TensorType) -> F32:
    """An importance matrix."""
    n = weights(kind).shape[1]
    matrix: F32 = np.random.default_rng(2).lognormal(size=(n,)).astype(np.float32)
    return matrix


def stored_bytes(kind: TensorType) -> U8Array:
    """Blocks: encoded weights or, of a type without an encoder, random bytes."""
    if isinstance(kind, ScalarType | FloatType):
        return quantize(weights(kind), kind)
    n_blocks = max(512 // kind.block_size, 8)
    return np.random.default_rng(3).integers(0, 256, n_blocks * kind.part_size, np.uint8)


def rows_decoded(raw: U8Array, kind: TensorType) -> F32:
    """Rows as long as `weights` has them."""
    row = ROW // kind.block_size * kind.block_size
    blocks = blocks_of(raw, kind, row, 0, N_ROWS * row)
    return dequantize(blocks, kind).reshape(N_ROWS, row)


def unpacked(kind: ScalarType, raw: U8Array) -> tuple[U8Array, F32, F32]:
    n = raw.size // kind.type_size * kind.block_size
    codes = np.empty(n, np.uint8)
    scale, offset = np.empty((2, n // GROUP), np.float32)
    kind.unpack(raw, codes, scale, offset)
    return codes, scale, offset


def checks(kind: TensorType) -> Iterator[Check]:
    """The checks that apply to a type."""
    yield check_names
    yield check_pickle
    yield check_file_types
    yield check_sizes_of_rows
    yield check_error_to_expect
    yield check_what_cannot_be_decoded
    if isinstance(kind, BlockIntervals):
        yield check_what_is_stated
    if not isinstance(kind, OpaqueType | InterleavedType) and not kind.rows_interleaved > 1:
        yield check_decoding
        yield check_decoding_in_parts
    if has_encoder(kind):
        yield check_fallback
        yield check_encoding
        yield check_rows_are_encoded_alone
        yield check_what_cannot_be_encoded
        yield check_encoding_again
    if kind.is_by_rows:
        return
    yield check_sizes
    if isinstance(kind, ScalarType | VectorType):
        yield check_what_it_counts
        yield check_integers
    if isinstance(kind, FloatType):
        yield check_numbers_that_are_rounded_to_it
    if isinstance(kind, VectorType):
        yield check_likelihood
    if isinstance(kind, ScalarType):
        yield check_tables
        yield check_decoding_is_scale_times_level
        yield check_unpacking_in_parts
        yield check_levels_lie_in_their_cells
        yield check_weights_lie_in_their_cells
        yield check_noise
        yield check_extremes
        yield check_marks
        yield check_sub_blocks
        yield check_number_from_a_weight
        yield check_density


def check_names(kind: TensorType) -> None:
    assert kind in all_types()
    assert type_by_name(kind.name) is kind
    assert type_by_name(kind.name.lower()) is kind
    if kind.type_id is not None:
        assert 0 <= kind.type_id < 2**32
        assert kind in types_by_id(kind.type_id)
        assert kind.is_alternative or type_by_id(kind.type_id) is kind


def check_file_types(kind: TensorType) -> None:
    for number, name in kind.file_types.items():
        assert name_of_file_type(number) == name
    if kind.file_type is not None:
        assert kind.file_type in kind.file_types
        assert has_encoder(kind)
        assert types_of_files()[kind.name] is kind
    others = [other for other in all_types() if other is not kind]
    assert not any(kind.file_types.keys() & other.file_types.keys() for other in others)


def check_fallback(kind: TensorType) -> None:
    """One after the other, in the end a type that takes rows of any length."""
    tried = [kind]
    while tried[-1].block_size > 1:
        fallback = type_by_name(tried[-1].fallback)
        assert fallback.block_size <= tried[-1].block_size
        assert fallback not in tried
        assert has_encoder(fallback)
        tried.append(fallback)


def check_sizes(kind: TensorType) -> None:
    for n in (0, 1, 3):
        assert kind.n_bytes(n * kind.block_size) == n * kind.type_size
        assert kind.position(n * kind.block_size, kind.block_size) == n * kind.type_size
    assert kind.bits_per_weight == kind.type_size * 8 / kind.block_size
    if kind.block_size > 1:
        with pytest.raises(QuantError, match=f"whole number of {kind.name} blocks"):
            kind.n_bytes(kind.block_size + 1)


def check_sizes_of_rows(kind: TensorType) -> None:
    row = 2 * kind.block_size
    n_rows = 3 * kind.rows_interleaved
    row_bytes = kind.row_header + 2 * kind.type_size
    assert kind.tensor_bytes((row, n_rows)) == n_rows * row_bytes
    assert kind.tensor_bytes((row, n_rows, 2)) == 2 * n_rows * row_bytes
    ends = [kind.position(n * kind.rows_interleaved * row, row) for n in range(4)]
    assert ends == [n * kind.rows_interleaved * row_bytes for n in range(4)]
    if kind.block_size > 1:
        with pytest.raises(QuantError, match=f"whole number of {kind.name} blocks"):
            kind.tensor_bytes((row + 1, n_rows))
    if kind.rows_interleaved > 1:
        with pytest.raises(QuantError, match="interleaves"):
            kind.tensor_bytes((row, n_rows + 1))
    if kind.is_by_rows:
        with pytest.raises(QuantError, match="depends on their rows"):
            kind.n_bytes(row)
        with pytest.raises(QuantError, match=f"as {kind.name} is stored"):
            kind.position(kind.block_size, row)


def check_error_to_expect(kind: TensorType) -> None:
    """What ranks the inputs of a merge."""
    error = typical_error(kind)
    assert (error == 0) == isinstance(kind, OpaqueType)
    assert 0 <= error < 1


def check_what_cannot_be_decoded(kind: TensorType) -> None:
    raw = np.zeros(kind.type_size + 1, np.uint8)
    if kind.type_size > 1 or isinstance(kind, OpaqueType) or kind.is_by_rows:
        with pytest.raises(QuantError, match=kind.name):
            dequantize(raw, kind)


def check_decoding(kind: TensorType) -> None:
    raw = stored_bytes(kind)
    n = raw.size // kind.part_size * kind.block_size
    before = raw.copy()
    with np.errstate(all="ignore"):
        decoded = dequantize(raw, kind)
        out = np.full(n, 7, np.float32)
        assert dequantize(raw, kind, out) is out
    assert decoded.shape == (n,)
    assert decoded.dtype == np.float32
    assert np.array_equal(out, decoded, equal_nan=True)
    assert np.array_equal(raw, before)
    assert dequantize(raw[:0], kind).shape == (0,)
    if isinstance(kind, ScalarType | FloatType):
        assert np.isfinite(decoded).all()


def check_decoding_in_parts(kind: TensorType) -> None:
    raw = stored_bytes(kind)
    size = kind.part_size
    n_blocks = raw.size // size
    with np.errstate(all="ignore"):
        whole = dequantize(raw, kind)
        for start, end in ((0, 1), (1, 4), (n_blocks - 1, n_blocks)):
            part = dequantize(raw[start * size : end * size], kind)
            expected = whole[start * kind.block_size : end * kind.block_size]
            assert np.array_equal(part, expected, equal_nan=True)


def check_encoding(kind: TensorType) -> None:
    """The same bytes again, whatever the memory; and read-only weights are left alone."""
    x = weights(kind)
    x.flags.writeable = False
    raw = quantize(x, kind)
    assert raw.dtype == np.uint8
    assert raw.shape == (kind.tensor_bytes(x.shape[::-1]),)
    out = np.full(raw.size, 0xAA, np.uint8)
    assert quantize(x, kind, out=out) is out
    assert np.array_equal(out, raw)
    assert np.array_equal(quantize(np.asfortranarray(x), kind), raw)


def check_rows_are_encoded_alone(kind: TensorType) -> None:
    x = weights(kind)
    for importance in (None, columns(kind)):
        whole = quantize(x, kind, importance).reshape(N_ROWS, -1)
        for row in (0, 1, N_ROWS - 1):
            assert np.array_equal(quantize(x[row : row + 1], kind, importance), whole[row])


def check_what_cannot_be_encoded(kind: TensorType) -> None:
    x = weights(kind)
    if kind.block_size > 1:
        with pytest.raises(QuantError, match=f"whole number of {kind.name} blocks"):
            quantize(x[:, 1:], kind)
    with pytest.raises(QuantError, match="but the output has the shape"):
        quantize(x, kind, out=np.empty(1, np.uint8))
    with pytest.raises(QuantError, match="but an importance matrix"):
        quantize(x, kind, np.ones(1, np.float32))
    broken = x.copy()
    broken[2, 3] = np.nan
    with pytest.raises(QuantError, match=r"1 of \d+ weights are infinite or not a number"):
        quantize(broken, kind)


def check_encoding_again(kind: TensorType) -> None:
    """What was decoded is encoded to what it was; of some types, to something close to it."""
    x = weights(kind)
    raw = quantize(x, kind)
    decoded = rows_decoded(raw, kind)
    again = quantize(decoded, kind)
    if isinstance(kind, FloatType) or (isinstance(kind, ScalarType) and kind.comes_back):
        used = decoded.reshape(-1, kind.block_size).any(axis=1)  # a block of 0 has any scale
        same = (again == raw).reshape(-1, kind.type_size).all(axis=1)
        assert same[used].all()
    lost = np.square(decoded - x, dtype=np.float64).mean()
    lost_again = np.square(rows_decoded(again, kind) - decoded, dtype=np.float64)
    assert lost_again.mean() <= lost


def check_numbers_that_are_rounded_to_it(kind: TensorType) -> None:
    """Lie in the bounds that the stored ones prove, of a few units in the last place."""
    assert isinstance(kind, FloatType)
    if kind.narrow is None:
        return
    x = weights(kind).reshape(-1)
    lower, upper = np.full((2, x.size), np.inf, np.float32) * np.array([[-1], [1]], np.float32)
    kind.narrow(quantize(x, kind), lower, upper)
    assert (lower <= x).all()
    assert (x <= upper).all()
    large = np.abs(x) > 2.0**-10
    assert (upper - lower <= 2.0 ** (2 - kind.significand_bits) * np.abs(x))[large].all()
    nothing = np.full(4, np.nan, np.float32)
    raw = np.empty(4 * kind.type_size, np.uint8)
    kind.encode(nothing, raw)
    lower, upper = np.array([[-1] * 4, [1] * 4], np.float32)
    kind.narrow(raw, lower, upper)
    assert lower.tolist() == [-1] * 4
    assert upper.tolist() == [1] * 4


def check_tables(kind: TensorType) -> None:
    assert isinstance(kind, ScalarType)
    assert kind.block_size % GROUP == 0
    for table in (kind.levels, kind.lower_levels, kind.upper_levels):
        assert table.shape == (256,)
        assert table.dtype == np.float32
        assert not table.flags.writeable
    assert np.isfinite(kind.levels).all()
    assert not (np.isnan(kind.lower_levels) | np.isnan(kind.upper_levels)).any()


def check_decoding_is_scale_times_level(kind: TensorType) -> None:
    """The generic definition of a scalar type, in NumPy."""
    assert isinstance(kind, ScalarType)
    raw = stored_bytes(kind)
    codes, scale, offset = unpacked(kind, raw)
    expected = np.repeat(scale, GROUP) * kind.levels[codes] + np.repeat(offset, GROUP)
    assert np.array_equal(dequantize(raw, kind), expected)


def check_unpacking_in_parts(kind: TensorType) -> None:
    assert isinstance(kind, ScalarType)
    raw = stored_bytes(kind)
    whole = unpacked(kind, raw)
    n_blocks = raw.size // kind.type_size
    for start, end in ((0, 1), (1, 4), (n_blocks - 1, n_blocks)):
        part = unpacked(kind, raw[start * kind.type_size : end * kind.type_size])
        for i, per_block in enumerate((kind.block_size, *[kind.block_size // GROUP] * 2)):
            assert np.array_equal(part[i], whole[i][start * per_block : end * per_block])


def check_integers(kind: TensorType) -> None:
    """They come back: times the scale, plus the offset, rounded once."""
    assert isinstance(kind, ScalarType | VectorType | BlockIntervals)
    held, rng = kind.integers, np.random.default_rng(4)
    if held is None:
        return
    integers = rng.integers(held.lowest, held.highest + 1, 8 * kind.block_size).astype(np.int8)
    integers[:2] = held.lowest, held.highest
    if not held.has_zero:
        integers[integers == 0] = held.highest
    d, m = rng.standard_normal((2, 4)).astype(np.float16)
    raw, group = np.empty(kind.n_bytes(integers.size), np.uint8), 2 * kind.block_size
    held.pack(integers, d.view(np.uint16), m.view(np.uint16), group, raw)
    exact = integers * np.repeat(d, group).astype(np.float64)
    exact += np.repeat(m, group) if held.has_offset else 0
    assert np.array_equal(dequantize(raw, kind), exact.astype(np.float32))


def check_levels_lie_in_their_cells(kind: TensorType) -> None:
    """And cells of one level after the other do not overlap."""
    assert isinstance(kind, ScalarType)
    first, last = end_codes(kind)
    codes = np.arange(first, last + 1)
    codes = codes[np.argsort(kind.levels[codes], kind="stable")]
    lower, upper = kind.lower_levels[codes], kind.upper_levels[codes]
    assert (lower <= kind.levels[codes]).all()
    assert (kind.levels[codes] <= upper).all()
    assert (np.diff(kind.levels[codes]) > 0).all()
    assert (upper[:-1] <= lower[1:]).all()


def check_weights_lie_in_their_cells(kind: TensorType) -> None:
    assert isinstance(kind, ScalarType)
    x = weights(kind)
    matrices = [None] if kind.refits_scale_with_imatrix else [None, columns(kind)]
    for importance in matrices:
        raw = quantize(x, kind, importance)
        tensor = Tensor(TensorInfo("x", x.shape[::-1], kind, 0), raw)
        intervals = Intervals()
        intervals.look_at([tensor])
        lower, upper = intervals.bound(0, x.size)
        assert (lower <= x.reshape(-1)).all()
        assert (x.reshape(-1) <= upper).all()
        bounded = (lower > -np.inf) & (upper < np.inf)
        assert bounded[2 * x.shape[1] :].mean() > 0.2


def check_noise(kind: TensorType) -> None:
    """`noise` and `relative_mse` are in the order of the errors of normal weights."""
    assert isinstance(kind, ScalarType)
    x = weights(kind)[2:]
    raw = quantize(x, kind)
    _, scale, _ = unpacked(kind, raw)
    error = np.square(dequantize(raw, kind).reshape(x.shape) - x, dtype=np.float64)
    squares = np.square(np.repeat(scale, GROUP).astype(np.float64))
    assert 0.5 < error.sum() / squares.sum() / kind.noise < 2
    assert 0.3 < error.sum() / np.square(x, dtype=np.float64).sum() / kind.relative_mse < 3


def check_extremes(kind: TensorType) -> None:
    """Some weight of each block of 32 has an extreme code, and is what that says but for rounding.

    Blocks whose scale may be 0 or subnormal are not looked at.
    """
    assert isinstance(kind, ScalarType)
    assert len(kind.extremes) <= 2
    x = weights(kind)[2:]
    raw = quantize(x, kind)
    codes = unpacked(kind, raw)[0].reshape(-1, 32)
    off = np.abs(dequantize(raw, kind) - x.reshape(-1)).reshape(-1, 32)
    largest = np.abs(x.reshape(-1, 32)).max(axis=1)
    for pair in kind.extremes:
        is_extreme = np.isin(codes, pair)
        assert is_extreme.any(axis=1).all()
        nearest = np.where(is_extreme, off, np.inf).min(axis=1)
        assert (nearest <= 2.0**-9 * largest).all()


def check_marks(kind: TensorType) -> None:
    assert isinstance(kind, ScalarType)
    if kind.marks is None:
        assert not kind.cells_need_marks
        assert not kind.marks_hold_with_imatrix
        assert count_marks(stored_bytes(kind), kind) is None
        return
    matrices = [None, columns(kind)] if kind.marks_hold_with_imatrix else [None]
    for importance in matrices:
        marks = count_marks(quantize(weights(kind), kind, importance), kind)
        assert marks is not None
        assert marks.n_blocks > 0
        assert marks.n_without == 0
    marks = count_marks(np.zeros(4 * kind.type_size, np.uint8), kind)
    assert marks is not None
    assert marks.n_blocks == 0


def check_sub_blocks(kind: TensorType) -> None:
    """Their codes times d and dmin are the scales and offsets that are unpacked."""
    assert isinstance(kind, ScalarType)
    if kind.sub_blocks is not None:
        raw = stored_bytes(kind)
        d, dmin, *codes = kind.sub_blocks(raw.reshape(-1, kind.type_size))
        scales, minima = (np.float32(q) * n[:, None] for q, n in zip(codes, (d, dmin), strict=True))
        for told, own in zip(unpacked(kind, raw)[1:], (scales, -minima), strict=True):
            np.testing.assert_array_equal(told, np.repeat(own.reshape(-1), told.size // own.size))
        assert np.unique(codes[0]).size > 1


def check_number_from_a_weight(kind: TensorType) -> None:
    """Times the divisor it is a weight of its block, but for the rounding to f16."""
    assert isinstance(kind, ScalarType)
    if kind.from_weight is None:
        return
    at, divisor = kind.from_weight
    x = weights(kind)[2:].reshape(-1, kind.block_size)
    blocks = quantize(x, kind).reshape(-1, kind.type_size)
    number = np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float64)
    off = np.abs(np.abs(number * divisor) - np.abs(x)).min(axis=1)
    assert (off <= 2.0**-10 * np.abs(x).max(axis=1)).all()


def check_density(kind: TensorType) -> None:
    """A table for each way in which weights may have been encoded, the shipped one or the default.

    Where the codes have cells, weights are looked for in all of them.
    """
    assert isinstance(kind, ScalarType)
    for weighted, has_cells in ((False, True), (True, True), (False, False), (True, False)):
        table = density(kind, weighted=weighted, has_cells=has_cells)
        assert table.shape == (4, 5)
        assert table.dtype == np.float32
        assert np.isfinite(table).all()
        assert (table[:, ATOM] >= 0).all()
        assert (table[:3, BELOW] <= 0).all()
        assert (table[:3, ABOVE] >= 0).all()
        assert (table[:3, ABOVE] > table[:3, BELOW]).all()
        u = np.linspace(table[0, BELOW], table[0, ABOVE], 9)
        logs = table[0, 0] * u + table[0, 1] * u**2
        assert np.ptp(logs) < 20
    first, last = end_codes(kind)
    interior = np.arange(first + 1, last)
    table = density(kind)
    below = (kind.lower_levels - kind.levels)[interior].min()
    above = (kind.upper_levels - kind.levels)[interior].max()
    assert table[0, BELOW] <= below + 1e-6
    assert table[0, ABOVE] >= above - 1e-6
