"""From two models' logits to the figures of each token."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import kernel
from recover.quants import F32Array

F64Array = NDArray[np.float64]
I32Array = NDArray[np.int32]

# Rows that a thread takes at a time.
_ROWS = 32


@dataclass(frozen=True, eq=False)
class PerToken:
    """One model's figures for every scored token, in the order of the text.

    Attributes
    ----------
    kl : float64 (n_tokens,)
        Divergence of the model's expectation from that of the original, in nats:
        ``sum(p * (log(p) - log(q)))`` with p of the original.
    nll_truth, nll : float64 (n_tokens,)
        Negative log-likelihood of the token that really follows, in nats: of the original, and of
        the model.
    rank : int32 (n_tokens,)
        How many tokens the model holds for more likely than the one that the original holds for the
        most likely; of equally likely ones the lower id comes first.
    position : int32 (n_tokens,)
        Of the last token that was seen, counted from 0 at the beginning of its chunk.
    chunk : int32 (n_tokens,)
        Which chunk of the text it is in, counted from 0 over all chunks of the text.
    """

    kl: F64Array
    nll_truth: F64Array
    nll: F64Array
    rank: I32Array
    position: I32Array
    chunk: I32Array


def join(parts: Iterable[PerToken]) -> PerToken:
    """The figures of several chunks in a row."""
    listed = list(parts)
    return PerToken(
        *(np.concatenate([getattr(each, f.name) for each in listed]) for f in fields(PerToken))
    )


def compare_chunk(
    truth: F32Array,
    model: F32Array,
    chunk: I32Array,
    number: int,
    threads: ThreadPoolExecutor,
) -> PerToken:
    """The figures of one chunk.

    Parameters
    ----------
    truth, model : float32 (n, n_vocab)
        Logits after the last tokens of the chunk but one, in its order.
    chunk : int32 (n_ctx,)
        Its tokens.
    number : int
        Which chunk of the text it is.
    threads : ThreadPoolExecutor
        Who computes.

    Returns
    -------
    PerToken
    """
    n_tokens = len(truth)
    first = chunk.size - 1 - n_tokens
    following = chunk[first + 1 :]
    figures = np.empty((3, n_tokens))
    rank = np.empty(n_tokens, np.int32)

    def compare(rows: slice) -> None:
        _compare_rows(truth[rows], model[rows], following[rows], figures[:, rows], rank[rows])

    starts = range(0, n_tokens, _ROWS)
    list(threads.map(compare, (slice(start, start + _ROWS) for start in starts)))
    return PerToken(
        kl=figures[0],
        nll_truth=figures[1],
        nll=figures[2],
        rank=rank,
        position=np.arange(first, chunk.size - 1, dtype=np.int32),
        chunk=np.full(n_tokens, number, np.int32),
    )


@kernel
def _compare_rows(
    truth: F32Array, model: F32Array, following: I32Array, figures: F64Array, rank: I32Array
) -> None:
    """For each row: divergence, both negative log-likelihoods, and the rank of the truth's top.

    With t and m the logits less their largest, and log-sums over both:
    ``sum(p * (log(p) - log(q))) = sum(exp(t) * (t - m)) / sum(exp(t)) - lse(t) + lse(m)``.
    """
    for i in range(truth.shape[0]):
        top = 0
        largest = model[i, 0]
        for j in range(truth.shape[1]):
            if truth[i, j] > truth[i, top]:
                top = j
            largest = max(largest, model[i, j])
        above = np.float64(truth[i, top])
        sum_truth = 0.0
        sum_model = 0.0
        weighted = 0.0
        n_before = 0
        for j in range(truth.shape[1]):
            t = np.float64(truth[i, j]) - above
            m = np.float64(model[i, j]) - np.float64(largest)
            likely = np.exp(t)
            sum_truth += likely
            sum_model += np.exp(m)
            if likely > 0:
                weighted += likely * (t - m)
            n_before += model[i, j] > model[i, top] or (model[i, j] == model[i, top] and j < top)
        log_truth, log_model = np.log(sum_truth), np.log(sum_model)
        token = following[i]
        figures[0, i] = max(0.0, weighted / sum_truth - log_truth + log_model)
        figures[1, i] = log_truth - (np.float64(truth[i, token]) - above)
        figures[2, i] = log_model - (np.float64(model[i, token]) - np.float64(largest))
        rank[i] = n_before
