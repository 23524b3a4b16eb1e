"""Q2_0: blocks of 64 weights with one scale, four values of 2 bits each; -1, 0, 1 and 2 times it.

Block: ``d`` f16, 16 bytes. Models that were trained with weights of three values are published in
it. A program that parted from llama.cpp (PrismML's) has blocks of 128 weights under the same
number.
"""

from dataclasses import replace

import numpy as np

from recover._compiled.float16 import read_f16
from recover._compiled.jit import kernel
from recover.quants._declared import layout
from recover.quants._legacy import write_u16
from recover.quants.base import F32Array, I8Array, Integers, U8Array, U16Array, VectorType


@kernel
def _fill(raw: U8Array, size: int, out: F32Array) -> None:
    """Mirrors `dequantize_row_q2_0`."""
    n = 4 * (size - 2)
    for b in range(raw.size // size):
        d = read_f16(raw, size * b)
        for i in range(n):
            bits = (raw[size * b + 2 + i // 4] >> np.uint8(2 * (i % 4))) & np.uint8(3)
            out[n * b + i] = np.float32(np.int64(bits) - 1) * d


def _decode(raw: U8Array, out: F32Array) -> None:
    _fill(raw, 18, out)


def _decode_128(raw: U8Array, out: F32Array) -> None:
    _fill(raw, 34, out)


@kernel
def _pack_integers(integers: I8Array, d: U16Array, _m: U16Array, group: int, raw: U8Array) -> None:
    """See `Integers`; mirrors `quantize_row_q2_0_ref`."""
    for b in range(integers.size // 64):
        block = raw[18 * b : 18 * b + 18]
        write_u16(block, 0, d[64 * b // group])
        for i in range(16):
            byte = np.int32(0)
            for j in range(4):
                byte |= (np.int32(integers[64 * b + 4 * i + j]) + 1) << (2 * j)
            block[2 + i] = byte


Q2_0 = VectorType(
    **layout("Q2_0", type_id=42, block_size=64, type_size=18),
    relative_mse=0.65,
    is_native=True,
    decode=_decode,
    integers=Integers(lowest=-1, highest=1, pack=_pack_integers),
)

Q2_0_G128 = replace(
    Q2_0,
    name="Q2_0_G128",
    is_alternative=True,
    block_size=128,
    type_size=34,
    writer="PrismML's llama.cpp",
    decode=_decode_128,
    integers=None,
)
