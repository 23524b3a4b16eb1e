"""Expected errors against measured ones beside formats of Hugging Face folders."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from recover.containers.model import StoredTensor
from recover.estimators import Tally, TileEstimator
from recover.estimators import _folder_sample as folders
from recover.estimators.error_calibration import calibrate_errors
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Source
from recover.quants import F32Array, IntervalType, ScalarType, type_by_name
from tests.golden import make_sample, make_sample_folders
from tests.support.all_sets import stored_as, with_errors
from tests.support.foreign_modules import rounded

SEED = 5
SETS = (
    ("FP8-block", "Q6_K"),
    ("NF4-nested", "Q4_K"),
    ("NVFP4", "Q4_K"),
    ("AWQ4-g128", "Q4_K"),
    ("MLX4-g64", "Q4_K"),
    ("HQQ4-g64", "Q4_K"),
    ("HQQ4-g64-strided", "Q4_K"),
    ("INT4-g128", "Q4_K"),
    ("LLM.int8", "Q8_0"),
    ("INT8-rows", "Q8_0"),
    ("INT8-rows", "Q6_K"),
    ("torchao-int8", "Q8_0"),
    ("qint8", "Q8_0"),
    ("HQQ8-g64", "Q8_0"),
    ("MLX8-g64", "Q8_0"),
    ("GPTQ4-g128", "Q4_K"),
    ("GPTQ4-g128", "AWQ4-g128", "NF4", "Q4_K"),
)
_BY_PRODUCTS = "GPTQ", "EXL2", "AWQ"  # of matrices: the last bits of these differ among machines


@cache
def weights(half: int) -> F32Array:
    return rounded(np.split(make_sample.draw(SEED), 2)[half], "BF16")


@cache
def made(name: str, half: int) -> StoredTensor:
    """Other weights than the sample's, in a setting or as a type of GGUF."""
    return stored_as(name, weights(half))


def inputs_of(names: Sequence[str], half: int) -> list[StoredTensor]:
    tensors = [made(name, half) for name in names]
    return with_errors(tensors)


def source(tensor: StoredTensor) -> Source:
    is_proof = isinstance(tensor.type, ScalarType) or getattr(tensor, "has_cells", False)
    return Source(tensor.type, has_cells=is_proof)


def run(names: Sequence[str], method: str, half: int) -> tuple[F32Array, F32Array, Tally]:
    """Estimates less the weights, deviations, the tally."""
    tensors, x = inputs_of(names, half), weights(half).reshape(-1)
    out, deviation = np.empty((2, x.size), np.float32)
    estimator = TileEstimator(list(map(source, tensors)), method)
    tally = estimator.estimate(tensors, 0, x.size, out, deviation)
    return out - x, deviation, tally


@pytest.mark.parametrize("name", make_sample_folders.ALL)
def test_the_sample_is_made_again(name: str) -> None:
    stored = {
        array: tensor
        for array, tensor in folders._model().tensors.items()
        if array.startswith((f"{name}.0.", f"{name}.1."))
    }
    arrays = make_sample_folders.modules(name)
    assert arrays.keys() == stored.keys()
    for array, tensor in stored.items():
        again = np.frombuffer(np.ascontiguousarray(arrays[array]).tobytes(), np.uint8)
        assert tensor.raw.size == again.size
        n_off = np.count_nonzero(tensor.raw != again)
        assert n_off == 0 or (name.startswith(_BY_PRODUCTS) and n_off < 0.02 * again.size)


@pytest.mark.parametrize("half", [0, 1], ids=["light", "heavy"])
@pytest.mark.parametrize("names", SETS, ids="+".join)
def test_corrected_errors_are_those_of_other_random_weights(
    names: tuple[str, ...], half: int
) -> None:
    squares = {}
    for method in ("linear", "midpoint", "posterior"):
        off, deviation, tally = run(names, method, half)
        squares[method] = np.sum(off**2.0)
        assert tally.variance == pytest.approx(squares[method], rel=0.05 if half else 0.03)
        assert tally.n_conflicts == 0
    assert np.sum(deviation**2.0) == pytest.approx(tally.variance, rel=2e-3)
    assert squares["posterior"] <= 1.001 * min(squares.values())


