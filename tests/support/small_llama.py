"""A Llama of one layer, small and random, that llama.cpp's and other encoders can quantize."""

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf import GGUFWriter

from recover.quants import F32Array
from tests.support.gguf_files import stored, write_gguf

WIDTH, N_FF, N_HEADS, N_KEY_HEADS, N_TOKENS = 256, 512, 4, 2, 64
_KEYS = WIDTH * N_KEY_HEADS // N_HEADS
SHAPES = {
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (_KEYS, WIDTH),
    "attn_v": (_KEYS, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (N_FF, WIDTH),
    "ffn_up": (N_FF, WIDTH),
    "ffn_down": (WIDTH, N_FF),
}


def small_weights(rng: np.random.Generator) -> dict[str, F32Array]:
    """Heavy-tailed weights that bfloat16 holds, by their names in GGUF files."""

    def heavy_tailed(*shape: int) -> F32Array:
        found: F32Array = (0.02 * rng.standard_t(6, shape)).astype(ml_dtypes.bfloat16)
        return found.astype(np.float32)

    def near_one() -> F32Array:
        found: F32Array = rng.normal(1, 0.1, WIDTH).astype(ml_dtypes.bfloat16)
        return found.astype(np.float32)

    layer = {f"blk.0.{role}.weight": heavy_tailed(*shape) for role, shape in SHAPES.items()}
    return {
        "token_embd.weight": heavy_tailed(N_TOKENS, WIDTH),
        "output_norm.weight": near_one(),
        "output.weight": heavy_tailed(N_TOKENS, WIDTH),
        "blk.0.attn_norm.weight": near_one(),
        "blk.0.ffn_norm.weight": near_one(),
        **layer,
    }


def write_small(path: Path, weights: Mapping[str, F32Array], kind: str) -> Path:
    """The model as a GGUF file, its matrices in one type."""

    def add(writer: GGUFWriter) -> None:
        writer.add_block_count(1)
        writer.add_embedding_length(WIDTH)
        writer.add_feed_forward_length(N_FF)
        writer.add_head_count(N_HEADS)
        writer.add_head_count_kv(N_KEY_HEADS)
        writer.add_layer_norm_rms_eps(1e-5)

    tensors = {name: stored("F32" if x.ndim == 1 else kind, x) for name, x in weights.items()}
    return write_gguf(path, tensors, add=add)
