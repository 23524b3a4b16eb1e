"""MXFP4 and NVFP4, which GGUF has, too.

See `recover.containers.huggingface.formats.fp4`, and `recover.containers.huggingface.mxfp4` for the
layout of gpt-oss. NVFP4's scale of a whole matrix becomes a tensor beside it.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import kernel
from recover.containers.huggingface.formats import _mlx_floats
from recover.containers.huggingface.formats.fp4 import Layout, common_scale, layout
from recover.containers.huggingface.formats.fp8 import e4m3
from recover.containers.huggingface.modules import Module, values
from recover.containers.huggingface.mxfp4 import repack
from recover.quants import U8Array, type_by_name
from recover.reblock.blocks import BlockRows
from recover.reblock.floats import F64Array
from recover.reblock.schemes.base import Weight

_MXFP4, _NVFP4 = type_by_name("MXFP4"), type_by_name("NVFP4")
_POSITIVE = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
_LEVELS = np.concatenate((_POSITIVE, -_POSITIVE))
_E4M3 = e4m3()
_BLOCKS, _EXPONENTS = "weight_blocks", "weight_scales"
_LARGEST_EXPONENT = 252  # 6 * 2^(252 - 127) is a float32 number
_NO_NUMBER = 0x7F
_FAR = 100  # from there on weights may leave the range of bfloat16


def read(module: Module) -> Weight | None:
    """The weight of a module that is stored as 4-bit floats."""
    if _BLOCKS in module.tensors:
        return _of_blocks(module)
    module = _mlx_floats.renamed(module)
    found = layout(module)
    if found is None:
        return None
    return _nvfp4(module, found) if found.is_nv else _mxfp4(found)


def _of_blocks(module: Module) -> Weight:
    """The layout of gpt-oss: blocks of 16 bytes."""
    blocks = module.take(_BLOCKS, ("U8",), 3)
    exponents = module.take(_EXPONENTS, ("U8", "F8_E8M0"), 2)
    n_rows, n_blocks, _ = blocks.shape
    module.expect(_BLOCKS, (n_rows, n_blocks, 16))
    module.expect(_EXPONENTS, (n_rows, n_blocks))
    packed = values(blocks).reshape(n_rows, 16 * n_blocks)
    return _with_exponents(packed, values(exponents), frozenset({_BLOCKS, _EXPONENTS}))


def _mxfp4(found: Layout) -> Weight:
    return _with_exponents(values(found.packed), values(found.scale), found.leaves)


def _with_exponents(packed: U8Array, exponents: U8Array, leaves: frozenset[str]) -> Weight:
    """Codes (n_rows, row_length / 2) and exponents (n_rows, row_length / 32)."""

    def blocks(first: int, last: int, out: U8Array) -> None:
        repack(packed[first:last].reshape(-1, 16), exponents[first:last].reshape(-1), out)

    def scales(first: int, last: int) -> F64Array:
        return np.ldexp(1.0, exponents[first:last].astype(np.int32) - 127)

    largest = int(exponents.max())
    obstacle = ""
    if largest > _LARGEST_EXPONENT:
        obstacle = f"there are scales of 2^{largest - 127}: the weights leave the range of float32"
    return Weight(
        stored_as="MXFP4",
        rows=BlockRows(
            n_rows=len(packed),
            row_length=2 * packed.shape[1],
            group=32,
            type=_MXFP4,
            obstacle=obstacle,
            bf16_obstacle=obstacle,
            blocks=blocks,
            reference=_reference(packed, scales),
        ),
        leaves=leaves,
    )


def _nvfp4(module: Module, found: Layout) -> Weight:
    packed, codes = values(found.packed), values(found.scale)
    common, divides = common_scale(module)
    with np.errstate(all="ignore"):
        common = np.float32(1) / common if divides else common

    def blocks(first: int, last: int, out: U8Array) -> None:
        _repack_nvfp4(packed[first:last].reshape(-1), codes[first:last].reshape(-1), out)

    def scales(first: int, last: int) -> F64Array:
        scaled: F64Array = _E4M3[codes[first:last]] * np.float64(common)
        return scaled

    obstacle = _obstacle(found.row_length, codes, common)
    fraction, exponent = np.frexp(common)
    is_power = fraction == 0.5 and abs(exponent) < _FAR
    inverse = "the scale beside it is 1 / weight_global_scale, rounded to float32"
    return Weight(
        stored_as="NVFP4",
        rows=BlockRows(
            n_rows=found.n_rows,
            row_length=found.row_length,
            group=16,
            type=_NVFP4,
            obstacle=obstacle,
            bf16_obstacle=""
            if is_power and not obstacle
            else f"the scale of the matrix is no power of two ({common:.9g}): code x scale x scale"
            " has more digits than BF16",
            blocks=blocks,
            beside=None if common == 1 else np.array([common], np.float32),
            reference=_reference(packed, scales),
        ),
        leaves=found.leaves,
        note=inverse if divides and not is_power else "",
    )


def _obstacle(row_length: int, codes: U8Array, common: np.float32) -> str:
    """Why GGUF's NVFP4 does not hold a matrix; empty if it does."""
    if row_length % _NVFP4.block_size:
        return f"rows of {row_length} weights are no whole blocks of {_NVFP4.block_size}"
    if not np.finfo(np.float32).tiny <= common < np.inf:
        return f"the scale of the matrix is {common:.9g}, no normal positive number"
    if np.any(codes & _NO_NUMBER == _NO_NUMBER):
        return "there are scales of blocks that are no numbers"
    return ""


def _reference(
    packed: U8Array, scales: Callable[[int, int], F64Array]
) -> Callable[[int, int], F64Array]:
    """Code times scale of rows, by NumPy alone."""

    def reference(first: int, last: int) -> F64Array:
        both = packed[first:last]
        codes = np.stack([both & 15, both >> 4], -1).reshape(last - first, -1)
        found = scales(first, last)
        levels: NDArray[np.float64] = _LEVELS[codes].reshape(*found.shape, -1)
        return (levels * found[..., None]).reshape(last - first, -1)

    return reference


@kernel
def _repack_nvfp4(packed: U8Array, scales: U8Array, out: U8Array) -> None:
    """Codes (8 n,) of 16 weights each and scales (n,) in GGUF's order (9 n,).

    GGUF's scales have no sign: that of a negative one goes to its codes.
    """
    for g in range(scales.size):
        block, sub = 36 * (g // 4), g % 4
        scale = scales[g]
        out[block + sub] = scale & 0x7F
        signs = np.uint8(0x88 if scale & 0x80 else 0)
        at = block + 4 + 8 * sub
        for j in range(4):
            low, high = packed[8 * g + j] ^ signs, packed[8 * g + j + 4] ^ signs
            out[at + 2 * j] = (low & 15) | ((high & 15) << 4)
            out[at + 2 * j + 1] = (low >> 4) | (high & 0xF0)
