"""The encoder of the trellis types: as good as it says, for weights of any kind and size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from recover.containers.rows import blocks_of, rows_of_blocks
from recover.errors import QuantError
from recover.quants import (
    BlockIntervals,
    F32Array,
    Stated,
    U8Array,
    dequantize,
    quantize,
    type_by_name,
)
from recover.quants._trellis_marks import MARK
from tests.benchmarks.trellis import of_golden_rows, of_matrices
from tests.naive import trellis
from tests.support.fork_files import rows_of

SHARED = Path(__file__).parents[3] / "shared" / "golden-ik"
NAMES = tuple(trellis.N_TOGETHER)
MOST = 0.9
"""Of the error of that program's own encodings; 0.97 is what was asked for."""

types = pytest.mark.parametrize("name", NAMES)


def decoded(name: str, raw: U8Array, shape: tuple[int, ...]) -> F32Array:
    """Rows, as the formula says and as our decoder does."""
    kind, row_length = type_by_name(name), shape[-1]
    ours = dequantize(blocks_of(raw, kind, row_length, 0, int(np.prod(shape))), kind)
    theirs = np.stack([trellis.decode(name, row) for row in raw.reshape(shape[0], -1)])
    assert np.array_equal(ours.reshape(shape), theirs)
    return theirs


def encoded(name: str, x: F32Array, importance: F32Array | None = None) -> F32Array:
    """Rows (n_rows, ne0), encoded and decoded again."""
    return decoded(name, quantize(x, type_by_name(name), importance), x.shape)


def squares(x: NDArray[Any]) -> NDArray[np.float64]:
    """Sums of squares of rows."""
    total: NDArray[np.float64] = np.square(x, dtype=np.float64).sum(axis=-1)
    return total


def trained(seed: int, n_rows: int, n: int = 256) -> F32Array:
    rng = np.random.default_rng(seed)
    x = rng.standard_t(5, (n_rows, n)) * np.exp2(rng.uniform(-8, -2, (n_rows, 1)))
    return x.astype(np.float32)


@types
def test_the_formula_decodes_golden_rows(name: str) -> None:
    rows = rows_of(name)
    decoded(name, rows.raw.reshape(-1), rows.original.shape)


@types
def test_errors_are_smaller_than_of_golden_rows(name: str) -> None:
    """In sum, and of each row nearly."""
    rows = rows_of(name)
    x = rows.original
    theirs = squares(decoded(name, rows.raw.reshape(-1), x.shape) - x)
    ours = squares(encoded(name, x) - x)
    used = theirs > 0
    assert ours.sum() < MOST * theirs.sum()
    relative = ours[used] / theirs[used]
    assert np.exp(np.log(relative).mean()) < MOST
    assert relative.max() < 1.15
    assert ours[~used].max() == 0


@types
@pytest.mark.parametrize("weighted", [False, True])
def test_no_seed_is_nearer(name: str, weighted: bool) -> None:
    """All seeds are tried, one by one, for the scales that are stored."""
    x = trained(3, 1)
    rng = np.random.default_rng(4)
    importance = rng.lognormal(0, 2, 256).astype(np.float32) if weighted else None
    raw = quantize(x, type_by_name(name), importance)
    weights = np.ones(256, np.float32) if importance is None else importance
    least = trellis.best_errors(name, raw, x[0], np.maximum(weights, 1e-2 * weights.mean()))
    off = np.square(decoded(name, raw, x.shape)[0] - x[0], dtype=np.float64) * weights
    errors = off.reshape(*least.shape, -1).sum(axis=-1)
    assert (errors <= least * 1.0001).all()


@types
def test_importance_lowers_the_weighted_error(name: str) -> None:
    x = trained(5, 4)
    importance = np.random.default_rng(6).lognormal(0, 1.5, 256).astype(np.float32)
    plain, weighted = encoded(name, x), encoded(name, x, importance)
    errors = [
        (importance * squares_of).sum() for squares_of in ((plain - x) ** 2, (weighted - x) ** 2)
    ]
    assert errors[1] < 0.8 * errors[0]
    assert squares(weighted - x).sum() > squares(plain - x).sum()


@types
def test_importances_that_are_alike_or_all_zero_are_none(name: str) -> None:
    x, kind = trained(7, 2), type_by_name(name)
    plain = quantize(x, kind)
    for same in (np.zeros(256, np.float32), np.full(256, 3e38, np.float32)):
        assert np.array_equal(quantize(x, kind, same), plain)


@types
def test_weights_without_importance_are_not_arbitrary(name: str) -> None:
    x = trained(8, 2)
    importance = np.ones(256, np.float32)
    importance[::2] = 0
    off = encoded(name, x, importance) - x
    assert (squares(off[:, ::2]) < 2.5 * squares(x[:, ::2])).all()
    assert squares(off[:, 1::2]).sum() < squares((encoded(name, x) - x)[:, 1::2]).sum()


@types
def test_scales_do_not_matter(name: str) -> None:
    """Powers of two change the header only; rows are encoded alone."""
    x, kind = trained(9, 3), type_by_name(name)
    whole = quantize(x, kind).reshape(3, -1)
    for row, factor in enumerate((2.0**-90, 2.0**3, 2.0**120)):
        alone = quantize(x[row] * np.float32(factor), kind)
        assert np.array_equal(alone[4:], whole[row, 4:])
        assert alone[:4].view("<f4")[0] == whole[row, :4].copy().view("<f4")[0] * factor


