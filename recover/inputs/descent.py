"""Which inputs' tensors were made from other inputs, not from the original.

A file that was quantized from another one (the child, of the parent) does not contradict it, but
tells nothing new. It gives itself away: every single weight of the parent lies in the child's cell,
while the errors of two independent quantizations would put some of them outside. That alone does
not do for nested lattices (the edges of Q4_0's cells are levels of Q5_0, whose scale is half of
Q4_0's): where the encoder leaves no choice, the weights of the parent must be encoded to the
child's bytes as well. A float tensor is a child if its numbers are the parent's.

A parent without errors tells nothing: what equals the original lies in every cell that is made of
it, and two exact copies look alike whoever was first. Constant and ternary weights are stored so by
most types, integers by some. So only weights count which the scale of their group was not fitted
to, in groups of more than three values, and each value of a run once; but beside types that models
are published in, whose exact copies are to be left out.

Weights of the parent are its decoded ones, perhaps rounded to a float type in between, or what a
merge of one or several inputs estimates. The question is asked of each tensor: a file may hold some
tensors of the original and others that were quantized from a quantization.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import kernel
from recover.containers.mapping import sampled
from recover.containers.model import StoredTensor
from recover.evidence.intervals import Bounds
from recover.inputs.direction import Direction, are_ambiguous
from recover.inputs.nearest import Nearest
from recover.inputs.samples import TIES_AWAY, Sample, Sampler, rounded, runs
from recover.inputs.told import telling
from recover.quants import F32Array, FloatType, OpaqueType, ScalarType, quantize

FLOATS = ("", "F16", "BF16", TIES_AWAY)
"""What weights may have been rounded to in between; nothing first."""
ESTIMATED = "a merge"
"""In the place of such a type: the child was made from estimates of the parents' weights."""

Estimate = Callable[[Sequence[int], int, int], F32Array]
"""What a merge of some inputs makes of a range of weights."""

_N_RUNS, _N_RUNS_FIRST = 64, 8
_FEWEST_EXPECTED = 20.0  # weights outside, so that none outside is no chance
FEWEST_WEIGHTS = 1024
"""Smaller tensors tell too little, and models may have many."""
_REPRODUCED = 0.5  # share of a child's blocks: all, but for encoders that round otherwise
_SAME_NUMBERS = 1e-3  # square difference of a float child, over the parent's typical error
_FEWEST_FLOATS = 256
_DEPENDENT = 0.47  # square difference of two inputs over their errors; of independent ones about 1
# A child of an estimate is off the decoded weights, too, but less often than independent inputs.
_EXPECTED_TO_JUDGE = 50.0
# Of these n_outside is about half of what is expected, or more.
_SUSPICIOUS = 0.4
_HOPELESS = 1.5  # rounding moves fewer weights across an edge than that


@dataclass(frozen=True)
class Descent:
    """A tensor of one input that was made from the same tensor of others.

    Attributes
    ----------
    child : int
        Number of the input that tells nothing new.
    parents : tuple of int
        The inputs that it was made from.
    ways : tuple of str
        What the weights may have been rounded to in between (see `FLOATS`), the simplest first; or
        `ESTIMATED` alone.
    """

    child: int
    parents: tuple[int, ...]
    ways: tuple[str, ...]

    @property
    def via(self) -> str:
        """The simplest way."""
        return self.ways[0]


class Distance:
    """How far two inputs are apart, beside the errors that are typical of their types.

    What was made from another input differs from it by its own error, independent quantizations by
    the errors of both. Where one of two proves no cells, that tells which is the child.
    """

    def __init__(self) -> None:
        self._apart = self._parent = self._child = 0.0

    def add(self, values: F32Array, parent: Sample, child: Sample) -> None:
        """Take some more weights into account."""
        off = child.values.astype(np.float64) - values
        self._apart += float(np.einsum("n,n", off, off))
        self._parent += parent.noise * off.size
        self._child += child.noise * off.size

    @property
    def is_of_child(self) -> bool:
        """Whether it is nearer to the child's error than to the parent's, if anything was added.

        What one holds of the other without an error is what the coarser one said first.
        """
        if min(self._parent, self._child) <= 0:
            return True
        if self._apart <= 0:
            return self._child <= self._parent
        off = np.abs(np.log(self._apart / np.array([self._child, self._parent])))
        return bool(off[0] <= off[1])

    @property
    def is_small(self) -> bool:
        """Whether it is too small for independent quantizations."""
        return 0 < self._apart < _DEPENDENT * (self._parent + self._child)


