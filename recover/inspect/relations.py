"""How two files belong together: from a sample of each tensor, what their cells say of each other.

Two quantizations of one original contradict each other on no weight. A file that was quantized
from another one (the child, of the parent) does not contradict its parent, either, but gives itself
away: every single decoded weight of the parent lies in the child's cell, while the errors of two
independent quantizations would put some of them outside. That alone does not do for nested lattices
(the edges of Q4_0's cells are levels of Q5_0, whose scale is half of Q4_0's): where the encoder
leaves no choice, the decoded weights of the parent must be encoded to the child's bytes as well.

Where the original was rounded to another float type before one of the files was quantized, there
are conflicts, but of one kind: the numbers between the two cells, and an edge of the cell of what
was not rounded, are rounded into the other cell.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover.bounds.intervals import Bounds, Intervals
from recover.bounds.plan import confines
from recover.gguf.reader import Model, Tensor
from recover.matching import find_twins
from recover.quants import (
    TILE,
    F32Array,
    FloatType,
    OpaqueType,
    ScalarType,
    dequantize,
    quantize,
    type_by_name,
)

IDENTICAL = "identical"
SAME_ORIGINAL = "same original"
ROUNDED = "same original, rounded before one was quantized"
QUANTIZED_FROM = "quantized from the other"
SOME_TENSORS_DIFFER = "same original but for some tensors"
FINE_TUNE = "fine-tune, or quantized from another quantization"
ANOTHER_MODEL = "another model"

# Weights that are looked at: so many runs of so many in each tensor.
_N_RUNS = 8
_RUN = 4096

_LARGEST = np.float32(1e15)
_TOLERATED = 2  # conflicts in a pair of files; of one original there are none at all
_RELATED = 0.5  # correlation of the weights of a model and its fine-tune: nearly 1
_FEWEST_EXPECTED = 20.0  # weights outside, so that none outside is no chance
_REPRODUCED = 0.5  # share of a child's blocks: all, but for encoders that round otherwise


@dataclass(frozen=True)
class Relation:
    """Two of the inputs.

    Attributes
    ----------
    first, second : int
        Their numbers, from 0.
    kind : str
        One of the constants of this module.
    parent : int or None
        The input that the other one was quantized from.
    rounded : int or None
        The input that was quantized from rounded weights, while the other one was not.
    via : str or None
        The weights were rounded to this type in between: the parent's, or the original's.
    conflict_fraction : float
        Share of the sampled weights on which they contradict each other.
    correlation : float
        Of their decoded weights, over the tensors whose bytes differ.
    relative_difference : float
        Root mean square difference of the decoded weights, relative to theirs.
    tensors : dict of str to float
        Share of conflicts in each tensor with any, the largest first.
    """

    first: int
    second: int
    kind: str
    parent: int | None
    rounded: int | None
    via: str | None
    conflict_fraction: float
    correlation: float
    relative_difference: float
    tensors: dict[str, float]

    @property
    def is_compatible(self) -> bool:
        """Whether both may come from one original, perhaps rounded."""
        return self.kind in (IDENTICAL, SAME_ORIGINAL, ROUNDED)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def find_relations(models: Sequence[Model]) -> tuple[Relation, ...]:
    """Compare every two of some files that have the same tensors.

    Parameters
    ----------
    models : sequence of Model
        The opened files (see `recover.bounds.plan.open_inputs`).

    Returns
    -------
    tuple of Relation
        For each pair, by the number of the first and then of the second.
    """
    pairs = [_Pair(first, second) for second in range(len(models)) for first in range(second)]
    intervals = Intervals()
    for name in models[0].tensors:
        tensors = [model.tensors[name] for model in models]
        if any(isinstance(tensor.type, OpaqueType) for tensor in tensors):
            continue
        twins = find_twins(tensors)
        if len(set(twins)) == 1:
            continue
        samples = [
            _Sample(tensor, confines(model, tensor), intervals)
            for model, tensor in zip(models, tensors, strict=True)
        ]
        for pair in pairs:
            if twins[pair.first] != twins[pair.second]:
                pair.add(name, samples[pair.first], samples[pair.second])
    return tuple(pair.relation() for pair in sorted(pairs, key=lambda p: (p.first, p.second)))


def explained_by_rounding(models: Sequence[Model], names: Iterable[str]) -> bool:
    """Whether all conflicts between some files are those of an original that was rounded.

    Parameters
    ----------
    models : sequence of Model
        Files with the same tensors.
    names : iterable of str
        Tensors to look at: here at every weight.

    Returns
    -------
    bool
        For each two files, one and the same rounding explains every conflict.
    """
    intervals = Intervals()
    found: dict[tuple[int, int], _Rounding] = {}
    for name in names:
        tensors = [model.tensors[name] for model in models]
        twins = find_twins(tensors)
        chosen = [i for i in sorted(set(twins)) if confines(models[i], tensors[i])]
        for start in range(0, tensors[0].n_weights, TILE):
            bounds: list[Bounds] = []
            for i in chosen:
                intervals.turn_to([tensors[i]])
                lower, upper = intervals.bound(start, min(start + TILE, tensors[0].n_weights))
                bounds.append((lower.copy(), upper.copy()))
            for i, j in itertools.combinations(range(len(chosen)), 2):
                rounding = found.setdefault((chosen[i], chosen[j]), _Rounding())
                rounding.add(bounds[i], bounds[j])
                if rounding.n_conflicts and rounding.found() is None:
                    return False
    return True


def groups(n_models: int, relations: Sequence[Relation]) -> list[list[int]]:
    """Inputs that may come from one original, the largest group first."""
    group_of = list(range(n_models))
    for relation in relations:
        if relation.is_compatible:
            old, new = group_of[relation.second], group_of[relation.first]
            group_of = [new if group == old else group for group in group_of]
    found = [[i for i in range(n_models) if group_of[i] == group] for group in set(group_of)]
    return sorted(found, key=lambda members: (-len(members), members))


class _Sample:
    """Some weights of one tensor: what they decode to, and their bounds."""

    def __init__(self, tensor: Tensor, confined: bool, intervals: Intervals) -> None:
        intervals.turn_to([tensor] if confined else [])
        self.type = kind = tensor.type
        raw, values, lower, upper = [], [], [], []
        for start, end in _runs(tensor.n_weights):
            raw.append(tensor.part(start, end))
            values.append(tensor.read(start, end))
            low, high = intervals.bound(start, end)
            lower.append(low.copy())
            upper.append(high.copy())
        self.is_float = isinstance(kind, FloatType)
        self.raw = np.concatenate(raw)
        self.values, self.lower, self.upper = map(np.concatenate, (values, lower, upper))
        broken = ~(np.abs(self.values) < _LARGEST)  # broken scales say nothing of the weights
        self.values[broken], self.lower[broken], self.upper[broken] = 0, -np.inf, np.inf
        self.width = np.where(self.upper < np.inf, self.upper - self.lower, np.float32(np.inf))


def _runs(n_weights: int) -> list[tuple[int, int]]:
    """First and last weight of the runs, at whole superblocks."""
    if n_weights <= _N_RUNS * _RUN:
        return [(0, n_weights)]
    starts = np.linspace(0, n_weights - _RUN, _N_RUNS).astype(int) // 256 * 256
    return [(int(start), int(start) + _RUN) for start in starts]


class _Pair:
    """What the tensors of two files say of each other, added up."""

    def __init__(self, first: int, second: int) -> None:
        self.first, self.second = first, second
        self.n_weights = 0
        self.rounding = _Rounding()
        self.shares: dict[str, float] = {}
        self.moments = np.zeros(3)
        # The second as the child of the first, and the other way round.
        self.children = (_Child(), _Child())

    def add(self, name: str, one: _Sample, two: _Sample) -> None:
        conflicts = self.rounding.add((one.lower, one.upper), (two.lower, two.upper))
        self.n_weights += one.values.size
        self.shares[name] = conflicts / one.values.size
        a, b = (np.nan_to_num(each.values.astype(np.float64)) for each in (one, two))
        # Not by BLAS, whose threads would spin on the cores that the merge is to use.
        self.moments += [np.einsum("n,n", *pair) for pair in ((a, a), (a, b), (b, b))]
        self.children[0].add(one, two)
        self.children[1].add(two, one)

    def relation(self) -> Relation:
        kind, parent, rounded, via = self._kind()
        aa, ab, bb = self.moments
        return Relation(
            first=self.first,
            second=self.second,
            kind=kind,
            parent=parent,
            rounded=rounded,
            via=via,
            conflict_fraction=self.rounding.n_conflicts / self.n_weights if self.n_weights else 0.0,
            correlation=self._correlation(),
            relative_difference=math.sqrt(max(0.0, aa - 2 * ab + bb) / aa) if aa else 0.0,
            tensors={
                name: share
                for name, share in sorted(self.shares.items(), key=lambda each: -each[1])
                if share
            },
        )

    def _correlation(self) -> float:
        aa, ab, bb = self.moments
        return float(ab / math.sqrt(aa * bb)) if aa and bb else 1.0

    def _kind(self) -> tuple[str, int | None, int | None, str | None]:
        """Of the relation its kind, the parent, the rounded input, and by way of which type."""
        if not self.shares:
            return IDENTICAL, None, None, None
        # The weights of a finer child lie in its parent's cells, too: that is less surprising.
        by_surprise = sorted(
            zip((self.first, self.second), self.children, strict=True),
            key=lambda each: -each[1].n_expected,
        )
        for parent, child in by_surprise:
            if (via := child.via()) is not None:
                return QUANTIZED_FROM, parent, None, via or None
        if self.rounding.n_conflicts <= _TOLERATED:
            return SAME_ORIGINAL, None, None, None
        if (found := self.rounding.found()) is not None:
            which, via = found
            return ROUNDED, None, (self.first, self.second)[which], via
        n_differing = sum(share > 0 for share in self.shares.values())
        if 2 * n_differing < len(self.shares):
            return SOME_TENSORS_DIFFER, None, None, None
        related = self._correlation() > _RELATED
        return (FINE_TUNE if related else ANOTHER_MODEL), None, None, None


class _Rounding:
    """Whether all conflicts come from rounding the original before one file was quantized."""

    def __init__(self) -> None:
        self.n_conflicts = 0
        # Which of the two is made from rounded weights, and to what they were rounded.
        self._open = {(which, via) for which in (0, 1) for via in ("F16", "BF16")}

    def add(self, one: Bounds, two: Bounds) -> int:
        """Look at the bounds of some weights; how many conflicts there are."""
        low, high = np.minimum(one[1], two[1]), np.maximum(one[0], two[0])
        conflicts = high > low  # a gap, from `low` to `high`
        n_conflicts = int(np.count_nonzero(conflicts))
        self.n_conflicts += n_conflicts
        if not n_conflicts or not self._open:
            return n_conflicts
        one_is_below = (one[1] < two[1])[conflicts]
        low, high = low[conflicts], high[conflicts]
        for which, via in sorted(self._open):
            up, down = _rounded(low, via) >= high, _rounded(high, via) <= low
            # What lies below the gap crosses it if rounding it leads up.
            explained = np.where(one_is_below == (which == 1), up, down)
            if not explained.all():
                self._open.discard((which, via))
        return n_conflicts

    def found(self) -> tuple[int, str] | None:
        """Which of the two is made from rounded weights, and to what they were rounded."""
        return min(self._open, default=None)


class _Child:
    """Whether one file was quantized from the decoded weights of another, perhaps rounded."""

    def __init__(self) -> None:
        self._n_outside = {"": 0, "F16": 0, "BF16": 0}
        self._n_reproduced = dict.fromkeys(self._n_outside, 0)
        self._n_encoded = dict.fromkeys(self._n_outside, 0)
        self.n_expected = 0.0  # weights outside, if the two were independent

    def add(self, parent: _Sample, child: _Sample) -> None:
        two_sided = child.width < np.inf
        if child.is_float or parent.is_float or not two_sided.any():
            return
        for name in self._n_outside:
            values = _rounded(parent.values, name)
            outside = (values < child.lower) | (values > child.upper)
            self._n_outside[name] += int(np.count_nonzero(outside))
            # Such codes confine the weights only if the encoder had no other choice.
            if isinstance(child.type, ScalarType) and child.type.refits_scale_with_imatrix:
                self._encode(name, values, child, child.type)
        # The error of an independent quantization, uniform in its cell, crosses an edge of the
        # child's cell with a probability of a quarter of the ratio of the widths.
        ratio = np.minimum(parent.width, child.width)[two_sided] / child.width[two_sided] / 4
        self.n_expected += float(ratio.sum())

    def _encode(self, name: str, values: F32Array, child: _Sample, kind: ScalarType) -> None:
        """Count the child's blocks that the parent's weights are encoded to."""
        if self._n_outside[name]:
            return
        encoded = quantize(values[None], kind).reshape(-1, kind.type_size)
        says_something = values.reshape(-1, kind.block_size).any(axis=1)
        same = (encoded == child.raw.reshape(encoded.shape)).all(axis=1) & says_something
        self._n_reproduced[name] += int(np.count_nonzero(same))
        self._n_encoded[name] += int(np.count_nonzero(says_something))

    def via(self) -> str | None:
        """What the weights were rounded to in between (nothing: an empty text); None if not so."""
        if self.n_expected < _FEWEST_EXPECTED:
            return None
        fitting = (name for name, n in self._n_outside.items() if n == 0)
        return next((name for name in fitting if self._is_reproduced(name)), None)

    def _is_reproduced(self, name: str) -> bool:
        return self._n_reproduced[name] >= _REPRODUCED * self._n_encoded[name]


def _rounded(values: F32Array, name: str) -> NDArray[np.float32]:
    if not name or np.abs(values).max() > 60000:
        return values
    kind = type_by_name(name)
    return dequantize(quantize(values[None], kind), kind)
