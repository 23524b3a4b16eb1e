"""Which tensors each of several processes takes."""

from itertools import chain

import pytest

from recover.containers.places import Axis, Place
from recover.execution.shares import shares
from recover.execution.work import Stretch, Unit
from recover.quants import type_by_name

BF16 = type_by_name("BF16")


def unit(name: str, n_weights: int, *places: Place) -> Unit:
    return Unit(name, n_weights, (Stretch(places, BF16),))


def in_a_row(sizes: list[int]) -> list[Unit]:
    """Tensors one behind the other in a file."""
    return [unit(str(i), n, Place(0, 2 * sum(sizes[:i]), 0, n)) for i, n in enumerate(sizes)]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 40])
def test_each_tensor_is_in_one_part(n: int) -> None:
    sizes = [1 << (i % 7 + 12) for i in range(30)]
    found = shares(in_a_row(sizes), n)
    assert len(found) == n
    assert sorted(chain(*found)) == list(range(30))
    weights = [sum(sizes[i] for i in each) for each in found]
    assert max(weights) <= sum(weights) / n + max(sizes)
    assert found == shares(in_a_row(sizes), n)


def test_woven_tensors_stay_together() -> None:
    """Two matrices whose rows take turns, and one behind them."""

    def rows(position: int) -> Place:
        return Place(0, position, 0, 64 * 32, (Axis(64, 128), Axis(32, 2)))

    units = [
        unit("even", 64 * 32, rows(0)),
        unit("alone", 64 * 32, Place(0, 64 * 128, 0, 64 * 32)),
        unit("odd", 64 * 32, rows(64)),
        unit("of another file", 64 * 32, Place(1, 0, 0, 64 * 32)),
    ]
    for n in (2, 3, 4):
        found = shares(units, n)
        (both,) = (each for each in found if 0 in each)
        assert 2 in both
        assert sorted(chain(*found)) == [0, 1, 2, 3]
    assert sorted(map(len, shares(units, 3))) == [1, 1, 2]