class Trial:
    """Whether a child's bytes may have been made from given weights: counts over samples."""

    def __init__(self) -> None:
        self.distance = Distance()
        self.n_outside = 0
        self.n_expected = 0.0  # weights outside, if the two were independent
        self._n_told = 0.0  # the same of weights that tell anything, until one is outside
        self._n_weights = 0
        self._n_encoded = self._n_same = 0
        self._n_floats = 0
        self._difference = self._noise = 0.0

    def add(self, values: F32Array, parent: Sample, child: Sample) -> None:
        """Compare weights that `parent` stands for, float32 (n,), with a child's bytes."""
        self._n_weights += values.size
        if child.is_float:
            off = child.values.astype(np.float64) - rounded(values, child.type.name)
            self._difference += float(np.einsum("n,n", off, off))
            self._noise += parent.noise * values.size
            self._n_floats += int(np.count_nonzero(telling(parent, child)))
            return
        if not np.isfinite(parent.width).any():
            self.distance.add(values, parent, child)
        tells = np.zeros(values.size, np.bool_) if self.n_outside else telling(parent, child)
        spreads = parent.spread, child.spread
        counts = _count_outside(values, child.bounds, spreads, _repeated(parent, child), tells)
        self.n_outside += counts[0]
        self.n_expected += counts[1]
        self._n_told += counts[2]
        # Such codes confine the weights only if the encoder had no other choice.
        if isinstance(child.type, ScalarType) and child.type.refits_scale_with_imatrix:
            self._encode(values, child, child.type)

    def _encode(self, values: F32Array, child: Sample, kind: ScalarType) -> None:
        """Count the child's blocks that the parent's weights are encoded to."""
        if self.n_outside or not np.isfinite(values).all():
            return
        encoded = quantize(values[None], kind).reshape(-1, kind.type_size)
        says_something = values.reshape(-1, kind.block_size).any(axis=1)
        same = (encoded == child.raw.reshape(encoded.shape)).all(axis=1) & says_something
        self._n_same += int(np.count_nonzero(same))
        self._n_encoded += int(np.count_nonzero(says_something))

    @property
    def is_possible(self) -> bool:
        """Whether nothing speaks against it."""
        reproduced = self._n_same >= _REPRODUCED * self._n_encoded
        is_same = self._difference <= self._largest_difference
        return not self.n_outside and reproduced and is_same and self.distance.is_of_child

    @property
    def is_proven(self) -> bool:
        """Whether so much speaks for it that it is no chance."""
        enough = self._n_told >= _FEWEST_EXPECTED or self._n_floats >= _FEWEST_FLOATS
        return enough and self.is_possible

    @property
    def is_suspicious(self) -> bool:
        """Whether fewer weights are outside than of independent inputs."""
        if self._n_floats:
            return self._difference < _SUSPICIOUS * self._noise
        return self.n_outside < _SUSPICIOUS * self.n_expected

    @property
    def is_hopeless(self) -> bool:
        """Whether so many weights are outside that rounding them cannot be the reason."""
        enough = self.n_expected >= _FEWEST_EXPECTED
        return enough and self.n_outside > _HOPELESS * self.n_expected

    def refute(self) -> None:
        """Take it that a weight is outside."""
        self.n_outside = max(self.n_outside, 1)

    @property
    def is_judged(self) -> bool:
        """Whether enough was looked at to say so."""
        if self._n_floats:
            return True
        return not self.is_possible and self.n_expected >= _EXPECTED_TO_JUDGE

    @property
    def surprise(self) -> float:
        """How much speaks for it, per weight that was looked at."""
        return (self.n_expected + self._n_floats) / max(self._n_weights, 1)

    @property
    def _largest_difference(self) -> float:
        return _SAME_NUMBERS * self._noise


