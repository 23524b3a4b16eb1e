"""What the layers of a llama are given: the activations that calibrated encoders look at."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.support.models import SHARED

F32 = NDArray[np.float32]
NAMES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_EPSILON = 1e-5


class Block(NamedTuple):
    """One block: matrices and the inputs (n_tokens, K) of each, norms; by the names of GGUF."""

    matrices: dict[str, F32]
    inputs: dict[str, F32]
    norms: dict[str, F32]


def synthetic_inputs(rng: np.random.Generator, n_tokens: int, row_length: int) -> F32:
    """Inputs whose columns differ in size and go together, with few large ones."""
    mix = rng.standard_normal((row_length // 2, row_length))
    x = rng.standard_t(4, (n_tokens, row_length // 2)) @ mix
    x += 1.5 * row_length**0.5 * rng.standard_normal(x.shape)
    return (x * np.exp(rng.normal(0, 0.4, row_length))).astype(np.float32)


def synthetic_block(rng: np.random.Generator, width: int = 256, inner: int = 512) -> Block:
    """A block of random matrices; queries, keys, values and outputs have one shape."""
    shapes = dict.fromkeys(NAMES[:4], (width, width))
    shapes |= {"ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
    matrices = {
        name: (rng.standard_t(8, shape) * rng.uniform(0.01, 0.05, (shape[0], 1))).astype(np.float32)
        for name, shape in shapes.items()
    }
    first, second = (synthetic_inputs(rng, 600, width) for _ in range(2))
    inputs = dict.fromkeys(NAMES[:3], first) | dict.fromkeys(("ffn_gate", "ffn_up"), second)
    inputs["attn_output"] = synthetic_inputs(rng, 600, width)
    inputs["ffn_down"] = synthetic_inputs(rng, 600, inner)
    norms = {
        name: rng.uniform(0.2, 2, width).astype(np.float32) for name in ("attn_norm", "ffn_norm")
    }
    return Block(matrices, inputs, norms)


@cache
def trained_block(number: int, path: Path = SHARED / "llama-29m-bf16.gguf") -> Block:
    """A block of a trained model, and its inputs for some text."""
    reader = gguf.GGUFReader(path)
    weights = {
        each.name.removesuffix(".weight"): gguf.dequantize(each.data, each.tensor_type)
        for each in reader.tensors
    }
    sizes = {
        name: int(reader.fields[f"llama.attention.{name}"].contents())
        for name in ("head_count", "head_count_kv")
    }
    base = float(reader.fields["llama.rope.freq_base"].contents())
    x = weights["token_embd"][_tokens(reader, 24 * 512).reshape(24, 512)]
    for i in range(number + 1):
        own = {
            name.removeprefix(f"blk.{i}."): each.astype(np.float32)
            for name, each in weights.items()
            if name.startswith(f"blk.{i}.")
        }
        x, inputs = _through(own, x, sizes["head_count"], sizes["head_count_kv"], base)
    norms = {name: own[name] for name in ("attn_norm", "ffn_norm")}
    return Block({name: own[name] for name in NAMES}, inputs, norms)


def _tokens(reader: gguf.GGUFReader, n: int) -> NDArray[np.int64]:
    """Longest matches in the vocabulary: near enough to the tokenizer."""
    vocabulary = reader.fields["tokenizer.ggml.tokens"].contents()
    is_bpe = reader.fields["tokenizer.ggml.model"].contents() != "llama"
    text = (SHARED / "eval.txt").read_text(encoding="utf-8")[: 12 * n]
    text = text.replace(" ", "\u0120" if is_bpe else "\u2581")
    text = text.replace("\n", "\u010a") if is_bpe else text
    index = {token: i for i, token in enumerate(vocabulary)}
    longest = max(map(len, vocabulary))
    found: list[int] = []
    at = 0
    while len(found) < n:
        for size in range(min(longest, len(text) - at), 0, -1):
            if text[at : at + size] in index:
                found.append(index[text[at : at + size]])
                break
        else:
            size = 1
        at += size
    return np.array(found)


def _normed(x: F32, norm: F32) -> F32:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(_EPSILON)) * norm


def _through(
    own: dict[str, F32], x: F32, n_heads: int, n_kv: int, base: float
) -> tuple[F32, dict[str, F32]]:
    """What comes out of a block, and what its matrices are given."""
    n_texts, length, width = x.shape
    size = width // n_heads
    angle = np.arange(length)[:, None] * base ** (-np.arange(0, size, 2) / size)[None]
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    def turned(t: F32) -> F32:
        even, odd, out = t[..., 0::2], t[..., 1::2], np.empty_like(t)
        out[..., 0::2] = even * cos[:, None] - odd * sin[:, None]
        out[..., 1::2] = even * sin[:, None] + odd * cos[:, None]
        return out

    h = _normed(x, own["attn_norm"])
    inputs = dict.fromkeys(NAMES[:3], h)
    q = turned((h @ own["attn_q"].T).reshape(n_texts, length, n_heads, size))
    k = turned((h @ own["attn_k"].T).reshape(n_texts, length, n_kv, size))
    v = (h @ own["attn_v"].T).reshape(n_texts, length, n_kv, size)
    k, v = (np.repeat(t, n_heads // n_kv, 2).transpose(0, 2, 1, 3) for t in (k, v))
    scores = q.transpose(0, 2, 1, 3) @ k.transpose(0, 1, 3, 2) / np.float32(size**0.5)
    scores += np.triu(np.full((length, length), -1e9, np.float32), 1)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    scores /= scores.sum(-1, keepdims=True)
    inputs["attn_output"] = (scores @ v).transpose(0, 2, 1, 3).reshape(n_texts, length, -1)
    x = x + inputs["attn_output"] @ own["attn_output"].T
    h = _normed(x, own["ffn_norm"])
    inputs |= dict.fromkeys(("ffn_gate", "ffn_up"), h)
    gate = h @ own["ffn_gate"].T
    inputs["ffn_down"] = gate / (1 + np.exp(-gate)) * (h @ own["ffn_up"].T)
    x = x + inputs["ffn_down"] @ own["ffn_down"].T
    flat = {name: each.reshape(-1, each.shape[-1]) for name, each in inputs.items()}
    return x, flat
