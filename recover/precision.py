"""The number format that a model's original weights had, as its norms tell.

Quantizers leave norms in F32. If each of them is exactly a bf16 (or f16) number, the original was
stored so: of random float32 numbers one in 65,536 is a bf16 number. bf16 is asked for first,
because most bf16 numbers of a norm's size are f16 numbers, too, but not the other way round.

Of some architectures (Gemma's) converters add 1 to the norms; there, sums with 1 count as well.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from recover.gguf.reader import Model, Tensor
from recover.quants import F32Array, dequantize, quantize, type_by_name

_FEWEST = 32  # different numbers that norms must have to prove something
_ADDING_ONE = ("gemma", "nemotron", "qwen3next")
_MOST = 1 << 22  # numbers that are looked at


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
    """

    type: str
    n_tensors: int
    n_numbers: int
    n_distinct: int
    n_bf16: int
    n_f16: int
    minus_one: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @property
    def evidence(self) -> str:
        """One line for people."""
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


def source_precision(model: Model) -> SourcePrecision:
    """What the original weights of a model were stored as."""
    tensors = _norms(model)
    parts = [dequantize(tensor.raw, tensor.type) for tensor in tensors]
    numbers = np.concatenate([*parts, np.empty(0, np.float32)])[:_MOST]
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


def _adds_one(model: Model) -> bool:
    """Whether converters add 1 to the norms of this architecture."""
    return str(model.get("general.architecture")).startswith(_ADDING_ONE)


def _norms(model: Model) -> list[Tensor]:
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
