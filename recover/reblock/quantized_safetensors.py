"""Quantized weights in safetensors: integers, and what other formats decode."""

from collections.abc import Iterator
from typing import Any

from recover._text import printable, quoted
from recover.containers.gguf.header import ValueType, encode_key_value
from recover.containers.huggingface.modules import (
    FLOATS,
    QUANTIZE_CONFIG,
    Module,
    modules_of,
    read_quantization,
)
from recover.containers.safetensors.folder import INDEX
from recover.containers.safetensors.reader import CONFIG, Model, Tensor
from recover.errors import ReblockError, SafetensorsError
from recover.reblock.drafts import Draft, draft_copy, draft_floats, draft_weight, finished
from recover.reblock.integers import Request
from recover.reblock.schemes import Weight, all_schemes
from recover.reblock.schemes.base import decoded
from recover.reblock.source import Original

CONDITIONS = (
    "the scheme and its parameters are what config.json and the tensors' names and shapes say",
    "a weight means (code - zero) x scale, or code x scale + bias, not rounded to 16 bits",
)

# Types that GGUF has, too.
_COPIED = ("I8", "I16", "I32", "I64", "F64")

# Why what these methods store has no exact type.
_REASONS = {
    "bitsandbytes": "int8 rows are scaled by absmax / 127 in float32, and NF4 levels are no"
    " integers: no type holds either",
    "hqq": "HQQ's zero points are not integers; only some of them could be stored",
}


def holds_integers(model: Model) -> bool:
    """Whether a model says that it is quantized, or holds weights that are no floats."""
    if read_quantization(model):
        return True
    return any(_is_weight(tensor) for tensor in model.tensors.values())


def _is_weight(tensor: Tensor) -> bool:
    """Whether a tensor is part of a weight that is no float; others are tables of positions."""
    if tensor.dtype.startswith("F8"):
        return True
    leaf = tensor.name.rpartition(".")[2]
    return tensor.dtype not in (*FLOATS, "F64") and "weight" in leaf


def open_integers(model: Model, request: Request, arch: str | None = None) -> Original:
    """Read the integer weights of a model.

    Parameters
    ----------
    model : Model
        The opened files.
    request : Request
        What the user wants.
    arch : str, optional
        Architecture whose names and metadata the output gets; default: the model's own names.

    Returns
    -------
    Original

    Raises
    ------
    ReblockError
        If a tensor is damaged, of an unknown scheme, or has no exact type.
    """
    warnings: list[str] = []
    try:
        drafts = list(_drafts(model))
        if arch is None:
            metadata = _own_metadata(model)
        else:
            from recover.reblock.architectures import apply_architecture

            drafts, metadata, warnings = apply_architecture(model, drafts, arch)
        tensors = [finished(draft, request, norms_as_f32=arch is not None) for draft in drafts]
    except (ReblockError, SafetensorsError) as error:
        raise ReblockError(f"{printable(model.path)}: {error}") from None
    folder = model.parts[0].parent
    beside = [
        folder / name for name in (CONFIG, QUANTIZE_CONFIG, INDEX) if (folder / name).is_file()
    ]
    return Original(
        path=model.path,
        parts=(*model.parts, *beside),
        metadata=tuple(metadata),
        tensors=tuple(tensors),
        conditions=CONDITIONS,
        warnings=tuple(warnings),
    )


def _drafts(model: Model) -> Iterator[Draft]:
    method = read_quantization(model).get("quant_method")
    for module in modules_of(model, recipe=""):
        weight = _weight(module, _reason(method))
        used = frozenset() if weight is None else weight.leaves
        if weight is not None:
            yield draft_weight(f"{module.name}.weight".lstrip("."), weight)
        for leaf, tensor in module.tensors.items():
            if leaf not in used and tensor.n_weights:
                yield _plain(tensor, method)


def _weight(module: Module, obstacle: str) -> Weight | None:
    """The weight of a module: integers if a scheme knows them, else what its format decodes."""
    for scheme in all_schemes():
        if (weight := scheme.read(module)) is not None:
            return weight
    return decoded(module, obstacle)


def _reason(method: object) -> str:
    return _REASONS.get(method, "") if isinstance(method, str) else ""


def _plain(tensor: Tensor, method: object) -> Draft:
    if tensor.dtype in FLOATS:
        return draft_floats(tensor)
    if tensor.dtype in _COPIED and not _is_weight(tensor):
        return draft_copy(tensor)
    reason = _reason(method)
    raise ReblockError(
        f"tensor {quoted(tensor.name)} ({tensor.dtype} of shape {list(tensor.shape)}) belongs to no"
        f" known scheme{'' if method is None else f' (quant_method {quoted(str(method))})'}"
        + (f": {reason}" if reason else "")
    )


def _own_metadata(model: Model) -> list[bytes]:
    kind = model.config.get("model_type")
    architecture = kind if isinstance(kind, str) and kind else "unknown"
    entries: list[tuple[str, ValueType, Any]] = [
        ("general.architecture", ValueType.STRING, architecture),
        ("general.name", ValueType.STRING, model.path.resolve().stem),
        ("general.quantization_version", ValueType.UINT32, 2),
    ]
    return [encode_key_value(*entry) for entry in entries]
