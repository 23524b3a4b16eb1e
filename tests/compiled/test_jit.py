"""Compiled functions: which of them Python may call."""

import numpy as np
import pytest

from recover.quants._k_scales import unpack_scales
from recover.quants.q4_k import Q4_K


def test_what_only_kernels_call_says_so() -> None:
    codes, scale, offset = np.empty(256, np.uint8), *np.empty((2, 16), np.float32)
    for _ in range(2):  # the second time it is compiled
        with pytest.raises(TypeError, match="unpack_scales is for kernels only"):
            unpack_scales(np.zeros(16, np.uint8), scale, offset)
        Q4_K.unpack(np.zeros(144, np.uint8), codes, scale, offset)
