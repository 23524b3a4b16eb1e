"""What a merge sums up over the weights of a tensor, by name."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from recover.estimators.tally import Tally
from recover.merge.likeness import Likeness


@dataclass
class Sums:
    """Sums over weights; those of the tiles of a tensor add up with ``+=``.

    Attributes
    ----------
    certain : int
        Weights that are certain: their bounds hold a single number of the source's format.
    broken : int
        Groups of 16 weights of which an input has no finite values.
    empty : int
        Proven intervals that hold no number of the source's format.
    foreign_scales : int
        Scales that come from one weight each, and from no number of the source's format.
    expected : float
        How many of both there would be if the weights had nothing to do with that format.
    snapped : int
        Weights of tiles that were set to numbers of the source's format, where certain or asked
        for.
    not_finite : int
        NaN and infinite values among those that are copied.
    rounded : int
        Weights of a single input that the output's type does not hold exactly.
    conflicts : float
        Weights on which inputs contradict each other.
    unlike : int
        Weights in superblocks of which inputs without cells say something unrelated.
    difference : float
        Square difference between inputs without cells and the first one.
    difference_expected : float
        The same, as far as errors of both explain it.
    off : float
        Weights in superblocks of which they say a multiple, or something unrelated.
    estimated : Tally or None
        What the estimator sums up, with the errors that the output's type adds; None where nothing
        is estimated or added.
    """

    certain: int = 0
    broken: int = 0
    empty: int = 0
    foreign_scales: int = 0
    expected: float = 0.0
    snapped: int = 0
    not_finite: int = 0
    rounded: int = 0
    conflicts: float = 0.0
    unlike: int = 0
    difference: float = 0.0
    difference_expected: float = 0.0
    off: float = 0.0
    estimated: Tally | None = None

    @property
    def likeness(self) -> Likeness:
        """How inputs without cells compare with the first one."""
        return Likeness(self.unlike, self.difference, self.difference_expected, self.off)

    def add_likeness(self, likeness: Sequence[float]) -> None:
        """Take a comparison of inputs without cells into account: the fields of a `Likeness`."""
        n_unlike, square_difference, expected, n_off = likeness
        self.unlike += int(n_unlike)
        self.difference += square_difference
        self.difference_expected += expected
        self.off += n_off

    def tally(self, n_inputs: int) -> Tally:
        """The estimator's sums; all 0 if there were none."""
        if self.estimated is None:
            self.estimated = Tally.zeros(n_inputs)
        return self.estimated

    def __iadd__(self, other: "Sums") -> Self:
        own, estimated = vars(self), other.estimated
        for name, number in vars(other).items():
            if number and number is not estimated:
                own[name] += number
        if estimated is not None:
            tally = self.tally(estimated.n_inputs)
            tally += estimated
        return self

    def to_record(self) -> dict[str, Any]:
        """Plain data: all that is not 0, by name."""
        record: dict[str, Any] = {name: n for name in NUMBERS if (n := getattr(self, name))}
        if self.estimated is not None:
            record["estimated"] = self.estimated.to_record()
        return record

    @classmethod
    def from_record(cls, record: Any) -> Self:
        """The sums that a record of any origin has.

        Raises
        ------
        ValueError
            If it is no such record.
        OverflowError
            If a number is too large.
        """
        if not isinstance(record, dict) or not record.keys() <= {*NUMBERS, "estimated"}:
            raise ValueError("these are no sums")
        sums = cls()
        for name in NUMBERS.keys() & record.keys():
            value, kind = record[name], NUMBERS[name]
            if type(value) is not int and not (kind is float and type(value) is float):
                raise ValueError(f"{name} is no number")
            setattr(sums, name, kind(value))
        if "estimated" in record:
            sums.estimated = Tally.from_record(record["estimated"])
        return sums


NUMBERS: dict[str, type] = {
    each.name: float if each.type is float else int
    for each in fields(Sums)
    if each.type in (int, float)
}
"""The sums besides the estimator's: whether they are counts or not, by name."""

Totals = dict[int, Sums]
"""By index of a tensor, the sums of all its weights."""
