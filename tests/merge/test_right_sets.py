"""Inputs of one original, however odd it is, and whatever their encoders took as important."""

from pathlib import Path

import pytest

from tests.support.right_sets import Made, given, originals, said

USUAL = "tiny.0 F32"
ODD = [
    *("sparse", "very sparse", "dead columns", "dead but for one", "2 of 4", "student 1.5"),
    *("one outlier", "large columns", "rows of any size", "times 1e-5", "times 1e4", "positive"),
    *("constant rows", "ternary", "low rank", "zeros", "one row", "one row of 32", "experts"),
]
SETS = {
    "Q8_0+IQ3_S": "",
    "Q4_K+IQ2_S": "peaked",
    "Q6_K+IQ2_XXS": "uneven",
    "Q5_K+IQ1_S": "smooth",
    "Q8_0+Q4_0": "zeros",
    "Q5_1+Q4_1": "uneven",
    "BF16+TQ2_0": "peaked",
}
OF_SOME_COLUMNS = {
    "Q8_0+IQ2_KT(zeros)": ("tiny.0", "student 3", "one row", "large columns"),
    "IQ4_KT+IQ3_KT(smooth)": ("sparse", "large columns"),
    "F16+IQ3_S(zeros)": ("large columns",),
    "IQ2_XS+IQ4_KT(uneven)": ("signs",),
    "IQ3_S+IQ4_KT(peaked)": ("large columns",),
    "Q4_0(peaked)+Q5_0(peaked)": ("32 columns",),
    "IQ2_KT(zeros)+IQ3_S(uneven)+IQ2_XS": ("dead columns", "dead but for one", "smooth columns"),
}


@pytest.mark.parametrize("method", ["posterior", "best"])
@pytest.mark.parametrize("kinds", SETS)
def test_nothing_is_said_of_right_inputs(kinds: str, method: str, tmp_path: Path) -> None:
    """The finer one has no importance matrix; errors of the other one may be large."""
    names = [USUAL, *(f"{each} {kind}" for each in ODD for kind in ("F32", "BF16"))]
    fine, coarse = kinds.split("+")
    inputs = [Made(fine, ""), Made(coarse, SETS[kinds])]
    assert set(names) <= set(originals())
    assert said(inputs, names, method, tmp_path) == ""


@pytest.mark.parametrize("kinds", OF_SOME_COLUMNS)
def test_columns_that_do_not_matter(kinds: str, tmp_path: Path) -> None:
    """Encoders may say anything of columns without importance, if others matter."""
    names = [f"{each} {kind}" for each in OF_SOME_COLUMNS[kinds] for kind in ("F32", "F16")]
    assert said(given(kinds), names, "posterior", tmp_path) == ""
