"""How far models are from the original in what they do: KL divergence and its relatives.

The convention is that of llama.cpp's perplexity tool: the text is cut into chunks of ``n_ctx``
tokens, the first token of each is replaced by the one that begins a text, and what is expected
after each token of the second half is scored.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover.errors import EvaluationError

F64Array = NDArray[np.float64]
I32Array = NDArray[np.int32]


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


@dataclass(frozen=True)
class PairedDifference:
    """How much closer to the original a model is than the first one, on the same tokens.

    Attributes
    ----------
    mean_kld_difference : float
        Mean divergence minus that of the first model; negative is better.
    mean_kld_difference_ci99 : tuple of float
        Its 99% interval, from the differences per token.
    mean_kld_ratio : float or None
        Mean divergence over that of the first model; None if that is zero.
    """

    mean_kld_difference: float
    mean_kld_difference_ci99: tuple[float, float]
    mean_kld_ratio: float | None


@dataclass(frozen=True)
class Divergence:
    """How differently a model and the original continue a text.

    Attributes
    ----------
    n_tokens : int
        Scored tokens.
    mean_kld : float
        Mean divergence, in nats.
    mean_kld_ci99 : tuple of float
        Its 99% interval (`scipy.stats.bayes_mvs`, as in llama.cpp's pull request 4739).
    kld_median, kld_p90, kld_p95, kld_p99, kld_max : float
        Quantiles of the divergence (`numpy.quantile`).
    same_top : float
        Share of the tokens after which both hold the same token for the most likely.
    top1_in_top5, top1_in_top10 : float
        Share after which the original's most likely token is among the model's 5 or 10.
    ppl, ppl_truth : float
        Perplexity of the model and of the original.
    ln_ppl_ratio : float
        Logarithm of their ratio.
    ln_ppl_ratio_se : float
        Its standard error, from the differences per token.
    per_token : PerToken
        The figures of each token.
    paired : PairedDifference or None
        Comparison with the first model; None for that one.
    """

    n_tokens: int
    mean_kld: float
    mean_kld_ci99: tuple[float, float]
    kld_median: float
    kld_p90: float
    kld_p95: float
    kld_p99: float
    kld_max: float
    same_top: float
    top1_in_top5: float
    top1_in_top10: float
    ppl: float
    ppl_truth: float
    ln_ppl_ratio: float
    ln_ppl_ratio_se: float
    per_token: PerToken = field(repr=False, compare=False)
    paired: PairedDifference | None = None

    def to_json(self) -> dict[str, Any]:
        """What ``recover evaluate --json`` prints as ``divergence``; ``paired`` where there is one.

        The figures per token are left out.
        """
        figures = {name: getattr(self, name) for name in self.__dataclass_fields__}
        del figures["per_token"], figures["paired"]
        figures["mean_kld_ci99"] = list(self.mean_kld_ci99)
        if self.paired is not None:
            paired = asdict(self.paired)
            paired["mean_kld_difference_ci99"] = list(self.paired.mean_kld_difference_ci99)
            figures["paired"] = paired
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
    median, p90, p95, p99 = (float(each) for each in np.quantile(kl, (0.5, 0.9, 0.95, 0.99)))
    difference = per_token.nll - per_token.nll_truth
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
        ppl=float(np.exp(per_token.nll.mean())),
        ppl_truth=float(np.exp(per_token.nll_truth.mean())),
        ln_ppl_ratio=float(difference.mean()),
        ln_ppl_ratio_se=float(difference.std(ddof=1) / kl.size**0.5),
        per_token=per_token,
    )


def compare_with_first(divergence: Divergence, first: Divergence) -> Divergence:
    """The same with `Divergence.paired` filled in; both of the same tokens."""
    difference = divergence.per_token.kl - first.per_token.kl
    return replace(
        divergence,
        paired=PairedDifference(
            mean_kld_difference=float(difference.mean()),
            mean_kld_difference_ci99=mean_interval(difference),
            mean_kld_ratio=divergence.mean_kld / first.mean_kld if first.mean_kld else None,
        ),
    )
