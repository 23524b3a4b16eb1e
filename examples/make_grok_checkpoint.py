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


def parameters(args: argparse.Namespace) -> dict[str, QuantizedWeight8bit | Array]:
    """Random parameters by the paths that they have in Grok-1's code."""
    rng = np.random.default_rng(args.seed)
    n_experts, n_embd, n_ff = args.experts, args.embd, args.ff
    n_kv = args.kv_heads * args.head_size

    def random(*shape: int) -> Array:
        return (rng.standard_normal(shape, np.float32) / np.sqrt(shape[-2])).astype(np.float32)

    def norm() -> Array:
        return (1 + 0.1 * rng.standard_normal(n_embd)).astype(np.float32)

    found: dict[str, QuantizedWeight8bit | Array] = {
        "language_model/in_out_embed": 0.02 * rng.standard_normal((args.vocab, n_embd), np.float32),
        "language_model/rms_norm": norm(),
    }
    for layer in range(args.layers):
        moe, attention = "moe", "multi_head_attention"
        in_layer: dict[str, QuantizedWeight8bit | Array] = {
            f"{moe}/linear": quantize(random(n_experts, n_embd, n_ff), 1),  # gate
            f"{moe}/linear_v": quantize(random(n_experts, n_embd, n_ff), 1),  # up
            f"{moe}/linear_1": quantize(random(n_experts, n_ff, n_embd), args.down_groups),
            f"{attention}/query": quantize(random(n_embd, n_embd), 1),
            f"{attention}/key": quantize(random(n_embd, n_kv), 1),
            f"{attention}/value": quantize(random(n_embd, n_kv), 1),
            f"{attention}/linear": quantize(random(n_embd, n_embd), args.output_groups),
            "rms_norm": norm(),  # before the attention
            "rms_norm_1": norm(),  # behind it
            "rms_norm_2": norm(),  # before the experts
            "rms_norm_3": norm(),  # behind them
            "router": random(n_embd, n_experts),
        }
        prefix = f"language_model/transformer/decoder_layer_{layer}"
        found |= {f"{prefix}/{path}": tensor for path, tensor in in_layer.items()}
    return found


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
        # JAX flattens a dictionary in the order of its sorted keys
        for _, tensor in sorted(parameters(args).items()):
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
