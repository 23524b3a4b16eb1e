"""Which tensors llama.cpp has a place for, by architecture: it refuses a file that has others.

gguf-py's tensor map has names for every bias, and for some tensors that llama.cpp computes itself;
what llama.cpp creates is told by `load_arch_tensors` of each architecture.
"""

import re

from recover.reblock.drafts import Draft

_LAYER = re.compile(r"blk\.\d+\.")
_BIAS = ".bias"
_ROWS = 1 << 16  # that are looked at in one go

_QKV = frozenset(("attn_q", "attn_k", "attn_v"))
_NONE: frozenset[str] = frozenset()

# By gguf-py's name of the architecture: tensors that may have a bias.
_BIASES = {
    "LLAMA": _QKV | {"attn_output", "ffn_gate", "ffn_up", "ffn_down"},
    "QWEN2": _QKV,
    "QWEN2MOE": _QKV,
    "DEEPSEEK2": frozenset(("exp_probs_b",)),
    "GPT_OSS": _QKV
    | {"attn_output", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"},
}
# The same, but only of versions since 2026.
_NEWER_BIASES = {"QWEN2": frozenset(("output",)), "QWEN3": _QKV, "QWEN3MOE": _QKV}

_COMPUTED = "attn_rot_embd.weight"
_ROPE_FACTORS, _WITH_ROPE_FACTORS = "rope_freqs.weight", "LLAMA"


def has_place(name: str, arch: str, *, always: bool = False) -> bool:
    """Whether llama.cpp creates a tensor of that name.

    Parameters
    ----------
    name : str
        In GGUF; one of those in gguf-py's map for the architecture, or the bias of one.
    arch : str
        As in gguf-py, for instance ``QWEN2``.
    always : bool
        Whether older versions have to do so, too.
    """
    own = _LAYER.sub("", name, count=1)
    if own.endswith(_BIAS):
        stem = own.removesuffix(_BIAS)
        newer = _NONE if always else _NEWER_BIASES.get(arch, _NONE)
        return stem in _BIASES.get(arch, _NONE) | newer
    return own != _COMPUTED and (own != _ROPE_FACTORS or arch == _WITH_ROPE_FACTORS)


def is_void_bias(draft: Draft, name: str, arch: str) -> bool:
    """Whether a tensor is a bias of zeros that the architecture can, or must, do without.

    GPTQ's tools write one for every matrix, whether the model has it or not.
    """
    if not name.endswith(_BIAS) or has_place(name, arch, always=True):
        return False
    n_rows = draft.rows.n_rows
    return not any(
        draft.rows.reference(first, min(first + _ROWS, n_rows)).any()
        for first in range(0, n_rows, _ROWS)
    )
