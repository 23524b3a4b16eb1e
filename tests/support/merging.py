"""Merges of small models with one layer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from recover.calibration.weights import Calibration
from recover.estimators import method_names
from recover.merge.execute import MergeResult, execute_merge
from recover.merge.plan import plan_merge
from tests.support.gguf_files import F32Array, read_weights

Make = Callable[..., Path]
Q, UP, NORM = "blk.0.attn_q.weight", "blk.0.ffn_up.weight", "blk.0.attn_norm.weight"
MATRICES = (Q, UP)
COMBINING = tuple(name for name in method_names() if name != "best")


class Options(TypedDict, total=False):
    """What `plan_merge` takes."""

    method: str
    estimate: str
    outtype: str
    snap: str
    uncertainty: Path | None
    tensors: str | None
    calibration: Calibration | Path | None
    split_max_size: int | None


def merge(
    inputs: Sequence[Path],
    output: Path,
    *,
    n_threads: int = 1,
    force: bool = False,
    **options: Unpack[Options],
) -> MergeResult:
    plan = plan_merge(inputs, output, **options)
    return execute_merge(plan, n_threads=n_threads, force=force)


def merged(
    inputs: Sequence[Path], output: Path, *, force: bool = False, **options: Unpack[Options]
) -> dict[str, F32Array]:
    merge(inputs, output, force=force, **options)
    return read_weights(output)
