"""The number format that a model's original weights had, as its norms tell.

Quantizers leave norms in F32. If each of them is exactly a bf16 (or f16) number, the original was
stored so: of random float32 numbers one in 65,536 is a bf16 number. bf16 is asked for first,
because most bf16 numbers of a norm's size are f16 numbers, too, but not the other way round.

Of some architectures (Gemma's) converters add 1 to the norms; there, sums with 1 count as well.

The matrices may be of another format than the norms: a LoRA that was merged into a bf16 model, and
saved as f16, leaves the norms alone. Two things tell, of bf16:

- What the encoders of the 32-weight types store of a block comes from one of its weights: Q8_0 the
  scale f16(b / 127), Q4_0 and Q5_0 without an importance matrix f16(b / -8) and f16(b / -16), Q4_1
  and Q5_1 without one the minimum f16(b). Of other weights, one scale in eight is so by chance.
- The intersection of the cells of all inputs holds a bf16 number.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from recover.containers.mapping import sampled
from recover.containers.model import Model, StoredTensor
from recover.evidence.intervals import Intervals
from recover.evidence.lattice import SIGNIFICAND_BITS, count_scales, count_without
from recover.inputs.provenance import has_cells, joined_samples, sample_blocks
from recover.quants import (
    F32Array,
    FromWeight,
    ScalarType,
    TensorType,
    U8Array,
    dequantize,
    quantize,
    type_by_name,
)

_FEWEST = 32  # different numbers that norms must have to prove something
_ADDING_ONE = ("gemma", "nemotron", "qwen3next")
_MOST = 1 << 22  # numbers that are looked at

UNEXPLAINED = 7 / 8
"""Share of the scales that come from other weights, and that no bf16 number explains."""
_ENOUGH_SCALES = 16  # by chance, 16 fit in one case of 10**14
# Weights whose cells are looked at: so many runs, evenly spaced, of so many.
_N_RUNS, _RUN = 8, 4096


@dataclass(frozen=True)
class SourcePrecision:
    """What the original weights were stored as, and the evidence.

    Attributes
    ----------
    type : str
        ``bf16``, ``f16``, ``f32`` or ``unknown``.
    n_tensors, n_numbers, n_distinct : int
        F32 norms (or, without norms, biases), the numbers in them, and how many are different.
    n_bf16, n_f16 : int
        Of the numbers, those that are exactly bf16 or f16 numbers, perhaps after 1 is taken away.
    minus_one : bool
        Whether they are so only after 1 is taken away.
    n_scales, n_scales_bf16 : int
        Scales (or minima) of blocks that come from one weight each, of a sample, and those of them
        that may come from a bf16 number.
    """

    type: str
    n_tensors: int
    n_numbers: int
    n_distinct: int
    n_bf16: int
    n_f16: int
    minus_one: bool = False
    n_scales: int = 0
    n_scales_bf16: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @property
    def evidence(self) -> str:
        """One line for people."""
        if not self.n_scales:
            return self._of_norms
        return (
            f"{self._of_norms}; of {self.n_scales:,} scales of blocks {self.n_scales_bf16:,}"
            f" ({self.n_scales_bf16 / self.n_scales:.1%}) fit bf16 weights"
        )

    @property
    def _of_norms(self) -> str:
        if not self.n_tensors:
            return "there are no F32 norms"
        what = " once 1 is taken away" if self.minus_one else ""
        text = (
            f"of {self.n_numbers:,} numbers in {self.n_tensors} F32 norms {self.n_bf16:,} are"
            f" exactly bf16 and {self.n_f16:,} exactly f16 numbers{what}"
        )
        if self.n_distinct < _FEWEST:
            text += f", but only {self.n_distinct} are different"
        return text


@dataclass(frozen=True)
class Fit:
    """Whether what inputs store of a tensor can come from numbers of a format.

    Attributes
    ----------
    n_scales, n_scales_fitting : int
        Scales that come from one weight each, of a sample, and those that fit (bf16 only).
    n_bounded, n_without : int
        Weights of a sample whose cells have an intersection, and those whose holds no number of the
        format.
    n_single : int
        Weights of the sample whose cells' intersection holds a single number.
    expected : float
        How many of the sample's intersections, and of the scales that come from its weights, would
        contradict the format, on average, if the weights had nothing to do with it.
    """

    n_scales: int
    n_scales_fitting: int
    n_bounded: int
    n_without: int
    n_single: int
    expected: float

    @property
    def is_contradicted(self) -> bool:
        """Whether the weights cannot have been stored in the format."""
        return self.n_scales_fitting < self.n_scales or self.n_without > 0

    @property
    def is_confirmed(self) -> bool:
        """Whether enough was found that only the format explains."""
        return self.n_scales >= _ENOUGH_SCALES and not self.is_contradicted


def fit_of(name: str, models: Sequence[Model], format_name: str, intervals: Intervals) -> Fit:
    """Compare what inputs store of a tensor with numbers of a format.

    Parameters
    ----------
    name : str
        Of the tensor.
    models : sequence of Model
        The inputs.
    format_name : {"bf16", "f16"}
        What the weights may have been stored as.
    intervals : Intervals
        Memory.

    Returns
    -------
    Fit
        From a bounded number of blocks and weights.
    """
    confining = [
        tensor
        for model in models
        if isinstance((tensor := model.tensors[name]).type, ScalarType) and has_cells(model, tensor)
    ]
    counts = [_scales(tensor) for tensor in confining if format_name == "bf16"]
    n_scales, n_fitting = np.sum([(0, 0), *counts], axis=0).tolist()
    found = np.zeros(4)
    if confining:
        intervals.look_at(confining)
        n_weights = confining[0].n_weights
        last = max(n_weights - _RUN, 0) // _RUN * _RUN
        starts = np.unique(np.linspace(0, last, _N_RUNS).astype(np.int64) // _RUN * _RUN)
        with sampled():
            for start in starts.tolist():
                bounds = intervals.bound(start, min(start + _RUN, n_weights))
                found += count_without(*bounds, SIGNIFICAND_BITS[format_name])
    n_bounded, n_without, expected, n_single = found.tolist()
    if n_scales:
        sizes = [each.type.block_size for each in confining if _from_weight(each.type)]
        expected += UNEXPLAINED * n_bounded / min(sizes)
    return Fit(n_scales, n_fitting, int(n_bounded), int(n_without), int(n_single), expected)


def _scales(tensor: StoredTensor) -> tuple[int, int]:
    """Scales that come from one weight each, of a sample of blocks, and those that fit bf16."""
    blocks = sample_blocks(tensor)
    n_scales, n_without = scales_without_bf16(blocks.reshape(-1), tensor.type)
    return n_scales, n_scales - n_without


def scales_without_bf16(raw: U8Array, kind: TensorType) -> tuple[int, int]:
    """Scales that come from one weight each, and those that no bf16 weight explains.

    Parameters
    ----------
    raw : uint8 (n_bytes,)
        Whole blocks, whose codes confine the weights.
    kind : TensorType
        Their type; of most types no scale comes from one weight.

    Returns
    -------
    tuple of int
        By chance, one scale in eight is explained.
    """
    number = _from_weight(kind)
    if number is None:
        return 0, 0
    return count_scales(raw, kind.type_size, number.at, float(number.divisor))


def _from_weight(kind: TensorType) -> FromWeight | None:
    """The number in its blocks that comes from one of their weights."""
    return kind.from_weight if isinstance(kind, ScalarType) else None


def source_of_file(model: Model) -> SourcePrecision:
    """What the original weights of a model were stored as, as norms and matrices tell together."""
    found = source_precision(model)
    told = [
        each
        for each in model.tensors.values()
        if _from_weight(each.type) is not None and has_cells(model, each)
    ]
    n_scales = n_fitting = 0
    for raw, kind in joined_samples(told):
        n_here, n_without = scales_without_bf16(raw, kind)
        n_scales, n_fitting = n_scales + n_here, n_fitting + n_here - n_without
    is_wrong = found.type == "bf16" and n_fitting < n_scales
    return replace(
        found,
        type="unknown" if is_wrong else found.type,
        n_scales=n_scales,
        n_scales_bf16=n_fitting,
    )


def source_precision(model: Model) -> SourcePrecision:
    """What the original weights of a model were stored as, as the norms tell."""
    tensors = _norms(model)
    numbers = _first_numbers(tensors, _MOST)
    n_distinct = int(np.unique(numbers).size)
    n_bf16, n_f16 = _count(numbers, 0)
    minus_one = n_bf16 < numbers.size and _adds_one(model)
    if minus_one:
        n_bf16, n_f16 = _count(numbers, 1)
    name = "f32"
    if n_distinct < _FEWEST:
        name = "unknown"
    elif n_bf16 == numbers.size:
        name = "bf16"
    elif n_f16 == numbers.size:
        name = "f16"
    return SourcePrecision(name, len(tensors), numbers.size, n_distinct, n_bf16, n_f16, minus_one)


def _first_numbers(tensors: Sequence[StoredTensor], most: int) -> F32Array:
    """The numbers of tensors, one after the other, as far as there are so many."""
    parts = [np.empty(0, np.float32)]
    for tensor in tensors:
        n_numbers = min(tensor.n_weights, most)
        parts.append(tensor.read(0, n_numbers))
        most -= n_numbers
        if not most:
            break
    return np.concatenate(parts)


def _adds_one(model: Model) -> bool:
    """Whether converters add 1 to the norms of this architecture."""
    return str(model.get("general.architecture")).startswith(_ADDING_ONE)


def _norms(model: Model) -> list[StoredTensor]:
    """F32 norms; F32 biases if there are none. Other F32 tensors may have been computed."""
    exact = [tensor for tensor in model.tensors.values() if tensor.type.name == "F32"]
    norms = [tensor for tensor in exact if tensor.name.endswith("norm.weight")]
    return norms or [tensor for tensor in exact if tensor.name.endswith(".bias")]


def _count(numbers: F32Array, added: float) -> tuple[int, int]:
    """How many numbers are a bf16 and how many an f16 number, plus `added`."""
    one = np.float32(added)
    finite = numbers[np.abs(numbers) < 60000]
    return _count_of("BF16", finite, one), _count_of("F16", finite, one)


def _count_of(name: str, numbers: F32Array, added: np.float32) -> int:
    kind = type_by_name(name)
    rounded = dequantize(quantize((numbers - added)[None], kind), kind)
    return int(np.count_nonzero(rounded + added == numbers))