def _repeated(parent: Sample, child: Sample) -> NDArray[np.bool_]:
    """Blocks (n / block_size,) with the same bytes: two encoders may have made the same of them."""
    size = child.type.type_size
    if parent.type is not child.type:
        return np.zeros(child.raw.size // size, np.bool_)
    same: NDArray[np.bool_] = (parent.raw == child.raw).reshape(-1, size).all(1)
    return same


@kernel
def _count_outside(
    values: F32Array,
    child: Bounds,
    spreads: Bounds,
    repeated: NDArray[np.bool_],
    tells: NDArray[np.bool_],
) -> tuple[int, float, float]:
    """Weights outside the child's cells, and how many there were if the two were independent.

    The error of an independent quantization is uniform, as wide as the parent's `spreads` says.
    Where the weights are uniform in the child's cell it crosses an edge with a probability of a
    quarter of the ratio of the widths; where they keep a distance from its edges, as the child's
    spread says, with less. Cells with an open side, and blocks that are `repeated`, are left out.
    The third number is the second one of the weights that tell anything.
    """
    n_outside, n_expected, n_told = 0, 0.0, 0.0
    block_size = values.size // repeated.size
    for i in range(values.size):
        width = child[1][i] - child[0][i]
        if width < np.inf and not repeated[i // block_size]:
            n_outside += values[i] < child[0][i] or values[i] > child[1][i]
            error, inside = min(spreads[0][i], width), min(spreads[1][i], width)
            over = error - (width - inside)
            if over > 0 and error * inside > 0:
                expected = over * over / (4 * error * inside)
                n_expected += expected
                n_told += expected * tells[i]
    return n_outside, n_expected, n_told


class _Pair(NamedTuple):
    """A possible parent and its child."""

    parent: int
    child: int


class Family:
    """One tensor as several inputs store it, and which of them may descend from which.

    Parameters
    ----------
    tensors : mapping of int to StoredTensor
        By the number of the input; no two have the same bytes.
    confining : collection of int
        The inputs whose numbers or codes prove bounds.
    sampler : Sampler
        Reads the weights.
    estimate : callable, optional
        What a merge of some of the inputs makes of the weights; without it children of merges are
        not looked for.
    natives : collection of int
        Inputs whose codes may be what was published: children that prove no cells are looked for,
        too.
    """

    def __init__(
        self,
        tensors: Mapping[int, StoredTensor],
        confining: Iterable[int],
        sampler: Sampler,
        estimate: Estimate | None = None,
        natives: Iterable[int] = (),
    ) -> None:
        self._tensors = tensors
        self._natives = frozenset(natives)
        self._confining = frozenset(confining)
        self._sampler = sampler
        self._estimate = estimate
        kinds = {i: tensor.type for i, tensor in tensors.items()}
        quantized = [i for i, kind in kinds.items() if not isinstance(kind, FloatType | OpaqueType)]
        self._parents = quantized
        self._children = [i for i in tensors if i in self._confining]
        self.trials = {
            _Pair(parent, child): {via: Trial() for via in FLOATS}
            for child in self._children
            for parent in quantized
            if parent != child
        }

    def descents(self) -> tuple[Descent, ...]:
        """Who descends from whom."""
        if next(iter(self._tensors.values())).n_weights < FEWEST_WEIGHTS:
            return ()
        with sampled():
            return self._found()

    def _found(self) -> tuple[Descent, ...]:
        self._try_decoded()
        found = [
            (trials[ways[0]].surprise, Descent(pair.child, (pair.parent,), ways))
            for pair, trials in self.trials.items()
            if (ways := _proven(trials))
        ]
        children = {descent.child for _, descent in found}
        for child in self._children:
            if child not in children and self._estimate is not None:
                found += self._try_estimates(child, self._estimate)
        found += self._unproven_children()
        pairs = {_Pair(each.parents[0], each.child) for _, each in found if _is_direct(each)}
        return _without_circles([self._directed(how, each, pairs) for how, each in found])

    def _directed(
        self, surprise: float, descent: Descent, pairs: Set[_Pair]
    ) -> tuple[float, Descent]:
        """The same, with parent and child as scales or errors tell, if it may be either way.

        What scales tell is no chance at all.
        """
        pair = _Pair(descent.parents[0], descent.child)
        back = _Pair(pair.child, pair.parent)
        kinds = [self._tensors[i].type for i in pair]
        has_integers = [isinstance(kind, ScalarType) and kind.scale_steps > 0 for kind in kinds]
        is_told_by_scales = are_ambiguous(*kinds)
        if not _is_direct(descent) or not (is_told_by_scales or back in pairs):
            return surprise, descent
        direction, distance = Direction(), Distance()
        for start, end in self._runs()[:_N_RUNS_FIRST]:
            samples = self._read(pair, start, end)
            one, other = samples[pair.parent], samples[pair.child]
            distance.add(one.values, one, other)
            if is_told_by_scales:
                direction.add(*((other, one) if has_integers[1] else (one, other)))
        is_right = distance.is_of_child
        if is_told_by_scales and direction.is_known:
            is_right, surprise = direction.holds == has_integers[0], math.inf
        elif back not in pairs:
            is_right = True
        child, parent = (pair.child, pair.parent) if is_right else pair
        return surprise, Descent(child, (parent,), descent.ways)

    def _unproven_children(self) -> list[tuple[float, Descent]]:
        """Inputs without cells that are too near to one with cells, or that may be published."""
        found = []
        unproven = [i for i in self._parents if i not in self._confining]
        for child in unproven:
            for parent in self._parents:
                if self._tensors[child].type is self._tensors[parent].type:
                    continue
                distance, nearest = Distance(), Nearest()
                for start, end in self._runs()[:_N_RUNS_FIRST]:
                    samples = self._read({parent, child}, start, end)
                    if parent in self._natives:
                        distance.add(samples[parent].values, samples[parent], samples[child])
                    if parent in self._confining:
                        nearest.add(samples[parent], samples[child])
                is_small = distance.is_small and distance.is_of_child
                if is_small or nearest.is_of_child:
                    found.append((0.0, Descent(child, (parent,), ("",))))
        return found

    def _try_decoded(self) -> None:
        """Fill the trials of all pairs, as far as it takes to know."""
        for number, (start, end) in enumerate(self._runs()):
            is_first = number < _N_RUNS_FIRST
            pairs = [pair for pair, trials in self.trials.items() if _is_open(trials, is_first)]
            if not pairs:
                return
            samples = self._read({i for pair in pairs for i in pair}, start, end)
            for pair in pairs:
                parent, child = samples[pair.parent], samples[pair.child]
                trials = self.trials[pair]
                trials[""].add(parent.values, parent, child)
                for via in FLOATS[1:]:
                    if trials[""].is_hopeless:
                        trials[via].refute()
                    elif trials[via].is_possible:
                        trials[via].add(rounded(parent.values, via), parent, child)

    def _try_estimates(self, child: int, estimate: Estimate) -> list[tuple[float, Descent]]:
        """Whether an input was made from what a merge of one or of all others estimates."""
        suspects = [
            pair.parent
            for pair in self.trials
            if pair.child == child and self._are_suspicious(pair)
        ]
        others = [parent for parent in self._parents if parent != child]
        groups: list[tuple[int, ...]] = [(parent,) for parent in suspects]
        if suspects and len(others) > 1:
            groups.append(tuple(others))
        for parents in groups:
            trials = {via: Trial() for via in FLOATS}
            for start, end in self._runs():
                possible = [trial for trial in trials.values() if trial.is_possible]
                if not possible or any(trial.is_proven for trial in possible):
                    break
                samples = self._read({child, *parents}, start, end)
                values = estimate(parents, start, end)
                finest = min((samples[i] for i in parents), key=lambda each: each.noise)
                for via, trial in trials.items():
                    if trial.is_possible:
                        trial.add(rounded(values, via), finest, samples[child])
            if ways := _proven(trials):
                return [(trials[ways[0]].surprise, Descent(child, parents, (ESTIMATED,)))]
        return []

    def _are_suspicious(self, pair: _Pair) -> bool:
        """Whether two inputs differ less than independent ones, whichever of them is the child.

        Estimates lie in the cells of a coarse parent, and so does what a finer child says.
        """
        both = [self.trials.get(each) for each in (pair, _Pair(pair.child, pair.parent))]
        return any(trials[""].is_suspicious for trials in both if trials is not None)

    def _runs(self) -> list[tuple[int, int]]:
        """What may be looked at, the first few of them from all over the tensor."""
        found = runs(next(iter(self._tensors.values())).n_weights, _N_RUNS)
        step = max(1, len(found) // _N_RUNS_FIRST)
        return [run for first in range(step) for run in found[first::step]]

    def _read(self, inputs: Iterable[int], start: int, end: int) -> dict[int, Sample]:
        return {
            i: self._sampler.read(i, self._tensors[i], i in self._confining, start, end)
            for i in sorted(inputs)
        }


def _is_direct(descent: Descent) -> bool:
    """Whether it was made from the decoded weights of one other input."""
    return len(descent.parents) == 1 and descent.via != ESTIMATED


def _is_open(trials: Mapping[str, Trial], is_first: bool) -> bool:
    """Whether more weights would tell more; in the first runs also by way of which type."""
    possible = [trial for trial in trials.values() if trial.is_possible]
    if is_first and possible:
        return True
    return not trials[""].is_judged and not any(trial.is_proven for trial in possible)


def _proven(trials: Mapping[str, Trial]) -> tuple[str, ...]:
    """The explanations that hold, the simplest first."""
    return tuple(via for via, trial in trials.items() if trial.is_proven)


def _without_circles(found: list[tuple[float, Descent]]) -> tuple[Descent, ...]:
    """The most surprising descents, one for each child, none of which is its own ancestor."""
    parents: dict[int, Descent] = {}
    for _, descent in sorted(found, key=lambda each: -each[0]):
        if descent.child not in parents and not _descends(descent.parents, descent.child, parents):
            parents[descent.child] = descent
    return tuple(parents[child] for child in sorted(parents))


def _descends(inputs: Sequence[int], ancestor: int, known: Mapping[int, Descent]) -> bool:
    """Whether any of some inputs is an input, or descends from it."""
    return any(
        i == ancestor or (i in known and _descends(known[i].parents, ancestor, known))
        for i in inputs
    )
