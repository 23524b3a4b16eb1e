"""One tensor's weights, estimated from several quantizations, as arrays."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recover._brief import Brief
from recover.bounds.single import bounds
from recover.calibration.weights import Calibration
from recover.estimators import DEFAULT_METHOD, MEAN
from recover.execution.tiles import Progress
from recover.inputs.open import one_or_more
from recover.merge.plan import plan_merge
from recover.merge.single import estimate_tensor
from recover.quants import F32Array


@dataclass(frozen=True, repr=False)
class TensorEstimate(Brief):
    """What is known of the weights of a tensor.

    Attributes
    ----------
    name : str
        Of the tensor.
    method : str
        Of the estimate; ``best`` where there is nothing to combine.
    types : tuple of str
        How each input stores it.
    mean : float32, in the tensor's shape
        The estimates: what ``recover merge --outtype f32`` writes.
    deviation : float32, in the tensor's shape
        Their standard deviations, as ``--uncertainty`` writes them (BF16 numbers). 0 where a weight
        is certain, or an input is unquantized.
    lower, upper : float32, in the tensor's shape
        No weight of the original is outside: what ``recover bounds`` writes. Infinite where nothing
        confines a weight, NaN where the inputs contradict each other.
    conflicts : bool, in the tensor's shape
        Where they do.
    expected_rmse : float or None
        The error to expect of the mean; None where nothing is estimated.
    warnings : tuple of str
        What people should know.
    """

    name: str
    method: str
    types: tuple[str, ...]
    mean: F32Array
    deviation: F32Array
    lower: F32Array
    upper: F32Array
    conflicts: NDArray[np.bool_]
    expected_rmse: float | None
    warnings: tuple[str, ...]

    def facts(self) -> Iterator[tuple[str, object]]:
        """See `recover._brief.Brief`."""
        yield "name", self.name
        yield "shape", self.mean.shape
        yield "types", " ".join(self.types)
        yield "method", self.method
        yield "expected_rmse", self.expected_rmse
        yield "n_conflicts", int(np.count_nonzero(self.conflicts))
        yield "warnings", len(self.warnings)


def estimate(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    tensor: str,
    method: str = DEFAULT_METHOD,
    *,
    estimate: str = MEAN,
    snap: str = "none",
    calibration: Calibration | str | os.PathLike[str] | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> TensorEstimate:
    """Estimate the weights of one tensor, and prove their bounds.

    It is decided on all tensors as a merge does, from headers and samples; the weights of others
    are read only if it depends on them what happens to this one.

    Parameters
    ----------
    paths : path-like, or sequence of them
        GGUF files and Hugging Face folders, quantized from the same original. One alone is decoded,
        or estimated from its own codes where they say more.
    tensor : str
        Its name, as GGUF files have it: ``blk.0.attn_q.weight``.
    method, estimate, snap, calibration
        As of `recover.plan_merge`.
    n_threads, progress : optional
        As of `recover.execute_merge`.
    force : bool
        Go on even if the inputs contradict each other.

    Returns
    -------
    TensorEstimate

    Raises
    ------
    RecoverError
        As `recover.plan_merge` and `recover.execute_merge` do.
    UsageError
        If there is no such tensor, or it holds no weights.
    """
    paths = one_or_more(paths)
    plan = plan_merge(
        paths,
        None,
        method=method,
        estimate=estimate,
        outtype="f32",
        snap=snap,
        calibration=calibration,
    )
    found = estimate_tensor(plan, tensor, n_threads=n_threads, progress=progress, force=force)
    proven = bounds(paths, tensor, n_threads=n_threads)
    shape = found.plan.dims[::-1]
    return TensorEstimate(
        name=tensor,
        method=found.plan.method,
        types=found.plan.types,
        mean=found.mean.reshape(shape),
        deviation=found.deviation.reshape(shape),
        lower=proven.lower,
        upper=proven.upper,
        conflicts=proven.conflicts,
        expected_rmse=found.expected_rmse,
        warnings=(*plan.warnings, *found.warnings, *proven.failures),
    )
