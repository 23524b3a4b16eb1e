"""Encoders of ik_llama.cpp's types with hidden scales: their last step, with a search of our own.

What matters is in what order things happen: a scale for the superblock or the row, an integer scale
for each sub-block, the nearest level for every weight, and then another scale that is stored. The
search before that is plain: a few scales for each sub-block, and the one with the least error.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover.quants import F32Array, U8Array
from recover.quants._hidden_scales import LEVELS_2, LEVELS_3, LEVELS_4, LEVELS_5
from recover.quants.iq6_k import LEVELS as LEVELS_6

Codes = NDArray[np.int64]


class Chosen(NamedTuple):
    """What is packed: of n superblocks with m sub-blocks."""

    codes: Codes
    """(n, 256)"""
    scales: Codes
    """(n, m): integers."""
    shifted: Codes
    """(n, m): 1 where the levels are the shifted ones."""
    d: F32Array
    """(n,)"""


class Format(NamedTuple):
    """How a type is packed."""

    levels: tuple[int, ...]
    shift: int
    n_sub: int
    scales: NDArray[np.int64]
    """The integer scales that there are, ascending."""
    factor: float
    """What the fitted scale is multiplied by before it is stored."""
    by_row: bool
    pack: Callable[[Chosen], U8Array]


def encode(name: str, x: F32Array) -> U8Array:
    """Rows of weights (n_rows, ne0) as a type stores them: uint8 (n_rows, row_bytes)."""
    form = FORMATS[name]
    blocks = x.reshape(-1, 256).astype(np.float32)
    per_row = x.shape[1] // 256
    chosen = _choose(form, blocks, per_row if form.by_row else 1)
    packed = form.pack(chosen).reshape(x.shape[0], -1)
    if not form.by_row:
        return packed
    d = chosen.d[::per_row]
    stored = d.astype("<f2") if name in ("IQ2_KS", "IQ3_KS") else d.astype("<f4")
    return np.concatenate([stored.view(np.uint8).reshape(len(d), -1), packed], 1)


def _choose(form: Format, x: F32Array, n_together: int) -> Chosen:
    sub = x.reshape(len(x), form.n_sub, -1)
    scale, shifted = _search(form, sub)
    largest = np.abs(scale).reshape(-1, n_together * form.n_sub).max(1)
    d = np.repeat((largest / np.abs(form.scales).max()).astype(np.float32), n_together)
    used = np.where(d > 0, d, 1)[:, None]
    edges = (form.scales[1:] + form.scales[:-1]) / 2
    integers = form.scales[np.searchsorted(edges, scale / used)]
    dl = (d[:, None] * integers.astype(np.float32))[:, :, None]
    codes, value = _nearest(form, sub, dl, shifted[:, :, None])
    weights = np.square(sub) + np.mean(np.square(sub), (1, 2), keepdims=True)
    product = integers[:, :, None] * value
    both = (weights * sub * product).sum((1, 2)).reshape(-1, n_together).sum(1)
    square = (weights * product**2).sum((1, 2)).reshape(-1, n_together).sum(1)
    fitted = np.divide(both, square, out=np.zeros_like(both), where=square > 0) * form.factor
    stored = np.repeat(fitted.astype(np.float32), n_together)
    return Chosen(codes.reshape(len(x), 256), integers, shifted, stored)


def _nearest(
    form: Format, sub: F32Array, dl: NDArray[np.float32], shifted: Codes
) -> tuple[Codes, NDArray[np.float64]]:
    """Codes and levels nearest to ``x / dl``."""
    levels = np.array(form.levels)
    edges = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
    inverse = np.divide(np.float32(1), dl, out=np.zeros_like(dl), where=dl != 0)
    codes = np.searchsorted(edges, inverse * sub - shifted * np.float32(form.shift), "right")
    return codes, (levels[codes] + shifted * form.shift).astype(np.float64)


def _search(form: Format, sub: F32Array) -> tuple[NDArray[np.float64], Codes]:
    """Scales (n, m) with the least square error among a few, and which levels they are for."""
    at = np.abs(sub).argmax(2)[:, :, None]
    extreme = np.take_along_axis(sub, at, 2)
    best = np.full(sub.shape[:2], np.inf)
    scale, shifted = np.zeros(sub.shape[:2]), np.zeros(sub.shape[:2], np.int64)
    for shift in (0, 1):
        for end in (form.levels[0], form.levels[-1]):
            for reach in (0.75, 0.95, 1.1):
                dl = (extreme / np.float32(end * reach)).astype(np.float32)
                _, value = _nearest(form, sub, dl, np.full((1, 1, 1), shift))
                square = (value**2).sum(2)
                fit = np.divide((value * sub).sum(2), square, where=square > 0, out=square * 0)
                error = np.square(sub - fit[:, :, None] * value).sum(2)
                better = error < best
                best = np.where(better, error, best)
                scale, shifted = np.where(better, fit, scale), np.where(better, shift, shifted)
    return scale, shifted


def _f16(d: F32Array) -> U8Array:
    return d.astype("<f2").view(np.uint8).reshape(-1, 2)


def _bits(flags: NDArray[np.int64] | NDArray[np.bool_]) -> U8Array:
    """One bit for each sub-block, the first one lowest."""
    return np.packbits(flags.astype(np.uint8), axis=1, bitorder="little")


def _nibbles(values: Codes) -> U8Array:
    return (values[:, ::2] | values[:, 1::2] << 4).astype(np.uint8)


def _halves(values: Codes) -> U8Array:
    return (values[:, :4] | values[:, 4:] << 4).astype(np.uint8)


def _planes(codes: Codes, n_bits: int) -> U8Array:
    """`n_bits` of a weight of each 32 in a byte."""
    per_byte = 8 // n_bits
    by_plane = codes.reshape(len(codes), -1, per_byte, 32)
    shifts = (n_bits * np.arange(per_byte))[:, None]
    return (by_plane << shifts).sum(2).reshape(len(codes), -1).astype(np.uint8)


def _four(codes: Codes, run: int) -> U8Array:
    """Low nibbles of a run of bytes, then the high ones."""
    pairs = codes.reshape(len(codes), -1, 2, run)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(len(codes), -1).astype(np.uint8)


def _two_high(values: Codes) -> U8Array:
    """Two high bits of 16 scales in four bytes."""
    return (values.reshape(len(values), 4, 4) << [0, 2, 4, 6]).sum(2).astype(np.uint8)


def _iq2_k(c: Chosen) -> U8Array:
    return np.hstack([_f16(c.d), _bits(c.shifted), _nibbles(c.scales + 8), _planes(c.codes, 2)])


def _iq3_k(c: Chosen) -> U8Array:
    head = [_f16(c.d), _bits(c.shifted), _bits(c.scales < 0), _nibbles(np.abs(c.scales) >> 1)]
    return np.hstack([*head, _planes(c.codes & 3, 2), _planes(c.codes >> 2, 1)])


def _six_bits(c: Chosen) -> list[U8Array]:
    n = c.scales + 32
    return [_f16(c.d), _bits(c.shifted), _two_high(n >> 4), _nibbles(n & 15)]


def _iq4_k(c: Chosen) -> U8Array:
    return np.hstack([*_six_bits(c), _four(c.codes, 16)])


def _iq5_k(c: Chosen) -> U8Array:
    return np.hstack([*_six_bits(c), _four(c.codes & 15, 32), _planes(c.codes >> 4, 1)])


def _iq6_k(c: Chosen) -> U8Array:
    head = [_f16(c.d), _bits(c.shifted), c.scales.astype(np.int8).view(np.uint8)]
    return np.hstack([*head, _four(c.codes & 15, 32), _planes(c.codes >> 4, 2)])


def _iq4_ks(c: Chosen) -> U8Array:
    return np.hstack([(c.scales + 127 | c.shifted).astype(np.uint8), _four(c.codes, 16)])


def _iq5_ks(c: Chosen) -> U8Array:
    scales = (c.scales + 127 | c.shifted).astype(np.uint8)
    return np.hstack([scales, _four(c.codes & 15, 32), _planes(c.codes >> 4, 1)])


def _iq2_ks(c: Chosen) -> U8Array:
    n = c.scales + 16
    return np.hstack([_bits(c.shifted), _bits(n >> 4), _nibbles(n & 15), _planes(c.codes, 2)])


def _iq3_ks(c: Chosen) -> U8Array:
    n = c.scales + 16
    head = [_bits(n >> 4), _bits(c.shifted), _halves(n & 15)]
    return np.hstack([*head, _planes(c.codes & 3, 2), _planes(c.codes >> 2, 1)])


_ODD = np.arange(-31, 32, 2)
_SEVEN = np.arange(-127, 128, 2)
FORMATS = {
    "IQ2_K": Format(LEVELS_2, 5, 16, np.arange(-8, 8), 1.03, False, _iq2_k),
    "IQ3_K": Format(LEVELS_3, 4, 16, _ODD, 1.01, False, _iq3_k),
    "IQ4_K": Format(LEVELS_4, 4, 16, np.arange(-32, 32), 1.0, False, _iq4_k),
    "IQ5_K": Format(LEVELS_5, 2, 16, np.arange(-32, 32), 1.0, False, _iq5_k),
    "IQ6_K": Format(LEVELS_6, 1, 16, np.arange(-127, 128), 1.0, False, _iq6_k),
    "IQ2_KS": Format(LEVELS_2, 5, 8, np.arange(-16, 16), 1.0, True, _iq2_ks),
    "IQ3_KS": Format(LEVELS_3, 4, 8, np.arange(-16, 16), 1.0, True, _iq3_ks),
    "IQ4_KS": Format(LEVELS_4, 4, 8, _SEVEN, 1.0, True, _iq4_ks),
    "IQ5_KS": Format(LEVELS_5, 2, 8, _SEVEN, 1.0, True, _iq5_ks),
}
