"""Trained weights by the model that they come from; those that are not there are left out."""

from collections.abc import Callable, Iterator

import numpy as np

from tests.oracle.weights import F32, gguf_weights, sentence_encoder_weights
from tests.support.models import SHARED, TINY


def _llama_29m() -> Iterator[F32]:
    path = SHARED / "llama-29m-bf16.gguf"
    return gguf_weights(path) if path.exists() else iter(())


DATA_SETS: dict[str, Callable[[], Iterator[F32]]] = {
    "tiny-llama-3m": lambda: gguf_weights(TINY),
    "all-minilm-l6": sentence_encoder_weights,
    "llama-29m": _llama_29m,
}


def blocks_of(name: str, block_size: int, n_weights: int) -> F32:
    """About as many of its weights in blocks of that size, spread over all tensors that fit."""
    tensors = [x for x in DATA_SETS[name]() if x.shape[1] % block_size == 0]
    step = max(1, sum(x.size for x in tensors) // n_weights)
    rows = [x[::step].reshape(-1, block_size) for x in tensors]
    return np.concatenate(rows) if rows else np.empty((0, block_size), np.float32)
