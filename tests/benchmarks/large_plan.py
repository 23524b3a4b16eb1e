"""Plans of models with up to 10^12 weights: time and memory, without their bytes.

    python -m tests.benchmarks.large_plan [--model 70b|671b|1t]... [--inputs 3] [--folder DIR]
        [--json FILE]

writes the headers of K-quant files with the tensors of Llama 3 70B, DeepSeek-V3 (671B) or Kimi-K2
(1T), with a vocabulary. Where a plan looks at weights there are some, random ones that were
quantized; everything else is holes in the files. Then prints how long ``recover merge --dry-run``
takes, with and without ``--json``, what it says, and the largest anonymous memory. As there is
hardly ever space for the output, commands may end with that message.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from recover.containers.gguf.header import ValueType, encode_header, encode_key_value, place_tensors
from recover.quants import TensorType, type_by_name
from tests.benchmarks.merge_speed import watch_memory
from tests.benchmarks.record import write_record
from tests.support.gguf_files import stored

KINDS = "Q5_K", "Q4_K", "Q2_K"
_N_KNOWN, _LOOKED_AT = 1 << 17, 8192
_SPACED = 8, 16, 64
Shapes = dict[str, tuple[int, ...]]


def llama_70b() -> Shapes:
    """Llama 3 70B."""
    shapes: Shapes = {"token_embd.weight": (8192, 128256), "output.weight": (8192, 128256)}
    for i in range(80):
        layer: Shapes = {
            "attn_norm": (8192,),
            "attn_q": (8192, 8192),
            "attn_k": (8192, 1024),
            "attn_v": (8192, 1024),
            "attn_output": (8192, 8192),
            "ffn_norm": (8192,),
            "ffn_gate": (8192, 28672),
            "ffn_up": (8192, 28672),
            "ffn_down": (28672, 8192),
        }
        shapes |= {f"blk.{i}.{name}.weight": dims for name, dims in layer.items()}
    return shapes | {"output_norm.weight": (8192,)}


def deepseek(n_experts: int, n_heads: int, n_dense: int, n_tokens: int) -> Shapes:
    """DeepSeek-V3 and Kimi-K2, whose experts are stacks."""
    shapes: Shapes = {"token_embd.weight": (7168, n_tokens), "output.weight": (7168, n_tokens)}
    for i in range(61):
        layer: Shapes = {
            "attn_norm": (7168,),
            "attn_q_a": (7168, 1536),
            "attn_q_a_norm": (1536,),
            "attn_q_b": (1536, 192 * n_heads),
            "attn_kv_a_mqa": (7168, 576),
            "attn_kv_a_norm": (512,),
            "attn_k_b": (128, 512, n_heads),
            "attn_v_b": (512, 128, n_heads),
            "attn_output": (128 * n_heads, 7168),
            "ffn_norm": (7168,),
        }
        if i < n_dense:
            layer |= {"ffn_gate": (7168, 18432), "ffn_up": (7168, 18432), "ffn_down": (18432, 7168)}
        else:
            layer |= {
                "ffn_gate_inp": (7168, n_experts),
                "ffn_gate_exps": (7168, 2048, n_experts),
                "ffn_up_exps": (7168, 2048, n_experts),
                "ffn_down_exps": (2048, 7168, n_experts),
                "ffn_gate_shexp": (7168, 2048),
                "ffn_up_shexp": (7168, 2048),
                "ffn_down_shexp": (2048, 7168),
            }
            shapes[f"blk.{i}.exp_probs_b.bias"] = (n_experts,)
        shapes |= {f"blk.{i}.{name}.weight": dims for name, dims in layer.items()}
    return shapes | {"output_norm.weight": (7168,)}


MODELS = {
    "70b": ("llama", llama_70b()),
    "671b": ("deepseek2", deepseek(256, 128, 3, 129280)),
    "1t": ("deepseek2", deepseek(384, 64, 1, 163840)),
}


def kind_of(kind: str, name: str, dims: tuple[int, ...]) -> str:
    """How a file of a kind stores a tensor."""
    is_plain = len(dims) == 1 or "gate_inp" in name
    if is_plain:
        return "F32"
    return "Q8_0" if dims[0] % 256 else kind


@cache
def some_weights(kind: str) -> NDArray[np.uint8]:
    """The stored bytes of `_N_KNOWN` random weights; the same ones of each kind."""
    if kind == "F32":
        return np.ones(_N_KNOWN, np.float32).view(np.uint8)
    x = 0.02 * np.random.default_rng(0).standard_normal((_N_KNOWN // 2048, 2048))
    return stored(kind, x.astype(np.float32)).rows.reshape(-1)


def places(n_weights: int) -> list[int]:
    """Where plans look at a tensor: evenly spaced runs (`recover.inputs`)."""
    if n_weights <= _LOOKED_AT:
        return [0]
    last = n_weights - _LOOKED_AT
    found = [np.linspace(0, last, n).astype(int) // 256 * 256 for n in _SPACED]
    return np.unique(np.concatenate(found)).tolist()


def fill(file: BinaryIO, position: int, kind: TensorType, n_weights: int) -> None:
    """Write weights to a tensor at `position` where a plan looks at it."""
    known = some_weights(kind.name)
    for start in places(n_weights):
        first = start % (_N_KNOWN - _LOOKED_AT)
        n = min(_LOOKED_AT, n_weights)
        os.pwrite(
            file.fileno(),
            known[kind.n_bytes(first) : kind.n_bytes(first + n)].tobytes(),
            position + kind.n_bytes(start),
        )


def write_sparse(path: Path, architecture: str, shapes: Shapes, kind: str) -> int:
    """Write a header, some weights, and holes for the others; how many these are."""
    n_tokens = shapes["token_embd.weight"][1]
    n_layers = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blk."))
    width, text, number = shapes["token_embd.weight"][0], ValueType.STRING, ValueType.UINT32
    tokens = [f"token {i}" for i in range(n_tokens)]
    entries = (
        ("general.architecture", text, architecture),
        (f"{architecture}.block_count", number, n_layers),
        (f"{architecture}.embedding_length", number, width),
        ("tokenizer.ggml.tokens", text, tokens),
    )
    metadata = [encode_key_value(*entry) for entry in entries]
    told = [(n, dims, type_by_name(kind_of(kind, n, dims))) for n, dims in shapes.items()]
    placed, n_bytes = place_tensors(told, 32)
    header = encode_header(metadata, placed, 32)
    path.write_bytes(header)
    os.truncate(path, len(header) + n_bytes)
    with path.open("r+b") as file:
        for each in placed:
            fill(file, len(header) + each.offset, each.type, each.n_weights)
    return sum(each.n_weights for each in placed)


def run(command: list[str]) -> tuple[float, float, str]:
    """Seconds, the largest anonymous memory in MiB, and what was printed."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        watcher = watch_memory(process)
        out, error = process.communicate()
    seconds = time.perf_counter() - start
    if process.returncode and b"bytes free" not in error:
        raise SystemExit(error.decode())
    return seconds, watcher.largest(), out.decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", action="append", choices=list(MODELS))
    parser.add_argument("--inputs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    figures: list[dict[str, Any]] = []
    for model in args.model or list(MODELS):
        architecture, shapes = MODELS[model]
        with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
            paths, n_weights = [], 0
            for i in range(args.inputs):
                paths.append(Path(scratch, f"{i}.gguf"))
                kind = KINDS[i % len(KINDS)]
                n_weights = write_sparse(paths[-1], architecture, shapes, kind)
            print(
                f"{model}: {n_weights:,} weights in {len(shapes):,} tensors, {args.inputs} inputs"
            )
            command = [sys.executable, "-m", "recover", "merge", *map(str, paths)]
            command += ["-o", str(Path(scratch, "out.gguf")), "--dry-run"]
            for more in (["--json"], []):
                seconds, memory, printed = run([*command, *more])
                what = " ".join(["--dry-run", *more])
                print(f"  {what}: {seconds:.1f} s, {memory:.0f} MiB", flush=True)
                figures.append({"model": model, "what": what, "s": seconds, "MiB": memory})
            for line in printed.splitlines()[1:]:
                print(f"    {line}")
    if args.json:
        write_record(args.json, "large_plan", figures)


if __name__ == "__main__":
    main()
