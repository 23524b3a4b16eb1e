"""Merges of small models with one layer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from recover.estimators import method_names
from recover.merge.execute import MergeResult, execute_merge
from recover.merge.plan import plan_merge
from tests.support.gguf_files import (
    F32Array,
    read_weights,
)

Make = Callable[..., Path]
Q, UP, NORM = "blk.0.attn_q.weight", "blk.0.ffn_up.weight", "blk.0.attn_norm.weight"
MATRICES = (Q, UP)
COMBINING = tuple(name for name in method_names() if name != "best")


def merge(inputs: list[Path], output: Path, **options: Any) -> MergeResult:
    n_threads, force = options.pop("n_threads", 1), options.pop("force", False)
    plan = plan_merge(inputs, output, **options)
    return execute_merge(plan, n_threads=n_threads, force=force)


def merged(inputs: list[Path], output: Path, **options: Any) -> dict[str, F32Array]:
    merge(inputs, output, **options)
    return read_weights(output)
