"""How well scales that a folder does not hold are found.

    python -m tests.benchmarks.scales_found

quantizes block 3 of llama-29m as AutoAWQ does. Prints the largest relative error of scales found by
norms; and of those shared by rows and columns of two matrices, by types of GGUF: the root mean
square of the relative errors, their mean, what is expected, and the largest over what is expected.
"""

import time
from dataclasses import replace
from typing import Any

import numpy as np

from recover.containers.huggingface.formats import read_matrix
from recover.containers.huggingface.scaled import ScaledMatrix
from recover.evidence.intervals import Intervals
from recover.inputs.scaled import norm_scales, shared_scales
from recover.quants import F32Array, quantize, type_by_name
from tests.support.encoders import awq
from tests.support.foreign_modules import module_of
from tests.support.layer_inputs import trained_block
from tests.support.stated_intervals import tensor_of

TYPES = ("Q2_K", "Q3_K", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0")


def bounds(w: F32Array, name: str) -> Any:
    intervals = Intervals()
    intervals.look_at([tensor_of(quantize(w, type_by_name(name)), name, w.size)])
    return intervals.bound


def main() -> None:
    block = trained_block(3)
    quantized = awq.quantize(block)
    stored = {}
    for name in ("ffn_up", "ffn_down"):
        module = module_of(quantized.arrays[name], {"quant_method": "awq"})
        found = read_matrix(replace(module, name=f"layer.{name}"))
        assert isinstance(found, ScaledMatrix)
        stored[name] = found
    for norm, name in (("attn_norm", "attn_q"), ("ffn_norm", "ffn_up")):
        columns = norm_scales(block.norms[norm], quantized.norms[norm], "F16")
        off = np.abs(columns.values / quantized.columns[name] - 1)
        print(f"{norm}: largest relative error {off.max():.1e}")
    up, down = stored["ffn_up"].with_scales(columns), stored["ffn_down"].with_scales(None)
    for kind in TYPES:
        behind = down, bounds(block.matrices["ffn_down"], kind)
        front = up, bounds(block.matrices["ffn_up"], kind)
        for what, sides in (("columns", behind), ("columns and rows", (*behind, *front))):
            start = time.process_time()
            scales = shared_scales(*sides)
            seconds = time.process_time() - start
            off = scales.values / quantized.rows["ffn_up"] - 1
            print(
                f"{kind} {what:17} rms {np.sqrt(np.mean(off**2)):.4f}, mean {off.mean():+.4f},"
                f" expected {scales.deviations.mean():.4f},"
                f" largest {np.abs(off / scales.deviations).max():.1f} deviations, {seconds:.1f} s"
            )


if __name__ == "__main__":
    main()
