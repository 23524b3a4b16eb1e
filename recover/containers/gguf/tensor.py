"""A tensor in a file: its stored bytes, and the weights that they stand for."""

from dataclasses import dataclass, field

from recover.containers.gguf.header import TensorInfo
from recover.containers.model import BlockTensor
from recover.containers.rows import Stored, blocks_of, type_of_blocks
from recover.quants import F32Array, TensorType, U8Array


@dataclass(frozen=True, eq=False)
class Tensor(BlockTensor):
    """A tensor of an open GGUF file (see `recover.containers.model.StoredTensor`).

    Attributes
    ----------
    info : TensorInfo
        Name, dims, type.
    stored : Stored (n_bytes,)
        The stored bytes, of which slices are read: a read-only view of the mapped file, or a range
        of one on a server.
    scales : float32 (1,) or (n_matrices,), or None
        What all weights, or those of each matrix of a stack, are multiplied by once they are
        decoded; None for 1.
    side_tensors : tuple of Tensor
        Where the file has the scales, and what else belongs to this tensor (see
        `recover.containers.gguf.side_scales`).
    """

    info: TensorInfo
    stored: Stored
    scales: F32Array | None = None
    side_tensors: tuple["Tensor", ...] = ()
    # These follow from `info`. They are asked for very often, and there may be many tensors.
    name: str = field(init=False)
    dims: tuple[int, ...] = field(init=False)
    type: TensorType = field(init=False)
    stored_type: TensorType = field(init=False)
    n_bytes: int = field(init=False)
    n_weights: int = field(init=False)

    def __post_init__(self) -> None:
        info, kind = self.info, self.info.type
        vars(self).update(
            name=info.name,
            dims=info.dims,
            type=type_of_blocks(kind),
            stored_type=kind,
            n_bytes=info.n_bytes,
            n_weights=info.n_weights,
        )

    @property
    def raw(self) -> U8Array:
        """All of the stored bytes."""
        return self.stored[:]

    def part(self, start: int, end: int) -> U8Array:
        """The stored bytes of weights `start` to `end`, which are whole blocks.

        Raises
        ------
        QuantError
            If they are not.
        """
        if start == 0 and end == self.n_weights and not self.stored_type.is_by_rows:
            return self.stored[:]  # of small tensors all is asked for, very often
        return blocks_of(self.stored, self.stored_type, self.dims[0], start, end)
