"""Rows of other types whose blocks are interleaved, so that a CPU reads those of several at once.

The permutations of ik_llama.cpp's types are tables of bits (``recover/data/interleaved.npz``, made
by ``python -m tests.golden.make_interleaved``): bit b of the block of row k is bit ``table[k, b]``
of the blocks that are interleaved; bits are counted from the least significant one of byte 0. Four
of its types store signs in another form besides. llama.cpp had Q4_0 interleaved for ARM from July
to December 2024 (``make_block_q4_0x4`` and ``make_block_q4_0x8``), with the codes' signs flipped.
"""

from collections.abc import Callable
from functools import cache, partial
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import kernel
from recover.quants.base import InterleavedType, TensorType, U8Array
from recover.quants.iq1_m_32 import IQ1_M_32
from recover.quants.iq1_s_32 import IQ1_S_32
from recover.quants.iq2_bn import IQ2_BN
from recover.quants.iq2_k import IQ2_K
from recover.quants.iq3_k import IQ3_K
from recover.quants.iq4_k import IQ4_K
from recover.quants.iq4_ks import IQ4_KS
from recover.quants.iq4_nl import IQ4_NL
from recover.quants.iq4_xs import IQ4_XS
from recover.quants.iq5_k import IQ5_K
from recover.quants.iq5_ks import IQ5_KS
from recover.quants.mxfp4 import MXFP4
from recover.quants.q2_k import Q2_K
from recover.quants.q3_k import Q3_K
from recover.quants.q4_0 import Q4_0
from recover.quants.q4_k import Q4_K
from recover.quants.q5_0 import Q5_0
from recover.quants.q5_k import Q5_K
from recover.quants.q6_0 import Q6_0
from recover.quants.q6_k import Q6_K
from recover.quants.q8_0 import Q8_0
from recover.quants.q8_k_f16 import Q8_K_F16
from recover.quants.q8_kv import Q8_KV_R
from recover.quants.vector import IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS

_IK = "ik_llama.cpp"
_ARM = "llama.cpp from July to December 2024, for ARM"

Moves = NDArray[np.uint16]
"""(n, 6): byte and shift that bits come from, row, byte and shift where they go, and their mask."""


@cache
def _moves(name: str) -> Moves:
    """What brings the bits of a type to their places: runs of bits within single bytes."""
    path = files("recover") / "data" / "interleaved.npz"
    with path.open("rb") as file, np.load(file) as arrays:
        steps = arrays[name]
    return moves_of(np.cumsum(steps, dtype=np.int64).reshape(steps.shape))


