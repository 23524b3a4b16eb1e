"""A tensor in a file: its stored bytes, and the weights that they stand for."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from recover.containers.gguf.header import TensorInfo
from recover.quants import GROUP, F32Array, TensorType, U8Array, dequantize


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of an open model; equal to itself alone.

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
        """How it is stored."""
        return self.info.type

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return self.info.n_weights

    def part(self, start: int, end: int) -> U8Array:
        """The stored bytes of weights `start` to `end`, which are whole blocks.

        Raises
        ------
        QuantError
            If they are not, or the type is stored by rows and they are no whole rows.
        """
        first, last = (self.type.position(each, self.dims[0]) for each in (start, end))
        return self.raw[first:last]

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
        weights = dequantize(self.part(start, end), self.type, out)
        if self.scales is None:
            return weights
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for first, last, scale in self._scaled_ranges(start, end):
                weights[first - start : last - start] *= scale
        return weights

    def factors(self, start: int, end: int) -> F32Array | None:
        """What each 16 of the weights `start` to `end` are multiplied by, (n / 16,); None for 1."""
        if self.scales is None:
            return None
        factors = np.empty((end - start) // GROUP, np.float32)
        for first, last, scale in self._scaled_ranges(start, end):
            factors[(first - start) // GROUP : (last - start) // GROUP] = scale
        return factors

    def unscaled(self, weights: F32Array, start: int) -> F32Array:
        """Weights from number `start` on, over what the stored ones are multiplied by."""
        if self.scales is None:
            return weights
        unscaled = np.empty_like(weights)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for first, last, scale in self._scaled_ranges(start, start + weights.size):
                part = slice(first - start, last - start)
                np.divide(weights[part], scale, out=unscaled[part])
        return unscaled

    def _scaled_ranges(self, start: int, end: int) -> Iterator[tuple[int, int, np.float32]]:
        """Parts of a range, and what the weights of each are multiplied by."""
        if self.scales is None:
            return
        n = self.n_weights // self.scales.size  # of one scale
        for i in range(start // n, -(-end // n)):
            yield max(start, i * n), min(end, (i + 1) * n), self.scales[i]
