"""How two files belong together: from a sample of each tensor, what their cells say of each other.

Two quantizations of one original contradict each other on no weight. Neither do a file and what was
quantized from it, of which `recover.inputs.descent` tells. Of codes that make up for each other's
errors it is those of one column that do not (see `recover.inputs.compensated`).

Where the original was rounded to another float type before one of the files was quantized, there
are conflicts, but of one kind: the numbers between the two cells, and an edge of the cell of what
was not rounded, are rounded into the other cell.
"""

import itertools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover.containers.model import Model, StoredTensor
from recover.evidence.intervals import Bounds, Intervals
from recover.execution.stacks import can_be_stacked, stack_of
from recover.inputs.alignment import is_absent
from recover.inputs.compensated import is_compensated, n_contradicted
from recover.inputs.descent import Descent
from recover.inputs.matching import find_duplicates
from recover.inputs.provenance import confines
from recover.inputs.samples import RUN, Sample, Sampler, rounded, runs
from recover.quants import TILE, FloatType, OpaqueType

IDENTICAL = "identical"
SAME_ORIGINAL = "same original"
ROUNDED = "same original, rounded before one was quantized"
QUANTIZED_FROM = "quantized from the other"
PARTLY_QUANTIZED_FROM = "same original, but for tensors quantized from the other"
SOME_TENSORS_DIFFER = "same original but for some tensors"
FINE_TUNE = "fine-tune, or quantized from another quantization"
ANOTHER_MODEL = "another model"

_N_RUNS = 8
_NOT_EXPLAINED = np.zeros(1, np.bool_)
_TOLERATED = 2  # conflicts in a pair of files; of one original there are none at all
_RELATED = 0.5  # correlation of the weights of a model and its fine-tune: nearly 1


