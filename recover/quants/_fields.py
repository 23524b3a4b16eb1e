"""Where ik_llama.cpp's superblocks of 256 weights have the bits of codes and scales."""

from typing import Any

import numpy as np

from recover._compiled.jit import inner
from recover.quants.base import U8Array


@inner
def nibble(block: U8Array, at: int, s: int) -> Any:
    """The nibble of sub-block `s`, two neighbours in a byte."""
    return np.int64((block[at + s // 2] >> np.uint8(4 * (s % 2))) & np.uint8(15))


@inner
def half(block: U8Array, at: int, s: int) -> Any:
    """The nibble of sub-block `s` of 8: the low ones of four bytes, then the high ones."""
    return np.int64((block[at + s % 4] >> np.uint8(4 * (s // 4))) & np.uint8(15))


@inner
def word(block: U8Array, at: int) -> Any:
    """The 16-bit number at a byte."""
    return np.int64(block[at]) | np.int64(block[at + 1]) << 8


@inner
def double_word(block: U8Array, at: int) -> Any:
    """The 32-bit number at a byte."""
    return np.int64(word(block, at)) | np.int64(word(block, at + 2)) << 16


@inner
def two_bits(block: U8Array, at: int, codes: U8Array) -> None:
    """Codes of 2 bits: of 128 weights, bits 2 p of a byte are those of a weight of each 32."""
    for c in range(2):
        for p in range(4):
            for i in range(32):
                bits = block[at + 32 * c + i] >> np.uint8(2 * p)
                codes[128 * c + 32 * p + i] = bits & np.uint8(3)


@inner
def four_bits(block: U8Array, at: int, codes: U8Array) -> None:
    """Codes of 4 bits: of 64 weights, the low nibbles of 32 bytes, then the high ones."""
    for c in range(4):
        for i in range(32):
            byte = block[at + 32 * c + i]
            codes[64 * c + i] = byte & np.uint8(15)
            codes[64 * c + 32 + i] = byte >> np.uint8(4)


@inner
def four_bits_16(block: U8Array, at: int, codes: U8Array) -> None:
    """Codes of 4 bits: of each 32 weights, the low nibbles of 16 bytes, then the high ones."""
    for s in range(codes.size // 32):
        for i in range(16):
            byte = block[at + 16 * s + i]
            codes[32 * s + i] = byte & np.uint8(15)
            codes[32 * s + 16 + i] = byte >> np.uint8(4)


@inner
def add_bits(block: U8Array, at: int, n_bits: int, shift: int, codes: U8Array) -> None:
    """Higher bits of codes, added above `shift` bits: a byte has those of a weight of each 32."""
    mask = np.uint8((1 << n_bits) - 1)
    per_byte = 8 // n_bits
    for p in range(8):
        for i in range(32):
            byte = block[at + 32 * (p // per_byte) + i]
            bits = (byte >> np.uint8(n_bits * (p % per_byte))) & mask
            codes[32 * p + i] |= np.uint8(bits << np.uint8(shift))


@inner
def add_shift(codes: U8Array, start: int, n: int, shifted: int, first: int) -> None:
    """Codes of a sub-block whose levels are the shifted ones, which begin at code `first`."""
    if shifted:
        for i in range(start, start + n):
            codes[i] += np.uint8(first)
