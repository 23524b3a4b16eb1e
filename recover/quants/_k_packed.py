"""What Q4_K and Q5_K share: how the scales of a superblock and its codes are found and stored."""

import numpy as np

from recover._compiled.jit import inner, sized
from recover.quants._k_affine import BATCH, encode_superblock, new_batch, search_batch
from recover.quants._k_scales import pack_scales, unpack_scales
from recover.quants._search import Steps
from recover.quants.base import F32Array, U8Array


@inner
def pack_codes(codes: U8Array, highest: int, stored: U8Array) -> None:
    """256 codes to the fifth bits, if `highest` has five, and the nibbles behind the header."""
    one, fifteen, four = np.uint8(1), np.uint8(15), np.uint8(4)
    qs = stored
    if highest > 15:
        qh, qs = stored[:32], stored[32:]
        qh[:] = 0
        for j in range(4):
            for i in range(32):
                low, high = codes[64 * j + i] >> four, codes[64 * j + 32 + i] >> four
                qh[i] |= (low | (high << one)) << np.uint8(2 * j)
    for j in range(4):
        for i in range(32):
            low, high = codes[64 * j + i], codes[64 * j + 32 + i]
            qs[32 * j + i] = (low & fifteen) | (high << four)


@sized
def quantize_packed(
    x: F32Array, imatrix: F32Array, steps: Steps, limit: int, type_size: int, raw: U8Array
) -> None:
    """Superblocks whose scales and minima are clipped to `limit`.

    Mirrors `quantize_q4_K` and `quantize_q5_K`.
    """
    x, highest = x.reshape(x.size), steps.n_codes - 1
    batch = new_batch()
    scale, offset = np.empty(16, np.float32), np.empty(16, np.float32)
    codes = np.empty(256, np.uint8)
    for start in range(0, x.size, BATCH):
        weights = x[start : start + BATCH]
        search_batch(weights, imatrix, start, 32, steps, batch)
        for b in range(weights.size // 256):
            block = raw[type_size * (start // 256 + b) :][:type_size]
            pack_scales(batch, b, limit, block)
            unpack_scales(block[:16], scale, offset)
            values = weights[256 * b : 256 * b + 256]
            encode_superblock(values, scale, offset, batch.found, 8 * b, 32, highest, codes)
            pack_codes(codes, highest, block[16:])
