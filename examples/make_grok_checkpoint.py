"""Write a small checkpoint in Grok-1's format, to try ``recover reblock`` without 300 GB.

    python examples/make_grok_checkpoint.py FOLDER [--layers 12] [--embd 128] [--ff 256] ...

makes FOLDER/ckpt-0/tensor00000_000 and so on: one pickle (protocol 4) per tensor, in the order in
which JAX flattens Grok-1's parameters, int8 weights with bfloat16 scales of class
``QuantizedWeight8bit`` in ``__main__``. Weights are random. FOLDER/hparams.json has the
hyper-parameters that differ from Grok-1's, for ``--hparams``. Needs the package ml_dtypes.
"""

import argparse
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class QuantizedWeight8bit:
    """Integers and scales, under the name that the checkpoint's pickles have for them."""

    def __init__(self, weight: Array, scales: Array) -> None:
        self.weight = weight
        self.scales = scales


QuantizedWeight8bit.__module__ = "__main__"


def quantize(weights: Array, n_groups: int) -> QuantizedWeight8bit:
    """Symmetric int8 with a bfloat16 scale per column and per K / n_groups rows."""
    *stack, n_in, n_out = weights.shape
    groups = weights.reshape(*stack, n_groups, n_in // n_groups, n_out)
    scales = (np.abs(groups).max(-2) / 127).astype(ml_dtypes.bfloat16)
    codes = np.rint(groups / scales.astype(np.float32)[..., None, :]).clip(-128, 127)
    return QuantizedWeight8bit(codes.astype(np.int8).reshape(weights.shape), scales)


def tensors(args: argparse.Namespace) -> Iterator[QuantizedWeight8bit | Array]:
    """All tensors in the order of the checkpoint."""
    rng = np.random.default_rng(args.seed)
    n_experts, n_embd, n_ff = args.experts, args.embd, args.ff
    n_kv = args.kv_heads * args.head_size

    def random(*shape: int) -> Array:
        return (rng.standard_normal(shape, np.float32) / np.sqrt(shape[-2])).astype(np.float32)

    def norm() -> Array:
        return (1 + 0.1 * rng.standard_normal(n_embd)).astype(np.float32)

    yield 0.02 * rng.standard_normal((args.vocab, n_embd), np.float32)
    yield norm()
    for _ in range(args.layers):
        yield quantize(random(n_experts, n_embd, n_ff), 1)  # gate
        yield quantize(random(n_experts, n_ff, n_embd), args.down_groups)  # down
        yield quantize(random(n_experts, n_embd, n_ff), 1)  # up
        yield quantize(random(n_embd, n_kv), 1)  # key
        yield quantize(random(n_embd, n_embd), args.output_groups)  # attention output
        yield quantize(random(n_embd, n_embd), 1)  # query
        yield quantize(random(n_embd, n_kv), 1)  # value
        for _ in range(4):
            yield norm()
        yield random(n_embd, n_experts)  # router


def write_checkpoint(folder: Path, args: argparse.Namespace) -> int:
    """Write everything; the number of files."""
    checkpoint = folder / "ckpt-0"
    checkpoint.mkdir(parents=True, exist_ok=True)
    # pickle looks the class up where it says that it is
    main = sys.modules["__main__"]
    before = getattr(main, "QuantizedWeight8bit", None)
    main.QuantizedWeight8bit = QuantizedWeight8bit  # type: ignore[attr-defined]
    n_files = 0
    try:
        for tensor in tensors(args):
            path = checkpoint / f"tensor{n_files:05}_000"
            path.write_bytes(pickle.dumps(tensor, protocol=4))
            n_files += 1
    finally:
        if before is None:
            del main.QuantizedWeight8bit  # type: ignore[attr-defined]
        else:
            main.QuantizedWeight8bit = before  # type: ignore[attr-defined]
    hparams = {"attention.key_length": args.head_size, "context_length": 512}
    (folder / "hparams.json").write_text(json.dumps(hparams))
    return n_files


def parser() -> argparse.ArgumentParser:
    """The options; the defaults make about 10 million weights."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("folder", type=Path)
    for name, default, text in (
        ("layers", 12, "layers; from 11 on their order as texts is not that of numbers"),
        ("embd", 128, "embedding size"),
        ("ff", 256, "feed-forward size of an expert"),
        ("experts", 8, "number of experts"),
        ("head-size", 32, "size of an attention head"),
        ("kv-heads", 2, "number of key-value heads"),
        ("vocab", 256, "number of tokens"),
        ("down-groups", 8, "scales per column of the down projection"),
        ("output-groups", 4, "scales per column of the attention output (8 in Grok-1)"),
        ("seed", 1, "of the random numbers"),
    ):
        options.add_argument(f"--{name}", type=int, default=default, metavar="N", help=text)
    return options


if __name__ == "__main__":
    arguments = parser().parse_args()
    count = write_checkpoint(arguments.folder, arguments)
    print(f"wrote {count} tensors to {arguments.folder / 'ckpt-0'}")
