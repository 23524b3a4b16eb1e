"""GPTQ, as AutoGPTQ and GPTQModel store it.

``qweight`` int32 (K * bits / 32, N): codes of one column, the lowest bits first. ``qzeros`` int32
(G, N * bits / 32): zero points along N, one less than they are (``checkpoint_format`` gptq_v2: as
they are). ``scales`` (G, N). ``g_idx`` int32 (K): the group of each column. A weight is
(code - zero) * scale. Codes of 3 bits are packed end to end, so that some lie in two words.

Every code makes up for the errors of those before it (Frantar et al., arXiv 2210.17323): see
`CompensatedMatrix`. GPTQModel can rotate the weights before; they are then no estimate of the
original's, and are refused.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from recover._text import quoted
from recover.containers.huggingface.formats._columns import (
    WORDS,
    fields,
    take_codes,
    unpack_columns,
)
from recover.containers.huggingface.formats._compensated import Codes, CompensatedMatrix
from recover.containers.huggingface.modules import FLOATS, Module, as_float32, values
from recover.containers.safetensors.reader import Tensor
from recover.quants import F32Array, IntervalType, U8Array

LEAVES = frozenset({"qweight", "qzeros", "scales", "g_idx"})
BITS = (2, 3, 4, 8)

# Relative mean square error of codes in groups of 128 (python -m tests.benchmarks.foreign), and
# what groups of 32 and whole rows have to that.
_RELATIVE_MSE = {2: 0.457, 3: 0.0811, 4: 0.0175, 8: 6.05e-5}
_SMALL_GROUP, _LONG_ROW = 0.73, 1.36


@cache
def gptq_type(n_bits: int, group: int) -> IntervalType:
    """The type of codes of so many bits in groups of such a size."""
    share = _SMALL_GROUP if group < 64 else 1 if group <= 256 else _LONG_ROW
    return IntervalType(name=f"GPTQ{n_bits}", relative_mse=_RELATIVE_MSE[n_bits] * share)


@dataclass(frozen=True)
class Layout:
    """The arrays of a module, of shapes that fit each other.

    Attributes
    ----------
    n_bits, n_rows, row_length, n_groups : int
        Sizes.
    words : uint32 (row_length * n_bits / 32, n_rows)
        Packed codes.
    zero_words : uint32 (n_groups, n_rows * n_bits / 32)
        Packed zero points.
    zero_shift : int
        What is added to the latter.
    scales : Tensor
        (n_groups, n_rows)
    """

    n_bits: int
    n_rows: int
    row_length: int
    n_groups: int
    words: NDArray[np.uint32]
    zero_words: NDArray[np.uint32]
    zero_shift: int
    scales: Tensor

    def zeros(self, first: int, last: int) -> NDArray[np.int32]:
        """Zero points (n_groups, last - first) of rows."""
        return fields(self.zero_words, self.n_bits, first, last) + np.int32(self.zero_shift)

    def scale_rows(self, first: int, last: int) -> F32Array:
        """Scales (last - first, n_groups) of rows."""
        return as_float32(self.scales, values(self.scales)[:, first:last].T)

    def codes(self, first: int, last: int, out: U8Array) -> None:
        """Codes (last - first, row_length) of rows."""
        strip = np.array(self.words[:, first:last], np.uint32, order="C")
        unpack_columns(strip, self.n_bits, 0, out)

    def codes_of(self, columns: NDArray[np.int64]) -> Codes:
        """What gives the codes (last - first, n) of some columns alone."""
        n_bits = np.full(columns.size, self.n_bits)
        return take_codes(self.words.view(np.uint32), columns * self.n_bits, n_bits)


def layout(module: Module) -> Layout | None:
    """The arrays of a module that GPTQ quantized; None of any other.

    Raises
    ------
    SafetensorsError
        If an array is missing, or of a wrong shape.
    """
    if "qweight" not in module.tensors:
        return None
    method = module.config.get("quant_method")
    qweight = module.take("qweight", WORDS, 2)
    scales = module.take("scales", FLOATS, 2)
    qzeros = module.take("qzeros", WORDS, 2)
    n_groups, n_rows = scales.shape
    if method not in ("gptq", None) or (method is None and qweight.shape[1] != n_rows):
        return None
    n_bits = 32 * qzeros.shape[1] // n_rows
    said = module.integer("bits")
    if said not in (None, n_bits):
        raise module.error(
            f"qzeros is that of {n_bits} bits, but the configuration says {said} bits"
        )
    if n_bits not in BITS:
        raise module.error(f"GPTQ of {n_bits} bits is not supported")
    row_length = qweight.shape[0] * 32 // n_bits
    module.expect("qweight", (row_length * n_bits // 32, n_rows))
    module.expect("qzeros", (n_groups, n_rows * n_bits // 32))
    is_v2 = module.config.get("checkpoint_format") == "gptq_v2"
    return Layout(
        n_bits,
        n_rows,
        row_length,
        n_groups,
        values(qweight),
        values(qzeros),
        0 if is_v2 else 1,
        scales,
    )


def read(module: Module) -> CompensatedMatrix | None:
    """See `recover.containers.huggingface.formats.Format`."""
    found = layout(module)
    if found is None:
        return None
    rotation = _rotation(module)
    if rotation:
        raise module.error(
            f"the weights were rotated ({quoted(rotation)}) before they were quantized, so that"
            " none of them is the original's; leave this folder out"
        )
    form = module.config.get("checkpoint_format")
    if form not in (None, "gptq", "gptq_v2"):
        raise module.error(
            f"the layout {quoted(str(form)[:40])} is not supported; convert it to gptq or gptq_v2"
        )
    group, places = _groups(module, found)
    order = "" if places is None else ", columns by importance"
    return CompensatedMatrix(
        n_rows=found.n_rows,
        row_length=found.row_length,
        type=gptq_type(found.n_bits, group),
        seen_as=found.scales.dtype,
        leaves=LEAVES,
        label=f"GPTQ {found.n_bits}-bit, groups of {group}{order}",
        group=group,
        places=places,
        codes=found.codes,
        codes_of=found.codes_of,
        first_columns=np.zeros(1, np.int64) if places is None else np.flatnonzero(places[1] == 0),
        scales=found.scale_rows,
        zeros=lambda first, last: found.zeros(first, last).T.astype(np.float32, order="C"),
        n_codes=np.full(found.n_groups, 1 << found.n_bits),
    )


def _rotation(module: Module) -> str:
    """The name of a rotation that the configuration speaks of; empty if there is none."""
    meta = module.config.get("meta")
    for each in (module.config, meta if isinstance(meta, dict) else {}):
        name = each.get("rotation")
        if name not in (None, False, ""):
            return str(name)[:40]
    return ""


def _groups(module: Module, found: Layout) -> tuple[int, NDArray[np.int32] | None]:
    """Weights that share a scale; and, where they are not in order, the place of each column."""
    row_length, n_groups = found.row_length, found.n_groups
    size = module.integer("group_size")
    group = size if size is not None and size > 0 else -(-row_length // n_groups)
    if -(-row_length // group) != n_groups:
        raise module.error(f"{n_groups} scales for {row_length} columns in groups of {group}")
    numbers = groups_of_columns(module, found, group)
    if numbers is None:
        return group, None
    return group, np.stack([np.arange(row_length), numbers]).astype(np.int32)


def groups_of_columns(module: Module, found: Layout, group: int) -> NDArray[np.int64] | None:
    """The group of each column; None if they are in order, so many weights each.

    Raises
    ------
    SafetensorsError
        If there are none of such numbers.
    """
    row_length, n_groups = found.row_length, found.n_groups
    if "g_idx" not in module.tensors:
        return None
    tensor = module.take("g_idx", (*WORDS, "I64"), 1)
    module.expect("g_idx", (row_length,))
    numbers = values(tensor).astype(np.int64)
    in_order = np.arange(row_length) // group
    # A file without act-order may have zeros in place of numbers.
    if np.array_equal(numbers, in_order) or not numbers.any():
        return None
    if numbers.min() < 0 or numbers.max() >= n_groups:
        raise module.error(
            f"g_idx has groups from {numbers.min()} to {numbers.max()}, not 0 to {n_groups - 1}"
        )
    return numbers
