"""Stored floats as numbers."""

import numpy as np
import pytest

from recover.inputs.originals.codes import as_float64


@pytest.mark.parametrize(
    ("type_name", "words"),
    [
        ("F32", np.array([0x3FC00000, 0xFF800001, 0x7F800000], np.uint32)),
        ("F16", np.array([0x3E00, 0xFC01, 0x7C00], np.uint16)),
        ("BF16", np.array([0x3FC0, 0xFF81, 0x7F80], np.uint16)),
    ],
)
def test_a_signaling_nan_is_a_nan_like_any_other(type_name: str, words: np.ndarray) -> None:
    np.testing.assert_array_equal(as_float64(words, type_name), [1.5, np.nan, np.inf])