@pytest.mark.parametrize("names", SETS, ids="+".join)
def test_deviations_are_the_errors(names: tuple[str, ...]) -> None:
    """By parts: where deviations are small errors are, too. Errors in a cell end at its edges."""
    off, deviation, _ = run(names, "posterior", 0)
    order = np.argsort(deviation, kind="stable")
    for part in np.array_split(order, 4):
        measured = np.sum(off[part] ** 2.0) / np.sum(deviation[part] ** 2.0)
        assert measured == pytest.approx(1, abs=0.25)
    assert np.mean(np.abs(off) <= 2 * deviation) > 0.94
    assert 0.55 < np.mean(np.abs(off) <= deviation) < 0.72  # uniform, normal: 0.58, 0.68


@pytest.mark.parametrize("names", SETS, ids="+".join)
def test_no_input_makes_the_posterior_worse(names: tuple[str, ...]) -> None:
    squared = np.sum(run(names, "posterior", 0)[0] ** 2.0)
    for name in names:
        rest = tuple(each for each in names if each != name)
        assert squared <= 1.005 * np.sum(run(rest, "posterior", 0)[0] ** 2.0)


def test_the_setting_whose_errors_are_most_alike_is_taken() -> None:
    for names in (("NF4-nested", "NF4"), ("NF4", "NF4-nested")):
        assert folders.settings_like(folders.stored_half(names[0], 0).type) == list(names)
    other = IntervalType(name="NF4", relative_mse=1.0)
    assert set(folders.settings_like(other)) == {"NF4-nested", "NF4"}
    assert not folders.settings_like(IntervalType(name="NF5", relative_mse=1e-3))


def test_settings_have_scales_in_the_same_direction() -> None:
    strided = folders.stored_half("HQQ4-g64-strided", 0).type
    assert strided.is_strided
    assert folders.settings_like(strided) == ["HQQ4-g64-strided"]
    assert folders.settings_like(folders.stored_half("HQQ4-g64", 0).type) == ["HQQ4-g64"]
    three = replace(folders.stored_half("HQQ3-g64", 0).type, is_strided=True)
    assert folders.settings_like(three) == ["HQQ4-g64-strided"]
    eight = replace(folders.stored_half("HQQ8-g64", 0).type, is_strided=True)
    assert folders.settings_like(eight) == ["HQQ8-g64"]


def test_bounds_that_are_wider_than_cells_do_not_raise_the_errors_to_expect() -> None:
    """Bounds of INT8 are half as wide again, by the floats of encoder and original."""
    tensors, x = inputs_of(("INT8-rows", "Q6_K"), 0), weights(0).reshape(-1)
    out = np.empty(x.size, np.float32)
    estimator = UncorrectedTileEstimator(list(map(source, tensors)), "midpoint")
    tally = estimator.estimate(tensors, 0, x.size, out)
    assert tally.variance == pytest.approx(np.sum((out - x) ** 2.0), rel=0.15)


@pytest.mark.parametrize("method", ["linear", "midpoint", "posterior"])
def test_two_inputs_of_a_name_share_their_errors(method: str) -> None:
    """They hardly differ, so that both say little more than one: each method takes that in.

    Independent errors would be half as large. What the posterior expects of NF4's own values is a
    sixth too much.
    """
    kind = folders.stored_half("NF4", 0).type
    known = calibrate_errors((Source(kind), Source(kind)), method)
    assert known.is_measured
    assert known.merged[0] == pytest.approx(1, abs=0.2 if method == "linear" else 0.03)


def test_nothing_is_claimed_of_what_the_sample_does_not_have() -> None:
    kind = folders.stored_half("NF4", 0).type
    unknown = IntervalType(name="NF5", relative_mse=1e-3)
    q4_k = Source(type_by_name("Q4_K"))
    assert not calibrate_errors((Source(unknown), q4_k), "posterior").is_measured
    assert not calibrate_errors((Source(kind),) * 3, "posterior").is_measured


def test_errors_of_compensated_codes_are_found_beside_the_finest_input() -> None:
    kind = folders.stored_half("GPTQ4-g128", 0).type
    gptq, known = Source(kind, has_cells=False), Source(type_by_name("Q6_K"))
    found = calibrate_errors((gptq, known), "posterior")
    assert found.alone[0][1] == pytest.approx(1, abs=0.02)
    alone = calibrate_errors((gptq, replace(gptq)), "posterior")
    assert not alone.is_measured  # the sample has one of a kind
