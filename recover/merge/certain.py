"""Weights that are certain, and the evidence against them, counted over the whole merge.

A weight is certain if the original was stored in some format (BF16, F16) and the intersection of
its cells holds a single number of it. Norms and a sample of the bytes say beforehand whether it was
(`recover.inputs.precision`), but only all of the bytes tell of a tensor of which a few weights were
not. Two things contradict the format: an interval that holds none of its numbers, and a scale that
comes from one weight and that none of its numbers explains. A tensor with any is not certain.

A tensor without any may still hold such weights, if it is small. It is believed only if chance does
not explain that it shows nothing while others do: were foreign weights as frequent in it as in
those that show n contradictions, all n would be among these with the probability
(E / (E + e))**n, where E and e are what they and it would show if all their weights were foreign.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from recover._text import quoted, some
from recover.evidence.buffer import Evidence, Source
from recover.evidence.cells import intersect_cells
from recover.evidence.lattice import any_empty, count_empty, snap
from recover.inputs.precision import UNEXPLAINED, scales_without_bf16
from recover.merge.plan import MergePlan, TensorPlan
from recover.merge.sums import Sums, Totals
from recover.quants import TILE, F32Array, U8Array

_LARGEST_CHANCE = 1e-3  # that any tensor is believed though it is like those that are not


@dataclass(frozen=True)
class Snapping:
    """How the weights of a tensor are set to numbers of the source's format."""

    source_format: str
    """Name of the format."""
    significand_bits: int
    """Its precision, the implicit bit included."""
    is_decided: bool
    """Whether weights are set; otherwise what contradicts the format is only counted."""
    decides: bool
    """Whether those are set whose bounds hold a single number of the format."""
    rounds_all: bool
    """Whether all are."""


def snapping_of(plan: MergePlan, tensor: TensorPlan) -> Snapping | None:
    """How a plan has the weights of a tensor set; None if they could not be."""
    bits = plan.evidence_bits(tensor)
    if not bits:
        return None
    is_decided = tensor.name not in plan.undecided
    decides = plan.may_decide(tensor)
    return Snapping(plan.source_format, bits, is_decided, decides, plan.snaps)


class Snapper:
    """Sets the weights of tiles to numbers of the source's format; memory for one thread."""

    def __init__(self) -> None:
        self._bounds = np.empty((2, 0), np.float32)
        self._deviation = np.empty(0, np.float32)
        self._how: Snapping | None = None
        self._sources: tuple[Source, ...] = ()

    @property
    def is_on(self) -> bool:
        """Whether there is anything to count, or to set, in the tensor at hand."""
        return self._how is not None

    def look_at(self, how: Snapping | None, sources: tuple[Source, ...]) -> None:
        """Look at another tensor from now on."""
        self._how, self._sources = how, sources

    def is_contradicted(self, evidence: Evidence, stored: Sequence[U8Array]) -> bool:
        """Whether `apply` would count anything that contradicts the format; arguments as there."""
        assert self._how is not None
        if any_empty(evidence, self._how.significand_bits):
            return True
        return self._how.source_format == "bf16" and self._count_scales(stored)[1] > 0

    def apply(
        self,
        evidence: Evidence,
        stored: Sequence[U8Array],
        estimate: F32Array,
        deviation: F32Array,
        sums: Sequence[Sums],
    ) -> None:
        """Count what contradicts the format, and set the weights of a tensor that is decided.

        Only where this `is_on`.

        Parameters
        ----------
        evidence : Evidence
            Of the tile.
        stored : sequence of uint8 arrays
            Its bytes in each input, in the order of the tensor's sources.
        estimate : float32 (n,)
            Changed where a weight is certain, or all are rounded.
        deviation : float32 (n,) or (0,)
            Set to 0 where a weight is certain, if not empty.
        sums : sequence of Sums
            Of tensors of one size that lie one behind the other; to be added to.
        """
        if not self._bounds.size:
            self._bounds = np.empty((2, TILE), np.float32)
            self._deviation = np.empty(TILE, np.float32)
        lower, upper = self._bounds[:, : estimate.size]
        intersect_cells(evidence, lower, upper)
        if not deviation.size:
            deviation = self._deviation[: estimate.size]
        size = estimate.size // len(sums)
        rows = [raw.reshape(len(sums), -1) for raw in stored]
        for i, own in enumerate(sums):
            part = slice(i * size, (i + 1) * size)
            weights = estimate[part], deviation[part]
            self._set(lower[part], upper[part], [each[i] for each in rows], *weights, own)

    def _set(
        self,
        lower: F32Array,
        upper: F32Array,
        stored: Sequence[U8Array],
        estimate: F32Array,
        deviation: F32Array,
        sums: Sums,
    ) -> None:
        """As `apply`, of one tensor, within its bounds."""
        assert self._how is not None
        bits = self._how.significand_bits
        if self._how.is_decided:
            n_certain, change, n_empty, expected = snap(
                lower,
                upper,
                bits,
                self._how.decides,
                self._how.rounds_all,
                estimate,
                deviation,
            )
            sums.certain += int(n_certain)
            sums.snapped += estimate.size
            sums.tally(len(stored)).variance += change
        else:
            n_empty, expected = count_empty(lower, upper, bits)
        n_scales = n_foreign = 0
        if self._how.source_format == "bf16":
            n_scales, n_foreign = self._count_scales(stored)
        sums.empty += int(n_empty)
        sums.foreign_scales += n_foreign
        sums.expected += float(expected + UNEXPLAINED * n_scales)

    def _count_scales(self, stored: Sequence[U8Array]) -> tuple[int, int]:
        """Scales of the tile that come from one weight each, and those no bf16 number explains."""
        counts = [_scales(raw, each) for raw, each in zip(stored, self._sources, strict=True)]
        n_scales, n_foreign = np.sum(counts, axis=0).tolist()
        return n_scales, n_foreign