@types
def test_weights_of_any_size(name: str) -> None:
    """Zeros, one value, one weight alone, and the largest and smallest numbers there are."""
    x = np.zeros((9, 256), np.float32)
    x[1] = 0.02
    x[2] = -3
    x[3, 100] = 5
    x[4, 32:64] = trained(10, 1)[0, :32]
    x[5] = trained(11, 1)[0] * 1e-41
    x[6] = np.float32(3.4e38) * np.sign(trained(12, 1)[0])
    x[7] = 1e-45
    x[8] = trained(13, 1)[0] * np.where(np.arange(256) < 32, 1, 1e-30)
    y = encoded(name, x)
    assert np.isfinite(y).all()
    assert not y[0].any()
    largest = np.abs(x[1:]).max(axis=1, keepdims=True).astype(np.float64)
    lost, all_of_it = (
        squares((y[1:].astype(np.float64) - x[1:]) / largest),
        squares(x[1:] / largest),
    )
    assert (lost <= all_of_it).all()
    ordinary = [0, 1, 2, 3, 7]  # the others are at the ends of what a float32 scale says
    most = {"IQ2_KT": 0.2, "IQ3_KT": 0.2, "IQ4_KT": 0.02}[name]
    assert (lost < most * all_of_it)[ordinary].all()
    assert lost[5] < 0.5 * all_of_it[5]


def test_signs_of_iq3_kt_are_those_of_the_weights() -> None:
    x = trained(14, 2)
    x[0, ::3] = 0
    x[1, ::5] = -0.0
    for row, weights in zip(quantize(x, type_by_name("IQ3_KT")).reshape(2, -1), x, strict=True):
        assert np.array_equal(trellis.fields_of("IQ3_KT", row).is_negative.reshape(-1), weights < 0)


@types
def test_what_cannot_be_encoded(name: str) -> None:
    kind, x = type_by_name(name), trained(15, 1)
    for bad in (np.nan, np.inf, -np.inf):
        x[0, 3] = bad
        with pytest.raises(QuantError, match="1 of 256 weights are infinite or not a number"):
            quantize(x, kind)
    with pytest.raises(QuantError, match="no whole number of"):
        quantize(x[:, :224], kind)
    first = type_by_name(f"{name}_V1")
    with pytest.raises(QuantError, match=f"cannot be encoded as {name}_V1"):
        quantize(trained(16, 1), first)


@types
def test_many_rows_are_those_alone(name: str) -> None:
    """More than are worked on together; nothing is left of the rows before."""
    kind = type_by_name(name)
    x = np.zeros((300, 256), np.float32)
    x[[0, 255, 256, 299]] = trained(17, 4)
    whole = quantize(x, kind).reshape(300, -1)
    for row in (0, 1, 255, 256, 299):
        assert np.array_equal(quantize(x[row], kind), whole[row])


@types
def test_rows_are_marked_and_their_errors_known(name: str) -> None:
    """Within 5% of normal weights; without the mark, those of the other program are expected."""
    kind = type_by_name(name)
    x = np.random.default_rng(18).standard_normal((24, 512), np.float32)
    assert isinstance(kind, BlockIntervals)
    raw = quantize(x, kind)
    assert {int(d) & 0xFFF for d in raw.reshape(24, -1)[:, :4].copy().view("<u4")[:, 0]} == {MARK}
    assert not any(row[0] == MARK & 255 for row in rows_of(name).raw)
    claims = []
    for is_marked in (True, False):
        raw.reshape(24, -1)[:, 0] ^= 0 if is_marked else 1
        stated = Stated.of(x.size)
        kind.state(blocks_of(raw, kind, 512, 0, x.size), stated)
        off = np.square(stated.value.reshape(x.shape) - x, dtype=np.float64).sum(axis=1)
        claims.append((stated.variance.reshape(x.shape).sum(axis=1) / off).mean())
    assert 0.95 < claims[0] < 1.05
    assert claims[1] > 1.1 * claims[0]


@types
def test_each_row_has_the_errors_of_its_encoder(name: str) -> None:
    """Ours and others' in one tensor."""
    kind, rows = type_by_name(name), rows_of(name)
    assert isinstance(kind, BlockIntervals)
    ours = quantize(rows.original, kind).reshape(rows.raw.shape)
    mixed = np.where(np.arange(len(ours))[:, None] % 3 == 0, ours, rows.raw)
    n = rows.original.shape[1]
    variance = []
    for raw in (mixed, ours, rows.raw):
        stated = Stated.of(rows.original.size)
        kind.state(blocks_of(raw.reshape(-1), kind, n, 0, stated.value.size), stated)
        variance.append(stated.variance.reshape(-1, n))
    for row in range(len(ours)):
        assert np.array_equal(variance[0][row], variance[1 if row % 3 == 0 else 2][row])


@types
def test_rows_of_blocks_are_the_rows(name: str) -> None:
    rows = rows_of(name)
    raw, kind = rows.raw.reshape(-1), rows.kind
    n_rows, n = rows.original.shape
    for first, last in ((0, n_rows), (1, 3)):
        blocks = blocks_of(raw, kind, n, first * n, last * n)
        assert np.array_equal(rows_of_blocks(blocks, kind, n), rows.raw[first:last].reshape(-1))


@pytest.mark.slow
@types
def test_all_golden_rows_and_trained_weights(name: str) -> None:
    """Errors over those of that program, and speed on whatever else this machine does."""
    kind = type_by_name(name)
    golden, relative, speed = of_golden_rows(SHARED, kind)
    trained_weights, weighted = of_matrices(SHARED / "llama-29m", kind)
    assert max(golden, relative, trained_weights) < 0.85
    assert weighted < 0.9
    assert speed > 0.15e6
