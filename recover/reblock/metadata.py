"""The metadata of re-blocked files: what is the same for every source."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recover._text import printable, quoted, some
from recover.containers.gguf.header import ValueType, encode_key_value, encode_string
from recover.containers.gguf.metadata import IMATRIX_PREFIX, derived_metadata
from recover.containers.gguf.reader import open_gguf
from recover.containers.model import Model
from recover.errors import ReblockError, VocabularyError
from recover.quants import TensorType
from recover.reblock.source import Original, OriginalTensor
from recover.reblock.vocabulary import PIECES, TOKENIZER, vocabulary_entries

_TOKENS, _MODEL = "tokenizer.ggml.tokens", "tokenizer.ggml.model"
_ARCHITECTURE = "general.architecture"
# What a model's folder may have of a vocabulary; of some it is not read.
_FILES = (
    *(PIECES, TOKENIZER, "tokenizer_config.json", "added_tokens.json"),
    *("vocab.json", "tekken.json", "tiktoken.model"),
)
_DROPPED = ("split.", IMATRIX_PREFIX, "recover.", "general.file_type")


def file_type_entries(tensors: Iterable[OriginalTensor]) -> list[tuple[str, ValueType, Any]]:
    """What most weights are stored as, if there is a number for it."""
    counts: Counter[TensorType] = Counter()
    for tensor in tensors:
        counts[tensor.outtype] += tensor.n_weights
    entries: list[tuple[str, ValueType, Any]] = [
        ("general.quantization_version", ValueType.UINT32, 2)
    ]
    for kind, _ in counts.most_common(1):
        if kind.file_type is not None:
            entries.append(("general.file_type", ValueType.UINT32, kind.file_type))
    return entries


def with_metadata_of(source: Original, path: Path) -> Original:
    """A source whose output gets metadata and vocabulary from a GGUF file of the same model.

    Parameters
    ----------
    source : Original
        The model.
    path : Path
        For instance a quantization of it.

    Returns
    -------
    Original

    Raises
    ------
    GGUFError, ReblockError
        If the file cannot be read, or is not of the same architecture or size.
    """
    model = open_gguf(path)
    _check(source, model)
    entries = file_type_entries(source.tensors)
    names = {tensor.name for tensor in source.tensors}
    lacking = [quoted(name) for name in model.tensors if name not in names]
    warnings = [*source.warnings]
    if lacking:
        warnings.append(
            f"the output lacks {some(lacking)}, which {printable(path)} has: programs may refuse it"
        )
    return replace(
        source,
        parts=(*source.parts, *model.parts),
        metadata=tuple(derived_metadata(model.metadata, _DROPPED, entries)),
        warnings=tuple(warnings),
    )


def _check(source: Original, model: Model) -> None:
    """Refuse metadata of another model."""
    path, arch = printable(model.path), str(model.get("general.architecture"))
    if encode_key_value("general.architecture", ValueType.STRING, arch) not in source.metadata:
        raise ReblockError(
            f"{path}: its architecture is {quoted(arch)}, that of the output is not; give --arch,"
            " or another file for --like"
        )
    shared = [tensor for tensor in source.tensors if tensor.name in model.tensors]
    if not shared:
        raise ReblockError(
            f"{path}: has none of the output's tensors {_some_names(source.tensors)}; --arch"
            f" {quoted(arch)} would give them llama.cpp's names"
        )
    other = [each for each in shared if _sizes(each.dims) != _sizes(model.tensors[each.name].dims)]
    if other:
        wrong = model.tensors[other[0].name]
        raise ReblockError(
            f"{path}: is of another model: tensor {quoted(wrong.name)} is {wrong.dims}, but"
            f" {other[0].dims} in the output"
        )


def _sizes(dims: Sequence[int]) -> list[int]:
    """Sizes other than 1."""
    return [dim for dim in dims if dim > 1]


def _some_names(tensors: Sequence[OriginalTensor]) -> str:
    return some([quoted(tensor.name) for tensor in tensors])


def with_vocabulary(source: Original) -> Original:
    """A source whose output gets the vocabulary that lies beside it, or that says there is none."""
    if any(_is_of(entry, _TOKENS) for entry in source.metadata):
        return source
    folder = source.parts[0].parent
    found = [name for name in _FILES if (folder / name).is_file()]
    beside = f" ({found[0]} lies beside the model, but is not read)" if found else ""
    try:
        entries = vocabulary_entries(folder, _architecture(source))
    except VocabularyError as error:
        entries, beside = [], f" ({error})"
    if entries:
        kept = [entry for entry in source.metadata if not _is_of(entry, _MODEL)]
        own = [encode_key_value(*entry) for entry in entries]
        parts = [folder / name for name in found if folder / name not in source.parts]
        return replace(source, metadata=(*kept, *own), parts=(*source.parts, *parts))
    warning = (
        f"the output has no vocabulary{beside}, so that programs cannot turn text into tokens; take"
        " it from a GGUF file of the same model with --like OTHER.gguf"
    )
    return replace(source, warnings=(*source.warnings, warning))


def _is_of(entry: bytes, key: str) -> bool:
    """Whether an encoded entry has a key."""
    return entry.startswith(encode_string(key))


def _architecture(source: Original) -> str | None:
    """What a source says that its architecture is."""
    for entry in source.metadata:
        if _is_of(entry, _ARCHITECTURE):
            return bytes(entry[8 + len(_ARCHITECTURE) + 12 :]).decode()
    return None
