"""The shipped densities against new draws; and that they do not depend on chance."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from recover.calibration.simulate import errors_by_code as errors_of_codes
from recover.calibration.simulate import importance, simulate, student_t
from recover.calibration.tempering import (
    find_correlation,
    find_likelihood,
    find_pair_tempering,
    find_tempering,
    find_tempering_of_pairs,
    find_unproven_tempering_of_pairs,
)
from recover.evidence.densities import (
    ABOVE,
    ATOM,
    BELOW,
    DEGREE,
    correlation,
    density,
    end_codes,
    errors_by_code,
    likelihood,
    tempering,
)
from recover.quants import ScalarType, VectorType, all_types, dequantize, type_by_name
from tests.golden.make_densities import encode
from tests.golden.make_sample import encoded_types
from tests.support.kinds import quantized, scalar

SCALAR = [kind for kind in all_types() if isinstance(kind, ScalarType)]
VECTOR = [kind for kind in encoded_types() if isinstance(kind, VectorType)]


def distribution(row: NDArray[np.float32], reach: tuple[float, float]) -> NDArray[np.float64]:
    """The distribution function that a row describes, atom included, on 400 places."""
    u = np.linspace(*reach, 400)
    values = np.exp(u[:, None] ** (1, 2) @ row[:DEGREE].astype(np.float64))
    mass = np.cumsum(values) * (u[1] - u[0]) + np.where(u >= 0, row[ATOM], 0)
    total: NDArray[np.float64] = mass / mass[-1]
    return total


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("kind", SCALAR, ids=lambda kind: kind.name)
def test_shipped_densities_are_found_again(kind: ScalarType, weighted: bool) -> None:
    """Kolmogorov's distance between the distributions, for each class of code."""
    draw = student_t(123, as_trained=kind.scales_are_coarse)
    again = simulate(kind, draw, weighted=weighted, n_chunks=8)
    has_cells = not (weighted and kind.refits_scale_with_imatrix)
    shipped = density(kind, weighted=weighted, has_cells=has_cells)
    assert shipped.shape == (4, 5)
    for row, (new, old) in enumerate(zip(again[:3], shipped[:3], strict=True)):
        reach = max(new[BELOW], old[BELOW]), min(new[ABOVE], old[ABOVE])
        assert reach[1] - reach[0] > 0.45
        distance = np.abs(distribution(new, reach) - distribution(old, reach)).max()
        # Few weights with an end code of these are not the extreme one.
        assert distance < (0.05 if kind.name == "Q8_0" and row > 0 else 0.03)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("kind", SCALAR, ids=lambda kind: kind.name)
def test_shipped_errors_of_codes_are_found_again(kind: ScalarType, weighted: bool) -> None:
    """Those of codes that are not seldom; some weights are as good as all."""
    draw = student_t(123, as_trained=kind.scales_are_coarse)
    again = errors_of_codes(kind, draw, weighted=weighted, n_chunks=2)
    first, last = end_codes(kind)
    shipped = errors_by_code(kind, weighted=weighted)
    assert shipped.shape == (256,)
    off = np.abs(again / shipped[first : last + 1] - 1)
    assert np.median(off) < (0.1 if kind.name == "Q8_0" else 0.03)
    assert shipped[:first] == pytest.approx(1)


@pytest.mark.parametrize("kind", VECTOR, ids=lambda kind: kind.name)
def test_shipped_likelihoods_are_found_again(kind: VectorType) -> None:
    # The scales of ternary types are the largest of 256 weights, which is a matter of chance: so
    # much that the shipped variance, of one chunk, may itself be off by 4 %.
    ternary = kind.name.startswith("TQ")
    draw = student_t(321)
    x = np.concatenate([draw(chunk) for chunk in range(8)]) if ternary else draw(0)[:32]
    again = find_likelihood(dequantize(encode(kind, x), kind), x)
    np.testing.assert_allclose(again, likelihood(kind), rtol=0.05 if ternary else 0.03)