def moves_of(table: NDArray[np.int64]) -> Moves:
    """Runs of bits of a table (n_rows, n_bits) that stay together in one byte."""
    n_bits = table.shape[1]
    place = np.arange(n_bits)
    begins = np.ones(table.shape, np.bool_)
    begins[:, 1:] = (np.diff(table) != 1) | (table[:, 1:] % 8 == 0) | (place[1:] % 8 == 0)
    row, first = np.nonzero(begins)
    length = np.diff(np.append(row * n_bits + first, table.size))
    at = table[row, first]
    mask = (1 << length) - 1
    return np.stack([at // 8, at % 8, row, first // 8, first % 8, mask], 1).astype(np.uint16)


@kernel
def _permute(mixed: U8Array, moves: Moves, blocks: U8Array) -> None:
    """Take blocks apart by moving bits."""
    n_rows, n_blocks, size = blocks.shape
    blocks[:] = 0
    for b in range(n_blocks):
        start = b * n_rows * size
        for i in range(moves.shape[0]):
            bits = (mixed[start + moves[i, 0]] >> moves[i, 1]) & moves[i, 5]
            blocks[moves[i, 2], b, moves[i, 3]] |= np.uint8(bits << moves[i, 4])


def _by_table(name: str, mixed: U8Array, blocks: U8Array) -> None:
    _permute(mixed, _moves(name), blocks)


def _by_bytes(run: int, mixed: U8Array, blocks: U8Array) -> None:
    """Q4_0 for ARM: the scales, then runs of bytes of each row in turn, bits 3 and 7 flipped."""
    n_rows, n_blocks, _ = blocks.shape
    mixed = mixed.reshape(n_blocks, -1)
    scales, codes = mixed[:, : 2 * n_rows], mixed[:, 2 * n_rows :]
    blocks[:, :, :2] = scales.reshape(n_blocks, n_rows, 2).swapaxes(0, 1)
    codes = codes.reshape(n_blocks, 16 // run, n_rows, run).transpose(2, 0, 1, 3)
    blocks[:, :, 2:] = codes.reshape(n_rows, n_blocks, 16) ^ 0x88


def _scales_and_bytes(mixed: U8Array, blocks: U8Array) -> None:
    """Q8_K_R8: eight scales, then four codes of each row in turn."""
    n_rows, n_blocks, _ = blocks.shape
    mixed = mixed.reshape(n_blocks, -1)
    blocks[:, :, :2] = mixed[:, : 2 * n_rows].reshape(n_blocks, n_rows, 2).swapaxes(0, 1)
    codes = mixed[:, 2 * n_rows :].reshape(n_blocks, -1, n_rows, 4).transpose(2, 0, 1, 3)
    blocks[:, :, 2:] = codes.reshape(n_rows, n_blocks, -1)


def _bytes_alone(mixed: U8Array, blocks: U8Array) -> None:
    """Q8_KV_R8: four codes of each row in turn; the scales are headers of the rows."""
    n_rows, n_blocks, size = blocks.shape
    codes = mixed.reshape(n_blocks, size // 4, n_rows, 4).transpose(2, 0, 1, 3)
    blocks[:] = codes.reshape(n_rows, n_blocks, size)


def _words(words: NDArray[np.uint32]) -> U8Array:
    """Four bytes of each word, the least significant one first."""
    return words[..., None].astype("<u4").view(np.uint8).reshape(*words.shape, 4)


def _three_or_two_bits(per_group: int, mixed: U8Array, blocks: U8Array) -> None:
    """IQ2_XXS_R4 and IQ3_XXS_R4; `per_group` indices of the grid stand for 32 weights.

    Of the word of 32 weights bit 0 of each byte is one of the scale. Without these bits, u XOR (u
    >> 1) has the signs: an even number of each 8, so that seven bits tell the eighth.
    """
    n_rows, n_blocks, _ = blocks.shape
    mixed = mixed.reshape(n_blocks, -1)
    blocks[:, :, :2] = mixed[:, :8].reshape(n_blocks, n_rows, 2).swapaxes(0, 1)
    words = np.ascontiguousarray(mixed[:, 8:136]).view("<u4").reshape(n_blocks, 8, n_rows)
    words = words.transpose(2, 0, 1)
    scale = (_words(words) & 1) @ np.array([1, 2, 4, 8], np.uint8)
    words = words & np.uint32(0xFEFEFEFE)
    signs = _words(words ^ (words >> np.uint32(1))).astype(np.uint32) & 127
    joined = signs[..., 0] | signs[..., 1] << 7 | signs[..., 2] << 14 | signs[..., 3] << 21
    packed = _words((joined | scale.astype(np.uint32) << 28).astype(np.uint32))
    indices = mixed[:, 136:].reshape(n_blocks, 8, n_rows, per_group).transpose(2, 0, 1, 3)
    if per_group == 4:  # IQ2_XXS: indices and word of each 32 weights in turn
        blocks[:, :, 2:] = np.concatenate([indices, packed], -1).reshape(n_rows, n_blocks, 64)
    else:
        blocks[:, :, 2:66] = indices.reshape(n_rows, n_blocks, 64)
        blocks[:, :, 66:] = packed.reshape(n_rows, n_blocks, 32)


def _nine_bits(mixed: U8Array, blocks: U8Array) -> None:
    """IQ2_XS_R4: of the seven bits t that stand for the signs, t XOR (t << 1) has them."""
    n_rows, n_blocks, _ = blocks.shape
    mixed = mixed.reshape(n_blocks, -1)
    blocks[:, :, :2] = mixed[:, :8].reshape(n_blocks, n_rows, 2).swapaxes(0, 1)
    words = np.ascontiguousarray(mixed[:, 8:264]).view("<u2").reshape(n_blocks, 8, n_rows, 4)
    words = words.transpose(2, 0, 1, 3)
    turned = words >> 9
    words = words & 511 | ((turned ^ turned << 1) & 127) << 9
    halves = words.astype("<u2").reshape(n_rows, n_blocks, 32).view(np.uint8)
    blocks[:, :, 2:66] = halves
    blocks[:, :, 66:] = mixed[:, 264:].reshape(n_blocks, 8, n_rows).transpose(2, 0, 1)


def _indices_and_words(mixed: U8Array, blocks: U8Array) -> None:
    """IQ1_S_R4: of 32 weights four low bytes of indices, then the word of each row."""
    n_rows, n_blocks, _ = blocks.shape
    mixed = mixed.reshape(n_blocks, -1)
    blocks[:, :, :4] = mixed[:, :16].reshape(n_blocks, 4, n_rows).transpose(2, 0, 1)
    blocks[:, :, 4:] = mixed[:, 16:].reshape(n_blocks, n_rows, 2).swapaxes(0, 1)


def _indices_and_scales(mixed: U8Array, blocks: U8Array) -> None:
    """IQ1_M_R4: of 32 weights four low bytes of indices, two of high bits, one of scales."""
    n_rows, n_blocks, _ = blocks.shape
    mixed = mixed.reshape(n_blocks, -1)
    blocks[:, :, :4] = mixed[:, :16].reshape(n_blocks, 4, n_rows).transpose(2, 0, 1)
    blocks[:, :, 4:6] = mixed[:, 16:24].reshape(n_blocks, 2, n_rows).transpose(2, 0, 1)
    blocks[:, :, 6] = mixed[:, 24:].T


def _interleaved(
    type_id: int,
    name: str,
    plain: TensorType,
    n_rows: int,
    separate: Callable[[U8Array, U8Array], None] | None = None,
    writer: str = _IK,
) -> InterleavedType:
    return InterleavedType(
        name=name,
        type_id=type_id,
        block_size=plain.block_size,
        type_size=plain.type_size,
        row_header=plain.row_header,
        rows_interleaved=n_rows,
        writer=writer,
        plain=plain,
        separate=separate or partial(_by_table, name),
    )


Q4_0_4_4 = _interleaved(31, "Q4_0_4_4", Q4_0, 4, partial(_by_bytes, 4), _ARM)
Q4_0_4_8 = _interleaved(32, "Q4_0_4_8", Q4_0, 4, partial(_by_bytes, 8), _ARM)
Q4_0_8_8 = _interleaved(33, "Q4_0_8_8", Q4_0, 8, partial(_by_bytes, 8), _ARM)
Q4_0_R8 = _interleaved(202, "Q4_0_R8", Q4_0, 8)
Q5_0_R4 = _interleaved(206, "Q5_0_R4", Q5_0, 4)
Q8_0_R8 = _interleaved(208, "Q8_0_R8", Q8_0, 8)
Q2_K_R4 = _interleaved(210, "Q2_K_R4", Q2_K, 4)
Q3_K_R4 = _interleaved(211, "Q3_K_R4", Q3_K, 4)
Q4_K_R4 = _interleaved(212, "Q4_K_R4", Q4_K, 4)
Q5_K_R4 = _interleaved(213, "Q5_K_R4", Q5_K, 4)
Q6_K_R4 = _interleaved(214, "Q6_K_R4", Q6_K, 4)
IQ2_XXS_R4 = _interleaved(216, "IQ2_XXS_R4", IQ2_XXS, 4, partial(_three_or_two_bits, 4))
IQ2_XS_R4 = _interleaved(217, "IQ2_XS_R4", IQ2_XS, 4, _nine_bits)
IQ3_XXS_R4 = _interleaved(218, "IQ3_XXS_R4", IQ3_XXS, 4, partial(_three_or_two_bits, 8))
IQ1_S_R4 = _interleaved(219, "IQ1_S_R4", IQ1_S_32, 4, _indices_and_words)
IQ4_NL_R4 = _interleaved(220, "IQ4_NL_R4", IQ4_NL, 4)
IQ3_S_R4 = _interleaved(221, "IQ3_S_R4", IQ3_S, 4)
IQ2_S_R4 = _interleaved(222, "IQ2_S_R4", IQ2_S, 4)
IQ4_XS_R8 = _interleaved(223, "IQ4_XS_R8", IQ4_XS, 8)
IQ1_M_R4 = _interleaved(229, "IQ1_M_R4", IQ1_M_32, 4, _indices_and_scales)
Q6_0_R4 = _interleaved(233, "Q6_0_R4", Q6_0, 4)
IQ2_BN_R4 = _interleaved(335, "IQ2_BN_R4", IQ2_BN, 4)
IQ2_K_R4 = _interleaved(337, "IQ2_K_R4", IQ2_K, 4)
IQ3_K_R4 = _interleaved(338, "IQ3_K_R4", IQ3_K, 4)
IQ4_K_R4 = _interleaved(339, "IQ4_K_R4", IQ4_K, 4)
IQ5_K_R4 = _interleaved(340, "IQ5_K_R4", IQ5_K, 4)
IQ4_KS_R4 = _interleaved(344, "IQ4_KS_R4", IQ4_KS, 4)
IQ5_KS_R4 = _interleaved(352, "IQ5_KS_R4", IQ5_KS, 4)
MXFP4_R8 = _interleaved(353, "MXFP4_R8", MXFP4, 8)
Q8_KV_R8 = _interleaved(398, "Q8_KV_R8", Q8_KV_R, 8, _bytes_alone)
Q8_K_R8 = _interleaved(399, "Q8_K_R8", Q8_K_F16, 8, _scales_and_bytes)