@dataclass(frozen=True)
class Relation:
    """Two of the inputs."""

    first: int
    second: int
    """Their numbers, from 0."""
    kind: str
    """One of the constants of this module."""
    parent: int | None
    """The input that the other one was quantized from."""
    rounded: int | None
    """The input that was quantized from rounded weights, while the other one was not."""
    via: str | None
    """The weights were rounded to this type in between: the parent's, or the original's."""
    conflict_fraction: float
    """Share of the sampled weights on which they contradict each other."""
    correlation: float
    """Of their decoded weights, over the tensors whose bytes differ."""
    relative_difference: float
    """Root mean square difference of the decoded weights, relative to theirs."""
    tensors: dict[str, float]
    """Share of conflicts in each tensor with any, the largest first."""
    descended: dict[str, int]
    """Tensors that one of the two was quantized from the other in, and which one it was."""

    @property
    def child(self) -> int | None:
        """The input that was quantized from `parent`."""
        if self.parent is None:
            return None
        return self.second if self.parent == self.first else self.first

    @property
    def is_compatible(self) -> bool:
        """Whether both may come from one original, perhaps rounded."""
        return self.kind in (IDENTICAL, SAME_ORIGINAL, ROUNDED, PARTLY_QUANTIZED_FROM)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def find_relations(
    models: Sequence[Model],
    descents: Mapping[str, Sequence[Descent]],
    redundant: Sequence[Descent] = (),
) -> tuple[Relation, ...]:
    """Compare every two of some files that have the same tensors.

    Parameters
    ----------
    models : sequence of Model
        The opened files (see `recover.inputs.alignment.align`).
    descents : mapping of str to sequence of Descent
        By the names of the tensors to be looked at: who was quantized from whom.
    redundant : sequence of Descent
        Files that were quantized from others as a whole.

    Returns
    -------
    tuple of Relation
        For each pair, by the number of the first and then of the second.
    """
    pairs = [_Pair(first, second) for second in range(len(models)) for first in range(second)]
    sampler = Sampler()
    looks = _looks(models, descents, pairs)
    for _, alike in itertools.groupby(looks, key=_Look.kind):
        together = list(alike)
        n_at_once = max(1, TILE // together[0].n_weights)
        for first in range(0, len(together), n_at_once):
            _compare(together[first : first + n_at_once], sampler)
    for descent in redundant:
        for pair in pairs:
            pair.take(descent)
    return tuple(pair.relation() for pair in sorted(pairs, key=lambda p: (p.first, p.second)))


class _Look(NamedTuple):
    """A tensor, and the pairs of files that are to be compared by it."""

    name: str
    present: dict[int, StoredTensor]
    confined: list[bool]
    pairs: "list[_Pair]"

    @property
    def n_weights(self) -> int:
        """Of the tensor."""
        return next(iter(self.present.values())).n_weights

    def kind(self) -> Hashable:
        """What tensors have in common that are looked at together, if they follow each other."""
        tensors = self.present.values()
        if self.n_weights > RUN or not all(map(can_be_stacked, tensors)):
            return self.name
        kinds = tuple(tensor.type for tensor in tensors)
        pairs = tuple(map(id, self.pairs))
        return kinds, self.n_weights, tuple(self.present), tuple(self.confined), pairs

    def compensated(self) -> "Iterator[tuple[_Pair, StoredTensor, StoredTensor]]":
        """Pairs of which one tensor holds compensated codes, and the other one confines weights."""
        for pair in self.pairs:
            for one, other in ((pair.first, pair.second), (pair.second, pair.first)):
                if self.confined[other] and is_compensated(self.present[one]):
                    yield pair, self.present[one], self.present[other]


def _looks(
    models: Sequence[Model], descents: Mapping[str, Sequence[Descent]], pairs: "Sequence[_Pair]"
) -> "Iterator[_Look]":
    """The tensors that are to be compared."""
    for name, of_tensor in descents.items():
        tensors = [model.tensors[name] for model in models]
        present = {i: tensor for i, tensor in enumerate(tensors) if not is_absent(tensor)}
        if any(isinstance(tensor.type, OpaqueType) for tensor in present.values()):
            continue
        duplicate_of = find_duplicates(tensors)
        common = [pair for pair in pairs if {pair.first, pair.second} <= set(present)]
        for pair in common:
            pair.n_tensors += 1
        differing = [
            pair for pair in common if duplicate_of[pair.first] != duplicate_of[pair.second]
        ]
        if not differing:
            continue
        confined = [confines(*each) for each in zip(models, tensors, strict=True)]
        quantized = [each for each in of_tensor if not _is_rounded(each, tensors)]
        for pair in differing:
            pair.descend(name, quantized)
        yield _Look(name, present, confined, differing)


def _compare(together: Sequence[_Look], sampler: Sampler) -> None:
    """Compare files by a tensor, or by small ones that are alike."""
    first, n_weights = together[0], together[0].n_weights
    tensors = {i: [look.present[i] for look in together] for i in first.present}
    at_once = len(together) > 1 or all(can_be_stacked(*each) for each in tensors.values())
    spans = runs(n_weights, _N_RUNS) if len(together) == 1 else [(0, n_weights)]
    looked_at = {i: stack_of(each, spans if at_once else None) for i, each in tensors.items()}
    n_all = sum(end - start for start, end in spans) * len(together)
    for start, end in [(0, n_all)] if at_once else spans:
        samples = {
            i: sampler.read(i, tensor, first.confined[i], start, end)
            for i, tensor in looked_at.items()
        }
        names = [look.name for look in together]
        for pair in first.pairs:
            pair.add(names, samples[pair.first], samples[pair.second])
    for look in together:
        for pair, tensor, known in look.compensated():
            pair.contradict(look.name, n_contradicted(tensor, known))


def explained_by_rounding(models: Sequence[Model], inputs: Mapping[str, Sequence[int]]) -> bool:
    """Whether all conflicts between some files are those of an original that was rounded.

    Parameters
    ----------
    models : sequence of Model
        Files with the same tensors.
    inputs : mapping of str to sequence of int
        By the names of the tensors to look at (here at every weight) the files to compare.

    Returns
    -------
    bool
        For each two files, one and the same rounding explains every conflict.
    """
    intervals = Intervals()
    found: dict[tuple[int, int], _Rounding] = {}
    for name, of_tensor in inputs.items():
        tensors = [model.tensors[name] for model in models]
        chosen = [i for i in sorted(of_tensor) if confines(models[i], tensors[i])]
        for start in range(0, tensors[0].n_weights, TILE):
            bounds: list[Bounds] = []
            for i in chosen:
                intervals.look_at([tensors[i]])
                lower, upper = intervals.bound(start, min(start + TILE, tensors[0].n_weights))
                bounds.append((lower.copy(), upper.copy()))
            for i, j in itertools.combinations(range(len(chosen)), 2):
                rounding = found.setdefault((chosen[i], chosen[j]), _Rounding())
                rounding.add(bounds[i], bounds[j])
                if rounding.n_conflicts and rounding.found() is None:
                    return False
    return True


def _is_rounded(descent: Descent, tensors: Sequence[StoredTensor]) -> bool:
    """Whether a tensor of floats is what the original, or a finer copy of it, rounds to."""
    return all(isinstance(tensors[i].type, FloatType) for i in descent.parents)


def groups(n_models: int, relations: Sequence[Relation]) -> list[list[int]]:
    """Inputs that may come from one original, the largest group first."""
    group_of = list(range(n_models))
    for relation in relations:
        if relation.is_compatible:
            old, new = group_of[relation.second], group_of[relation.first]
            group_of = [new if group == old else group for group in group_of]
    found = [[i for i in range(n_models) if group_of[i] == group] for group in set(group_of)]
    return sorted(found, key=lambda members: (-len(members), members))


class _Pair:
    """What the tensors of two files say of each other, added up."""

    def __init__(self, first: int, second: int) -> None:
        self.first, self.second = first, second
        self.n_tensors = 0  # those with the same bytes as well
        self._rounding = _Rounding()
        self._n_weights: dict[str, int] = {}
        self._n_conflicts: dict[str, int] = {}
        self._moments = np.zeros(3)
        self._descent: Descent | None = None
        self._descended: dict[str, int] = {}
        self._explained: set[str] = set()
        self._is_of_another = False  # one of the two was quantized from a third

    def descend(self, name: str, descents: Sequence[Descent]) -> None:
        """Take note of who was quantized from whom: a child contradicts others than its parent."""
        for descent in descents:
            if descent.child in (self.first, self.second):
                self._explained.add(name)
                if self._other(descent.child) in descent.parents:
                    self._descended[name] = descent.child

    def take(self, descent: Descent) -> None:
        """Take note of a file that was quantized from others as a whole."""
        if descent.child in (self.first, self.second) and self._other(descent.child) in (
            descent.parents
        ):
            self._descent = descent
        elif descent.child in (self.first, self.second):
            self._is_of_another = True

    def add(self, names: Sequence[str], one: Sample, two: Sample) -> None:
        """Compare some weights of a tensor, or all of several small ones of one size."""
        size = one.values.size // len(names)
        explained = np.array([name in self._explained for name in names])
        counts = self._rounding.add(one.bounds, two.bounds, explained).tolist()
        for name, n_conflicts in zip(names, counts, strict=True):
            self._n_weights[name] = self._n_weights.get(name, 0) + size
            self._n_conflicts[name] = self._n_conflicts.get(name, 0) + n_conflicts
        a, b = (each.values.astype(np.float64) for each in (one, two))
        # Not by BLAS, whose threads would spin on the cores that the merge is to use.
        self._moments += [np.einsum("n,n", *pair) for pair in ((a, a), (a, b), (b, b))]

    def contradict(self, name: str, n_weights: int) -> None:
        """Take note of conflicts with codes that confine no single weight."""
        self._n_conflicts[name] += n_weights
        if n_weights and name not in self._explained:
            self._rounding.exclude()

    def relation(self) -> Relation:
        """What all of it means."""
        kind, rounded_one, via = self._kind()
        aa, ab, bb = self._moments
        n_weights, n_conflicts = sum(self._n_weights.values()), sum(self._n_conflicts.values())
        shares = {name: n / self._n_weights[name] for name, n in self._n_conflicts.items() if n}
        return Relation(
            first=self.first,
            second=self.second,
            kind=kind,
            parent=None if kind != QUANTIZED_FROM else self._parent(),
            rounded=rounded_one,
            via=via,
            conflict_fraction=n_conflicts / n_weights if n_weights else 0.0,
            correlation=self._correlation(),
            relative_difference=math.sqrt(max(0.0, aa - 2 * ab + bb) / aa) if aa else 0.0,
            tensors=dict(sorted(shares.items(), key=lambda each: -each[1])),
            descended=self._descended,
        )

    def _parent(self) -> int | None:
        return None if self._descent is None else self._other(self._descent.child)

    def _other(self, number: int) -> int:
        return self.second if number == self.first else self.first

    def _correlation(self) -> float:
        aa, ab, bb = self._moments
        return float(ab / math.sqrt(aa * bb)) if aa and bb else 1.0

    def _kind(self) -> tuple[str, int | None, str | None]:
        """Of the relation its kind, the rounded input, and by way of which type."""
        if not self._n_weights:
            return IDENTICAL, None, None
        if self._descent is not None:
            return QUANTIZED_FROM, None, self._descent.via or None
        explained = set() if self._is_of_another else self._explained
        conflicts = {
            name: n for name, n in self._n_conflicts.items() if n and name not in explained
        }
        if sum(conflicts.values()) <= _TOLERATED:
            return (PARTLY_QUANTIZED_FROM if self._descended else SAME_ORIGINAL), None, None
        if not self._is_of_another and (found := self._rounding.found()) is not None:
            which, via = found
            return ROUNDED, (self.first, self.second)[which], via
        if 2 * len(conflicts) < self.n_tensors:
            return SOME_TENSORS_DIFFER, None, None
        related = self._correlation() > _RELATED
        return (FINE_TUNE if related else ANOTHER_MODEL), None, None


class _Rounding:
    """Whether all conflicts come from rounding the original before one file was quantized."""

    def __init__(self) -> None:
        self.n_conflicts = 0
        # Which of the two is made from rounded weights, and to what they were rounded.
        self._open = {(which, via) for which in (0, 1) for via in ("F16", "BF16")}

    def add(
        self, one: Bounds, two: Bounds, explained: NDArray[np.bool_] = _NOT_EXPLAINED
    ) -> NDArray[np.int64]:
        """Look at the bounds of some weights; how many conflicts there are.

        Parameters
        ----------
        one, two : tuple of 2 float32 (n,)
            Lower and upper bounds by either file, of tensors of one size.
        explained : bool (n_tensors,)
            Whether conflicts of a tensor are explained otherwise, so that they need not come from
            rounding.

        Returns
        -------
        int64 (n_tensors,)
        """
        low, high = np.minimum(one[1], two[1]), np.maximum(one[0], two[0])
        conflicts = high > low  # a gap, from `low` to `high`
        rows = conflicts.reshape(explained.size, -1)
        counts = np.count_nonzero(rows, axis=1)
        rows[explained] = False
        n_conflicts = int(counts[~explained].sum())
        self.n_conflicts += n_conflicts
        if not n_conflicts or not self._open:
            return counts
        one_is_below = (one[1] < two[1])[conflicts]
        low, high = low[conflicts], high[conflicts]
        for which, via in sorted(self._open):
            up, down = rounded(low, via) >= high, rounded(high, via) <= low
            # What lies below the gap crosses it if rounding it leads up.
            crosses = np.where(one_is_below == (which == 1), up, down)
            if not crosses.all():
                self._open.discard((which, via))
        return counts

    def exclude(self) -> None:
        """There are conflicts that no rounding explains."""
        self._open.clear()

    def found(self) -> tuple[int, str] | None:
        """Which of the two is made from rounded weights, and to what they were rounded."""
        return min(self._open, default=None)
