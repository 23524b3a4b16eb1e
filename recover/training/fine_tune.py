"""Fine-tune the network for a model's own inputs, from its own merged weights."""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from recover.errors import PlanError
from recover.estimators._joint_files import nearest, save_network
from recover.estimators._joint_torch import begin
from recover.execution.output import OutputFile, check_output_path
from recover.merge.plan import plan_merge
from recover.quants import F32Array
from recover.training.learner import Learner, look
from recover.training.of_set import Gain, batch_of, begin_as, to_device, train
from recover.training.own_weights import merged_rows, most_common
from recover.training.simulate import draw

N_WEIGHTS = 16_000_000
"""Merged weights to learn from, of larger models."""

_FEWEST = 1024  # superblocks
_HELD = 16  # one superblock in so many is only looked at; as many choose when to stop
_MOST_HELD = 2048
_RATE = 5e-4


class Trained(NamedTuple):
    """What came of it.

    Attributes
    ----------
    names : tuple of str
        The set: types, finest first, with as many stars as the number of their importance matrix.
    n_weights, n_covered : int
        Of the model, and of its tensors that are stored as this set.
    before, after : Gain
        Of the network that it began as, and at the end, on superblocks that were held out.
    """

    names: tuple[str, ...]
    n_weights: int
    n_covered: int
    before: Gain
    after: Gain


def train_set(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    device: str = "cuda",
    seconds: float = 180,
    n_steps: int | None = None,
    size: int = 2048,
    seed: int = 0,
    tell: Callable[[Gain], None] | None = None,
) -> Trained:
    """Write a network for the types that most weights of a merge have.

    Parameters
    ----------
    inputs : sequence of path-like
        Models quantized from the same original.
    output : path-like
        For ``plan_merge(..., method="joint", net=output)``.
    device : str
        Where torch learns.
    seconds, n_steps : float, int, optional
        How long; it ends with whichever comes first.
    size : int
        Superblocks of a batch.
    seed : int
    tell : callable, optional
        ``tell(gain)``, now and then.

    Returns
    -------
    Trained

    Raises
    ------
    PlanError
        If most weights are of types that are no set.
    """
    output = Path(output)
    check_output_path(output, [Path(each) for each in inputs])
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_merge(inputs, Path(folder) / "merged.gguf")
    names, tensors = most_common(plan)
    n_covered = sum(tensor.n_weights for tensor in tensors)
    rows = np.concatenate(list(merged_rows(plan, tensors, N_WEIGHTS / n_covered)))
    if len(rows) < _FEWEST:
        raise PlanError(
            f"{len(rows):,} superblocks are too few to learn from: {_FEWEST:,} are needed"
        )
    rng = np.random.default_rng(seed)
    rows = rows[rng.permutation(len(rows))]
    n_held = min(len(rows) // _HELD, _MOST_HELD)
    held, chosen_by, pool = np.split(rows, [n_held, 2 * n_held])

    torch.manual_seed(seed)
    torch.set_float32_matmul_precision("high")
    known = nearest(names)
    terms = begin(48, 3, len(names)) if known is None else begin_as(known)
    learner = Learner(terms, device, _RATE if known else 4 * _RATE, compiled=device == "cuda")
    looked_at = to_device(batch_of(np.random.default_rng(seed), held, names), device)
    alone, first, mended, claimed = look(learner.network(), looked_at)
    before = Gain(0, 0.0, first / alone, mended / alone, claimed / mended)
    start = time.monotonic()
    options = {"seconds": seconds, "n_steps": n_steps, "size": size, "seed": seed, "tell": tell}
    train(learner, names, partial(_draw, pool), chosen_by, **options)  # type: ignore[arg-type]
    alone, first, mended, claimed = look(learner.network(), looked_at)
    passed = learner.n_steps, time.monotonic() - start
    after = Gain(*passed, first / alone, mended / alone, claimed / mended)
    content = BytesIO()
    arrays = {k: v.cpu().numpy().astype(np.float16) for k, v in learner.network().items()}
    save_network(content, names, arrays)
    whole = content.getvalue()
    with OutputFile(output, len(whole), [Path(each) for each in inputs]) as file:
        file.write_at(0, whole)
    return Trained(names, sum(t.n_weights for t in plan.tensors), n_covered, before, after)


def _draw(pool: F32Array, rng: np.random.Generator, n: int) -> F32Array:
    """Superblocks of the model in many disguises, so that none is learned by heart."""
    return draw(rng, pool, n)
