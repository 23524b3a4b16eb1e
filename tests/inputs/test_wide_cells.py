"""Codes that confine weights less than rounding does make no child of what lies in their cells."""

import numpy as np
import pytest

from recover.containers.huggingface.rows import Rows
from recover.containers.huggingface.tensors import QuantizedTensor
from recover.inputs.descent import Family
from recover.inputs.samples import Sampler
from recover.quants import dequantize, quantize, type_by_name
from tests.support.encoders import autoround
from tests.support.foreign_modules import Array, heavy_tailed
from tests.support.format_checks import matrix_of
from tests.support.stated_intervals import tensor_of

X = heavy_tailed(np.random.default_rng(5), 512, 512)


def folder(weights: Array, iters: int) -> QuantizedTensor:
    reach = (iters + 1) / 2 / iters if iters else 0.0
    arrays = autoround.encode(weights, reach=reach)
    found = Rows(matrix_of(arrays, autoround.config(iters)))
    return QuantizedTensor("blk.0.ffn_up.weight", weights.shape[::-1], (found,), 0)


@pytest.mark.parametrize("iters", [0, 4, 200])
@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q8_0"])
def test_quantizations_of_one_original(kind: str, iters: int) -> None:
    beside = tensor_of(quantize(X, type_by_name(kind)), kind, X.size)
    family = Family({0: beside, 1: folder(X, iters)}, (0, 1), Sampler())
    assert not family.descents()


def test_a_quantization_of_the_other() -> None:
    raw = quantize(X, type_by_name("Q4_0"))
    decoded = dequantize(raw, type_by_name("Q4_0")).reshape(X.shape)
    beside = tensor_of(raw, "Q4_0", X.size)
    (found,) = Family({0: beside, 1: folder(decoded, 0)}, (0, 1), Sampler()).descents()
    assert (found.child, found.parents) == (1, (0,))
