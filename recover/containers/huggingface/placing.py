"""Which arrays of a folder make which tensor of a GGUF file."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._text import quoted
from recover.containers.huggingface.architectures import (
    EXPERT,
    MAX_EXPERTS,
    QUERY_OR_KEY,
    Architecture,
    Names,
    size_of,
    text_config,
)
from recover.containers.huggingface.floats import Floats
from recover.containers.huggingface.formats import Matrix, read_matrix
from recover.containers.huggingface.modules import FLOATS, Module
from recover.containers.huggingface.mxfp4 import BLOCKS, SCALES, Mxfp4Blocks, mxfp4_of
from recover.containers.huggingface.rows import Rows
from recover.containers.huggingface.sizes import Sizes
from recover.containers.huggingface.tensors import BytesTensor, FloatTensor, QuantizedTensor
from recover.containers.huggingface.transposed import BlockTransposed
from recover.containers.model import StoredTensor
from recover.containers.safetensors.reader import Tensor
from recover.errors import SafetensorsError
from recover.quants import FloatType, IntervalType

_FUSED = re.compile(r"(?P<module>.+\.experts)\.gate_up_proj(?P<leaf>\.weight|_bias)?")
_FUSED_EACH = re.compile(r"(?P<module>.+\.experts\.\d+)\.gate_up_proj\.weight")
_DOWN = re.compile(r"(?P<module>.+\.experts)\.down_proj(?P<leaf>\.weight|_bias)?")
_NORM = "norm.weight"

_Stored = Floats | Matrix | Mxfp4Blocks


@dataclass(frozen=True)
class Placed:
    """The tensors of a folder.

    Attributes
    ----------
    tensors : dict of str to StoredTensor
        By their names in GGUF files.
    variants : dict of str to list of StoredTensor
        See `recover.containers.huggingface.reader.FolderModel`.
    unplaced : list of str
        Arrays that have no place.
    """

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    variants: dict[str, list[StoredTensor]] = field(default_factory=dict)
    unplaced: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Part:
    """Part of a tensor."""

    rows: Rows
    n_bytes: int
    n_dims: int
    """Dimensions of the matrix, or of the stack, as it is stored."""
    expert: int | None = None
    n_stacked: int = 1


class _Placer:
    def __init__(self, architecture: Architecture, names: Names, config: Mapping[str, Any]) -> None:
        self._architecture = architecture
        self._names = names
        self._config = config
        self._sizes = Sizes(architecture, config)
        self.placed = Placed()
        self._parts: dict[str, list[_Part]] = {}

    def add(self, module: Module) -> None:
        """Find the places of a module's arrays."""
        weight = f"{module.name}.weight"
        matrix = read_matrix(replace(module, sizes=lambda: self._sizes_of(weight)))
        used = frozenset() if matrix is None else matrix.leaves
        if matrix is not None:
            n_bytes = sum(module.tensors[leaf].raw.size for leaf in used if leaf in module.tensors)
            self._place(weight, matrix, n_bytes, 2)
        for leaf, tensor in module.tensors.items():
            name = f"{module.name}.{leaf}".lstrip(".")
            if leaf in used:
                continue
            if not tensor.n_weights:
                if leaf == "weight" and self._target(name) is not None:
                    raise _empty(tensor)
                continue
            if leaf.endswith(SCALES) and leaf.removesuffix(SCALES) + BLOCKS in module.tensors:
                continue
            if leaf.endswith(BLOCKS):
                self._place_blocks(module, leaf)
                continue
            if tensor.dtype in FLOATS:
                self._place(name, Floats(tensor), tensor.raw.size, len(tensor.shape))
            elif matrix is None and self._is_needed(module, leaf):
                raise _unknown(module, name)
            else:
                self.placed.unplaced.append(name)

    def _sizes_of(self, name: str) -> tuple[int | None, int | None]:
        """Row length and rows of a weight, by ``config.json``."""
        target = self._target(name)
        return (None, None) if target is None else self._sizes.of_matrix(target)

    def _place_blocks(self, module: Module, leaf: str) -> None:
        """Note where the experts of gpt-oss go."""
        matrix = mxfp4_of(module, leaf)
        n_bytes = matrix.blocks.raw.size + matrix.scales.raw.size
        self._place(f"{module.name}.{leaf.removesuffix(BLOCKS)}", matrix, n_bytes, 3)

    def _is_needed(self, module: Module, leaf: str) -> bool:
        """Whether an array that no format knows is a weight that has a place, or part of one."""
        weight = module.tensors.get("weight")
        is_stored = leaf != "weight" and weight is not None and weight.dtype in FLOATS
        return not is_stored and self._target(f"{module.name}.weight") is not None

    def _target(self, name: str) -> str | None:
        """The name in GGUF files of a tensor, or of the stack that it is part of."""
        match = EXPERT.fullmatch(name)
        return self._names.of(name if match is None else f"{match['module']}.{match['rest']}")

    def _place(self, name: str, matrix: _Stored, n_bytes: int, n_dims: int) -> None:
        """Note where an array goes."""
        found = list(self._targets(name, matrix, n_dims))
        if not found:
            self.placed.unplaced.append(name)
        for own, rows, n_stacked in found:
            match = EXPERT.fullmatch(own)
            expert = None if match is None else int(match["number"])
            if match is not None:
                own = f"{match['module']}.{match['rest']}"
            target = self._names.of(own)
            if target is None or self._is_tied(own):
                self.placed.unplaced.append(name)
                continue
            part = _Part(rows, n_bytes // len(found), n_dims, expert, n_stacked)
            self._parts.setdefault(target, []).append(part)

    def _is_tied(self, name: str) -> bool:
        tied = text_config(self._config).get("tie_word_embeddings") is True
        return tied and name.endswith("lm_head.weight")

    def _targets(self, name: str, matrix: _Stored, n_dims: int) -> Iterator[tuple[str, Rows, int]]:
        """Under which names, in which order, and as a stack of how many an array is taken."""
        fused, down = _FUSED.fullmatch(name), _DOWN.fullmatch(name)
        found = fused or down
        if found is not None and isinstance(matrix, Floats):
            leaf = ".bias" if found["leaf"] == "_bias" else ".weight"
            yield from self._of_experts(found["module"], leaf, matrix, is_fused=fused is not None)
            return
        if found is not None and isinstance(matrix, Mxfp4Blocks):
            yield from self._split(
                found["module"], ".weight", Rows(matrix), matrix.n_experts, fused
            )
            return
        if each := _FUSED_EACH.fullmatch(name):
            yield from self._split_each(each["module"], matrix)
            return
        if self._architecture.norms_add_one and name.endswith(_NORM) and n_dims == 1:
            assert isinstance(matrix, Floats)
            yield name, Rows(Floats(matrix.tensor, adds_one=True)), 1
            return
        match = QUERY_OR_KEY.fullmatch(name)
        if match is not None and self._architecture.permutes_heads:
            if n_dims == 1:
                assert isinstance(matrix, Floats)
                matrix = Floats(matrix.tensor, is_column=True)
            n_heads = self._n_heads(match["which"])
            yield name, Rows(matrix, rotary_order(name, matrix.n_rows, n_heads)), 1
            return
        n_stacked = matrix.tensor.shape[0] if isinstance(matrix, Floats) and n_dims == 3 else 1
        yield name, Rows(matrix), n_stacked

    def _n_heads(self, which: str) -> int:
        key = "num_key_value_heads" if which == "k" else "num_attention_heads"
        if text_config(self._config).get(key) is None:
            key = "num_attention_heads"
        return size_of(self._config, key)

    def _of_experts(
        self, module: str, leaf: str, matrix: Floats, *, is_fused: bool
    ) -> Iterator[tuple[str, Rows, int]]:
        """The parts of one array with all experts: weights (experts, rows, columns) or biases."""
        shape = matrix.tensor.shape
        is_bias = leaf == ".bias"
        if len(shape) != (2 if is_bias else 3):
            raise SafetensorsError(
                f"tensor {quoted(matrix.tensor.name)} has {len(shape)} dimensions, not one for the"
                f" experts and {1 if is_bias else 2} more"
            )
        n_experts = shape[0]
        rows = Rows(Floats(matrix.tensor, is_column=True) if is_bias else matrix)
        if self._architecture.alternates and not is_bias:  # and inputs come before outputs
            rows = Rows(BlockTransposed(rows, shape[1]))
        yield from self._split(module, leaf, rows, n_experts, is_fused)

    def _split(
        self, module: str, leaf: str, rows: Rows, n_experts: int, is_fused: object
    ) -> Iterator[tuple[str, Rows, int]]:
        """Experts' weights or biases as they are; or gate and up apart, if they are fused."""
        if not is_fused:
            yield f"{module}.down_proj{leaf}", rows, n_experts
            return
        n_rows = rows.n_rows // n_experts
        if n_rows % 2:
            raise SafetensorsError(f"experts of {quoted(module)}: {n_rows} rows, not even")
        each = np.arange(rows.n_rows).reshape(n_experts, n_rows)
        halves = np.split(each, 2, 1)
        if self._architecture.alternates:
            halves = [each[:, 0::2], each[:, 1::2]]
        for which, half in zip(("gate_proj", "up_proj"), halves, strict=True):
            yield f"{module}.{which}{leaf}", Rows(rows.matrix, half.reshape(-1)), n_experts

    def _split_each(self, module: str, matrix: _Stored) -> Iterator[tuple[str, Rows, int]]:
        """Gate and up of one expert, which are fused."""
        if self._architecture.alternates or matrix.n_rows % 2:
            raise SafetensorsError(
                f"experts of {quoted(module)}: it is not known how gate and up of"
                f" {matrix.n_rows} rows are fused"
            )
        halves = np.split(np.arange(matrix.n_rows), 2)
        for which, half in zip(("gate_proj", "up_proj"), halves, strict=True):
            yield f"{module}.{which}.weight", Rows(matrix, half), 1

    def finish(self) -> Placed:
        """All tensors."""
        for name, parts in self._parts.items():
            tensor = self._tensor(name, parts)
            self.placed.tensors[name] = tensor
            if self._architecture.splits_kv and name.endswith(".attn_kv_b.weight"):
                self.placed.variants[name] = list(self._split_by_head(name, parts))
        return self.placed

    def _tensor(self, name: str, parts: Sequence[_Part]) -> StoredTensor:
        """A tensor of its parts: one, or one for each expert."""
        if len(parts) > 1 or parts[0].expert is not None:
            parts = _in_order(name, parts)
        first = parts[0]
        length = first.rows.matrix.row_length
        shapes = {(each.rows.matrix.row_length, each.rows.n_rows) for each in parts}
        if len(shapes) > 1:
            raise SafetensorsError(f"tensor {quoted(name)}: experts have different shapes")
        n_stacked = len(parts) if first.expert is not None else first.n_stacked
        n_rows = sum(each.rows.n_rows for each in parts)
        dims: tuple[int, ...] = (length, n_rows)
        if first.expert is not None or first.n_stacked > 1 or first.n_dims == 3:
            dims = (length, n_rows // n_stacked, n_stacked)
        if length == 1:  # vectors whose numbers are put in order
            dims = dims[1:]
        elif first.n_dims < 2:
            dims = (length,)
        return _made(name, dims, [each.rows for each in parts], sum(p.n_bytes for p in parts))

    def _split_by_head(self, name: str, parts: Sequence[_Part]) -> Iterator[StoredTensor]:
        """DeepSeek's projection to keys and values as two stacks of a matrix per head."""
        matrix, n_bytes = parts[0].rows.matrix, parts[0].n_bytes
        n_heads = size_of(self._config, "num_attention_heads")
        n_key = size_of(self._config, "qk_nope_head_dim")
        n_value = size_of(self._config, "v_head_dim")
        length, n_each = matrix.row_length, n_key + n_value
        if matrix.n_rows != n_heads * n_each:
            raise SafetensorsError(
                f"tensor {quoted(name)}: {matrix.n_rows} rows are not {n_each} for each of"
                f" {n_heads} heads"
            )
        of_heads = np.arange(matrix.n_rows).reshape(n_heads, n_each)
        keys, values = of_heads[:, :n_key].reshape(-1), of_heads[:, n_key:].reshape(-1)
        turned = BlockTransposed(Rows(matrix, keys), n_key)
        stem = name.removesuffix("attn_kv_b.weight")
        share = n_bytes * n_key // n_each
        key_name, value_name = f"{stem}attn_k_b.weight", f"{stem}attn_v_b.weight"
        yield _made(key_name, (n_key, length, n_heads), [Rows(turned)], share)
        value_dims = length, n_value, n_heads
        yield _made(value_name, value_dims, [Rows(matrix, values)], n_bytes - share)


def _empty(tensor: Tensor) -> SafetensorsError:
    """Of a weight without numbers."""
    return SafetensorsError(
        f"tensor {quoted(tensor.name)} has the shape {list(tensor.shape)}, so that it holds no"
        " numbers; programs that spread a model over processes (DeepSpeed) save that where they do"
        " not gather the weights first"
    )


def _unknown(module: Module, name: str) -> SafetensorsError:
    """Of an array that belongs to a weight in no known way."""
    tensor = module.tensors[name.removeprefix(f"{module.name}.")]
    method = module.config.get("quant_method")
    said = f" (quant_method {quoted(str(method))})" if method is not None else ""
    return SafetensorsError(
        f"tensor {quoted(name)} ({tensor.dtype} of shape {list(tensor.shape)}) belongs to no known"
        f" format{said}; leave this folder out"
    )


def place_tensors(
    modules: Iterable[Module], architecture: Architecture, names: Names, config: Mapping[str, Any]
) -> Placed:
    """The tensors of a folder as GGUF files have them.

    Parameters
    ----------
    modules : iterable of Module
        All of the folder.
    architecture : Architecture
        Of the model.
    names : Names
        Its names in GGUF files.
    config : mapping of str to Any
        Of ``config.json``.

    Raises
    ------
    SafetensorsError
        If a weight that has a place is stored in no known way, experts are missing, or shapes do
        not go with the configuration.
    """
    placer = _Placer(architecture, names, config)
    for module in modules:
        placer.add(module)
    return placer.finish()


def rotary_order(name: str, n_rows: int, n_heads: int) -> NDArray[np.int64]:
    """Rows of queries or keys in the order that llama.cpp's rotary embedding wants for llama.

    As `LlamaModel.permute` of llama.cpp's converter: inside a head, row (j, i) of the two halves j
    becomes row 2 i + j.

    Parameters
    ----------
    name : str
        Of the tensor, for messages.
    n_rows, n_heads : int
        Sizes.

    Returns
    -------
    int64 (n_rows,)
        For each row of the GGUF file the row here.
    """
    if n_rows % (2 * n_heads):
        raise SafetensorsError(f"tensor {quoted(name)}: {n_rows} rows for {n_heads} heads")
    return np.arange(n_rows).reshape(n_heads, 2, -1).swapaxes(1, 2).reshape(-1)


def _in_order(name: str, parts: Sequence[_Part]) -> list[_Part]:
    """The parts of a stack, by expert."""
    by_expert = {part.expert: part for part in parts}
    if None in by_expert or len(by_expert) < len(parts):
        raise SafetensorsError(f"tensor {quoted(name)}: several arrays become this one")
    missing = next((i for i in range(len(parts)) if i not in by_expert), None)
    if len(parts) > MAX_EXPERTS:
        raise SafetensorsError(f"tensor {quoted(name)}: more than {MAX_EXPERTS} experts")
    if missing is not None:
        raise SafetensorsError(f"tensor {quoted(name)}: expert {missing} is missing")
    return [by_expert[i] for i in range(len(parts))]


def _made(name: str, dims: tuple[int, ...], runs: Sequence[Rows], n_bytes: int) -> StoredTensor:
    """A tensor of rows that are all floats, or all quantized."""
    kinds = {run.matrix.type for run in runs}
    if all(isinstance(kind, IntervalType) for kind in kinds):
        return QuantizedTensor(name, dims, tuple(runs), n_bytes)
    if len(kinds) > 1:
        names = " and ".join(sorted(kind.name for kind in kinds))
        raise SafetensorsError(f"tensor {quoted(name)}: experts are stored as {names}")
    kind = FloatTensor if isinstance(runs[0].matrix.type, FloatType) else BytesTensor
    return kind(name, dims, tuple(runs), n_bytes)
