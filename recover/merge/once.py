"""A merge in one call."""

import os
from collections.abc import Sequence
from typing import Any

from recover.execution.tasks import Executor
from recover.execution.tiles import Progress
from recover.inputs.open import one_or_more
from recover.merge.execute import MergeResult, execute_merge
from recover.merge.plan import plan_merge
from recover.merge.resimulate import with_simulated_densities
from recover.merge.resume import Tell


def merge(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    simulate: int | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
    force: bool = False,
    resume: bool = False,
    tell: Tell | None = None,
    executor: Executor | None = None,
    **options: Any,
) -> MergeResult:
    """Merge several quantizations of one model into one better file: ``recover merge``.

    Parameters
    ----------
    paths : path-like, or sequence of them
        GGUF files and Hugging Face folders, quantized from the same original.
    out : path-like
        GGUF file to be written; or a Hugging Face folder, if it is one or ends in a slash.
    simulate : int, optional
        Take the densities from so many of the model's own merged weights.
    n_threads, progress, force, resume, tell, executor
        As of `recover.execute_merge`. ``progress(n_weights_done, n_weights)`` is called now and
        then; `recover.progress_bar` makes one that draws a bar.
    **options
        As of `recover.plan_merge`: ``method``, ``estimate``, ``outtype``, ``snap``,
        ``uncertainty``, ``tensors``, ``calibration``, ``split_max_size``, ``max_shard_size``,
        ``config`` and ``net``.

    Returns
    -------
    MergeResult
        What was done, and the errors to expect. What people should know is in `warnings` of it and
        of its plan.

    Raises
    ------
    RecoverError
        As `recover.plan_merge` and `recover.execute_merge` do.
    """
    plan = plan_merge(one_or_more(paths), out, **options)
    if simulate is not None:
        plan = with_simulated_densities(plan, simulate)
    return execute_merge(
        plan,
        n_threads=n_threads,
        progress=progress,
        force=force,
        resume=resume,
        tell=tell,
        executor=executor,
    )
