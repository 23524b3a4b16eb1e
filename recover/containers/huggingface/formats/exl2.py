"""EXL2, as exllamav2 stores it; and a refusal of EXL3.

``q_weight`` int32 (n_words, N): columns of the matrix, the most important ones first, in groups
with a number of bits each; in a group the codes of one row of the matrix are packed end to end, the
lowest bits first. ``q_groups`` int16 (2 G): bits and first word of each group. ``q_invperm`` int32
(K): where each column is. ``q_scale`` int32 (G, N / 8): four bits for each row and group, and
``q_scale_max`` float16 (G): a scale is ``(bits + 1)**2 * q_scale_max / 256`` in float16. A weight
is (code - half of the codes) * scale. N is filled up to whole 32.

The codes make up for each other's errors, as GPTQ's do (exllamav2:conversion/adaptivegptq.py); with
twelve times the damping they do so less.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from recover.containers.huggingface.formats._columns import (
    WORDS,
    fields,
    take_codes,
    unpack_columns,
)
from recover.containers.huggingface.formats._compensated import Codes, CompensatedMatrix
from recover.containers.huggingface.modules import Module, values
from recover.quants import F32Array, IntervalType, U8Array

LEAVES = frozenset({"q_weight", "q_invperm", "q_perm", "q_scale", "q_scale_max", "q_groups"})

_BITS = (2, 3, 4, 5, 6, 8)
_TYPICAL_NOISE = 1.3 / 12
_RELATIVE_MSE = 4.0  # times 4 to the power of minus the bits


@cache
def exl2_type(n_bits: float) -> IntervalType:
    """The type of codes of so many bits, to half a bit (see `_mean_bits`)."""
    return IntervalType(name=f"EXL2-{n_bits:g}", relative_mse=_RELATIVE_MSE / 4**n_bits)


def _mean_bits(n_bits: NDArray[np.int64], sizes: NDArray[np.int64]) -> float:
    """Bits with the mean square error of groups of such sizes."""
    mean = np.average(1 / 4.0**n_bits, weights=sizes)
    return round(-np.log2(mean)) / 2


@dataclass(frozen=True)
class Layout:
    """The arrays of a module, of shapes that fit each other.

    Attributes
    ----------
    words : uint32 (n_words, n_rows)
        Packed codes.
    n_bits, first_words, first_columns : int64 (n_groups,)
        Of each group.
    steps : uint32 (n_groups, n_rows / 8)
        Four bits for each row.
    largest : float32 (n_groups,)
        Scale over the squared step.
    """

    words: NDArray[np.uint32]
    n_bits: NDArray[np.int64]
    first_words: NDArray[np.int64]
    first_columns: NDArray[np.int64]
    steps: NDArray[np.uint32]
    largest: F32Array

    def codes(self, first: int, last: int, out: U8Array) -> None:
        """Codes (last - first, row_length) of rows; the columns as they are stored."""
        strip = np.array(self.words[:, first:last], np.uint32, order="C")
        ends = [*self.first_words[1:], len(strip)]
        groups = zip(self.n_bits, self.first_words, ends, self.first_columns, strict=True)
        for n_bits, begin, end, column in groups:
            unpack_columns(strip[begin:end], int(n_bits), int(column), out)

    def codes_of(self, places: NDArray[np.int64], groups: NDArray[np.int64]) -> Codes:
        """What gives the codes (last - first, n) of columns at some places, of such groups."""
        n_bits = self.n_bits[groups]
        bits = 32 * self.first_words[groups] + (places - self.first_columns[groups]) * n_bits
        return take_codes(self.words.view(np.uint32), bits, n_bits)

    def scales(self, first: int, last: int) -> F32Array:
        """Scales (last - first, n_groups) of rows."""
        step = fields(self.steps, 4, first, last).astype(np.float32) + 1
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = (step * step * self.largest[:, None]).astype(np.float16)
        return rounded.T.astype(np.float32, order="C")

    def zeros(self, first: int, last: int) -> F32Array:
        """Zero points (last - first, n_groups) of rows."""
        half = (1 << (self.n_bits - 1)).astype(np.float32)
        return np.repeat(half[None], last - first, axis=0)


def read(module: Module) -> CompensatedMatrix | None:
    """See `recover.containers.huggingface.formats.Format`."""
    if "trellis" in module.tensors:
        raise module.error(
            "EXL3 stores codes of a trellis, of rotated weights: they confine no weight, and there"
            " is no decoder for them here; leave this folder out"
        )
    if "q_weight" not in module.tensors:
        return None
    weight = module.take("q_weight", WORDS, 2)
    scale = module.take("q_scale", WORDS, 2)
    largest = module.take("q_scale_max", ("F16",), 1)
    groups = module.take("q_groups", ("I16",), 1)
    places = module.take("q_invperm", WORDS, 1)
    (n_words, n_rows), n_groups, (row_length,) = weight.shape, scale.shape[0], places.shape
    if n_rows % 8:
        raise module.error(f"q_weight has {n_rows} rows, which are no whole words of q_scale")
    module.expect("q_scale", (n_groups, n_rows // 8))
    module.expect("q_scale_max", (n_groups,))
    module.expect("q_groups", (2 * n_groups,))
    n_bits, first_words = values(groups).astype(np.int64).reshape(n_groups, 2).T
    sizes = _sizes(module, n_bits, first_words, n_words, row_length)
    place = values(places).astype(np.int64)
    if place.max() >= row_length or np.bincount(place, minlength=row_length).max() > 1:
        raise module.error("q_invperm names a place twice, or one beyond the columns")
    with np.errstate(under="ignore", invalid="ignore"):
        most = (values(largest).astype(np.float32) / 256).astype(np.float16).astype(np.float32)
    first_columns = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    found = Layout(values(weight), n_bits, first_words, first_columns, values(scale), most)
    group_of = np.repeat(np.arange(n_groups), sizes)
    mean = float(np.average(n_bits, weights=sizes))
    return CompensatedMatrix(
        n_rows=n_rows,
        row_length=row_length,
        type=exl2_type(_mean_bits(n_bits, sizes)),
        seen_as="F16",
        leaves=LEAVES,
        label=f"EXL2, {mean:.2f} bits",
        group=row_length,
        places=np.stack([place, group_of[place]]).astype(np.int32),
        codes=found.codes,
        codes_of=lambda columns: found.codes_of(place[columns], group_of[place[columns]]),
        first_columns=np.flatnonzero(place == 0),
        scales=found.scales,
        zeros=found.zeros,
        n_codes=1 << n_bits,
        noise=_TYPICAL_NOISE,
    )


def _sizes(
    module: Module,
    n_bits: NDArray[np.int64],
    first_words: NDArray[np.int64],
    n_words: int,
    row_length: int,
) -> NDArray[np.int64]:
    """How many columns each group has; only the last one may leave a word unfilled."""
    sizes = np.diff(first_words, append=n_words) * 32
    is_known = np.isin(n_bits, _BITS).all() and first_words[0] == 0 and (sizes > 0).all()
    if is_known:
        is_known = bool((sizes[:-1] % n_bits[:-1] == 0).all())
        sizes = sizes // n_bits
        last = row_length - int(sizes[:-1].sum())
        is_known = is_known and 0 < last <= sizes[-1]
        is_known = is_known and -(-last * int(n_bits[-1]) // 32) == n_words - int(first_words[-1])
        sizes[-1] = last
    if not is_known:
        raise module.error(
            f"q_groups are no groups of {row_length} columns in {n_words} words of 2 to 8 bits"
        )
    return sizes
