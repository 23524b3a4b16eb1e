"""Expected errors against measured ones, on the shipped sample; and that it can be made again."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from recover.estimators import Tally, TileEstimator, error_calibration
from recover.estimators.error_calibration import WEIGHTS, calibrate_errors, kurtosis_of, sample_name
from recover.evidence.buffer import Source
from recover.quants import ScalarType, TensorType, VectorType, type_by_name
from tests.golden import make_sample

QUANTIZED = make_sample.encoded_types()


def source(text: str) -> Source:
    """For instance ``Q4_0``, or ``Q4_0 im`` if made with an importance matrix of that name."""
    name, _, imatrix = text.partition(" ")
    kind = type_by_name(name)
    refits = isinstance(kind, ScalarType) and kind.refits_scale_with_imatrix
    return Source(kind, not (imatrix and refits), bool(imatrix), imatrix)


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_the_sample_is_made_again(kind: TensorType) -> None:
    sample = error_calibration._sample()
    x = make_sample.draw()
    np.testing.assert_array_equal(sample[WEIGHTS], x)
    n_rows = 4 if isinstance(kind, VectorType) else len(x)  # these take long
    for number in range(8):
        name = sample_name(kind, number)
        if name in sample or number == 1:
            # For some types an importance matrix changes nothing.
            stored = sample[name if name in sample else kind.name].reshape(len(x), -1)[:n_rows]
            raw = make_sample.encode(x[:n_rows], kind, number)
            np.testing.assert_array_equal(stored.reshape(-1), raw)


@pytest.mark.parametrize(("half", "share"), [(0, 0.0), (1, 1.0), (None, -0.5)])
def test_sums_and_deviations_are_corrected(half: int | None, share: float) -> None:
    """As those of the half of the sample that has such tails, or a little beyond it."""
    inputs = source("Q4_1"), source("Q4_K")
    found = calibrate_errors(inputs, "posterior")
    x = error_calibration._sample()[WEIGHTS].reshape(2, -1)
    estimate = np.resize(np.array([1, -1], np.float32), 4096) if half is None else x[half]
    if half is not None:
        found = replace(found, kurtosis=tuple(kurtosis_of(each)[0] for each in x))
    tally, deviation = Tally(np.array([2.0, 7.0, 3.0, 5.0])), np.array([4.0], np.float32)
    found.correct(tally.array[None], kurtosis_of(estimate), deviation)
    merged, alone = (
        f[0] ** (1 - share) * f[1] ** share for f in map(np.array, (found.merged, found.alone))
    )
    np.testing.assert_allclose(tally.array, [2 * merged, 7, 3 * alone[0], 5 * alone[1]])
    assert deviation[0] == pytest.approx(4 * merged**0.5)
    assert min(found.merged) > 1.02  # cells of the two nearly coincide


def test_kurtosis(rng: np.random.Generator) -> None:
    x = rng.standard_t(6, (100, 256)).astype(np.float32) * np.float32(1e-20)
    expected = np.mean([scipy.stats.kurtosis(row - 0.0, fisher=False) for row in x.astype(float)])
    assert kurtosis_of(x.reshape(-1))[0] == pytest.approx(expected, rel=0.05)  # its mean is not 0
    signs = np.sign(x) * rng.choice((1, 3), (100, 1))
    assert kurtosis_of(signs.reshape(-1).astype(np.float32))[0] == pytest.approx(1)
    for unknown in (np.zeros(512), np.full(512, np.nan), np.ones(100)):
        assert kurtosis_of(unknown.astype(np.float32)) == 3


@pytest.mark.parametrize(("n_tensors", "n"), [(1, 3 << 18), (4, 7 * 256), (100, 300)])
def test_kurtosis_is_that_of_plain_numpy(rng: np.random.Generator, n_tensors: int, n: int) -> None:
    x = rng.standard_normal((n_tensors, n)).astype(np.float32)
    x[:, 256:300], x[0, :256] = 0, 0
    step = max(1, n // 256 // 256)
    squares = np.square(x[:, : n // 256 * 256].reshape(n_tensors, -1, 256)[:, ::step], dtype=float)
    second, fourth = squares.mean(2), np.square(squares).mean(2)
    known = second > 0
    expected = np.full(n_tensors, 3.0)
    for i in np.flatnonzero(known.any(1)):
        expected[i] = (fourth[i, known[i]] / second[i, known[i]] ** 2).mean()
    np.testing.assert_allclose(kurtosis_of(x.reshape(-1), n_tensors), expected, rtol=1e-14)


@pytest.mark.parametrize("method", ["posterior", "linear", "midpoint"])
@pytest.mark.parametrize(
    "texts",
    [
        ("Q4_1", "Q4_K"),
        ("Q5_K", "Q5_K a", "Q5_K b"),
        ("Q5_K a", "Q5_1 b"),
        ("Q5_0", "Q4_0 a", "Q4_0"),
        ("MXFP4", "Q3_K"),
        ("IQ3_S", "Q4_K", "IQ2_XXS"),
    ],
    ids="+".join,
)
@pytest.mark.parametrize("half", [0, 1], ids=["light", "heavy"])
def test_corrected_errors_are_those_of_other_random_weights(
    half: int, texts: tuple[str, ...], method: str
) -> None:
    """Of weights and importance matrices that are drawn from another seed.

    The kurtosis of weights with heavy tails is mostly that of a few: of one law it is 5.5 to 7.1,
    by the seed, which is a fourth of its distance from that of light tails (standard deviation).
    What tails change of an error is told as inexactly: by a fifth it is for the midpoint of MXFP4
    and Q3_K.
    """
    seed = 5
    x = np.split(make_sample.draw(seed), 2)[half]
    inputs = tuple(source(text) for text in texts)
    number = {"": 0, "a": 1, "b": 2}
    raws = [make_sample.encode(x, each.type, number[each.imatrix], seed) for each in inputs]
    out, deviation = np.empty((2, x.size), np.float32)
    tally = TileEstimator(inputs, method).estimate(raws, 0, x.size, out, deviation)
    light, heavy = calibrate_errors(inputs, method).merged
    noise = 0.05 + 0.25 * abs(np.log(heavy / light)) if half else 0.03  # of 65,536 weights
    assert tally.variance == pytest.approx(np.sum((out - x.reshape(-1)) ** 2.0), rel=noise)


def test_errors_of_the_mode() -> None:
    """It may lie at the edge of a cell."""
    x = make_sample.draw(5)
    inputs = (source("Q8_0"), source("Q6_K"))
    raws = [make_sample.encode(x, each.type, 0) for each in inputs]
    out, deviation = np.empty((2, x.size), np.float32)
    estimator = TileEstimator(inputs, "posterior", "map")
    tally = estimator.estimate(raws, 0, x.size, out, deviation)
    assert tally.variance == pytest.approx(np.sum((out - x.reshape(-1)) ** 2.0), rel=0.03)


def test_one_importance_matrix_or_two() -> None:
    one, two = (
        calibrate_errors((source("Q5_K a"), source(other)), "posterior").merged[0]
        for other in ("Q5_1 a", "Q5_1 b")
    )
    assert one / two > 1.1  # with one matrix the two types share more of their errors


def test_codes_for_several_weights_prove_nothing_but_need_no_importance_matrix() -> None:
    """Vector types have no cells, in whatever way they were made."""
    kind, other = type_by_name("IQ3_S"), source("Q2_K")
    unproven, proven = (
        calibrate_errors((Source(kind, has_cells=has_cells), other), "posterior").merged[0]
        for has_cells in (False, True)
    )
    searched = calibrate_errors((source("IQ3_S a"), other), "posterior").merged[0]
    assert unproven == proven != searched


def test_nothing_is_claimed_of_what_the_sample_does_not_have() -> None:
    many = tuple(source(f"Q4_0 {name}") for name in "abcde")
    for inputs, method in ((many, "posterior"), ((source("Q4_K"),), "best")):
        found = calibrate_errors(inputs, method)
        assert found.merged == (1, 1)
        assert found.alone == ((1,) * len(inputs),) * 2