def test_shipped_shares_are_found_again() -> None:
    kind = scalar("Q5_K")
    shipped = [tempering(kind, [kind] * (n - 1)) for n in (2, 4, 8)]
    np.testing.assert_allclose(find_tempering(kind, seed=77), shipped, rtol=0.2)


def test_shares_of_the_coarser_of_two_types_are_found_again() -> None:
    x = student_t(55)(0)
    for fine, coarse in (("Q3_K", "Q2_K"), ("Q4_K", "IQ3_S"), ("Q3_K", "IQ2_XS")):
        first, second = quantized(fine), quantized(coarse)
        raws = [encode(kind, x) for kind in (first, second)]
        again = find_pair_tempering(first, second, raws, x)
        assert again == pytest.approx(tempering(second, [first]), abs=0.1)
        assert again < 0.95
        assert tempering(first, [second]) == 1  # the finer one counts in full


def test_what_is_drawn_of_pairs_is_what_is_shipped() -> None:
    """The draws are those of the script that made the tables."""
    q2, q3, q4, q6 = (quantized(name) for name in ("Q2_K", "Q3_K", "Q4_0", "Q6_K"))
    pairs = find_tempering_of_pairs([q2, q3], encode)
    assert pairs["Q3_K"] == {}  # the finer one
    # The search ends where claims are within a percent; estimates changed by less than that since.
    assert pairs["Q2_K"] == pytest.approx({"Q3_K": tempering(q2, [q3])}, rel=0.01)
    unproven = find_unproven_tempering_of_pairs([q2, q4, q6], encode)
    assert unproven.keys() == {"Q4_0"}  # whose encoder fits the scale to the importances
    expected = tempering(q4, [q6], has_cells=False)
    assert unproven["Q4_0"] == pytest.approx({"Q6_K": expected}, rel=0.01)


def test_what_is_drawn_of_two_vector_types_is_what_is_shipped() -> None:
    x = student_t()(0)[:32]
    one, other = (kind for kind in VECTOR if kind.name in ("IQ3_XXS", "IQ2_XS"))
    first, second = (dequantize(encode(kind, x), kind) for kind in (one, other))
    found = find_correlation(first, second, x)
    assert found == pytest.approx(correlation(one, other), abs=0.01)


def test_shares_beside_several() -> None:
    """The least of those beside each, and that of inputs of its own type."""
    q2, q3, iq3, q8 = (type_by_name(name) for name in ("Q2_K", "Q3_K", "IQ3_S", "Q8_0"))
    assert tempering(q2, []) == tempering(q2, [q8]) == 1
    both = tempering(q2, [q3, iq3, q8])
    assert both == min(tempering(q2, [q3]), tempering(q2, [iq3])) < 1
    assert tempering(q2, [q2, q3]) == pytest.approx(tempering(q2, [q2]) * tempering(q2, [q3]))


def test_shares_fall_with_the_number_of_inputs() -> None:
    for kind in SCALAR:
        shares = [tempering(kind, [kind] * (n - 1)) for n in (1, 2, 3, 4, 6, 8, 12, 20)]
        assert shares[0] == 1
        assert all(a >= b > 0 for a, b in pairwise(shares))


def test_draws_depend_on_the_seed_alone() -> None:
    one, two, other = (simulate(scalar("Q4_K"), student_t(s), n_chunks=1) for s in (5, 5, 6))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(importance(1, 2, 64), importance(1, 2, 64))


def test_ends() -> None:
    kinds = {kind.name: kind for kind in SCALAR}
    assert end_codes(kinds["Q4_K"]) == (0, 15)
    assert end_codes(kinds["Q8_0"]) == (1, 255)
    assert end_codes(kinds["Q6_K"]) == (0, 63)


def test_without_cells_weights_may_be_outside() -> None:
    """Of a refitted scale as drawn, of another quantizer's a normal density."""
    refitted, other = (density(scalar(name), has_cells=False) for name in ("Q4_0", "Q8_0"))
    assert np.all(refitted[0, BELOW:] * (-1, 1) > 0.5)
    assert other[0, 1] == pytest.approx(-0.5 / scalar("Q8_0").noise)
    assert not other[0, [0, ATOM]].any()
