"""The arrays of one module of a Hugging Face folder, from which its weight is to be read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._text import quoted
from recover.containers.safetensors.reader import Tensor
from recover.errors import SafetensorsError
from recover.quants import F32Array

FLOATS = ("F32", "F16", "BF16")

_NUMBERS = {
    "I8": "<i1",
    "U8": "<u1",
    "F8_E4M3": "<u1",
    "F8_E5M2": "<u1",
    "F8_E8M0": "<u1",
    "I32": "<u4",
    "U32": "<u4",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "BF16": "<u2",
}


@dataclass(frozen=True)
class Module:
    """The arrays of one module of a model.

    Attributes
    ----------
    name : str
        For instance ``model.layers.0.mlp.up_proj``.
    tensors : mapping of str to Tensor
        By what follows the module's name: ``qweight``, ``scales``, ``weight.absmax``.
    config : mapping of str to Any
        The quantization entry of ``config.json``; empty if there is none.
    recipe : str
        The text of ``recipe.yaml``, which llm-compressor writes beside the weights; empty if there
        is none.
    """

    name: str
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    recipe: str = ""

    def error(self, text: str) -> SafetensorsError:
        """An error that names the module."""
        return SafetensorsError(f"module {quoted(self.name)}: {text}")

    def integer(self, key: str) -> int | None:
        """A whole number of the configuration; None if it is not there or none."""
        value = self.config.get(key)
        return value if type(value) is int else None

    def take(self, leaf: str, dtypes: tuple[str, ...], n_dims: int) -> Tensor:
        """An array that must be there, of one of these types and so many dimensions.

        Raises
        ------
        SafetensorsError
            If it is missing or another one, or has no numbers.
        """
        tensor = self.tensors.get(leaf)
        if tensor is None:
            raise self.error(f"there is no {leaf}")
        if tensor.dtype not in dtypes or len(tensor.shape) != n_dims or not tensor.n_weights:
            raise self.error(
                f"{leaf} is {tensor.dtype} of shape {list(tensor.shape)}, not"
                f" {' or '.join(dtypes)} of {n_dims} dimensions"
            )
        return tensor

    def expect(self, leaf: str, shape: tuple[int, ...]) -> None:
        """Refuse an array of another shape."""
        found = self.tensors[leaf].shape
        if found != shape:
            raise self.error(f"{leaf} has the shape {list(found)}, not {list(shape)}")


def values(tensor: Tensor) -> NDArray[Any]:
    """The numbers as they are stored; bfloat16 and float8 as their bits, perhaps not aligned."""
    return tensor.raw.view(np.dtype(_NUMBERS[tensor.dtype])).reshape(tensor.shape)


def as_float32(tensor: Tensor, numbers: NDArray[Any]) -> F32Array:
    """Stored floats (part of `values`) as float32; exact."""
    if tensor.dtype == "BF16":
        return (numbers.astype(np.uint32, order="C") << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore"):
        return numbers.astype(np.float32, order="C")
