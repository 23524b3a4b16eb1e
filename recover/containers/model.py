"""What the rest of the program knows of a model: `Model`, `StoredTensor`, and who reads a path.

A container is a way to keep a model on a disk: a GGUF file, for instance. Each one declares a
`Container`, and what it opens has the attributes and methods of `Model` and `StoredTensor`. Nothing
else of it is known elsewhere. Ranges of weights are asked for, never slices of bytes.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from recover._brief import Brief
from recover.containers.rows import blocks_of
from recover.quants import (
    GROUP,
    BlockIntervals,
    F32Array,
    Stated,
    TensorType,
    U8Array,
    dequantize,
    state_all,
)
from recover.quants.rounding import Rounding, round_weights

GGML_DIMS = 4
"""Dimensions that ggml's tensors have. One with more is a parameter of another program, which takes
it as it is: nothing computes with its blocks."""


class StoredTensor(Protocol):
    """A tensor of an open model; `BlockTensor` has what follows from the stored bytes.

    Attributes
    ----------
    name : str
        As llama.cpp names it, for instance ``blk.0.attn_q.weight``.
    dims : tuple of int
        The shape, row length first.
    type : TensorType
        How the weights are stored, once rows that are interleaved are taken apart.
    stored_type : TensorType
        How the file stores them.
    n_weights, n_bytes : int
        Number of weights, and of the bytes that they take.
    scales : float32 (n_scales,) or None
        What the weights are multiplied by once they are decoded, one number for each of n_scales
        equal parts; None for 1.
    side_tensors : tuple of StoredTensor
        Other tensors of the file that mean nothing without this one; its scales, for instance.
    is_original : bool
        Whether the stored numbers are the original's own, though the type is one of those that
        models are quantized to.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def dims(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def type(self) -> TensorType: ...  # noqa: D102
    @property
    def stored_type(self) -> TensorType: ...  # noqa: D102
    @property
    def n_weights(self) -> int: ...  # noqa: D102
    @property
    def n_bytes(self) -> int: ...  # noqa: D102
    @property
    def scales(self) -> F32Array | None: ...  # noqa: D102
    @property
    def side_tensors(self) -> "tuple[StoredTensor, ...]": ...  # noqa: D102
    @property
    def is_original(self) -> bool: ...  # noqa: D102

    def part(self, start: int, end: int) -> U8Array:
        """The stored bytes of weights `start` to `end`, which are whole blocks; read-only.

        Each block has the header of its row in front; interleaved rows are taken apart.
        """
        ...

    def read(self, start: int, end: int, out: F32Array | None = None) -> F32Array:
        """Weights `start` to `end`, which are whole blocks, decoded.

        Parameters
        ----------
        start, end : int
            The range.
        out : float32 (end - start,), optional
            Where to put them; made if not given.

        Returns
        -------
        float32 (end - start,)

        Raises
        ------
        QuantError
            If the type cannot be decoded.
        """
        ...

    def round_to(
        self, kind: TensorType, start: int, end: int, out: U8Array, shift: float = 0.0
    ) -> Rounding:
        """Weights `start` to `end`, which are whole blocks, as floats of a type.

        Parameters
        ----------
        kind : TensorType
            F32, F16 or BF16.
        start, end : int
            The range.
        out : uint8 (n_bytes,)
            Where to put them.
        shift : float
            What is added to them before.

        Returns
        -------
        Rounding
            What that lost. The stored numbers are multiplied in float64, and rounded once.

        Raises
        ------
        QuantError
            If the type cannot be decoded.
        """
        ...

    def factors(self, start: int, end: int) -> F32Array | None:
        """What each 16 of the weights `start` to `end` are multiplied by, (n / 16,); None for 1."""
        ...

    def unscaled(self, weights: F32Array, start: int) -> F32Array:
        """Weights from number `start` on, over what the stored ones are multiplied by."""
        ...


class BlockTensor:
    """What follows from the bytes: a container's tensor adds `name`, `dims`, `type` and `part`.

    Attributes and methods are those of `StoredTensor`.
    """

    @cached_property
    def stored_type(self: StoredTensor) -> TensorType:
        """How the file stores the weights."""
        return self.type

    @cached_property
    def n_weights(self: StoredTensor) -> int:
        """Number of weights."""
        return math.prod(self.dims)

    @cached_property
    def n_bytes(self: StoredTensor) -> int:
        """Number of stored bytes."""
        return self.type.tensor_bytes(self.dims)

    @property
    def scales(self) -> F32Array | None:
        """None: the decoded weights are multiplied by nothing."""
        return None

    @property
    def side_tensors(self) -> tuple[StoredTensor, ...]:
        """None of them."""
        return ()

    @property
    def is_original(self) -> bool:
        """No."""
        return False

    @property
    def has_cells(self: StoredTensor) -> bool:
        """Whether a type that states intervals proves bounds."""
        return isinstance(self.type, BlockIntervals) and self.type.has_cells

    def intervals(self: StoredTensor, start: int, end: int, out: Stated) -> None:
        """See `recover.quants.IntervalTensor`."""
        assert isinstance(self.type, BlockIntervals)
        state_all(self.part(start, end), self.type, out)

    def read(self: StoredTensor, start: int, end: int, out: F32Array | None = None) -> F32Array:
        """See `StoredTensor.read`."""
        weights = dequantize(self.part(start, end), self.type, out)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for first, last, scale in _scaled_ranges(self, start, end):
                weights[first - start : last - start] *= scale
        return weights

    def round_to(
        self: StoredTensor,
        kind: TensorType,
        start: int,
        end: int,
        out: U8Array,
        shift: float = 0.0,
    ) -> Rounding:
        """See `StoredTensor.round_to`."""
        weights, rounding = dequantize(self.part(start, end), self.type), Rounding()
        ranges = _scaled_ranges(self, start, end) if self.scales is not None else ()
        for first, last, scale in ranges or [(start, end, np.float32(1))]:
            own, at = weights[first - start : last - start], kind.n_bytes(first - start)
            part = out[at : at + kind.n_bytes(own.size)]
            rounding += round_weights(own, kind, part, float(scale), shift)
        return rounding

    def factors(self: StoredTensor, start: int, end: int) -> F32Array | None:
        """See `StoredTensor.factors`."""
        if self.scales is None:
            return None
        factors = np.empty((end - start) // GROUP, np.float32)
        for first, last, scale in _scaled_ranges(self, start, end):
            factors[(first - start) // GROUP : (last - start) // GROUP] = scale
        return factors

    def unscaled(self: StoredTensor, weights: F32Array, start: int) -> F32Array:
        """See `StoredTensor.unscaled`."""
        if self.scales is None:
            return weights
        unscaled = np.empty_like(weights)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for first, last, scale in _scaled_ranges(self, start, start + weights.size):
                part = slice(first - start, last - start)
                np.divide(weights[part], scale, out=unscaled[part])
        return unscaled


def _scaled_ranges(
    tensor: StoredTensor, start: int, end: int
) -> Iterator[tuple[int, int, np.float32]]:
    """Parts of a range, and what the weights of each are multiplied by."""
    scales = tensor.scales
    if scales is None:
        return
    n = tensor.n_weights // scales.size  # of one scale
    for i in range(start // n, -(-end // n)):
        yield max(start, i * n), min(end, (i + 1) * n), scales[i]


@dataclass(frozen=True, eq=False)
class ArrayTensor(BlockTensor):
    """A tensor whose bytes are an array in memory.

    Attributes
    ----------
    name, dims, type, scales
        As of `StoredTensor`.
    raw : uint8 (n_bytes,)
        The stored bytes.
    """

    name: str
    dims: tuple[int, ...]
    type: TensorType
    raw: U8Array
    scales: F32Array | None = None

    def part(self, start: int, end: int) -> U8Array:
        """The stored bytes of weights `start` to `end`, which are whole blocks."""
        return blocks_of(self.raw, self.type, self.dims[0], start, end)


class Model(Protocol):
    """An open model.

    What it says of itself it says under the keys that GGUF files have: ``general.architecture``,
    ``general.name``, ``general.file_type``, ``quantize.imatrix.*``, ``recover.*`` and so on.

    Attributes
    ----------
    path : Path
        What people know it by.
    parts : tuple of Path
        All files that it is read from; none of them may be an output.
    n_bytes : int
        Their total size.
    tensors : mapping of str to StoredTensor
        By name, in the order in which they are written.
    n_weights : int
        Number of weights in all of them.
    metadata : collection of str
        The keys of which it says something (a mapping, for instance).
    left_out : tuple of str
        What it holds that is no tensor of a GGUF file; a vision tower, for instance.
    """

    @property
    def path(self) -> Path: ...  # noqa: D102
    @property
    def parts(self) -> tuple[Path, ...]: ...  # noqa: D102
    @property
    def n_bytes(self) -> int: ...  # noqa: D102
    @property
    def tensors(self) -> Mapping[str, StoredTensor]: ...  # noqa: D102
    @property
    def n_weights(self) -> int: ...  # noqa: D102
    @property
    def metadata(self) -> Collection[str]: ...  # noqa: D102
    @property
    def left_out(self) -> tuple[str, ...]: ...  # noqa: D102

    def get(self, key: str, default: Any = None) -> Any:
        """What it says under a key, as int, float, bool, str or list; `default` if nothing."""
        ...

    def keys_of(self, prefix: str) -> tuple[str, ...]:
        """The keys that begin with a text; asked for often."""
        ...

    def with_tensors(self, tensors: Mapping[str, StoredTensor]) -> "Model":
        """The same model with others in the place of some tensors."""
        ...

    def without(self, names: Collection[str]) -> "Model":
        """The same model without some tensors."""
        ...

    def fitted(self, names: Collection[str]) -> "Model":
        """The same model with tensors of these names, where it has them in several layouts."""
        ...

    def fingerprint(self) -> str:
        """A digest that changes if the files on the disk are changed; reads little of them."""
        ...


class BriefModel(Brief):
    """What people see of a `Model`: its size, its types, and its tensors."""

    def facts(self: Model) -> Iterator[tuple[str, object]]:
        """See `recover._brief.Brief`."""
        kinds = Counter(each.stored_type.name for each in self.tensors.values())
        yield "path", self.path
        yield "architecture", self.get("general.architecture")
        yield "weights", self.n_weights
        yield "bytes", self.n_bytes
        yield "tensors", len(self.tensors)
        yield "types", " ".join(kind for kind, _ in kinds.most_common())

    def rows(self: Model) -> Iterator[Sequence[object]]:
        """See `recover._brief.Brief`."""
        yield "tensor", "shape", "type"
        for name, each in self.tensors.items():
            yield name, each.dims[::-1], each.stored_type.name


@dataclass(frozen=True)
class Container:
    """A way to keep a model on a disk.

    Declared in the module ``reader`` of a package in `recover.containers`. Other distributions name
    theirs as an entry point of the group ``recover.containers``.

    Attributes
    ----------
    name : str
        What people call it.
    reads : callable
        ``reads(path) -> bool``: whether a path is one of its own. Costs little, and raises nothing.
    open : callable
        ``open(path) -> Model``; a `recover.errors.RecoverError` if it cannot be read.
    """

    name: str
    reads: Callable[[Path], bool]
    open: Callable[[Path], Model]
