"""Rows that are longer than a tile: worked on in parts, to the same bytes."""

from pathlib import Path

import numpy as np
import pytest

from recover.containers.gguf.reader import open_gguf
from recover.quantize.execute import execute_quantize
from recover.quantize.plan import plan_quantize
from recover.quants import DEFAULT_QUANTIZER
from tests.quantize.test_quantize import normal, write_gguf_imatrix, write_model

TYPES = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ4_NL", "IQ4_XS", "MXFP4", "F16", "BF16"),
)
NAME = "blk.0.ffn_up_exps.weight"


def encoded(source: Path, out: Path, kind: str, imatrix: Path | None, quantizer: str) -> bytes:
    plan = plan_quantize(source, out, kind, imatrix=imatrix, quantizer=quantizer)
    execute_quantize(plan, n_threads=2)
    return open_gguf(out).tensors[NAME].raw.tobytes()


@pytest.mark.parametrize(
    ("kind", "weighted", "quantizer"),
    [
        *((kind, weighted, DEFAULT_QUANTIZER) for kind in TYPES for weighted in (False, True)),
        ("Q4_0", False, "q4_0-rmse"),
        ("Q4_K", False, "k-lsq"),
        ("Q5_K", False, "k-lsq"),
    ],
)
def test_parts_of_rows_become_the_same_bytes(
    kind: str,
    weighted: bool,
    quantizer: str,
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n_experts, n_rows, length = 2, 3, 5 * 256
    source = write_model(tmp_path / "a.gguf", {NAME: normal(rng, n_experts, n_rows, length)})
    imatrix = None
    if weighted:
        sums = rng.exponential(1, (n_experts, length)).astype(np.float32)
        counts = np.ones((n_experts, 1), np.float32)
        imatrix = write_gguf_imatrix(tmp_path / "imatrix.gguf", {NAME: (sums, counts)})
    out = tmp_path / "out.gguf"
    whole = encoded(source, out, kind, imatrix, quantizer)
    monkeypatch.setattr("recover.quantize.plan.TILE", 512)
    assert encoded(source, out, kind, imatrix, quantizer) == whole
