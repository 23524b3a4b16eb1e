"""The trellis types of ik_llama.cpp, decoded and encoded by their formulas, one row at a time."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Integers = NDArray[np.int64]

N_TOGETHER = {"IQ2_KT": 8, "IQ3_KT": 8, "IQ4_KT": 4}
SIZES = {"IQ2_KT": 68, "IQ3_KT": 100, "IQ4_KT": 128}
LEVELS_4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


class Fields(NamedTuple):
    """What a row of sub-blocks says."""

    d: np.float32
    factors: Integers
    """(n_sub_blocks,)"""
    first: Integers
    """(n_sub_blocks,): the first seed of the set of seeds."""
    seeds: Integers
    """(n_sub_blocks, n_groups): within that set."""
    is_negative: NDArray[np.bool_]
    """(n_sub_blocks, 32)"""


def levels_of(name: str, seeds: Integers) -> F32:
    """The levels of seeds, (..., n_together)."""
    state = (seeds + 4096) % 2**32
    levels = np.empty((*seeds.shape, N_TOGETHER[name]), np.float32)
    for i in range(N_TOGETHER[name]):
        state = state * 0xCBAC1FED % 2**32
        levels[..., i] = sum((state >> 8 * k) & 63 for k in range(4)) - 126
    return np.abs(levels) if name == "IQ3_KT" else levels


def fields_of(name: str, row: U8) -> Fields:
    """Take a row apart."""
    d = row[:4].copy().view("<f4")[0]
    blocks = row[4:].reshape(-1, SIZES[name])
    n = 8 * len(blocks)
    first, is_negative = np.zeros(n, np.int64), np.zeros((n, 32), np.bool_)
    if name == "IQ4_KT":
        words = blocks[:, :32].copy().view("<u4").astype(np.int64).reshape(n)
        factors = (words >> 1 & 127) - 64
        first = 32768 * (words & 1)
        low, mid = blocks[:, 32:96].astype(np.int64), blocks[:, 96:].astype(np.int64)
        mid = np.concatenate([mid & 15, mid >> 4], axis=1)
        high = words[:, None] >> (8 + 3 * np.arange(8)) & 7
        seeds = (low | mid << 8).reshape(n, 8) | high << 12
    else:
        halves = np.concatenate([blocks[:, :4] & 15, blocks[:, :4] >> 4], axis=1).astype(np.int64)
        factors = (np.array(LEVELS_4)[halves] if name == "IQ2_KT" else halves).reshape(n)
        seeds = blocks[:, 4:68].copy().view("<u2").astype(np.int64).reshape(n, 4)
    if name == "IQ3_KT":
        planes = blocks[:, None, 68:] >> np.arange(8)[:, None] & 1
        is_negative = planes.reshape(n, 32) == 1
    return Fields(d, factors, first, seeds, is_negative)


def decode(name: str, row: U8) -> F32:
    """The weights of a row: twice rounded to float32."""
    fields = fields_of(name, row)
    scale = (fields.d * fields.factors.astype(np.float32))[:, None]
    levels = levels_of(name, fields.first[:, None] + fields.seeds).reshape(-1, 32)
    weights = scale * levels
    return np.where(fields.is_negative, -weights, weights).reshape(-1)


def best_errors(name: str, row: U8, x: F32, importance: F32) -> NDArray[np.float64]:
    """The least error of each group with any seed, for the scales and sets that a row has."""
    fields, n = fields_of(name, row), N_TOGETHER[name]
    target = (np.abs(x) if name == "IQ3_KT" else x).reshape(len(fields.factors), -1, n)
    weights = importance.reshape(target.shape)
    n_seeds = 32768 if name == "IQ4_KT" else 65536
    best = np.empty(target.shape[:2])
    for s, factor in enumerate(fields.factors):
        levels = levels_of(name, fields.first[s] + np.arange(n_seeds)).astype(np.float64)
        for g in range(target.shape[1]):
            off = target[s, g] - np.float64(fields.d) * factor * levels
            best[s, g] = (weights[s, g] * off**2).sum(axis=1).min()
    return best
