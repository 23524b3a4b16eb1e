"""The posterior takes most superblocks' first inputs together: that changes no byte."""

from typing import Any

import numpy as np
import pytest

from recover.estimators import _product
from recover.estimators.methods import posterior
from recover.estimators.uncorrected import UncorrectedTileEstimator
from tests.support.joint_inputs import encode, sources_of


@pytest.mark.parametrize(
    "name", ["Q5_K+Q4_K+Q2_K", "Q6_K+Q4_K", "Q8_0+Q6_K+Q3_K+Q2_K", "Q4_0+Q5_1"]
)
def test_it_is_as_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = (0.02 * np.random.default_rng(0).standard_t(5, (16, 256))).astype(np.float32)
    x[1], x[2, 32:64], x[3, 5] = 0, 0, 2  # inputs that cannot be used, and an outlier
    sources = sources_of(name)
    raws = encode(sources, x)
    found = []
    for together in (True, False):

        def integrate(*args: Any, together: bool = together) -> None:
            scalars, spans, others, out, outputs, tallies = args
            assert outputs.all_simple
            outputs = outputs._replace(all_simple=together)
            _product.integrate(scalars, spans, others, out, outputs, tallies)

        monkeypatch.setattr(posterior, "integrate", integrate)
        out = np.empty(x.size, np.float32)
        tally = UncorrectedTileEstimator(sources, "posterior").estimate(raws, 0, x.size, out)
        found.append((out.tobytes(), tally.array.tobytes()))
    assert found[0] == found[1]
