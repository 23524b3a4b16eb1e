"""Unpacks what K inputs say of the same weights into the `Evidence` on a tile."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from recover._compiled.memory import aligned
from recover.containers.model import StoredTensor
from recover.errors import QuantError
from recover.evidence.densities import (
    DEGREE,
    SHAPE,
    correlation,
    density,
    end_codes,
    errors_by_code,
    interval_density,
    likelihood,
    normal_density,
    tempering,
)
from recover.evidence.hidden import HiddenScales
from recover.evidence.tile import Evidence
from recover.evidence.unpacking import Codes, Values, memory_of
from recover.quants import (
    GROUP,
    TILE,
    BlockIntervals,
    F32Array,
    IntervalTensor,
    IntervalType,
    ScalarType,
    Stated,
    TensorType,
    U8Array,
    VectorType,
)
from recover.quants._decode import decode_codes

__all__ = [
    "Evidence",
    "EvidenceBuffer",
    "Source",
    "take_one",
    "tells_errors",
]


@dataclass(frozen=True)
class Source:
    """One input's part in the evidence on one tensor.

    Attributes
    ----------
    type : TensorType
        How this input stores the tensor.
    has_cells : bool
        Whether its codes confine the original weights.
    weighted : bool
        Whether it was quantized with an importance matrix.
    imatrix : str
        Which one, as far as the metadata tell; equal for inputs with the same.
    noise : float or None
        Mean square error of its codes in units of the squared scale, of a scalar type that another
        encoder than llama.cpp's wrote (see `recover.inputs.foreign`): they are off by a normal
        error, and prove no cells.
    weight : float or None
        What it weighs by a calibration; all sources have one, or none has.
    density : tuple of 4 tuples of 5 floats, or None
        What its codes say of the weights by a calibration (see
        `recover.evidence.densities.density`).
    side_scaled : bool
        Whether its weights are multiplied by scales beside it, so that those of its blocks are of
        the best size.
    network : tuple of (str, str), or None
        Path and digest of the file of a network for these inputs, where one is asked for.
    """

    type: TensorType
    has_cells: bool = True
    weighted: bool = False
    imatrix: str = ""
    noise: float | None = None
    weight: float | None = None
    density: tuple[tuple[float, ...], ...] | None = None
    side_scaled: bool = False
    network: tuple[str, str] | None = None

    def __hash__(self) -> int:
        # Tensors are told apart by their sources, very often; these tell most of them apart.
        return hash((self.type, self.has_cells, self.weighted))


def tells_errors(sources: Sequence[Source]) -> bool:
    """Whether anything says how far some inputs are off.

    Codes that make up for each other's errors are off by as much as the inputs of their layer make
    them, which no file tells. An input with cells does; without one it is not known, and nothing is
    claimed.
    """
    folders = [
        source
        for source in sources
        if isinstance(source.type, IntervalType) and not isinstance(source.type, BlockIntervals)
    ]
    confines = any(
        source.has_cells for source in sources if not isinstance(source.type, VectorType)
    )
    return confines or not folders


class EvidenceBuffer:
    """Memory for the evidence on one tile, used again and again by one thread.

    Parameters
    ----------
    sources : sequence of Source
        One per input, finest first; scalar ones, intervals and vector types may be mixed.
    proven : bool
        Whether bounds are to be sure, where the scale that chose the codes is not the stored one
        (see `recover.evidence.hidden`); otherwise they are those of usual ratios of both.
    """

    def __init__(self, sources: Sequence[Source], *, proven: bool = False) -> None:
        self._types = [source.type for source in sources]
        self._proves = [source.has_cells for source in sources]
        for kind in self._types:
            if not isinstance(kind, _KINDS):
                raise QuantError(f"type {kind.name} gives no evidence to combine")
        scalars = [(w.type, w) for w in sources if isinstance(w.type, ScalarType)]
        kinds = [kind for kind, _ in scalars]
        intervals = [kind for kind in self._types if isinstance(kind, IntervalType)]
        others = [kind for kind in self._types if isinstance(kind, VectorType)]
        n_scalars, n_intervals, n_others = len(scalars), len(intervals), len(others)
        rows: dict[type[TensorType], count[int]] = {kind: count() for kind in _KINDS}
        self._row_of = [next(rows[_kind_of(kind)]) for kind in self._types]
        self._order = np.array(_order_of(self._types, self._row_of), np.int64)
        self._memory: list[Codes | Values | Stated] = []
        open_end = np.full(256, np.inf, np.float32)

        beside = [
            [other.type for j, other in enumerate(sources) if j != i and other.noise is None]
            for i in range(len(sources))
        ]
        places = list(zip(sources, beside, strict=True))
        beside_intervals = [b for w, b in places if isinstance(w.type, IntervalType)]
        n_weights, n_groups = n_scalars * TILE, n_scalars * (TILE // GROUP)
        self._whole = Evidence(
            codes=aligned(n_weights, np.uint8),
            scale=aligned(n_groups, np.float32),
            offset=aligned(n_groups, np.float32),
            levels=_stack([kind.levels for kind in kinds]),
            lower_levels=_stack([k.lower_levels if w.has_cells else -open_end for k, w in scalars]),
            upper_levels=_stack([k.upper_levels if w.has_cells else open_end for k, w in scalars]),
            scale_error=aligned(n_groups, np.float32),
            offset_error=aligned(n_groups, np.float32),
            noise=np.array(
                [k.noise if w.noise is None else w.noise for k, w in scalars], np.float64
            ),
            code_errors=_stack([_code_errors(w, kind) for kind, w in scalars]),
            density=np.array(
                [_density(w, w.type, b) for w, b in places if isinstance(w.type, ScalarType)],
                np.float32,
            ).reshape(n_scalars, *SHAPE),
            end_codes=np.array([end_codes(kind) for kind in kinds], np.int32).reshape(-1, 2),
            extremes=np.array([_extremes(w, k) for k, w in scalars], np.int32).reshape(-1, 2, 2),
            scale_steps=np.array([kind.scale_steps for kind in kinds], np.float64),
            lost=np.array([_lost(w, k) for k, w in scalars], np.float64).reshape(-1, 3),
            values=aligned(n_others * TILE, np.float32),
            variance=aligned(n_others * (TILE // GROUP), np.float32),
            likelihood=np.array(
                [_likelihood(w.type, b) for w, b in places if isinstance(w.type, VectorType)],
                np.float32,
            ).reshape(-1, 4),
            correlation=np.array(
                [
                    [1.0 if i == j else correlation(a, b) for j, b in enumerate(others)]
                    for i, a in enumerate(others)
                ],
                np.float64,
            ).reshape(n_others, n_others),
            weights=np.empty(0, np.float64),
            interval_values=aligned(n_intervals * TILE, np.float32),
            interval_lower=aligned(n_intervals * TILE, np.float32),
            interval_upper=aligned(n_intervals * TILE, np.float32),
            interval_variance=aligned(n_intervals * TILE, np.float32),
            interval_noise=np.array([kind.noise for kind in intervals], np.float64),
            interval_density=np.array(
                [interval_density(k, b) for k, b in zip(intervals, beside_intervals, strict=True)],
                np.float32,
            ).reshape(n_intervals, *SHAPE),
            finest=_finest(kinds, intervals),
            largest_lost=_largest_lost(sources),
        )
        known = [w.weight for w in sources if w.weight is not None]
        if known:
            self._whole = self._whole._replace(weights=self.by_place(np.array(known)))
        self._tile, self._n_weights = self._whole, -1
        weighted = [w.weighted for w in sources if isinstance(w.type, IntervalType)]
        self._hidden = HiddenScales(intervals, weighted, proven=proven)

    @property
    def order(self) -> NDArray[np.int64]:
        """The place of each source in the evidence (K + I + V,)."""
        return self._order

    def by_place(self, figures: NDArray[np.float64]) -> NDArray[np.float64]:
        """Figures (K + I + V,) in the order of the sources, put into that of the evidence."""
        placed = np.empty_like(figures)
        placed[self._order] = figures
        return placed

    def decode(self, evidence: Evidence, source: int, out: F32Array) -> None:
        """What one input says: its decoded values, but for the rounding of side scales.

        Parameters
        ----------
        evidence : Evidence
            From `load` or `read`.
        source : int
            Number of the input, in the order of the sources.
        out : float32 (n,)
            To be filled.
        """
        take_one(evidence, int(self._order[source]), out)

    def load(self, raws: Sequence[U8Array], n_weights: int) -> Evidence:
        """Unpack one tile; not of interval inputs, which have no bytes (see `read`).

        Parameters
        ----------
        raws : sequence of uint8 arrays
            The stored bytes of these weights in each input, in the order of the sources.
        n_weights : int
            At most `TILE`; whole blocks of every type.

        Returns
        -------
        Evidence
            Views of this buffer, valid until the next call.
        """
        tile = self._tile_of(n_weights)
        for kind, part, raw in zip(self._types, self._memory, raws, strict=True):
            if isinstance(part, Stated):
                raise QuantError(f"type {kind.name} has no bytes to unpack")
            part.unpack(raw)
        return tile

    def _tile_of(self, n_weights: int) -> Evidence:
        """The beginning of the memory, shaped for so many weights; kept for the next tile."""
        if n_weights != self._n_weights:
            self._tile, self._n_weights = self._views(n_weights), n_weights
            places = zip(self._types, self._row_of, strict=True)
            self._memory = [memory_of(self._tile, kind, row) for kind, row in places]
        return self._tile

    def _views(self, n_weights: int) -> Evidence:
        whole, n_groups = self._whole, n_weights // GROUP
        n_scalars, n_intervals = len(whole.levels), len(whole.interval_noise)
        n_others = len(whole.likelihood)

        def part(memory: NDArray[Any], n_rows: int, n: int) -> NDArray[Any]:
            return memory[: n_rows * n].reshape(n_rows, n)

        return whole._replace(
            codes=part(whole.codes, n_scalars, n_weights),
            scale=part(whole.scale, n_scalars, n_groups),
            offset=part(whole.offset, n_scalars, n_groups),
            scale_error=part(whole.scale_error, n_scalars, n_groups),
            offset_error=part(whole.offset_error, n_scalars, n_groups),
            values=part(whole.values, n_others, n_weights),
            variance=part(whole.variance, n_others, n_groups),
            interval_values=part(whole.interval_values, n_intervals, n_weights),
            interval_lower=part(whole.interval_lower, n_intervals, n_weights),
            interval_upper=part(whole.interval_upper, n_intervals, n_weights),
            interval_variance=part(whole.interval_variance, n_intervals, n_weights),
        )

    def read(
        self, tensors: Sequence[StoredTensor | IntervalTensor], start: int, end: int
    ) -> Evidence:
        """Unpack weights `start` to `end` of tensors, in the order of the sources.

        As `load` does, and times the tensors' scales; interval inputs state their intervals.
        """
        tile = self._tile_of(end - start)
        for number, (tensor, part) in enumerate(zip(tensors, self._memory, strict=True)):
            if isinstance(part, Stated):
                self._state(number, tensor, start, end, part)
                continue
            tensor = cast(StoredTensor, tensor)
            part.unpack(tensor.part(start, end))
            factors = tensor.factors(start, end)
            if factors is not None:
                part.multiply(factors)
        self._hidden.narrow(tile)
        return tile

    def _state(
        self, number: int, tensor: StoredTensor | IntervalTensor, start: int, end: int, out: Stated
    ) -> None:
        """Fill what an interval input states."""
        row = self._row_of[number]
        if row in self._hidden:
            self._hidden.state(row, cast(StoredTensor, tensor).part(start, end), out)
        else:
            cast(IntervalTensor, tensor).intervals(start, end, out)
        if not self._proves[number]:
            out.lower[:] = -np.inf
            out.upper[:] = np.inf


_INTERVALS = "interval_values", "interval_lower", "interval_upper", "interval_variance"
_BY_WEIGHT = ("codes", "values", *_INTERVALS)
_BY_GROUP = ("scale", "offset", "scale_error", "offset_error", "variance")
"""Fields of evidence with one entry for each weight, or for each group of 16."""

_KINDS = ScalarType, IntervalType, VectorType
"""The kinds of inputs, in the order of their slots in a tally."""


def part_of(evidence: Evidence, start: int, end: int) -> Evidence:
    """A copy of the evidence on weights `start` to `end`, which are whole groups."""
    weights, groups = slice(start, end), slice(start // GROUP, end // GROUP)
    parts = dict.fromkeys(_BY_WEIGHT, weights) | dict.fromkeys(_BY_GROUP, groups)
    fields: dict[str, Any] = {
        name: np.ascontiguousarray(getattr(evidence, name)[:, part]) for name, part in parts.items()
    }
    return evidence._replace(**fields)


def rows_of(evidence: Evidence, rows: NDArray[np.int64], n_weights: int) -> Evidence:
    """A copy of the evidence on some runs of so many weights each, which are whole groups."""
    fields: dict[str, Any] = {}
    for names, n_each in ((_BY_WEIGHT, n_weights), (_BY_GROUP, n_weights // GROUP)):
        for name in names:
            whole = getattr(evidence, name)
            runs = whole.reshape(len(whole), whole.shape[1] // n_each, n_each)[:, rows]
            fields[name] = runs.reshape(len(whole), rows.size * n_each)
    return evidence._replace(**fields)


def _kind_of(kind: TensorType) -> type[TensorType]:
    return next(each for each in _KINDS if isinstance(kind, each))


def _order_of(types: Sequence[TensorType], rows: Sequence[int]) -> list[int]:
    """For each source, its place in evidence: scalar inputs first, then intervals."""
    kinds = [_kind_of(kind) for kind in types]
    before = {kind: sum(map(kinds.count, _KINDS[:i])) for i, kind in enumerate(_KINDS)}
    return [before[kind] + row for kind, row in zip(kinds, rows, strict=True)]


def _finest(scalars: Sequence[ScalarType], intervals: Sequence[IntervalType]) -> int:
    """See `Evidence.finest`."""
    if not (scalars and intervals) or scalars[0].relative_mse <= intervals[0].relative_mse:
        return 0
    return len(scalars)


def _largest_lost(sources: Sequence[Source]) -> float:
    """See `Evidence.largest_lost`."""
    usual = 2.0**-12
    kinds = [w.type for w in sources if isinstance(w.type, ScalarType) and not w.side_scaled]
    return max((kind.largest_lost for kind in kinds), default=usual)


def _density(source: Source, kind: ScalarType, beside: Sequence[TensorType]) -> F32Array:
    """The calibrated density if there is one, otherwise the simulated one."""
    if source.noise is not None:
        return normal_density(source.noise)
    if source.density is None:
        return density(kind, weighted=source.weighted, has_cells=source.has_cells, beside=beside)
    table = np.array(source.density, np.float64)
    table[:, :DEGREE] *= tempering(kind, beside)
    return table.astype(np.float32)


def _code_errors(source: Source, kind: ScalarType) -> F32Array:
    """Of codes that llama.cpp chose; those of other encoders are off by one error."""
    if source.noise is not None:
        return np.ones(256, np.float32)
    return errors_by_code(kind, weighted=source.weighted, has_cells=source.has_cells)


def _likelihood(kind: VectorType, beside: Sequence[TensorType]) -> tuple[float, ...]:
    gain, variance = likelihood(kind)
    return (
        gain,
        variance / kind.relative_mse,
        tempering(kind, beside),
        variance / (gain**2 + variance),
    )


def _lost(source: Source, kind: ScalarType) -> tuple[float, float, float]:
    """See `Evidence.lost`; where importances are 0, weights with a scale of 0 may be large."""
    if source.noise is not None or not source.has_cells:
        return 0.0, np.inf, 0.0
    reach = np.inf if source.weighted else kind.lost_reach
    return kind.lost_spread, reach, float(kind.levels[0] < 0)


def _extremes(source: Source, kind: ScalarType) -> list[tuple[int, int]]:
    known = kind.extremes if source.has_cells else ()
    return [*known, *[(-1, -1)] * (2 - len(known))]


def _stack(tables: Sequence[F32Array]) -> F32Array:
    return np.stack(tables) if tables else np.empty((0, 256), np.float32)


def take_one(evidence: Evidence, k: int, out: F32Array) -> None:
    """What input `k` says, in the order of the evidence: exactly what dequantizing it gives."""
    n_scalars, n_proven = len(evidence.codes), len(evidence.interval_values)
    if k < n_scalars:
        decode_codes(
            evidence.codes[k], evidence.scale[k], evidence.offset[k], evidence.levels[k], out
        )
    elif k < n_scalars + n_proven:
        out[:] = evidence.interval_values[k - n_scalars]
    else:
        out[:] = evidence.values[k - n_scalars - n_proven]
