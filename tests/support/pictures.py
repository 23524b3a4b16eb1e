"""Names of the pictures, and figures of tokens to draw."""

import numpy as np

from recover.evaluate.token_figures import PerToken

NAMES = [
    "error-histogram",
    "error-quantiles",
    "error-against-weight",
    "interval-widths",
    "rmse-by-layer",
    "expected-against-measured",
    "exact-weights",
]


def per_token(n: int, rng: np.random.Generator) -> PerToken:
    return PerToken(
        kl=rng.lognormal(-5, 2, n),
        nll_truth=rng.lognormal(0, 1, n),
        nll=rng.lognormal(0, 1, n),
        rank=rng.geometric(0.7, n).astype(np.int32) - 1,
        position=np.arange(n, dtype=np.int32) % 255 + 256,
        chunk=np.arange(n, dtype=np.int32) // 255,
    )
