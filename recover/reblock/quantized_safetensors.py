"""Integer weights in safetensors: compressed-tensors, GPTQ, AWQ, MLX, FP8."""

from collections import ChainMap
from collections.abc import Iterator, Mapping
from typing import Any

from recover._text import printable, quoted
from recover.containers.gguf.header import ValueType, encode_key_value
from recover.containers.huggingface.modules import FLOATS, Module
from recover.containers.safetensors.reader import CONFIG, INDEX, Model, Tensor
from recover.errors import ReblockError, SafetensorsError
from recover.reblock.drafts import Draft, draft_copy, draft_floats, draft_weight, finished
from recover.reblock.integers import Request
from recover.reblock.schemes import all_schemes
from recover.reblock.source import Source

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
    "mxfp4": "MXFP4 is not read yet",
}


def holds_integers(model: Model) -> bool:
    """Whether a model says that it is quantized, or holds weights that are no floats."""
    if any(isinstance(model.config.get(key), dict) for key in _CONFIG_KEYS):
        return True
    return any(_is_weight(tensor) for tensor in model.tensors.values())


def _is_weight(tensor: Tensor) -> bool:
    """Whether a tensor is part of a weight that is no float; others are tables of positions."""
    if tensor.dtype.startswith("F8"):
        return True
    leaf = tensor.name.rpartition(".")[2]
    return tensor.dtype not in (*FLOATS, "F64") and "weight" in leaf


_CONFIG_KEYS = ("quantization_config", "quantization", "compression_config")


def open_integers(model: Model, request: Request, arch: str | None = None) -> Source:
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
    Source

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
    beside = [folder / name for name in (CONFIG, INDEX) if (folder / name).is_file()]
    return Source(
        path=model.path,
        parts=(*model.parts, *beside),
        metadata=tuple(metadata),
        tensors=tuple(tensors),
        conditions=CONDITIONS,
        warnings=tuple(warnings),
    )


def _quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of ``config.json`` that tells how weights are quantized."""
    for key in _CONFIG_KEYS:
        found = config.get(key)
        if isinstance(found, dict):
            return found
    return {}


def _drafts(model: Model) -> Iterator[Draft]:
    config = _quantization(model.config)
    modules: dict[str, dict[str, Tensor]] = {}
    for tensor in model.tensors.values():
        stem, _, leaf = tensor.name.rpartition(".")
        modules.setdefault(stem, {})[leaf] = tensor
    for stem, tensors in modules.items():
        module = Module(stem, tensors, _of_module(config, stem))
        used: frozenset[str] = frozenset()
        for scheme in all_schemes():
            weight = scheme.read(module)
            if weight is not None:
                used = weight.leaves
                yield draft_weight(f"{stem}.weight".lstrip("."), weight)
                break
        for leaf, tensor in tensors.items():
            if leaf not in used and tensor.n_weights:
                yield _plain(tensor, config)


def _of_module(config: dict[str, Any], stem: str) -> Mapping[str, Any]:
    """MLX has settings of their own for some modules."""
    own = config.get(stem)
    return ChainMap(own, config) if isinstance(own, dict) else config


def _plain(tensor: Tensor, config: Mapping[str, Any]) -> Draft:
    if tensor.dtype in FLOATS:
        return draft_floats(tensor)
    if tensor.dtype in _COPIED and not _is_weight(tensor):
        return draft_copy(tensor)
    method = config.get("quant_method")
    reason = _REASONS.get(method) if isinstance(method, str) else None
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
