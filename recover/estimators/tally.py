"""What an estimator sums up over the weights of a tile."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

VARIANCE, CONFLICTS, ALONE = 0, 1, 2
"""Columns of the sums: the variance to expect, conflicts, and from here on those of each input."""


class Tally:
    """Sums over weights, by name.

    Tallies of the tiles of a tensor add up with ``+=``.

    Parameters
    ----------
    array : float64 (2 + n_inputs,)
        Where the sums lie; it is not copied. So it may be a row of a larger array.

    Attributes
    ----------
    array : float64 (2 + n_inputs,)
        The sums as kernels take them: `variance`, `n_conflicts`, `alone`.
    """

    __slots__ = ("array",)

    def __init__(self, array: NDArray[np.float64]) -> None:
        self.array = array

    @classmethod
    def zeros(cls, n_inputs: int) -> Self:
        """The tally of no weights."""
        return cls(np.zeros(cls.size_for(n_inputs)))

    @staticmethod
    def size_for(n_inputs: int) -> int:
        """How many numbers the tally of so many inputs has."""
        return ALONE + n_inputs

    @property
    def n_inputs(self) -> int:
        """Number of inputs."""
        return self.array.size - ALONE

    @property
    def variance(self) -> float:
        """The square error that the estimates are expected to have."""
        return float(self.array[VARIANCE])

    @variance.setter
    def variance(self, value: float) -> None:
        self.array[VARIANCE] = value

    @property
    def n_conflicts(self) -> float:
        """Weights on which the inputs contradict each other."""
        return float(self.array[CONFLICTS])

    @n_conflicts.setter
    def n_conflicts(self, value: float) -> None:
        self.array[CONFLICTS] = value

    @property
    def alone(self) -> NDArray[np.float64]:
        """The square error that each input alone is expected to have: float64 (n_inputs,), a view.

        `TileEstimator` gives them in the order of the sources. An estimator has them in the order
        of the evidence: scalar inputs first.
        """
        return self.array[ALONE:]

    def __iadd__(self, other: "Tally") -> Self:
        self.array += other.array
        return self

    def to_record(self) -> dict[str, Any]:
        """The sums by name, as plain data."""
        alone: list[float] = self.alone.tolist()
        return {"variance": self.variance, "n_conflicts": self.n_conflicts, "alone": alone}

    @classmethod
    def from_record(cls, record: Any) -> Self:
        """The tally that a record of any origin has.

        Raises
        ------
        ValueError
            If it is no such record.
        OverflowError
            If a number is too large.
        """
        names = ("variance", "n_conflicts", "alone")
        if not isinstance(record, dict) or record.keys() != set(names):
            raise ValueError("this is no tally")
        variance, n_conflicts, alone = (record[name] for name in names)
        numbers = [variance, n_conflicts, *(alone if isinstance(alone, list) else [None])]
        if not all(type(each) in (int, float) for each in numbers):
            raise ValueError("a tally has numbers")
        return cls(np.array([float(each) for each in numbers]))

    def __repr__(self) -> str:
        parts = f"variance={self.variance}, n_conflicts={self.n_conflicts}"
        return f"Tally({parts}, alone={self.alone.tolist()})"
