"""Whether the metadata of inputs agree: what decides, beside the weights, how a model runs.

A merge takes the metadata of one input. Where another one has a different base of its rotary
embeddings, or its tokens in another order, the output is only as right as that one is.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from recover._text import printable, quoted, some
from recover.containers.gguf.reader import GGUFModel
from recover.containers.model import Model
from recover.errors import GGUFError
from recover.quants import FloatType

METHOD_KEY = "recover.method"
"""What a merge writes: the weights of such a file are estimates."""

_ARCHITECTURE, _VERSION = "general.architecture", "general.quantization_version"
_FORMATS = 2  # of ggml's quantized types, since before there were GGUF files
_LONGEST = 24


def metadata_warnings(models: Sequence[Model]) -> list[str]:
    """What people should know of the metadata of some inputs.

    Parameters
    ----------
    models : sequence of Model
        The inputs. The first GGUF file is the one whose metadata an output gets.

    Returns
    -------
    list of str
        A line for each input whose tokenizer or hyper-parameters differ from those of the first
        GGUF file, where both have a key; and for each that says that its weights are stored in
        another version of ggml's formats than the one that they are decoded as.
    """
    files = [model for model in models if isinstance(model, GGUFModel)]
    lines = [line for model in files if (line := _other_formats(model))]
    return lines + [line for other in files[1:] if (line := _differences(files[0], other))]


def _other_formats(model: GGUFModel[Any]) -> str:
    """A line on a file of another version of the formats; empty for all others."""
    version = _value(model, _VERSION)
    kinds = (tensor.type for tensor in model.tensors.values())
    if version in (None, _FORMATS) or all(isinstance(kind, FloatType) for kind in kinds):
        return ""
    return (
        f"{printable(model.path)}: its metadata say that the weights are stored in version"
        f" {_shown(version)} of ggml's formats; they are decoded as version {_FORMATS}"
    )


def _differences(first: GGUFModel[Any], other: GGUFModel[Any]) -> str:
    """A line on what one file says otherwise than the first one; empty if nothing."""
    prefixes = (f"{_value(first, _ARCHITECTURE)}.", "tokenizer.")
    found = []
    for key, entry in first.metadata.items():
        own = other.metadata.get(key)
        if own is None or own.stored == entry.stored or not key.startswith(prefixes):
            continue
        values = _value(first, key), _value(other, key)
        if not _is_same(*values):
            found.append(f"{quoted(key)} ({_difference(*values)})")
    if not found:
        return ""
    return (
        f"{printable(other.path)} has other metadata than {printable(first.path)}, whose are taken:"
        f" {some(found)}"
    )


def _value(model: GGUFModel[Any], key: str) -> Any:
    """A value; None if there is none that can be read."""
    try:
        return model.get(key)
    except GGUFError:
        return None


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values say the same, whatever they are stored as."""
    if isinstance(one, float) or isinstance(other, float):
        numbers = isinstance(one, int | float) and isinstance(other, int | float)
        return numbers and bool(np.float32(one) == np.float32(other))
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other)


def _difference(one: Any, other: Any) -> str:
    """How the second value differs from the first one."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return f"{len(other):,} entries, not {len(one):,}"
        n_other = sum(not _is_same(*pair) for pair in zip(one, other, strict=True))
        return f"{n_other:,} of {len(one):,} entries"
    return f"{_shown(other)}, not {_shown(one)}"


def _shown(value: Any) -> str:
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return quoted(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")
