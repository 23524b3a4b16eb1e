"""GGUF Q8_0 files that were made the naive way from integer originals, as sources of re-blocking.

The naive way multiplies the integers by their scales in some float type and quantizes the products
again, with a scale of its own per 32 weights. Every step is known, so that it can be undone where
only one code leads to the stored byte.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from recover.containers.model import StoredTensor
from recover.execution.tiles import Tile, available_cores, for_each_tile, whole_rows
from recover.inputs.originals._fit import reach
from recover.inputs.originals._requantized import MAX_CODE, Tables, is_naive, read_groups, tables
from recover.inputs.originals.codes import BLOCK, rounded
from recover.quants import U8Array, quantize, type_by_name

CHAINS = ("F32", "F16", "BF16")
"""What the products were rounded to, in the order of trial; the index is the kernel's number."""

_N_SAMPLED_ROWS = 16
# Shorter groups are explained by chance, unless their codes are few.
_SHORTEST = {MAX_CODE: 96, 16: BLOCK}
_FEWEST_GROUPS = 8
_FEWEST_NONZERO = 0.25
LONGEST_ROW = 1 << 20  # of longer ones, which no matrix has, some are too large to be looked at
# Scales that no BF16 scale is, in steps of BF16 numbers: what they explain as well proves nothing.
_CONTROLS = tuple(i / 8 for i in range(1, 8))
# F16 numbers below are farther apart than BF16 numbers: any scale explains them.
_SMALLEST_SCALE = 2.0**-17


@dataclass(frozen=True)
class SecondHand:
    """The original grid of a Q8_0 tensor.

    Attributes
    ----------
    chain : str
        One of `CHAINS`.
    group : int
        Weights along a row that share a scale.
    max_code : int
        The limit within which codes were looked for.
    reach : int
        The largest magnitude of a code, or one more (see `recover.inputs.originals._fit.reach`).
    n_unproven : int
        Weights whose byte another code would explain as well.
    """

    chain: str
    group: int
    max_code: int
    reach: int
    n_unproven: int


@dataclass(frozen=True, eq=False)
class Blocks:
    """A matrix of Q8_0 blocks, row by row."""

    tensor: StoredTensor

    @property
    def row_length(self) -> int:
        """Weights of a row."""
        return self.tensor.dims[0]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.tensor.n_weights // self.row_length

    def rows(self, first: int, last: int) -> U8Array:
        """A copy of the bytes of rows."""
        return self.tensor.part(first * self.row_length, last * self.row_length).copy()


@dataclass(frozen=True, eq=False)
class Groups:
    """What consecutive groups were made from.

    Attributes
    ----------
    codes : int16 (n,)
        The integers.
    scales : float64 (n_groups,)
        BF16 numbers; 0 for zeros.
    n_unproven : int
        Weights whose byte another code would explain as well; -1 if a group has no explanation.
    """

    codes: NDArray[np.int16]
    scales: NDArray[np.float64]
    n_unproven: int


def find_second_hand(tensor: StoredTensor, *, n_threads: int | None = None) -> SecondHand | None:
    """Look for the integers that a Q8_0 tensor was made from, and prove them.

    Parameters
    ----------
    tensor : StoredTensor
        Of the type Q8_0.
    n_threads : int, optional
        Default: the cores that this process may use.

    Returns
    -------
    SecondHand or None
        Given only if the recovered weights, encoded again, are the stored bytes, all of them, and
        if scales that are no BF16 numbers do not explain them as well: of weights with few
        magnitudes (ternary ones, say) any scale does. A tensor without such an origin costs little:
        some rows are tried first.
    """
    blocks = Blocks(tensor)
    if blocks.row_length > LONGEST_ROW:
        return None
    if not is_naive(blocks.rows(0, 1)):
        return None
    rows = np.concatenate([blocks.rows(row, row + 1) for row in _picked(blocks.n_rows)])
    if not is_naive(rows):
        return None
    found = _guess(rows, blocks.row_length)
    return None if found is None else _prove(blocks, found, n_threads)


@cache
def _picked(n_rows: int) -> tuple[int, ...]:
    """Evenly spaced rows to be looked at."""
    places = np.linspace(0, n_rows - 1, min(n_rows, _N_SAMPLED_ROWS)).round()
    return tuple(np.unique(places).astype(int).tolist())


