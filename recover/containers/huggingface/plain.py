"""Folders whose weights are quantized, as folders of plain weights under the same names.

Nothing is looked up of the architecture: a format says what the weight of a module is, and all
other arrays stay. Weights are what the format's own programs decode. AWQ's and SmoothQuant's are as
they are stored, as the norms and matrices that take their scales back stay, too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from recover._files import MissingError, UnreadableError, read_bytes
from recover._text import printable, quoted
from recover.containers.huggingface.architectures import text_config
from recover.containers.huggingface.configuration import dtype_name
from recover.containers.huggingface.floats import Floats
from recover.containers.huggingface.folder_layout import as_json
from recover.containers.huggingface.formats import read_matrix
from recover.containers.huggingface.modules import (
    FLOATS,
    QUANTIZATION_KEYS,
    Module,
    modules_of,
    read_recipe,
)
from recover.containers.huggingface.mxfp4 import BLOCKS, SCALES, mxfp4_of
from recover.containers.huggingface.naming import Share, Strided
from recover.containers.huggingface.rows import Rows
from recover.containers.huggingface.scaled import ScaledMatrix
from recover.containers.huggingface.stacks import unstacked
from recover.containers.huggingface.tensors import BytesTensor, FloatTensor, QuantizedTensor
from recover.containers.huggingface.writing import BESIDE
from recover.containers.model import StoredTensor
from recover.containers.safetensors.reader import CONFIG, open_safetensors
from recover.errors import RecoverError, SafetensorsError

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_MOST_BESIDE = 1 << 28  # bytes of one file


@dataclass(frozen=True)
class PlainFolder:
    """A folder's weights without their quantization."""

    path: Path
    """As given."""
    parts: tuple[Path, ...]
    """All files that are read."""
    tensors: Mapping[str, StoredTensor]
    """By the names of their arrays."""
    shares: Mapping[str, Share]
    """Where their weights go."""
    left_out: tuple[str, ...]
    """Arrays that are no floats, and belong to no weight."""
    config: Mapping[str, Any]
    """``config.json``."""
    beside: Mapping[str, bytes]
    """Other files."""

    @property
    def precision(self) -> str | None:
        """The type of the original's weights, if the configuration says it."""
        config = text_config(self.config)
        told = (config.get(key, self.config.get(key)) for key in ("dtype", "torch_dtype"))
        return next((_DTYPES[each] for each in told if each in _DTYPES), None)

    def others(self, dtype: str) -> dict[str, bytes]:
        """All files beside the weights, which are mostly of a type."""
        config = _without_quantization(self.config)
        if not config:
            return dict(self.beside)
        config.pop("dtype", None)
        return {CONFIG: as_json({**config, "torch_dtype": dtype_name(dtype)}), **self.beside}


def open_plain(path: Path) -> PlainFolder:
    """Open a folder as one of plain weights.

    Raises
    ------
    SafetensorsError
        If a file cannot be read, or a weight is stored in no known way.
    """
    model = open_safetensors(path)
    folder = path if path.is_dir() else path.parent
    tensors: dict[str, StoredTensor] = {}
    shares: dict[str, Share] = {}
    left_out: list[str] = []
    try:
        for module in unstacked(modules_of(model, read_recipe(folder))):
            for tensor, share in _plain(module, left_out):
                if share.array in tensors:
                    raise module.error(f"{quoted(share.array)} is there twice")
                tensors[share.array], shares[share.array] = tensor, share
    except RecoverError as error:
        if str(error).startswith(printable(path)):
            raise
        raise SafetensorsError(f"{printable(path)}: {error}") from None
    beside = dict(_beside(folder))
    parts = [*model.parts, *(folder / name for name in beside)]
    if model.config:
        parts.append(folder / CONFIG)
    return PlainFolder(
        path,
        tuple(parts),
        MappingProxyType(tensors),
        MappingProxyType(shares),
        tuple(left_out),
        model.config,
        MappingProxyType(beside),
    )


def _plain(module: Module, left_out: list[str]) -> Iterator[tuple[StoredTensor, Share]]:
    """The plain tensors of a module."""
    matrix = read_matrix(module)
    used = frozenset() if matrix is None else matrix.leaves
    if matrix is not None:
        stored: Any = matrix.stored if isinstance(matrix, ScaledMatrix) else matrix
        n_bytes = sum(module.tensors[leaf].raw.size for leaf in used if leaf in module.tensors)
        name, shape = f"{module.name}.weight", (matrix.n_rows, matrix.row_length)
        tensor = QuantizedTensor(name, shape[::-1], (Rows(stored),), n_bytes)
        yield tensor, Share(name, shape, 0, tensor.n_weights)
    for leaf, array in module.tensors.items():
        name = f"{module.name}.{leaf}".lstrip(".")
        if leaf in used or not array.n_weights:
            continue
        if leaf.endswith(BLOCKS):
            yield _experts(module, leaf)
        elif leaf.endswith(SCALES) and leaf.removesuffix(SCALES) + BLOCKS in module.tensors:
            continue
        elif array.dtype in FLOATS:
            dims = array.shape[::-1] or (1,)
            floats = FloatTensor(name, dims, (Rows(Floats(array)),), array.raw.size)
            yield floats, Share(name, array.shape, 0, array.n_weights)
        elif matrix is None and "weight" in leaf:
            raise module.error(
                f"{leaf} ({array.dtype} of shape {list(array.shape)}) belongs to no known format"
            )
        else:
            left_out.append(name)


def _experts(module: Module, leaf: str) -> tuple[StoredTensor, Share]:
    """Blocks of gpt-oss; plain experts have inputs before outputs."""
    blocks = mxfp4_of(module, leaf)
    n, length = blocks.n_experts, blocks.row_length
    n_rows = blocks.n_rows // n
    name = f"{module.name}.{leaf.removesuffix(BLOCKS)}"
    n_bytes = blocks.blocks.raw.size + blocks.scales.raw.size
    tensor = BytesTensor(name, (length, n_rows, n), (Rows(blocks),), n_bytes)
    axes = (Strided(n, n_rows * length), Strided(n_rows, 1), Strided(length, n_rows))
    return tensor, Share(name, (n, length, n_rows), 0, tensor.n_weights, 0, axes)


def _without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in QUANTIZATION_KEYS}
    inner = kept.get("text_config")
    if isinstance(inner, dict):
        kept["text_config"] = _without_quantization(inner)
    return kept


def _beside(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Files that say how to use the weights."""
    for name in BESIDE:
        try:
            yield name, bytes(read_bytes(folder / name, _MOST_BESIDE))
        except MissingError:
            continue
        except UnreadableError as error:
            raise SafetensorsError(f"{printable(folder / name)}: {error}") from None
