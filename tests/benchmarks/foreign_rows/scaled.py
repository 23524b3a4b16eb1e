"""Formats whose encoders look at activations: GPTQ, EXL2, AWQ.

The matrices must be those of one block of llama-29m, whose inputs are known. GPTQ's and EXL2's
errors and AWQ's scales of rows are found beside Q4_K, unless the name says otherwise.
"""

from functools import cache
from typing import Any

import numpy as np

from recover.containers.huggingface.formats import Matrix, read_matrix
from recover.containers.huggingface.formats._compensated import CompensatedMatrix
from recover.containers.huggingface.scaled import ScaledMatrix, Scales
from recover.evidence.intervals import Intervals
from recover.inputs.foreign import measure_ratio
from recover.inputs.scaled import norm_scales, shared_scales
from recover.quants import F32Array, quantize, type_by_name
from tests.support.encoders import awq, gptq
from tests.support.foreign_modules import module_of
from tests.support.format_checks import awq_matrices
from tests.support.layer_inputs import Block, trained_block
from tests.support.stated_intervals import tensor_of


@cache
def _place(block: int, digest: bytes) -> str:
    found = trained_block(block).matrices
    return next((name for name, w in found.items() if w.tobytes() == digest), "")


def _find(w: F32Array) -> tuple[int, str]:
    """The block and the name of a matrix of llama-29m."""
    for block in (3, 7, 0):
        name = _place(block, w.tobytes())
        if name:
            return block, name
    raise SystemExit("these matrices are none of llama-29m's blocks 0, 3 and 7")


def _known(w: F32Array, name: str) -> Any:
    return tensor_of(quantize(w, type_by_name(name)), name, w.size)


def _measured(found: Matrix | None, w: F32Array, beside: str) -> Matrix:
    assert isinstance(found, CompensatedMatrix)
    return found.with_noise(found.noise * measure_ratio(found, _known(w, beside)))


def _gptq(n_bits: int = 4, group: int = 128, beside: str = "Q4_K", **how: Any) -> Any:
    def make(w: F32Array) -> Matrix:
        block, name = _find(w)
        codes = gptq.quantize(w, trained_block(block).inputs[name], n_bits, group, **how)
        config = {"quant_method": "gptq", "bits": n_bits, "group_size": group}
        return _measured(read_matrix(module_of(gptq.pack(codes, n_bits), config)), w, beside)

    return make


def _exl2(*bits: int) -> Any:
    def make(w: F32Array) -> Matrix:
        block, name = _find(w)
        arrays = gptq.exl2(w, trained_block(block).inputs[name], bits).arrays
        return _measured(read_matrix(module_of(arrays)), w, "Q4_K")

    return make


@cache
def _awq_block(block: int) -> tuple[Block, awq.AwqBlock, dict[str, ScaledMatrix]]:
    original = trained_block(block)
    quantized = awq.quantize(original)
    return original, quantized, awq_matrices(quantized)


@cache
def _scales(block: int, beside: str) -> dict[str, tuple[Scales | None, Scales | None]]:
    """Of the columns and rows of each matrix."""
    original, quantized, modules = _awq_block(block)

    def bounds(name: str) -> Any:
        intervals = Intervals()
        intervals.look_at([_known(original.matrices[name], beside)])
        return intervals.bound

    first, second = (
        norm_scales(original.norms[norm], quantized.norms[norm], "F16")
        for norm in ("attn_norm", "ffn_norm")
    )
    up, down = modules["ffn_up"].with_scales(second), modules["ffn_down"].with_scales(None)
    shared = shared_scales(down, bounds("ffn_down"), up, bounds("ffn_up"))
    return {
        **dict.fromkeys(("attn_q", "attn_k", "attn_v"), (first, None)),
        "attn_output": (None, None),
        "ffn_gate": (second, None),
        "ffn_up": (second, shared),
        "ffn_down": (shared, None),
    }


def _awq(beside: str | None) -> Any:
    def make(w: F32Array) -> Matrix:
        block, name = _find(w)
        _, quantized, modules = _awq_block(block)
        if beside is not None:
            return modules[name].with_scales(*_scales(block, beside)[name])
        columns, rows = quantized.columns[name], quantized.rows[name]
        exact = (Scales(each, np.zeros_like(each)) for each in (columns, rows))
        return modules[name].with_scales(*exact)

    return make


FORMATS: dict[str, Any] = {
    "GPTQ": _gptq(),
    "GPTQ-act": _gptq(act_order=True),
    "GPTQ-beside-Q8_0": _gptq(beside="Q8_0"),
    "GPTQ-8": _gptq(8, act_order=True, beside="Q8_0"),
    "GPTQ-3": _gptq(3),
    "GPTQ-2": _gptq(2),
    "GPTQ-32": _gptq(4, 32),
    "GPTQ-row": _gptq(4, -1),
    "EXL2-5": _exl2(5),
    "EXL2-mixed": _exl2(5, 4, 3),
    "AWQ": _awq("Q4_K"),
    "AWQ-beside-Q8_0": _awq("Q8_0"),
    "AWQ-true-scales": _awq(None),
}
SETS: tuple[tuple[str, ...], ...] = (
    ("AWQ", "Q4_K"),
    ("AWQ-true-scales", "Q4_K"),
    ("AWQ", "Q5_K"),
    ("AWQ", "Q6_K"),
    ("AWQ-beside-Q8_0", "Q8_0"),
    ("GPTQ", "Q4_K"),
    ("GPTQ-act", "Q4_K"),
    ("GPTQ", "Q5_K"),
    ("GPTQ-beside-Q8_0", "Q6_K"),
    ("GPTQ-8", "Q8_0"),
    ("GPTQ-3", "Q4_K"),
    ("GPTQ-2", "Q2_K"),
    ("GPTQ-32", "Q4_K"),
    ("GPTQ-row", "Q4_K"),
    ("GPTQ", "AWQ"),
    ("GPTQ", "AWQ", "Q4_K"),
    ("AWQ", "NF4", "Q4_K"),
    ("GPTQ", "AWQ", "NF4", "Q4_K"),
    ("EXL2-5", "Q4_K"),
    ("EXL2-mixed", "Q4_K"),
)
