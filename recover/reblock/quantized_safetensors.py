"""Quantized weights in safetensors: integers, and what other formats decode."""

from collections.abc import Iterator
from typing import Any

from recover._text import printable, quoted
from recover.containers.gguf.header import ValueType, encode_key_value
from recover.containers.huggingface.modules import (
    FLOATS,
    SETTINGS,
    Module,
    modules_of,
    read_quantization,
)
from recover.containers.huggingface.parameters import matrices_of, parameters_apart
from recover.containers.safetensors.folder import INDEX
from recover.containers.safetensors.reader import CONFIG, Model, Tensor
from recover.errors import ReblockError, SafetensorsError
from recover.reblock.blocks import with_scales
from recover.reblock.drafts import (
    Draft,
    draft_copy,
    draft_floats,
    draft_weight,
    finished,
    stacked,
    with_grid,
)
from recover.reblock.grids import CONDITIONS as GRID_CONDITIONS
from recover.reblock.grids import about_kept
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


def open_integers(
    model: Model, request: Request, arch: str | None = None, n_threads: int | None = None
) -> Original:
    """Read the integer weights of a model: those that it stores, else those behind its floats.

    Parameters
    ----------
    model : Model
        The opened files.
    request : Request
        What the user wants.
    arch : str, optional
        Architecture whose names and metadata the output gets; default: the model's own names.
    n_threads : int, optional
        For the search for integers in floats.

    Returns
    -------
    Original

    Raises
    ------
    ReblockError
        If a tensor is damaged, of an unknown scheme, or has no exact type.
    """
    warnings: list[str] = []
    left_out: list[str] = []
    try:
        is_quantized, nearly = holds_integers(model), list[str]()
        drafts = list(_drafts(model))
        if arch is not None:
            from recover.reblock.architectures import check_arch, rows_along_inputs

            check_arch(model.config, arch)
            drafts = rows_along_inputs(drafts, arch)
        if not is_quantized:
            drafts = [with_grid(draft, request, n_threads) for draft in drafts]
            nearly = about_kept([draft.nearly for draft in drafts if draft.nearly])
        if arch is None:
            metadata = _own_metadata(model)
        else:
            from recover.reblock.architectures import apply_architecture

            drafts, metadata, warnings, left_out = apply_architecture(model, drafts, arch)
        tensors = [
            tensor
            for draft in drafts
            for tensor in with_scales(finished(draft, request, norms_as_f32=arch is not None))
        ]
    except (ReblockError, SafetensorsError) as error:
        raise ReblockError(f"{printable(model.path)}: {error}") from None
    folder = model.parts[0].parent
    beside = [folder / name for name in (CONFIG, *SETTINGS, INDEX) if (folder / name).is_file()]
    return Original(
        path=model.path,
        parts=(*model.parts, *beside),
        metadata=tuple(metadata),
        tensors=tuple(tensors),
        conditions=CONDITIONS if is_quantized else GRID_CONDITIONS,
        warnings=(*warnings, *nearly),
        left_out=tuple(left_out),
    )


def _drafts(model: Model) -> Iterator[Draft]:
    method = read_quantization(model).get("quant_method")
    for whole in modules_of(model, recipe=""):
        rest, parameters = parameters_apart(whole)
        for module in (rest, *parameters):
            name = f"{module.name}.weight".lstrip(".") if module is rest else module.name
            draft, used = _draft(name, module, _reason(method))
            if draft is not None:
                yield draft
            for leaf, tensor in module.tensors.items():
                if leaf not in used and tensor.n_weights:
                    yield _plain(tensor, method)


def _draft(name: str, module: Module, obstacle: str) -> tuple[Draft | None, frozenset[str]]:
    """The draft of a module's weight, or stack of weights, and the arrays that it is made of."""
    matrices = matrices_of(module)
    weights = [_weight(each, obstacle) for each in ([module] if matrices is None else matrices)]
    found = [weight for weight in weights if weight is not None]
    if not found or len(found) < len(weights):
        return None, frozenset()
    drafts = [draft_weight(name, weight) for weight in found]
    return drafts[0] if matrices is None else stacked(name, drafts), found[0].leaves


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
