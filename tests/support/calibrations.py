"""What calibrations are fitted to, decoded by gguf-py."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.support.gguf_files import F64Array, read_tensors, read_weights

Types = tuple[str, ...]
Parts = dict[str, tuple[Types, F64Array, F64Array]]


def design(inputs: Sequence[Path], truth: Path) -> Parts:
    """For each tensor with several different inputs: their types, decoded weights, the truth."""
    decoded = [read_weights(path) for path in inputs]
    raw = [read_tensors(path) for path in inputs]
    original = read_weights(truth)
    found = {}
    for name in raw[0]:
        different: dict[bytes, int] = {}
        for i, tensors in enumerate(raw):
            different.setdefault(tensors[name].rows.tobytes(), i)
        chosen = list(different.values())
        if len(chosen) > 1 and raw[0][name].kind != "F32":
            columns = np.stack([decoded[i][name].reshape(-1) for i in chosen], axis=1)
            types = tuple(raw[i][name].kind for i in chosen)
            target = original[name].reshape(-1).astype(np.float64)
            found[name] = types, columns.astype(np.float64), target
    return found


def pooled(parts: Parts, types: Types) -> tuple[F64Array, F64Array]:
    """All tensors of one set of types, one after the other."""
    chosen = [part[1:] for part in parts.values() if part[0] == types]
    columns, targets = zip(*chosen, strict=True)
    return np.concatenate(columns), np.concatenate(targets)


SETS = [("Q5_K", "Q4_K", "Q2_K"), ("Q5_K", "Q4_K", "Q3_K"), ("Q6_K", "Q3_K")]
