"""The 12 bytes in which Q4_K and Q5_K store eight 6-bit scales and eight 6-bit minima."""

import numpy as np

from recover._jit import kernel
from recover.quants._float16 import read_f16
from recover.quants.base import F32Array, U8Array


@kernel
def unpack_scales(header: U8Array, scale: F32Array, offset: F32Array) -> None:
    """``d``, ``dmin`` and 12 bytes of scales to 16 scales and offsets; see `get_scale_min_k4`."""
    d = read_f16(header, 0)
    dmin = read_f16(header, 2)
    packed = header[4:16]
    for j in range(8):
        if j < 4:
            sc = packed[j] & 63
            m = packed[j + 4] & 63
        else:
            sc = (packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4)
            m = (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4)
        scale[2 * j : 2 * j + 2] = d * np.float32(sc)
        offset[2 * j : 2 * j + 2] = -(dmin * np.float32(m))
