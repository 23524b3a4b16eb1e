"""AWQ in the layout "gemm", as AutoAWQ stores it.

``qweight`` int32 (K, N / 8): eight columns per word in the order 0, 2, 4, 6, 1, 3, 5, 7, the lowest
bits first; ``qzeros`` (G, N / 8) likewise; ``scales`` (G, N). A weight is (code - zero) * scale.

What is stored are no weights of the original: its columns, and some rows, were multiplied by scales
that the folder does not hold (Lin et al., arXiv 2306.00978; `recover.inputs.scaled` finds them
beside another input). The scaled weights are confined: the last step of the encoder
(AutoAWQ:awq/quantize/quantizer.py, pseudo_quantize_tensor) is ``round(w / s) + z`` with ``s`` and
``z`` as stored. Before, it clips each group of all but queries and keys to as little as 0.55 of its
largest weight, so that the lowest and the highest code of a group stand for all beyond, too. The
highest one of a clipped group may be 14, where both ends are 7.5 steps but for rounding.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import inner, kernel
from recover.containers.huggingface.formats._coded import WHOLE_NUMBERS, Coded, Runs
from recover.containers.huggingface.formats._columns import WORDS, unpack_interleaved
from recover.containers.huggingface.modules import FLOATS, Module, as_float32, values
from recover.containers.huggingface.scaled import ScaledMatrix
from recover.containers.safetensors.reader import Tensor
from recover.quants import F32Array, IntervalType, Stated, U8Array

LEAVES = frozenset({"qweight", "qzeros", "scales"})

_NIBBLE_OF_COLUMN = np.array([0, 4, 1, 5, 2, 6, 3, 7])
_UNCLIPPED = frozenset({"q_proj", "k_proj", "query", "key", "Wqkv"})

# Roundings to the encoder's floats, each relative: of the weight times a scale, over another one,
# and over the step; the latter is what edges are compared with. And of the range of a group, and of
# a fifteenth of it, by which the largest weight may be beyond the cell of code 15.
_ROUNDINGS, _RANGE_ROUNDINGS = np.float32(3.01), np.float32(15 * 2.01)
_UNIT = {"F16": 2.0**-11, "BF16": 2.0**-8, "F32": 2.0**-24}
_TINY = np.float32(2.0**-24)  # twice the rounding of the smallest float16

# Mean square error of an end code in units of the squared step, which clipped weights share.
_END_NOISE = np.float32(0.36)

_FAR = np.float32(np.inf)
_HALF = np.float32(0.5)
_NOISE = np.float32(1 / 12)


@cache
def awq_type(group: int) -> IntervalType:
    """The type of groups of such a size."""
    return IntervalType(name="AWQ4", relative_mse=0.0083 if group <= 64 else 0.0108)


@dataclass(frozen=True)
class Layout:
    """The arrays of a module, of shapes that fit each other."""

    n_rows: int
    row_length: int
    n_groups: int
    """Sizes."""
    words: NDArray[np.uint32]
    """uint32 (row_length, n_rows / 8): packed codes."""
    zero_words: NDArray[np.uint32]
    """uint32 (n_groups, n_rows / 8): packed zero points."""
    scales: Tensor
    """(n_groups, n_rows)"""

    @property
    def group(self) -> int:
        """Weights along a row that share a scale."""
        return self.row_length // self.n_groups

    def zeros(self, first: int, last: int) -> NDArray[np.int32]:
        """Zero points (n_groups, last - first) of rows."""
        return columns(self.zero_words, first, last)

    def scale_rows(self, first: int, last: int) -> F32Array:
        """Scales (last - first, n_groups) of rows."""
        return as_float32(self.scales, values(self.scales)[:, first:last].T)

    def codes(self, first: int, last: int, out: U8Array) -> None:
        """Codes (last - first, row_length) of rows."""
        begin, end = first // 8, -(-last // 8)
        strip = np.array(self.words[:, begin:end], np.uint32, order="C")
        if (8 * begin, 8 * end) == (first, last):
            unpack_interleaved(strip, out)
            return
        whole = np.empty((8 * (end - begin), self.row_length), np.uint8)
        unpack_interleaved(strip, whole)
        out[:] = whole[first - 8 * begin : last - 8 * begin]


def columns(packed: NDArray[np.uint32], first: int, last: int) -> NDArray[np.int32]:
    """Columns `first` to `last` of packed words (n, N / 8)."""
    begin, end = first // 8, -(-last // 8)
    shifts = np.arange(0, 32, 4, dtype=np.uint32)[_NIBBLE_OF_COLUMN]
    nibbles = (packed[:, begin:end, None] >> shifts) & np.uint32(15)
    whole = nibbles.astype(np.int32).reshape(len(packed), -1)
    return whole[:, first - 8 * begin : last - 8 * begin]


def layout(module: Module) -> Layout | None:
    """The arrays of a module that AWQ quantized; None of any other.

    Raises
    ------
    SafetensorsError
        If an array is missing, or of a wrong shape, or the layout is another one of AWQ's.
    """
    if "qweight" not in module.tensors:
        return None
    method = module.config.get("quant_method")
    qweight = module.take("qweight", WORDS, 2)
    scales = module.take("scales", FLOATS, 2)
    qzeros = module.take("qzeros", WORDS, 2)
    (n_groups, n_rows), row_length = scales.shape, qweight.shape[0]
    if method not in ("awq", None) or (method is None and qweight.shape[1] * 8 != n_rows):
        return None
    version = module.config.get("version", "gemm")
    if str(version).lower() != "gemm" or module.integer("bits") not in (None, 4):
        raise module.error("AWQ is only supported with 4 bits and version gemm")
    if n_rows % 8 or row_length % n_groups:
        raise module.error(f"{n_groups} x {n_rows} scales for {row_length} columns")
    module.expect("qweight", (row_length, n_rows // 8))
    module.expect("qzeros", (n_groups, n_rows // 8))
    return Layout(n_rows, row_length, n_groups, values(qweight), values(qzeros), scales)


def read(module: Module) -> ScaledMatrix | None:
    """See `recover.containers.huggingface.formats.Format`."""
    if "scaled_zeros" in module.tensors:
        raise module.error(
            "the layout of llm-awq (scaled_zeros) is not supported; convert it to AutoAWQ's gemm"
        )
    found = layout(module)
    if found is None:
        return None
    if module.integer("group_size") not in (None, -1, found.group):
        raise module.error(
            f"{found.n_groups} scales for {found.row_length} columns are no groups of"
            f" {module.integer('group_size')}"
        )
    is_clipped = module.name.rpartition(".")[2] not in _UNCLIPPED
    return ScaledMatrix(AwqMatrix(layout=found, is_clipped=is_clipped))


@dataclass(frozen=True)
class AwqMatrix:
    """The scaled weights; see `recover.containers.huggingface.formats.base.Matrix`."""

    layout: Layout
    """The arrays."""
    is_clipped: bool
    """Whether groups may have been clipped."""

    @property
    def n_rows(self) -> int:
        """Outputs."""
        return self.layout.n_rows

    @property
    def row_length(self) -> int:
        """Inputs."""
        return self.layout.row_length

    @property
    def type(self) -> IntervalType:
        """See `Matrix`."""
        return awq_type(self.layout.group)

    @property
    def has_cells(self) -> bool:
        """Yes."""
        return True

    @property
    def seen_as(self) -> str:
        """The floats of the scales, in which the encoder computes."""
        return self.layout.scales.dtype

    @property
    def leaves(self) -> frozenset[str]:
        """See `Matrix`."""
        return LEAVES

    @property
    def label(self) -> str:
        """For people."""
        return f"AWQ 4-bit, groups of {self.layout.group}"

    def intervals(self, start: int, end: int, out: Stated) -> None:
        """See `Matrix.intervals`."""
        row_length = self.row_length
        first, last = start // row_length, -(-end // row_length)
        codes = np.empty((last - first, row_length), np.uint8)
        self.layout.codes(first, last, codes)
        zeros = self.layout.zeros(first, last).T.astype(np.float32, order="C")
        scales = self.layout.scale_rows(first, last)
        unit = np.float32(_UNIT[self.seen_as])
        begin = start - first * row_length
        _state(codes, (scales, zeros), self.layout.group, self.is_clipped, unit, begin, out)

    def coded(self, start: int, end: int) -> Coded:
        """See `Matrix.coded`."""
        length = self.row_length
        first, last = start // length, -(-end // length)
        codes = np.empty((last - first, length), np.uint8)
        self.layout.codes(first, last, codes)
        zeros = self.layout.zeros(first, last).T.astype(np.float64, order="C").reshape(-1)
        scales = self.layout.scale_rows(first, last).astype(np.float64).reshape(-1)
        runs = Runs(length, self.layout.group, 0)
        whole = Coded(codes.reshape(-1), WHOLE_NUMBERS, runs, scales, zeros)
        return whole.part(start - first * length, end - first * length)


@kernel
def _state(
    codes: U8Array,
    steps: tuple[F32Array, F32Array],
    group: int,
    is_clipped: bool,
    unit: np.float32,
    begin: int,
    out: Stated,
) -> None:
    """Fill `out` from flat position `begin` of rows of codes (n, row_length) on.

    `steps` are the scales and zero points (n, n_groups). Each group has a table of its codes.
    """
    scales, zeros = steps
    value, lower, upper, variance = out
    table = np.empty((4, 16), np.float32)
    row_length = codes.shape[1]
    at, position = 0, begin
    while at < value.size:
        row, k = position // row_length, position % row_length
        g = k // group
        line = codes[row]
        top = np.uint8(0)
        for i in range(g * group, (g + 1) * group):
            top = max(top, line[i])
        _tabulate(scales[row, g], zeros[row, g], top, is_clipped, unit, table)
        n = min((g + 1) * group - k, value.size - at)
        for i in range(n):
            q = line[k + i]
            value[at + i] = table[0, q]
            lower[at + i] = table[1, q]
            upper[at + i] = table[2, q]
            variance[at + i] = table[3, q]
        at += n
        position += n


@inner
def _tabulate(
    scale: np.float32,
    zero: np.float32,
    top: np.uint8,
    is_clipped: bool,
    unit: np.float32,
    table: F32Array,
) -> None:
    """What each code of a group says: value, bounds and variance.

    A group whose weights all have one sign has no zero point that fits, and is cut off at one end.
    """
    known = scale > 0 and scale * scale < _FAR
    open_below, open_above = is_clipped or zero == 15, is_clipped or zero == 0
    for q in range(16):
        level = np.float32(q) - zero
        slack = unit * _ROUNDINGS * (abs(level) + _HALF) * scale + _TINY
        is_low, is_high = q == 0 and open_below, (q >= top or q == 15) and open_above
        table[0, q] = level * scale
        table[1, q] = (level - _HALF) * scale - slack
        table[2, q] = (level + _HALF) * scale + slack
        table[3, q] = (_END_NOISE if is_low or is_high else _NOISE) * scale * scale
        if q == 15:
            table[2, q] += unit * _RANGE_ROUNDINGS * scale
        if is_low or not known:
            table[1, q] = -_FAR
        if is_high or not known:
            table[2, q] = _FAR
        if not known:
            table[3, q] = _FAR
