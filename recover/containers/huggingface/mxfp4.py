"""Blocks of MXFP4 as gpt-oss stores its experts: the original's own numbers, and GGUF's, too.

``X_blocks`` uint8 (experts, rows, row_length / 32, 16): weights 2 j and 2 j + 1 of a block in the
lower and upper half of byte j. ``X_scales`` uint8 (experts, rows, row_length / 32): exponents with
a bias of 127. GGUF's blocks have the exponent first, and weights j and j + 16 in byte j. (Source:
transformers, ``integrations/mxfp4.py``, `convert_moe_packed_tensors`.)
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from recover._compiled.jit import kernel
from recover.containers.huggingface.modules import Module, values
from recover.containers.safetensors.reader import Tensor
from recover.quants import TensorType, U8Array, type_by_name

BLOCKS, SCALES = "_blocks", "_scales"
_BLOCK = 32


@dataclass(frozen=True, eq=False)
class Mxfp4Blocks:
    """All experts' weights of one kind, one below the other.

    Attributes
    ----------
    blocks, scales : Tensor
        As stored.
    """

    blocks: Tensor
    scales: Tensor
    type: ClassVar[TensorType] = type_by_name("MXFP4")

    @property
    def n_experts(self) -> int:
        """Number of experts."""
        return self.blocks.shape[0]

    @property
    def row_length(self) -> int:
        """Weights of a row."""
        return self.blocks.shape[2] * _BLOCK

    @property
    def n_rows(self) -> int:
        """Rows of all experts."""
        return self.blocks.shape[0] * self.blocks.shape[1]

    def part(self, start: int, end: int) -> U8Array:
        """GGUF's blocks of weights `start` to `end`, which are whole blocks."""
        first, last = start // _BLOCK, end // _BLOCK
        packed = values(self.blocks).reshape(-1, 16)[first:last]
        out = np.empty((last - first) * self.type.type_size, np.uint8)
        repack(packed, values(self.scales).reshape(-1)[first:last], out)
        return out


def mxfp4_of(module: Module, leaf: str) -> Mxfp4Blocks:
    """The experts whose blocks are the array `leaf` of a module.

    Raises
    ------
    SafetensorsError
        If there are no scales beside them, or the shapes do not fit each other.
    """
    blocks = module.take(leaf, ("U8",), 4)
    other = leaf.removesuffix(BLOCKS) + SCALES
    scales = module.take(other, ("U8",), 3)
    module.expect(other, blocks.shape[:3])
    module.expect(leaf, (*blocks.shape[:3], _BLOCK // 2))
    return Mxfp4Blocks(blocks, scales)


@kernel
def repack(packed: U8Array, scales: U8Array, out: U8Array) -> None:
    """Blocks (n, 16) and exponents (n,) in GGUF's order (17 n,)."""
    for b in range(len(packed)):
        out[17 * b] = scales[b]
        for j in range(8):
            low, high = packed[b, j], packed[b, j + 8]  # weights 2 j, 2 j + 1, and those 16 later
            out[17 * b + 1 + 2 * j] = (low & 15) | ((high & 15) << 4)
            out[17 * b + 2 + 2 * j] = (low >> 4) | (high & 0xF0)
