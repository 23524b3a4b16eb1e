"""Whether a model keeps within what other files prove, and quantizes to their bytes again."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recover._brief import Brief
from recover._compiled.jit import kernel
from recover._text import printable, quoted, some
from recover.containers.model import Model, StoredTensor
from recover.errors import PlanError, QuantError
from recover.evidence.intervals import Intervals
from recover.execution.tiles import Progress, Tile, available_cores, for_each_tile, n_tiles
from recover.inputs.alignment import name_of_rows, with_common_rows
from recover.inputs.completion import check_unscaled, with_known_scales, without_divided
from recover.inputs.metadata import METHOD_KEY
from recover.inputs.open import open_model, open_models
from recover.inputs.provenance import confines, uses_imatrix
from recover.quants import TILE, F32Array, FloatType, OpaqueType, ScalarType, all_types, quantize

_N_FIGURES = 5
_FEW = 0.25
"""Share of the blocks that come back, below which that is said."""
# Estimates are float32 numbers between bounds that are: a few units in the last place of these.
_ARITHMETIC = np.float32(2.0**-21)


@dataclass(frozen=True)
class TensorCheck:
    """One tensor of the model against one input."""

    name: str
    type: str
    """The tensor, and how the input stores it."""
    n_weights: int
    """Number of weights."""
    n_bounded: int
    """Those that the input gives a bound."""
    n_outside: int
    """Those that lie outside by more than the rounding of the model's own type, and of float32."""
    largest_excess: float
    """How far the worst of these lies outside, that rounding taken off."""
    n_blocks: int
    n_reproduced: int
    """Blocks of the input, and those that come back byte for byte when the model is quantized
    without an importance matrix; 0 for types that are not encoded, and where the input has side
    scales, which no encoder of ggml makes."""

    @property
    def is_quantized(self) -> bool:
        """Whether the input stores codes."""
        floats = {kind.name for kind in all_types() if isinstance(kind, FloatType)}
        return self.type not in floats


@dataclass(frozen=True)
class InputCheck:
    """The model against one input."""

    path: str
    """The input."""
    imatrix: bool
    """It was quantized with an importance matrix, so that it is of no meaning which blocks come
    back."""
    tensors: tuple[TensorCheck, ...]
    """Those that both have."""
    only_input: tuple[str, ...]
    only_model: tuple[str, ...]
    """Tensors that only one of the two has, or that only one stores as weights."""
    is_quantized: bool
    """Whether the input holds quantized tensors."""

    @property
    def n_missing(self) -> int:
        """Tensors of the input that the model lacks."""
        return len(self.only_input)

    @property
    def is_checked(self) -> bool:
        """Whether any of the weights had bounds that a quantization proves."""
        return any(tensor.n_bounded for tensor in self.tensors if tensor.is_quantized)

    @property
    def is_whole(self) -> bool:
        """Whether every weight of both had a bound."""
        is_bounded = self.total("n_bounded") == self.total("n_weights")
        return is_bounded and not self.only_input and not self.only_model

    @property
    def bounded_share(self) -> str:
        """The share of the weights that had bounds, for people: of less than all, never 100%."""
        return f"{self.total('n_bounded') * 10_000 // self.total('n_weights') / 100:.2f}%"

    def total(self, figure: str) -> int:
        """Sum of an integer attribute over the tensors."""
        return sum(int(getattr(tensor, figure)) for tensor in self.tensors)

    @property
    def largest_excess(self) -> float:
        """How far the worst weight lies outside."""
        return max(tensor.largest_excess for tensor in self.tensors)

    @property
    def reproduced_fraction(self) -> float | None:
        """Share of the blocks that come back byte for byte; None where that has no meaning."""
        n_blocks = self.total("n_blocks")
        return None if self.imatrix or not n_blocks else self.total("n_reproduced") / n_blocks

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        figures = ("n_weights", "n_bounded", "n_outside", "n_blocks", "n_reproduced")
        return {
            "path": self.path,
            "imatrix": self.imatrix,
            **{figure: self.total(figure) for figure in figures},
            "largest_excess": self.largest_excess,
            "reproduced_fraction": self.reproduced_fraction,
            "n_missing_tensors": self.n_missing,
            "only_input": list(self.only_input),
            "only_model": list(self.only_model),
            "quantized": self.is_quantized,
            "checked": self.is_checked,
            "tensors": [
                {
                    "name": tensor.name,
                    "type": tensor.type,
                    **{figure: getattr(tensor, figure) for figure in figures},
                    "largest_excess": tensor.largest_excess,
                }
                for tensor in self.tensors
            ],
        }


