"""GPTQ, written plainly: codes that make up for each other's errors."""

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def gptq(x: F32, correlation: NDArray[np.float64], group: int) -> tuple[NDArray[np.int64], F32]:
    """Codes from -8 to 7 and a scale per group of weights along the rows, without zero points.

    `correlation` is that of the inputs of the layer (Frantar et al., arXiv 2210.17323, section 3).
    """
    inverse = np.linalg.inv(correlation + 0.01 * np.diag(correlation).mean() * np.eye(x.shape[1]))
    upper = np.linalg.cholesky(inverse).T
    left = x.astype(np.float64)
    codes = np.empty(x.shape, np.int64)
    scales = np.empty((len(x), x.shape[1] // group), np.float32)
    for i in range(x.shape[1]):
        if i % group == 0:
            d = np.abs(left[:, i : i + group]).max(1) / 7.5
            scales[:, i // group] = d.astype(np.float16)
        d = scales[:, i // group].astype(np.float64)
        codes[:, i] = np.clip(np.rint(left[:, i] / d), -8, 7)
        error = (left[:, i] - codes[:, i] * d) / upper[i, i]
        left[:, i:] -= error[:, None] * upper[i, i:]
    return codes, scales


def q4_0_blocks(codes: NDArray[np.int64], scales: F32) -> NDArray[np.uint8]:
    """The same as rows of Q4_0 blocks, each with the scale of its group."""
    n_blocks = codes.shape[1] // 32
    d = np.repeat(scales.astype("<f2"), n_blocks // scales.shape[1], axis=1)
    q = (codes + 8).astype(np.uint8).reshape(len(codes), n_blocks, 32)
    blocks = np.empty((len(codes), n_blocks, 18), np.uint8)
    blocks[..., :2] = np.ascontiguousarray(d).view(np.uint8).reshape(len(codes), n_blocks, 2)
    blocks[..., 2:] = q[..., :16] | (q[..., 16:] << 4)
    return blocks.reshape(len(codes), -1)