def _guess(rows: U8Array, row_length: int) -> SecondHand | None:
    """The longest group and the chain that explain sampled rows, uint8 (n_bytes,)."""
    sample = rows.reshape(-1, 34)
    if np.count_nonzero(sample[:, 2:]) < _FEWEST_NONZERO * 32 * len(sample):
        return None
    if _scales(rows).max() < _SMALLEST_SCALE:
        return None
    n_blocks = row_length // BLOCK
    n_rows = len(sample) // n_blocks
    memory = tables()
    for max_code, shortest in _SHORTEST.items():
        for parts in range(1, n_blocks + 1):
            group, rest = divmod(n_blocks, parts)
            if rest or group * BLOCK < shortest or n_rows * parts < _FEWEST_GROUPS:
                continue
            groups = _largest_first(rows, group * BLOCK)
            for chain in CHAINS:
                guess = SecondHand(chain, group * BLOCK, max_code, 0, 0)
                if _explains(groups, guess, memory):
                    is_chance = any(_explains(groups, guess, memory, each) for each in _CONTROLS)
                    return None if is_chance else guess
    return None


def _scales(raw: U8Array) -> NDArray[np.float16]:
    """The scale of each block."""
    return raw.reshape(-1, 34)[:, :2].copy().view(np.float16)[:, 0]


def _largest_first(rows: U8Array, group: int) -> U8Array:
    """The bytes of all groups, those of the largest scale first.

    These have the fewest explanations, so that weights without an origin are told at once. Of a
    scale that is a small multiple of the smallest F16 number there are thousands.
    """
    groups = rows.reshape(-1, group // BLOCK * 34)
    largest = _scales(rows).reshape(len(groups), -1).max(1)
    return groups[np.argsort(-largest, kind="stable")].reshape(-1)


def _explains(groups: U8Array, guess: SecondHand, memory: Tables, shift: float = 0.0) -> bool:
    """Whether all groups can be made from integers with scales on the (shifted) grid."""
    return read_second_hand(groups, guess, memory, shift).n_unproven >= 0


def read_second_hand(
    raw: U8Array, found: SecondHand, memory: Tables | None = None, shift: float = 0.0
) -> Groups:
    """What whole groups of stored blocks, raw uint8 (n_bytes,), were made from.

    With a shift, their scales are looked for so many steps above the BF16 numbers.
    """
    n_weights = raw.size // 34 * BLOCK
    codes, scales = np.zeros(n_weights, np.int16), np.zeros(n_weights // found.group)
    chain = CHAINS.index(found.chain)
    n_unproven = read_groups(raw, chain, found.max_code, shift, memory or tables(), codes, scales)
    return Groups(codes, scales, n_unproven)


def _prove(blocks: Blocks, found: SecondHand, n_threads: int | None) -> SecondHand | None:
    """Read every group, encode what it was made from again, and compare the bytes."""
    kind, row_length = type_by_name("Q8_0"), blocks.row_length
    sums: list[tuple[int, int]] = []

    def work(tile: Tile) -> None:
        raw = blocks.rows(tile.start // row_length, tile.end // row_length)
        groups = read_second_hand(raw, found)
        weights = weights_of(groups, found).astype(np.float32)
        if groups.n_unproven < 0 or not np.array_equal(
            quantize(weights.reshape(-1, row_length), kind), raw
        ):
            raise _UnexplainedError
        sums.append((groups.n_unproven, int(reach(groups.codes))))

    try:
        workers = [work] * (n_threads or available_cores())
        n_weights = blocks.n_rows * row_length
        for_each_tile([n_weights], workers, steps=[whole_rows(row_length)])
    except _UnexplainedError:
        return None
    n_unproven, largest = sum(each[0] for each in sums), max(each[1] for each in sums)
    return replace(found, reach=largest, n_unproven=n_unproven)


class _UnexplainedError(Exception):
    """A group has no explanation: the search is over."""


def weights_of(groups: Groups, found: SecondHand) -> NDArray[np.float64]:
    """What the naive way encoded: the products, rounded as in the chain."""
    products = groups.codes.reshape(-1, found.group) * groups.scales[:, None]
    return rounded(products, found.chain).reshape(-1)


def encoded(weights: NDArray[np.float64]) -> U8Array:
    """Q8_0 blocks of weights that are float32 numbers, by NumPy alone; (n / 32, 34).

    Mirrors `quantize_row_q8_0_ref`.
    """
    x = weights.astype(np.float32).reshape(-1, BLOCK)
    d = np.abs(x).max(1) / np.float32(127)
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d > 0)
    scaled = x * inverse[:, None]
    whole = np.floor(np.abs(scaled))
    whole += np.abs(scaled) - whole >= 0.5  # roundf: halves away from zero
    blocks = np.empty((len(x), 34), np.uint8)
    blocks[:, :2] = d.astype("<f2").view(np.uint8).reshape(-1, 2)
    blocks[:, 2:] = np.copysign(whole, scaled).astype(np.int8).view(np.uint8)
    return blocks
