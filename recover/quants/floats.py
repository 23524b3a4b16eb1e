"""F32, F16 and BF16."""

import numpy as np

from recover._compiled.across import any_lane
from recover._compiled.float16 import f16_to_f32, f32_from_bits, f32_to_bf16, f32_to_f16
from recover._compiled.jit import kernel
from recover._compiled.lanes import LANES, load, splat, store_f16
from recover.quants._declared import layout
from recover.quants._float_cells import narrow_bf16, narrow_exact, narrow_f16
from recover.quants.base import F32Array, FloatType, U8Array

_F16_OVERFLOW = np.float32(65520)  # the least that rounds to infinity


def _decode_f32(raw: U8Array, out: F32Array) -> None:
    out[:] = raw.view(np.float32)


def _encode_f32(x: F32Array, raw: U8Array) -> int:
    raw.view(np.float32)[:] = x
    return int(x.size - np.count_nonzero(np.isfinite(x)))


@kernel
def _decode_f16_words(words: np.ndarray, out: F32Array) -> None:
    for i in range(words.size):
        out[i] = f16_to_f32(words[i])


def _decode_f16(raw: U8Array, out: F32Array) -> None:
    _decode_f16_words(raw.view(np.uint16), out)


@kernel
def _encode_f16_words(x: F32Array, words: np.ndarray) -> int:
    whole = x.size // LANES * LANES
    fits = splat(_F16_OVERFLOW) == _F16_OVERFLOW
    for i in range(0, whole, LANES):
        value = load(x, i)
        store_f16(words, i, value)
        fits = fits & (abs(value) < _F16_OVERFLOW)
    for i in range(whole, x.size):
        words[i] = f32_to_f16(x[i])
    n_bad = 0
    if whole < x.size or any_lane(~fits):
        for i in range(x.size):
            n_bad += (words[i] & np.uint16(0x7C00)) == np.uint16(0x7C00)
    return n_bad


def _encode_f16(x: F32Array, raw: U8Array) -> int:
    return _encode_f16_words(x, raw.view(np.uint16))


@kernel
def _decode_bf16_words(words: np.ndarray, out: F32Array) -> None:
    for i in range(words.size):
        out[i] = f32_from_bits(np.uint32(words[i]) << np.uint32(16))


def _decode_bf16(raw: U8Array, out: F32Array) -> None:
    _decode_bf16_words(raw.view(np.uint16), out)


@kernel
def _encode_bf16_words(x: F32Array, words: np.ndarray) -> int:
    n_bad = 0
    for i in range(x.size):
        words[i] = f32_to_bf16(x[i])
        n_bad += (words[i] & np.uint16(0x7F80)) == np.uint16(0x7F80)
    return n_bad


def _encode_bf16(x: F32Array, raw: U8Array) -> int:
    return _encode_bf16_words(x, raw.view(np.uint16))


def _narrow_f32(raw: U8Array, lower: F32Array, upper: F32Array) -> None:
    narrow_exact(raw.view(np.float32), lower, upper)


def _narrow_f16(raw: U8Array, lower: F32Array, upper: F32Array) -> None:
    narrow_f16(raw.view(np.uint16), lower, upper)


def _narrow_bf16(raw: U8Array, lower: F32Array, upper: F32Array) -> None:
    narrow_bf16(raw.view(np.uint16), lower, upper)


F32 = FloatType(
    **layout("F32", type_id=0, block_size=1, type_size=4),
    file_type=0,
    significand_bits=24,
    exponent=0x7F800000,
    decode=_decode_f32,
    encode=_encode_f32,
    narrow=_narrow_f32,
)
F16 = FloatType(
    **layout("F16", type_id=1, block_size=1, type_size=2),
    file_type=1,
    significand_bits=11,
    exponent=0x7C00,
    decode=_decode_f16,
    encode=_encode_f16,
    narrow=_narrow_f16,
)
BF16 = FloatType(
    **layout("BF16", type_id=30, block_size=1, type_size=2),
    file_type=32,
    significand_bits=8,
    exponent=0x7F80,
    decode=_decode_bf16,
    encode=_encode_bf16,
    narrow=_narrow_bf16,
)
