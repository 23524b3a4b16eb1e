"""The arrays of one module of a Hugging Face folder, from which its weight is to be read."""

from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._files import MissingError, UnreadableError, read_bytes
from recover._json import MOST_BYTES, JSONError, parse_object
from recover._text import printable, quoted
from recover.containers.safetensors.reader import Model, Tensor
from recover.errors import SafetensorsError
from recover.quants import F32Array

FLOATS = ("F32", "F16", "BF16")

_NUMBERS = {
    "I8": "<i1",
    "I16": "<i2",
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
    sizes : callable
        Gives the row length and the number of rows of the weight, by the sizes that ``config.json``
        states of the model; None where these do not tell.
    """

    name: str
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    recipe: str = ""
    sizes: Callable[[], tuple[int | None, int | None]] = lambda: (None, None)

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


SETTINGS = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files beside the weights, and the program that is meant where they name none: AutoGPTQ's, and
those of AutoAWQ's first versions."""

_AWQ_NAMES = {"w_bit": "bits", "q_group_size": "group_size"}
_OF_ALL = ("bits", "group_size")

QUANTIZATION_KEYS = ("quantization_config", "quantization", "compression_config")
"""Where ``config.json`` tells how weights are quantized."""
RECIPE = "recipe.yaml"
_MOST_RECIPE = 1 << 20
_PARAMETER = ".weight."
_ALIASES = {
    "scale_weight": "weight_scale",
    "scale": "weight_scale",
    "scale_input": "input_scale",
}


def read_recipe(folder: Path) -> str:
    """The text of ``recipe.yaml``; empty if there is none that can be read."""
    try:
        return bytes(read_bytes(folder / RECIPE, _MOST_RECIPE)).decode("utf-8", "replace")
    except UnreadableError:
        return ""


def read_quantization(model: Model) -> Mapping[str, Any]:
    """How the weights of a folder are quantized; empty if it says nothing.

    Folders from before transformers read GPTQ and AWQ (2023) have it in a file of `SETTINGS` only.

    Raises
    ------
    SafetensorsError
        If that file cannot be read.
    """
    found = quantization_of(model.config)
    if found or not model.parts:
        return found
    for name, method in SETTINGS.items():
        path = model.parts[0].parent / name
        try:
            settings = parse_object(read_bytes(path, MOST_BYTES))
        except MissingError:
            continue
        except (UnreadableError, JSONError) as error:
            raise SafetensorsError(f"{printable(path)}: {error}") from None
        usual = {_AWQ_NAMES.get(key, key): value for key, value in settings.items()}
        return {"quant_method": method, **usual}
    return {}


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entry of ``config.json`` that tells how weights are quantized; empty if there is none."""
    for part in (config, config.get("text_config")):
        for key in QUANTIZATION_KEYS:
            found = part.get(key) if isinstance(part, Mapping) else None
            if isinstance(found, dict):
                return found
    return {}


def split_name(name: str) -> tuple[str, str]:
    """The module that an array belongs to, and what it is there.

    ``a.up_proj.weight.absmax`` is ``weight.absmax`` of ``a.up_proj``.
    """
    stem, parameter, leaf = name.partition(_PARAMETER)
    if parameter:
        return stem, f"weight.{leaf}"
    stem, _, leaf = name.rpartition(".")
    return stem, leaf


def modules_of(model: Model, recipe: str) -> list[Module]:
    """The modules of the files, in order.

    Parameters
    ----------
    model : Model
        The opened files.
    recipe : str
        See `Module.recipe`.
    """
    config = read_quantization(model)
    found: dict[str, dict[str, Tensor]] = {}
    for tensor in model.tensors.values():
        stem, leaf = split_name(tensor.name)
        found.setdefault(stem, {})[leaf] = tensor
    return [
        Module(stem, with_usual_names(tensors), settings_of(config, stem), recipe)
        for stem, tensors in found.items()
    ]


def with_usual_names(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The arrays of a module by the names and types that most programs give them.

    Scales are ``weight_scale``, though ComfyUI says ``scale_weight`` and DeepSeek, since its fourth
    version, ``scale``. Two 4-bit floats per byte are U8, also where they are stored as I8 or F4.
    """
    weight = tensors.get("weight")
    if weight is None or weight.dtype in FLOATS:
        return tensors
    found = dict(tensors)
    for leaf, usual in _ALIASES.items():
        if leaf in found and usual not in found:
            found[usual] = found.pop(leaf)
    scale = found.get("weight_scale")
    if weight.dtype == "I8" and scale is not None and scale.dtype == "F8_E8M0":
        found["weight"] = replace(weight, dtype="U8")
    if weight.dtype == "F4" and weight.shape and weight.shape[-1] % 2 == 0:
        shape = (*weight.shape[:-1], weight.shape[-1] // 2)
        found["weight"] = replace(weight, dtype="U8", shape=shape)
    return found


def settings_of(config: Mapping[str, Any], stem: str) -> Mapping[str, Any]:
    """The settings for a module: MLX has some of their own for some modules.

    GPTQModel has patterns of names in ``dynamic``. What they change the arrays tell.
    """
    own = config.get(stem)
    if isinstance(config.get("dynamic"), dict):
        return {key: value for key, value in config.items() if key not in _OF_ALL}
    return ChainMap(own, dict(config)) if isinstance(own, dict) else config