@dataclass(frozen=True, repr=False)
class VerifyResult(Brief):
    """The model against all inputs.

    Attributes
    ----------
    model : str
        Its path.
    inputs : tuple of InputCheck
        In the order given.
    quantized_as : tuple of str
        Types of the model's quantized tensors; none, if it is what it should be.
    is_estimate : bool
        Whether the model's metadata say that a merge wrote it.
    """

    model: str
    inputs: tuple[InputCheck, ...]
    quantized_as: tuple[str, ...] = ()
    is_estimate: bool = False

    def facts(self) -> Iterator[tuple[str, object]]:
        """See `recover._brief.Brief`."""
        yield "model", Path(self.model).name
        yield "inputs", " + ".join(Path(each.path).name for each in self.inputs)
        yield "is_checked", self.is_checked
        yield "is_consistent", self.is_consistent

    def rows(self) -> Iterator[Sequence[object]]:
        """See `recover._brief.Brief`."""
        yield "input", "tensors", "missing", "weights outside"
        for each in self.inputs:
            yield each.path, len(each.tensors), each.n_missing, each.total("n_outside")

    @property
    def is_checked(self) -> bool:
        """Whether any of the weights had bounds that a quantization proves."""
        return any(each.is_checked for each in self.inputs)

    @property
    def is_consistent(self) -> bool:
        """Whether something was checked, and no weight lies outside what an input proves."""
        return self.is_checked and not any(each.total("n_outside") for each in self.inputs)

    def findings(self) -> list[str]:
        """What is to be said of the files besides the figures, a line each."""
        return [*self._called_out(), *self._unmatched(), self._verdict(), *self._unlike()]

    def _called_out(self) -> list[str]:
        lines = []
        model = printable(self.model)
        if self.quantized_as:
            lines.append(
                f"{model}, the MODEL, is quantized ({', '.join(self.quantized_as)}): were the"
                " arguments swapped? What its codes may stand for was compared, not single weights"
            )
        for each in self.inputs:
            if not each.is_quantized:
                lines.append(
                    f"{printable(each.path)}, an INPUT, is not quantized, so that there are no"
                    " cells: were the arguments swapped?"
                )
            elif not each.is_checked:
                types = sorted({tensor.type for tensor in each.tensors if tensor.is_quantized})
                lines.append(
                    f"{printable(each.path)}: its codes ({', '.join(types) or 'none in common'})"
                    " give no weight bounds, so that nothing could be checked"
                )
        return lines

    def _unmatched(self) -> list[str]:
        lines = []
        for each in self.inputs:
            for names, path in ((each.only_input, each.path), (each.only_model, self.model)):
                if names:
                    lines.append(
                        f"only {printable(path)} has {some([quoted(name) for name in names])}:"
                        " not compared"
                    )
        return list(dict.fromkeys(lines))

    def _verdict(self) -> str:
        """One sentence that says no more than what was looked at."""
        if not self.is_checked:
            return "nothing could be checked"
        n_outside = sum(each.total("n_outside") for each in self.inputs)
        shares = ", ".join(
            f"{each.bounded_share} in {printable(each.path)}" for each in self.inputs
        )
        if n_outside:
            what = f"{n_outside:,} of those that have bounds ({shares})"
            return f"weights lie outside the cells of an input: {what}"
        lie = "may lie" if self.quantized_as else "lie"
        if all(each.is_whole for each in self.inputs):
            verb = lie if self.quantized_as else "lies"
            return f"every weight {verb} in the cells of every input"
        return (
            f"the weights that have bounds ({shares}) {lie} within them; of the others nothing is"
            " known"
        )

    def _unlike(self) -> list[str]:
        """What speaks against the original, although no weight lies outside."""
        if not self.is_consistent:
            return []
        if self.is_estimate:
            what = f"but a merge wrote {printable(self.model)}, as its metadata say"
            return [f"{what}: these are estimates, not the original"]
        few = [
            f"{each.reproduced_fraction:.2%} of {printable(each.path)}"
            for each in self.inputs
            if each.reproduced_fraction is not None and each.reproduced_fraction < _FEW
        ]
        if self.quantized_as or not few:
            return []
        what = f"but few blocks come back ({', '.join(few)}): of the original about all do"
        unless = "it was rounded since, or an importance matrix or another quantizer was at work"
        return [f"{what}, unless {unless}"]

    def to_json(self) -> dict[str, Any]:
        """The document that ``recover verify --json`` prints."""
        return {
            "model": self.model,
            "consistent": self.is_consistent,
            "checked": self.is_checked,
            "quantized_as": list(self.quantized_as),
            "findings": self.findings(),
            "inputs": [each.to_json() for each in self.inputs],
        }


