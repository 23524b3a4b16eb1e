"""Whether codes that make up for each other's errors are told where they are of a revision.

    python -m tests.benchmarks.revisions [--block N] [--share SHARE] [--of TEXT ...] [MODEL.gguf]

quantizes the matrices of one block with GPTQ and EXL2, beside what the layers are given of a text,
and those of a revision whose matrices are off by so much of their deviation. Prints for each format
and partner in how many matrices every column contradicts the partner, and on how many weights at
least: `recover.inputs.compensated`. Of right sets there must be none.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from recover.containers.huggingface.formats import read_matrix
from recover.containers.huggingface.rows import Rows
from recover.containers.huggingface.tensors import QuantizedTensor
from recover.inputs.compensated import n_contradicted
from recover.quants import F32Array, quantize, type_by_name
from tests.support.encoders import gptq
from tests.support.foreign_modules import Array, module_of
from tests.support.layer_inputs import trained_block
from tests.support.models import SHARED
from tests.support.stated_intervals import tensor_of

PARTNERS = "Q2_K", "Q3_K", "Q4_K", "Q6_K", "Q8_0"
_N_TOKENS = 2048
Encode = Callable[[F32Array, F32Array], dict[str, Array]]


def _gptq(n_bits: int, group: int, *, act_order: bool, symmetric: bool) -> Encode:
    def encode(w: F32Array, inputs: F32Array) -> dict[str, Array]:
        found = gptq.quantize(w, inputs, n_bits, group, act_order=act_order, symmetric=symmetric)
        return gptq.pack(found, n_bits)

    return encode


def _exl2(bits: tuple[int, ...]) -> Encode:
    return lambda w, inputs: gptq.exl2(w, inputs, bits).arrays


def formats() -> Iterator[tuple[str, dict[str, Any], Encode]]:
    """Name, configuration, encoder."""
    for n_bits in (2, 3, 4, 8):
        settings = {"quant_method": "gptq", "bits": n_bits}
        for act_order in (False, True):
            make = partial(_gptq, n_bits, 128, act_order=act_order, symmetric=not act_order)
            yield f"GPTQ-{n_bits}{', act-order' if act_order else ''}", settings, make()
    settings = {"quant_method": "gptq", "bits": 4}
    yield "GPTQ-4, whole rows", settings, _gptq(4, -1, act_order=False, symmetric=True)
    for bits in ((3,), (5, 4), (8,)):
        yield f"EXL2 {bits}", {"quant_method": "exl2"}, _exl2(bits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, nargs="?", default=SHARED / "llama-29m-bf16.gguf")
    parser.add_argument("--block", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--of", nargs="+", default=[""], help="only formats with these in the name")
    args = parser.parse_args()
    rng = np.random.default_rng(3)
    block = trained_block(args.block, args.model)
    partners = {
        kind: {
            name: tensor_of(quantize(w, type_by_name(kind)), kind, w.size)
            for name, w in block.matrices.items()
        }
        for kind in PARTNERS
    }
    print(f"{'matrices of ' + str(len(block.matrices)):24}" + "".join(f"{k:>14}" for k in PARTNERS))
    chosen = (each for each in formats() if any(text in each[0] for text in args.of))
    for title, settings, encode in chosen:
        for share in (0.0, args.share):
            tensors = {}
            for name, w in block.matrices.items():
                off = share * w.std() * rng.standard_normal(w.shape)
                inputs = block.inputs[name].reshape(-1, w.shape[1])[:_N_TOKENS]
                arrays = encode((w + off).astype(np.float32), inputs)
                matrix = read_matrix(module_of(arrays, settings))
                tensors[name] = QuantizedTensor("weight", w.shape[::-1], (Rows(matrix),), 0)
            print(f"{title + (f' off by {share:g}' if share else ''):24}", end="", flush=True)
            for kind in PARTNERS:
                counts = [n_contradicted(tensors[name], partners[kind][name]) for name in tensors]
                print(f"{np.count_nonzero(counts):5} {sum(counts):8}", end="", flush=True)
            print(flush=True)


if __name__ == "__main__":
    main()
