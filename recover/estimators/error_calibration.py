"""What the errors that an estimator expects are worth: measured on random weights.

An estimator expects the error of its estimates, and of each input alone, from what it assumes: for
instance, that inputs err independently but for their shares (`recover.evidence.densities`). What is
left is told by weights that are known: the shipped sample holds random weights and what each type's
encoder made of them, plainly and with random importance matrices. The estimator is given what it
holds of the very set of inputs at hand; expected errors are then multiplied by measured over
expected ones. These depend on the tails of the weights: half of the sample has heavy ones, and the
kurtosis of the estimates tells where between (or beyond) both halves the weights at hand are.

Beside folders the sample's weights are rounded to BF16, as nearly all originals of folders were:
their encoders cast other weights first, which 8 bits show.

The sample, ``recover/data/sample.npz``, is made by ``python -m tests.golden.make_sample``; what
formats of Hugging Face folders make of its weights is in `recover.estimators._folder_sample`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from io import BytesIO
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._compiled.doubles import load_two, store_f64, to_f64
from recover._compiled.jit import inner, kernel
from recover.containers.model import ArrayTensor, StoredTensor
from recover.errors import PlanError
from recover.estimators import _folder_sample
from recover.estimators._request import MEAN
from recover.estimators.base import estimator
from recover.estimators.tally import ALONE, VARIANCE
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Source
from recover.inputs.matching import typical_error
from recover.quants import (
    TILE,
    F32Array,
    IntervalType,
    ScalarType,
    TensorType,
    U8Array,
    dequantize,
    quantize,
    type_by_name,
)

WEIGHTS = "weights"
"""Name of the random weights, float32 (n_rows, ne0), in the sample; half of the rows have heavy
tails."""

_SHARES = -0.5, 1.5  # of what heavy tails change: as far as weights may be beyond the sample's
_FINE = 3e-3  # relative errors of types whose codes rounding to BF16 changes
_N_LOOKED_AT = 256  # superblocks whose kurtosis is taken, of a whole tile
_FEWEST_LOOKED_AT = 64  # of a small tensor


@dataclass(frozen=True)
class ErrorCalibration:
    """Measured over expected errors, of weights with light tails and of weights with heavy ones.

    Attributes
    ----------
    merged : tuple of 2 floats
        Of the estimates.
    alone : tuple of 2 tuples of n_inputs floats
        Of each input alone, in the order of the evidence (scalar inputs first).
    kurtosis : tuple of 2 floats
        That of the estimates (see `kurtosis_of`).
    is_measured : bool
        Whether any of these is measured; otherwise all ratios are 1.
    """

    merged: tuple[float, ...]
    alone: tuple[tuple[float, ...], ...]
    kurtosis: tuple[float, ...]
    is_measured: bool = True

    def correct(
        self,
        tallies: NDArray[np.float64],
        kurtosis: NDArray[np.float64],
        deviation: F32Array | None = None,
    ) -> None:
        """Multiply sums of errors, and standard deviations.

        Parameters
        ----------
        tallies : float64 (n_tensors, 2 + n_inputs)
            The arrays of the tallies of tensors of one size.
        kurtosis : float64 (n_tensors,)
            Of their estimates, see `kurtosis_of`.
        deviation : float32 (n,), optional
            Of all of their weights, one behind the other.
        """
        if not self.is_measured:
            return
        merged = np.empty(len(tallies))
        _correct(kurtosis, self.kurtosis, self._factors, tallies, merged)
        if deviation is not None and deviation.size:
            rows = deviation.reshape(len(tallies), -1)
            rows *= np.sqrt(merged)[:, None].astype(np.float32)

    @cached_property
    def _factors(self) -> NDArray[np.float64]:
        """Of light tails, and by how much those of heavy ones are more: (2, 2 + n_inputs)."""
        factors = np.ones((2, ALONE + len(self.alone[0])))
        factors[:, VARIANCE], factors[:, ALONE:] = self.merged, self.alone
        factors[1] /= factors[0]
        return factors


def kurtosis_of(values: F32Array, n_tensors: int = 1) -> NDArray[np.float64]:
    """How heavy the tails of some tensors are.

    Parameters
    ----------
    values : float32 (n,)
        Tensors of one size, one behind the other.
    n_tensors : int
        How many there are.

    Returns
    -------
    float64 (n_tensors,)
        The mean of some superblocks' fourth moments over their squared second ones; 3 if normal.
    """
    size = values.size // n_tensors
    n_superblocks = size // 256
    n_looked_at = max(_FEWEST_LOOKED_AT, min(_N_LOOKED_AT, _N_LOOKED_AT * size // TILE))
    step = max(1, n_superblocks // n_looked_at)
    relative = np.zeros((n_tensors, -(-n_superblocks // step)))
    known = np.empty(relative.shape, np.bool_)
    if _relative_fourths(values, size, step, relative, known) == relative.size > 0:
        every: NDArray[np.float64] = np.add.reduce(relative, 1) / relative.shape[1]
        return every
    n_known = np.add.reduce(known, 1, dtype=np.int64)
    kurtosis = np.full(n_tensors, 3.0)
    np.divide(np.add.reduce(relative, 1), n_known, out=kurtosis, where=n_known > 0)
    for i in np.flatnonzero((n_known > 0) & (n_known < known.shape[1])):
        kurtosis[i] = np.add.reduce(relative[i, known[i]]) / n_known[i]
    return kurtosis


@kernel
def _correct(
    kurtosis: NDArray[np.float64],
    measured: tuple[float, ...],
    factors: NDArray[np.float64],
    tallies: NDArray[np.float64],
    merged: NDArray[np.float64],
) -> None:
    """Multiply tallies by the factors for the kurtosis (n_tensors,) of each tensor.

    It is compared with what was measured of light and heavy tails; `merged` gets the factors of the
    estimates' errors.
    """
    light, heavy = measured
    for i in range(kurtosis.size):
        share = 0.0
        if heavy > light:
            beyond = (kurtosis[i] - light) / (heavy - light)
            share = min(max(beyond, _SHARES[0]), _SHARES[1])
        merged[i] = factors[0, VARIANCE] * factors[1, VARIANCE] ** share
        for column in range(tallies.shape[1]):
            tallies[i, column] *= factors[0, column] * factors[1, column] ** share


@kernel
def _relative_fourths(
    values: F32Array,
    size: int,
    step: int,
    relative: NDArray[np.float64],
    known: NDArray[np.bool_],
) -> int:
    """Fill in the fourth moments over the squared second ones of every `step`-th superblock.

    Tensors have `size` weights each. `known` says where the moments are; returns of how many. Sums
    are NumPy's pairwise ones: eight in turns for each half.
    """
    second, fourth, n_known = np.empty(16), np.empty(16), 0
    for i in range(relative.shape[0]):
        for j in range(relative.shape[1]):
            start = i * size + j * step * 256
            x = to_f64(load_two(values, start, start + 128))
            square = x * x
            total, total_fourth = square, square * square
            for at in range(start + 8, start + 128, 8):
                x = to_f64(load_two(values, at, at + 128))
                square = x * x
                total, total_fourth = total + square, total_fourth + square * square
            store_f64(second, 0, total)
            store_f64(fourth, 0, total_fourth)
            mean = (_sum_of_eight(second, 0) + _sum_of_eight(second, 8)) / 256
            mean_fourth = (_sum_of_eight(fourth, 0) + _sum_of_eight(fourth, 8)) / 256
            known[i, j] = 0 < mean < np.inf
            if known[i, j]:
                relative[i, j] = mean_fourth / (mean * mean)
                n_known += 1
    return n_known


@inner
def _sum_of_eight(x: NDArray[np.float64], i: int) -> float:
    left = (x[i] + x[i + 1]) + (x[i + 2] + x[i + 3])
    return left + ((x[i + 4] + x[i + 5]) + (x[i + 6] + x[i + 7]))


def sample_name(kind: TensorType, importance: int) -> str:
    """Name of what an encoder made of the weights.

    `importance` is 0 for a plain encoder, otherwise the number of its importance matrix.
    """
    return f"{kind.name} {importance}" if importance else kind.name


@cache
def calibrate_errors(
    sources: tuple[Source, ...], method: str, estimate: str = MEAN
) -> ErrorCalibration:
    """What the errors that an estimator expects of a set of inputs are to be multiplied by.

    Parameters
    ----------
    sources : tuple of Source
        The inputs.
    method : str
        Name of the estimator.
    estimate : str
        What is asked of it (see `Request`). The errors of a mode are larger than it expects.

    Returns
    -------
    ErrorCalibration
        All 1 for a method that takes the first input, and where the sample does not have (enough
        of) a type, or an encoder.
    """
    alone, merged, kurtosis = np.ones((2, len(sources))), np.ones(2), np.zeros(2)
    names = _sample_names(sources)
    in_sample = all(map(_is_in_sample, sources, names))
    is_known = in_sample and len(set(names)) == len(names)
    is_foreign = any(source.noise is not None for source in sources)
    if estimator(method).takes_first or not is_known or is_foreign:
        return _error_calibration(merged, alone, kurtosis, is_measured=False)
    # A calibrated density fits its own quantizer, the shipped ones that of the sample.
    plain = [replace(source, density=None) for source in sources]
    tile = UncorrectedTileEstimator(plain, method, estimate)
    beside_folders = any(isinstance(source.type, IntervalType) for source in sources)
    for half in range(2):
        x = _half_of(_sample_beside_folders() if beside_folders else _sample(), WEIGHTS, half)
        x = x.reshape(-1)
        tensors = _tensors(sources, names, half, beside_folders=beside_folders)
        tensors = _folder_sample.with_errors(tensors, x)
        out = np.empty(x.size, np.float32)
        # With deviations, so that all weights count.
        tally = tile.estimate_from(tile.read(tensors, 0, x.size), out, np.empty_like(out))
        if not (tally.variance > 0 and (tally.alone > 0).all()):
            raise PlanError(
                f"method {method!r} tells no error to expect: it adds no sums of squares to"
                " tally.variance and, for each input, to tally.alone"
            )
        errors = [_square_error(tensor.read(0, x.size), x) for tensor in tensors]
        alone[half] = tile.by_place(np.array(errors)) / tally.alone
        merged[half], kurtosis[half] = _square_error(out, x) / tally.variance, kurtosis_of(out)[0]
    return _error_calibration(merged, alone, kurtosis)


def _error_calibration(
    merged: NDArray[np.float64],
    alone: NDArray[np.float64],
    kurtosis: NDArray[np.float64],
    *,
    is_measured: bool = True,
) -> ErrorCalibration:
    """What arrays of these shapes say, as plain data."""
    rows = tuple(tuple(map(float, row)) for row in alone)
    return ErrorCalibration(
        tuple(map(float, merged)), rows, tuple(map(float, kurtosis)), is_measured
    )


def _is_in_sample(source: Source, name: str) -> bool:
    if isinstance(source.type, IntervalType):
        return bool(name)
    return name in _sample() or (source.side_scaled and source.type.largest_beside is not None)


def _tensors(
    sources: Sequence[Source], names: Sequence[str], half: int, *, beside_folders: bool
) -> list[StoredTensor]:
    """What the sample has of inputs, light tails (0) or heavy ones (1)."""
    tensors: list[StoredTensor] = [
        _folder_sample.stored_half(name, half)
        if isinstance(source.type, IntervalType)
        else _stored_half(name, source.type, half, beside_folders=beside_folders)
        for name, source in zip(names, sources, strict=True)
    ]
    return tensors


def _sample_names(sources: Sequence[Source]) -> list[str]:
    """What in the sample is like each input; of an interval type empty if there is nothing.

    Inputs with one importance matrix get the same number, but not if they are of one type.
    """
    matrices = list(dict.fromkeys(each.imatrix for each in sources if _is_weighed(each)))
    names: list[str] = []
    for source in sources:
        if isinstance(source.type, IntervalType):
            settings = _folder_sample.settings_like(source.type)
            names.append(next((name for name in settings if name not in names), ""))
            continue
        if source.side_scaled:
            names.append(_side_scaled_name(source.type.name))
            continue
        if not _is_weighed(source):
            names.append(sample_name(source.type, 0))
            continue
        n, first = _n_importances(source.type), matrices.index(source.imatrix)
        numbers = [1 + (first + i) % n for i in range(n)]
        candidates = [sample_name(source.type, number) for number in numbers]
        free = [name for name in candidates if name not in names]
        names.append((free or candidates)[0])
    return names


def _is_weighed(source: Source) -> bool:
    """Whether an importance matrix changed what the encoder made."""
    refits = isinstance(source.type, ScalarType) and not source.has_cells
    return (source.weighted or refits) and _n_importances(source.type) > 0


def _n_importances(kind: TensorType) -> int:
    """How many importance matrices the sample has for a type."""
    return next(n for n in count() if sample_name(kind, n + 1) not in _sample())


def _square_error(values: F32Array, x: F32Array) -> float:
    return float(np.sum((values - x.astype(np.float64)) ** 2))


def _stored_half(
    name: str, kind: TensorType, half: int, *, beside_folders: bool = False
) -> ArrayTensor:
    """What the sample has of that name as a tensor, light tails (0) or heavy ones (1)."""
    n_weights = _half_of(_sample(), WEIGHTS, half).size
    if name != _side_scaled_name(kind.name):
        sample = _sample()
        if beside_folders and name == kind.name and typical_error(kind) < _FINE:
            sample = {name: _encoded_beside_folders(kind)}
        return ArrayTensor(name, (n_weights,), kind, _half_of(sample, name, half))
    raw, scales = _side_scaled(kind)
    n_bytes = kind.n_bytes(n_weights)
    stored = raw[half * n_bytes : (half + 1) * n_bytes]
    return ArrayTensor(name, (n_weights,), kind, stored, scales)


def _side_scaled_name(type_name: str) -> str:
    """Name of what is made of the weights with a scale beside them."""
    return f"{type_name} side-scaled"


@cache
def _side_scaled(kind: TensorType) -> tuple[U8Array, F32Array]:
    """The weights encoded so that the largest scale of a block is next to the largest there is."""
    assert kind.largest_beside is not None
    x = _sample()[WEIGHTS]
    scale = np.float32(np.abs(x).max() / np.float32(kind.largest_beside))
    raw = quantize(np.divide(x, scale, dtype=np.float32), kind)
    raw.flags.writeable = False
    return raw, np.array([scale], np.float32)


def _half_of(sample: Mapping[str, NDArray[Any]], name: str, half: int) -> NDArray[Any]:
    """Of what a sample has of that name, the part with light tails (0) or heavy ones (1)."""
    array = sample[name]
    n = len(array) // 2
    return array[half * n : (half + 1) * n]


class _Sample(Mapping[str, NDArray[Any]]):
    """The arrays of the sample; each is read when it is asked for, of which there are few."""

    def __init__(self) -> None:
        stored = (files("recover") / "data" / "sample.npz").read_bytes()
        self._stored = np.load(BytesIO(stored))
        self._known: dict[str, NDArray[Any]] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._known:
            array = self._stored[name]
            array.flags.writeable = False  # as the bytes of files are, for kernels
            self._known[name] = array
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __contains__(self, name: object) -> bool:
        return name in self._stored


@cache
def _sample() -> Mapping[str, NDArray[Any]]:
    return _Sample()


@cache
def _sample_beside_folders() -> dict[str, NDArray[Any]]:
    """The weights rounded to BF16."""
    bf16, x = type_by_name("BF16"), _sample()[WEIGHTS]
    return {WEIGHTS: dequantize(quantize(x, bf16), bf16).reshape(x.shape)}


@cache
def _encoded_beside_folders(kind: TensorType) -> U8Array:
    """What a plain encoder makes of these."""
    raw = quantize(_sample_beside_folders()[WEIGHTS], kind)
    raw.flags.writeable = False
    return raw
