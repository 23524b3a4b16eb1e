"""A tensor in a file: its stored bytes, and the weights that they stand for."""

from dataclasses import dataclass

from recover.containers.gguf.header import TensorInfo
from recover.containers.model import BlockTensor
from recover.containers.rows import blocks_of, type_of_blocks
from recover.quants import F32Array, TensorType, U8Array


@dataclass(frozen=True, eq=False)
class Tensor(BlockTensor):
    """A tensor of an open GGUF file (see `recover.containers.model.StoredTensor`).

    Attributes
    ----------
    info : TensorInfo
        Name, dims, type.
    raw : uint8 (n_bytes,)
        The stored bytes: a read-only view of the mapped file.
    scales : float32 (1,) or (n_matrices,), or None
        What all weights, or those of each matrix of a stack, are multiplied by once they are
        decoded; None for 1.
    side_tensors : tuple of Tensor
        Where the file has the scales, and what else belongs to this tensor (see
        `recover.containers.gguf.side_scales`).
    """

    info: TensorInfo
    raw: U8Array
    scales: F32Array | None = None
    side_tensors: tuple["Tensor", ...] = ()

    @property
    def name(self) -> str:
        """Name of the tensor."""
        return self.info.name

    @property
    def dims(self) -> tuple[int, ...]:
        """Sizes, row length first."""
        return self.info.dims

    @property
    def type(self) -> TensorType:
        """How its weights are stored, once interleaved rows are taken apart."""
        return type_of_blocks(self.info.type)

    @property
    def stored_type(self) -> TensorType:
        """How the file stores it."""
        return self.info.type

    @property
    def n_bytes(self) -> int:
        """Number of stored bytes."""
        return self.info.n_bytes

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return self.info.n_weights

    def part(self, start: int, end: int) -> U8Array:
        """The stored bytes of weights `start` to `end`, which are whole blocks.

        Raises
        ------
        QuantError
            If they are not.
        """
        return blocks_of(self.raw, self.info.type, self.info.dims[0], start, end)