def verify_model(
    model: str | os.PathLike[str],
    inputs: Sequence[str | os.PathLike[str]],
    *,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> VerifyResult:
    """Compare a model's weights with what quantizations prove of the original.

    Parameters
    ----------
    model : path-like
        GGUF file or Hugging Face folder whose weights are looked at.
    inputs : sequence of path-like
        GGUF files or Hugging Face folders, for instance those that it was merged from.
    n_threads, progress : optional
        See `recover.execution.tiles`.

    Returns
    -------
    VerifyResult

    Raises
    ------
    GGUFError, PlanError
        If a file cannot be read, or the files have no weights in common, or shapes differ.
    """
    checked = open_model(model)
    stored = [each.fitted(checked.tensors.keys()) for each in open_models(inputs)]
    checked = checked.fitted({name for each in stored for name in each.tensors})
    check_unscaled(checked, checked.tensors)
    norms = [without_divided(each) for each in stored]  # without those that scales changed
    others = [
        each.without(each.tensors.keys() - kept.tensors.keys())
        for each, kept in zip(with_known_scales(stored), norms, strict=True)
    ]
    checks = [_Check(checked, other) for other in others]
    jobs = [(check, pair) for check in checks for pair in range(len(check.pairs))]
    sizes = [check.pairs[pair][0].n_weights for check, pair in jobs]
    workers = [_Worker(jobs) for _ in range(n_threads or available_cores())]
    for_each_tile(sizes, [worker.work for worker in workers], progress)
    results = tuple(check.result() for check in checks)
    is_estimate = METHOD_KEY in checked.metadata
    return VerifyResult(str(checked.path), results, _quantized_types(checked), is_estimate)


def _quantized_types(model: Model) -> tuple[str, ...]:
    kinds = {tensor.type for tensor in model.tensors.values()}
    return tuple(
        sorted(kind.name for kind in kinds if not isinstance(kind, FloatType | OpaqueType))
    )


class _Check:
    """Pairs of tensors of the model and one input, and the figures of their tiles."""

    def __init__(self, model: Model, other: Model) -> None:
        self.other = other
        self.pairs = _pairs(model, other)
        self.figures = [np.zeros((n_tiles(ours.n_weights), _N_FIGURES)) for ours, _ in self.pairs]
        compared = {ours.name: ours for ours, _ in self.pairs}
        self.only_input, self.only_model = (
            tuple(
                name_of_rows(name, 0 if name not in compared else compared[name].dims[1])
                for name, tensor in each.tensors.items()
                if not _is_opaque_in_both(name, model, other)
                and (name not in compared or tensor.n_weights > compared[name].n_weights)
            )
            for each in (other, model)
        )

    def result(self) -> InputCheck:
        tensors = []
        for (ours, theirs), figures in zip(self.pairs, self.figures, strict=True):
            n_bounded, n_outside, _, n_blocks, n_reproduced = figures.sum(0)
            tensors.append(
                TensorCheck(
                    name=theirs.name,
                    type=theirs.type.name,
                    n_weights=ours.n_weights,
                    n_bounded=int(n_bounded),
                    n_outside=int(n_outside),
                    largest_excess=float(figures[:, 2].max()),
                    n_blocks=int(n_blocks),
                    n_reproduced=int(n_reproduced),
                )
            )
        path, imatrix = str(self.other.path), uses_imatrix(self.other)
        is_quantized = bool(_quantized_types(self.other))
        return InputCheck(
            path, imatrix, tuple(tensors), self.only_input, self.only_model, is_quantized
        )


def _is_opaque_in_both(name: str, model: Model, other: Model) -> bool:
    """Whether both hold no weights under a name: there is nothing to compare."""
    return all(
        name in each.tensors and isinstance(each.tensors[name].type, OpaqueType)
        for each in (model, other)
    )


def _pairs(model: Model, other: Model) -> list[tuple[StoredTensor, StoredTensor]]:
    """Tensors that both have and that hold weights."""
    pairs = [
        with_common_rows(tensor, other.tensors[name])
        for name, tensor in model.tensors.items()
        if name in other.tensors
        and not isinstance(tensor.type, OpaqueType)
        and not isinstance(other.tensors[name].type, OpaqueType)
    ]
    shown = printable(model.path), printable(other.path)
    if not pairs:
        raise PlanError(f"{shown[0]} and {shown[1]} have no tensor of weights in common")
    reshaped = [quoted(one.name) for one, two in pairs if one.n_weights != two.n_weights]
    reshaped += [
        quoted(one.name)
        for one, two in pairs
        if one.n_weights == two.n_weights and one.dims[0] != two.dims[0]
    ]
    if reshaped:
        raise PlanError(f"{shown[0]} and {shown[1]}: shapes of {some(reshaped)} differ")
    return pairs


class _Worker:
    """One thread's part."""

    def __init__(self, jobs: Sequence[tuple[_Check, int]]) -> None:
        self._jobs = jobs
        self._ours, self._theirs = Intervals(), Intervals()
        self._weights = np.empty(TILE, np.float32)
        self._encoded = np.empty(TILE * 4, np.uint8)
        self._index = -1

    def work(self, tile: Tile) -> None:
        """Check one tile."""
        check, pair = self._jobs[tile.tensor]
        ours, theirs = check.pairs[pair]
        if tile.tensor != self._index:
            self._index = tile.tensor
            # A quantized model stands for what was quantized: its cells are its rounding.
            self._ours.look_at([ours])
            self._theirs.look_at([theirs] if confines(check.other, theirs) else [])
        weights = self._weights[: tile.end - tile.start]
        ours.read(tile.start, tile.end, weights)
        bounds = self._theirs.bound(tile.start, tile.end)
        rounding = self._ours.bound(tile.start, tile.end)
        figures = check.figures[pair][tile.start // TILE]
        figures[:3] = _count(weights, *rounding, *bounds)
        figures[3:] = self._requantize(weights, theirs, tile)

    def _requantize(self, weights: F32Array, theirs: StoredTensor, tile: Tile) -> tuple[int, int]:
        """Blocks of the input, and those that the weights give when they are quantized."""
        kind = theirs.type
        if not isinstance(kind, ScalarType) or theirs.scales is not None:
            return 0, 0
        if not np.isfinite(weights).all():
            return 0, 0
        stored = theirs.part(tile.start, tile.end)
        try:
            encoded = quantize(weights[None], kind, out=self._encoded[: stored.size])
        except QuantError:
            return 0, 0
        shape = (-1, kind.type_size)
        same = (encoded.reshape(shape) == stored.reshape(shape)).all(1)
        return same.size, int(np.count_nonzero(same))


@kernel
def _count(
    weights: F32Array,
    least: F32Array,
    most: F32Array,
    lower: F32Array,
    upper: F32Array,
) -> tuple[int, int, float]:
    """Weights with a bound, weights outside, and the largest excess.

    `least` and `most` are what the weights may have been before they were rounded to their type; a
    few units in the last place of float32 are allowed besides. A weight that is NaN lies outside
    wherever there is a bound.
    """
    n_bounded, n_outside, largest = 0, 0, np.float32(0)
    for i in range(weights.size):
        if lower[i] == -np.inf and upper[i] == np.inf:
            continue
        n_bounded += 1
        low, high = min(least[i], weights[i]), max(most[i], weights[i])
        largest_end = max(
            abs(lower[i]) if lower[i] > -np.inf else np.float32(0),
            abs(upper[i]) if upper[i] < np.inf else np.float32(0),
        )
        excess = max(lower[i] - high, low - upper[i]) - _ARITHMETIC * largest_end
        if np.isnan(weights[i]) or excess > 0:
            n_outside += 1
            largest = max(largest, excess)
    return n_bounded, n_outside, np.float64(largest)
