"""How far models are from the original in what they do: KL divergence and its relatives.

The convention is that of llama.cpp's perplexity tool: the text is cut into chunks of ``n_ctx``
tokens, the first token of each is replaced by the one that begins a text, and what is expected
after each token of the second half is scored.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from recover._brief import Brief
from recover.errors import EvaluationError
from recover.evaluate.inference import N_CTX, Measurement
from recover.evaluate.token_figures import F64Array, PerToken
from recover.execution.tiles import Progress, available_cores

__all__ = [
    "Divergence",
    "PairedDifference",
    "PerToken",
    "compare_with_first",
    "mean_interval",
    "measure_divergence",
    "summarize",
]


@dataclass(frozen=True)
class PairedDifference:
    """How much closer to the original a model is than the first one, on the same tokens."""

    mean_kld_difference: float
    """Mean divergence minus that of the first model; negative is better."""
    mean_kld_difference_ci99: tuple[float, float]
    """Its 99% interval, from the differences per token."""
    mean_kld_difference_ci99_by_chunk: tuple[float, float] | None
    """Its 99% interval, from the means of the chunks: wider, since tokens of one chunk are alike.
    None if there is only one chunk."""
    mean_kld_ratio: float | None
    """Mean divergence over that of the first model; None if that is zero."""


@dataclass(frozen=True, repr=False)
class Divergence(Brief):
    """How differently a model and the original continue a text."""

    n_tokens: int
    """Scored tokens."""
    mean_kld: float
    """Mean divergence, in nats."""
    mean_kld_ci99: tuple[float, float]
    """Its 99% interval (`scipy.stats.bayes_mvs`, as in llama.cpp's pull request 4739)."""
    kld_median: float
    kld_p90: float
    kld_p95: float
    kld_p99: float
    kld_max: float
    """Quantiles of the divergence (`numpy.quantile`)."""
    same_top: float
    """Share of the tokens after which both hold the same token for the most likely."""
    top1_in_top5: float
    top1_in_top10: float
    """Share after which the original's most likely token is among the model's 5 or 10."""
    kld_p999: float
    """Quantile of the divergence, at 99.9%."""
    rms_delta_p: float
    """Root mean square change of the probability of the token that really follows."""
    ppl: float
    ppl_truth: float
    """Perplexity of the model and of the original."""
    ln_ppl_ratio: float
    """Logarithm of their ratio."""
    ln_ppl_ratio_se: float
    """Its standard error, from the differences per token."""
    per_token: PerToken = field(repr=False, compare=False)
    """The figures of each token."""
    paired: PairedDifference | None = None
    """Comparison with the first model; None for that one."""

    def facts(self) -> Iterator[tuple[str, object]]:
        """See `recover._brief.Brief`."""
        yield "n_tokens", self.n_tokens
        yield "mean_kld", self.mean_kld
        yield "kld_p99", self.kld_p99
        yield "same_top", self.same_top
        yield "ppl", self.ppl
        yield "ppl_truth", self.ppl_truth

    def to_json(self) -> dict[str, Any]:
        """What ``recover evaluate --json`` prints as ``divergence``; ``paired`` where there is one.

        The figures per token are left out.
        """
        figures = {name: getattr(self, name) for name in self.__dataclass_fields__}
        del figures["per_token"], figures["paired"]
        figures["mean_kld_ci99"] = list(self.mean_kld_ci99)
        if self.paired is not None:
            figures["paired"] = {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in asdict(self.paired).items()
            }
        return figures


def mean_interval(values: F64Array) -> tuple[float, float]:
    """The 99% interval of a mean, as `scipy.stats.bayes_mvs` gives it.

    Parameters
    ----------
    values : float64 (n,)
        At least two.

    Returns
    -------
    tuple of float
        Lower and upper end; both the mean if all values are equal.
    """
    from scipy.stats import mvsdist

    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    low, high = mvsdist(values)[0].interval(0.99)
    return float(low), float(high)


def summarize(per_token: PerToken) -> Divergence:
    """The figures over all tokens.

    Parameters
    ----------
    per_token : PerToken
        At least two tokens.

    Returns
    -------
    Divergence
        Without a paired comparison.

    Raises
    ------
    EvaluationError
        If there are fewer tokens.
    """
    kl, rank = per_token.kl, per_token.rank
    if kl.size < 2:
        raise EvaluationError(f"{kl.size} scored tokens: at least 2 are needed for an interval")
    quantiles = np.quantile(kl, (0.5, 0.9, 0.95, 0.99, 0.999))
    median, p90, p95, p99, p999 = map(float, quantiles)
    difference = per_token.nll - per_token.nll_truth
    change = np.exp(-per_token.nll) - np.exp(-per_token.nll_truth)
    return Divergence(
        n_tokens=kl.size,
        mean_kld=float(kl.mean()),
        mean_kld_ci99=mean_interval(kl),
        kld_median=median,
        kld_p90=p90,
        kld_p95=p95,
        kld_p99=p99,
        kld_max=float(kl.max()),
        same_top=float(np.mean(rank == 0)),
        top1_in_top5=float(np.mean(rank < 5)),
        top1_in_top10=float(np.mean(rank < 10)),
        kld_p999=p999,
        rms_delta_p=float(np.mean(np.square(change)) ** 0.5),
        ppl=float(np.exp(per_token.nll.mean())),
        ppl_truth=float(np.exp(per_token.nll_truth.mean())),
        ln_ppl_ratio=float(difference.mean()),
        ln_ppl_ratio_se=float(difference.std(ddof=1) / kl.size**0.5),
        per_token=per_token,
    )


def compare_with_first(divergence: Divergence, first: Divergence) -> Divergence:
    """The same with `Divergence.paired` filled in; both of the same tokens."""
    difference = divergence.per_token.kl - first.per_token.kl
    _, starts = np.unique(divergence.per_token.chunk, return_index=True)
    of_chunks = np.array([part.mean() for part in np.split(difference, starts[1:])])
    return replace(
        divergence,
        paired=PairedDifference(
            mean_kld_difference=float(difference.mean()),
            mean_kld_difference_ci99=mean_interval(difference),
            mean_kld_difference_ci99_by_chunk=(
                mean_interval(of_chunks) if of_chunks.size > 1 else None
            ),
            mean_kld_ratio=divergence.mean_kld / first.mean_kld if first.mean_kld else None,
        ),
    )


def measure_divergence(
    models: Sequence[str | os.PathLike[str]],
    truth: str | os.PathLike[str],
    text: str | os.PathLike[str],
    *,
    n_ctx: int = N_CTX,
    n_chunks: int | None = None,
    native: bool = False,
    n_threads: int | None = None,
    progress: Progress | None = None,
    notify: Callable[[str], None] | None = None,
    log: Callable[[str], None] | None = None,
) -> list[Divergence]:
    """Let llama.cpp read a text with the original and with each model, and compare.

    Files that are not F32 or F16 are dequantized to a temporary file first, so that the weights are
    judged and not llama.cpp's rounding of activations. Models run one after the other; the
    original's logits wait on the disk, in the folder of temporary files.

    Parameters
    ----------
    models : sequence of path-like
        GGUF files.
    truth : path-like
        The original.
    text : path-like
        A file of UTF-8 text.
    n_ctx : int
        Tokens per chunk.
    n_chunks : int, optional
        So many chunks, evenly spaced from the first to the last; default: all.
    native : bool
        Run the models (not the original) as they are stored.
    n_threads : int, optional
        Default: the cores that this process may use.
    progress : callable, optional
        ``progress(n_tokens_done, n_tokens)`` over all models, called from this thread.
    notify : callable, optional
        Called with sentences that the user should know.
    log : callable, optional
        Called with each line that llama.cpp has to say.

    Returns
    -------
    list of Divergence
        In the order of the models; all but the first are compared with the first.

    Raises
    ------
    EvaluationError
        If llama.cpp is missing or cannot run a file, vocabularies differ, the text is too short,
        or there is no space for temporary files.
    GGUFError, PlanError, QuantError
        If a file cannot be read or dequantized.
    """
    measurement = Measurement(
        n_ctx=n_ctx,
        n_chunks=n_chunks,
        native=native,
        n_threads=n_threads or available_cores(),
        progress=progress or (lambda _done, _all: None),
        notify=notify or (lambda _sentence: None),
        log=log,
    )
    figures = measurement.run([Path(path) for path in models], Path(truth), Path(text))
    first, *others = (summarize(each) for each in figures)
    return [first, *(compare_with_first(each, first) for each in others)]