def _scales(raw: U8Array, source: Source) -> tuple[int, int]:
    return scales_without_bf16(raw, source.type) if source.has_cells else (0, 0)


@dataclass(frozen=True)
class Withdrawal:
    """Tensors of which nothing is certain after all."""

    contradicted: dict[int, tuple[int, int]]
    """dict of int to (int, int): by index, the intervals that hold no number of the format, and the
    scales that none explains."""
    doubtful: tuple[int, ...]
    """Tensors that show nothing, but are too small to show anything."""
    n_left: int
    """Tensors with certain weights that stay so."""

    @property
    def tensors(self) -> list[int]:
        """All of them."""
        return sorted([*self.contradicted, *self.doubtful])

    def warnings(self, plan: MergePlan) -> list[str]:
        """What people should know beyond what the plan says of its undecided tensors."""
        lines = []
        if contradicted := self._named(plan, tuple(self.contradicted)):
            named = [f"{name} ({_amount(*self.contradicted[i])})" for i, name in contradicted]
            lines.append(
                f"not all weights of these tensors were stored as {plan.source_format}, so none of"
                f" them is certain or set to such numbers: {some(named)}"
            )
        if doubtful := self._named(plan, self.doubtful):
            lines.append(
                "these tensors are too small to show whether all of their weights were stored as"
                f" {plan.source_format}, so none of them is certain either:"
                f" {some([name for _, name in doubtful])}"
            )
        if lines and not self.n_left:
            lines.append("no weight of this merge is certain")
        return lines

    @staticmethod
    def _named(plan: MergePlan, indices: Sequence[int]) -> list[tuple[int, str]]:
        names = [(index, plan.tensors[index].name) for index in indices]
        return [(index, quoted(name)) for index, name in names if name not in plan.undecided]


def _amount(n_empty: int, n_scales: int) -> str:
    counts = ((n_empty, "intervals without such a number"), (n_scales, "scales of other weights"))
    return ", ".join(f"{what}: {n:,}" for n, what in counts if n)


def find_withdrawal(totals: Totals) -> Withdrawal:
    """Tensors that were not, or may not have been, stored in the source's format.

    Parameters
    ----------
    totals : dict of int to Sums
        Of each tensor. Whether its weights were set to such numbers is of no consequence.
    """
    # By index: tensors come in the order in which they were finished.
    sums = {index: each for index, each in sorted(totals.items()) if each.estimated is not None}
    counts = {i: each.empty + each.foreign_scales for i, each in sums.items()}
    shown = [index for index, n in counts.items() if n]
    n_shown = sum(counts[index] for index in shown)
    if not n_shown:
        return Withdrawal({}, (), sum(each.certain > 0 for each in sums.values()))
    exposed = sum(sums[index].expected for index in shown)
    others = [index for index in sums if not counts[index] and sums[index].expected > 0]
    limit = math.log(max(len(others), 1) / _LARGEST_CHANCE)
    trusted = [i for i in others if n_shown * math.log1p(sums[i].expected / exposed) >= limit]
    return Withdrawal(
        {i: (sums[i].empty, sums[i].foreign_scales) for i in shown},
        tuple(sorted(set(others) - set(trusted))),
        sum(sums[index].certain > 0 for index in trusted),
    )


def to_estimate_again(withdrawal: Withdrawal, totals: Totals) -> list[int]:
    """Tensors whose weights were set to numbers of a format that they may not have had."""
    return [index for index in withdrawal.tensors if totals[index].snapped]


def without_certainty(plan: MergePlan, withdrawal: Withdrawal) -> MergePlan:
    """The plan under which these tensors are estimated without numbers of the source's format."""
    names = {plan.tensors[index].name for index in withdrawal.tensors}
    return replace(plan, undecided=plan.undecided | names)
