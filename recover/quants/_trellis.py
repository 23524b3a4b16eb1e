"""Codes of ik_llama.cpp's trellis types: seeds of a generator of nearly normal numbers.

A group of 8 weights (of 4 in IQ4_KT) has one seed, and each weight the next number that follows
from it. The generator was changed in June 2025 (ik_llama.cpp PR 529), under the same names and
numbers of the types: what is called the first generation here is from before.

- Now: ``state = state * 0xCBAC1FED mod 2**32``, level = the sum of the four bytes of ``state AND
  0x3F3F3F3F``, minus 126.
- The first generation: ``state = 89226354 * state + 64248484 mod 2**32``, level = 31.75 times the
  sum of the two halves, as f16, of ``(state AND 0x8FFF8FFF) XOR 0x3B603B60``.

Both start from the seed plus 4096.
"""

from typing import Any

import numpy as np

from recover._compiled.float16 import f16_to_f32
from recover._compiled.jit import inner
from recover.quants._hidden_scales import LEVELS_4
from recover.quants.base import F32Array

SCALES = np.array(LEVELS_4, np.float32)
"""`iq4k_values`: what the four bits of a scale stand for in IQ1_KT and IQ2_KT."""
FIRST_FACTOR = np.float32(31.75)
"""What the levels of the first generation are multiplied by, as part of the scale."""
FIRST_UNIT = np.float32(1) / FIRST_FACTOR
"""What is 1 in the levels of the present generation, in those without the factor."""


@inner
def fill_group(seed: Any, levels: F32Array, is_first: bool) -> None:
    """The levels of a group; those of the first generation without their factor."""
    state = np.uint32(seed + 4096)
    for i in range(levels.size):
        if is_first:
            state = np.uint32(np.uint32(89226354) * state + np.uint32(64248484))
            bits = (state & np.uint32(0x8FFF8FFF)) ^ np.uint32(0x3B603B60)
            low, high = np.uint16(bits & np.uint32(0xFFFF)), np.uint16(bits >> np.uint32(16))
            levels[i] = f16_to_f32(low) + f16_to_f32(high)
        else:
            state = np.uint32(state * np.uint32(0xCBAC1FED))
            bits = state & np.uint32(0x3F3F3F3F)
            total = (bits & np.uint32(255)) + ((bits >> np.uint32(8)) & np.uint32(255))
            total += ((bits >> np.uint32(16)) & np.uint32(255)) + (bits >> np.uint32(24))
            levels[i] = np.float32(np.int32(total) - 126)
