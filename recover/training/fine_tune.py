"""Fine-tune the network for a model's own inputs, from its own merged weights."""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from recover.errors import PlanError
from recover.estimators._joint_files import nearest, save_network
from recover.estimators.methods.joint import names_of
from recover.execution.output import OutputFile, check_output_path
from recover.merge.plan import MergePlan, TensorPlan, plan_merge
from recover.merge.resimulate import is_whole, sample_merged
from recover.quants import F32Array

if TYPE_CHECKING:
    from recover.training.of_set import Gain

N_WEIGHTS = 16_000_000
"""Merged weights to learn from, of larger models."""

_ROW = 256
_FEWEST = 1024  # superblocks
_HELD = 16  # one superblock in so many is only looked at
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
    before: "Gain"
    after: "Gain"


def train_set(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    device: str = "cuda",
    seconds: float = 180,
    n_steps: int | None = None,
    size: int = 2048,
    seed: int = 0,
    tell: "Callable[[Gain], None] | None" = None,
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
        If torch or the device cannot be used, or most weights are of types that are no set.
    """
    torch = import_torch(device)
    from recover.estimators._joint_torch import begin
    from recover.training.learner import Learner, look
    from recover.training.of_set import Gain, batch_of, begin_as, to_device, train

    output = Path(output)
    check_output_path(output, [Path(each) for each in inputs])
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_merge(inputs, Path(folder) / "merged.gguf")
    names, tensors = most_common(plan)
    n_covered = sum(tensor.n_weights for tensor in tensors)
    rows = np.concatenate(list(_rows(plan, tensors, N_WEIGHTS / n_covered)))
    if len(rows) < _FEWEST:
        raise PlanError(
            f"{len(rows):,} superblocks are too few to learn from: {_FEWEST:,} are needed"
        )
    rng = np.random.default_rng(seed)
    rows = rows[rng.permutation(len(rows))]
    n_held = min(len(rows) // _HELD, _MOST_HELD)
    held, pool = rows[:n_held], rows[n_held:]

    def draw(rng: np.random.Generator, n: int) -> F32Array:
        signs = np.where(rng.random((n, 1)) < 0.5, np.float32(-1), np.float32(1))
        sizes = np.exp(rng.normal(0, 0.3, (n, 1))).astype(np.float32)
        return pool[rng.integers(0, len(pool), n)] * signs * sizes

    torch.manual_seed(seed)
    torch.set_float32_matmul_precision("high")
    known = nearest(names)
    terms = begin(48, 3, len(names)) if known is None else begin_as(known)
    learner = Learner(terms, device, _RATE if known else 4 * _RATE, compiled=device == "cuda")
    looked_at = to_device(batch_of(np.random.default_rng(seed), held, names), device)
    alone, first, mended, claimed = look(learner.network(), looked_at)
    before = Gain(0, 0.0, first / alone, mended / alone, claimed / mended)
    options = {"seconds": seconds, "n_steps": n_steps, "size": size, "seed": seed, "tell": tell}
    after = train(learner, names, draw, held, **options)  # type: ignore[arg-type]
    content = BytesIO()
    arrays = {k: v.cpu().numpy().astype(np.float16) for k, v in learner.network().items()}
    save_network(content, names, arrays)
    whole = content.getvalue()
    with OutputFile(output, len(whole), [Path(each) for each in inputs]) as file:
        file.write_at(0, whole)
    return Trained(names, sum(t.n_weights for t in plan.tensors), n_covered, before, after)


def import_torch(device: str):  # type: ignore[no-untyped-def]  # torch has no annotations
    """The module torch, if it has the device.

    Raises
    ------
    PlanError
        If it is not installed, or has no such device.
    """
    try:
        import torch
    except ImportError as error:
        raise PlanError("torch is needed, and is not here: pip install 'recover[gpu]'") from error
    if device == "cuda" and not torch.cuda.is_available():
        raise PlanError(
            "torch finds no GPU; --device cpu works, but takes hours for what a GPU does in minutes"
        )
    return torch


def most_common(plan: MergePlan) -> tuple[tuple[str, ...], list[TensorPlan]]:
    """The set that most merged weights are stored as, and the tensors that are.

    Raises
    ------
    PlanError
        If they are stored in ways of which no network is known.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    for tensor in plan.tensors:
        names = names_of(tensor.sources) if tensor.action == "merge" else None
        if names and is_whole(tensor):
            counts[names] += tensor.n_weights
    if not counts:
        raise PlanError(
            "no tensors are merged whose inputs are all of scalar types with cells, as llama.cpp's"
            " encoders write them, and whose rows are whole superblocks"
        )
    names = max(counts, key=lambda each: (counts[each], each))
    chosen = [
        tensor
        for tensor in plan.tensors
        if tensor.action == "merge" and is_whole(tensor) and names_of(tensor.sources) == names
    ]
    return names, chosen


def _rows(plan: MergePlan, tensors: list[TensorPlan], share: float) -> Iterator[F32Array]:
    """Superblocks of merged weights, drawn from what is known of each."""
    for _, _, x in sample_merged(plan, tensors, share):
        yield x.reshape(-1, _ROW)
