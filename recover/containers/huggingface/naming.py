"""How the tensors of GGUF files are called and laid out in Hugging Face folders.

The opposite of `recover.containers.huggingface.placing`: which arrays of a folder a tensor's
weights go to, and where in each. Names are those under which transformers saves a model of the
architecture (5 reads those of 4).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from recover._text import quoted
from recover.errors import SafetensorsError

DERIVED = re.compile(r"(blk\.\d+\.)?(rope_freqs|rope_factors_(long|short)|attn_rot_embd)\.weight")
"""Names of tensors that the configuration tells."""

_OF_LAYER = re.compile(r"blk\.(?P<layer>\d{1,9})\.(?P<role>\w+(\.\d{1,9})?)\.(?P<leaf>weight|bias)")
_OF_ALL = re.compile(r"(?P<role>\w+)\.(?P<leaf>weight|bias)")
_ONE_EXPERT = re.compile(r"(?P<role>ffn_(gate|up|down))\.(?P<number>\d{1,9})")
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
}
_MLP = {
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_EXPERTS = {
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
_MIXTRAL = {
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
}
_PLAIN = _ATTENTION | _MLP
_NORMED = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def _shared(module: str) -> dict[str, str]:
    return {
        f"{role}_shexp": f"mlp.{module}.{name.removeprefix('mlp.')}" for role, name in _MLP.items()
    }


@dataclass(frozen=True)
class Naming:
    """What the arrays of an architecture are called.

    Attributes
    ----------
    roles : mapping of str to str
        Modules by what follows the layer in GGUF's names.
    experts : mapping of str to str
        Of stacks of experts, the modules of single ones.
    is_woven : bool
        Whether all experts are one array, transposed, with gate and up alternating (gpt-oss).
    layers : str
        What the layers are called.
    top : mapping of str to str
        Modules that belong to no layer.
    """

    roles: Mapping[str, str]
    experts: Mapping[str, str] = field(default_factory=dict)
    is_woven: bool = False
    layers: str = "model.layers"
    top: Mapping[str, str] = field(default_factory=lambda: _TOP)


NAMINGS: Mapping[str, Naming] = {
    "llama": Naming(_PLAIN),
    "mixtral": Naming(
        _PLAIN | {"ffn_gate_inp": "block_sparse_moe.gate"},
        _MIXTRAL,
    ),
    "qwen2": Naming(_PLAIN),
    "qwen2_moe": Naming(
        _PLAIN
        | _shared("shared_expert")
        | {"ffn_gate_inp": "mlp.gate", "ffn_gate_inp_shexp": "mlp.shared_expert_gate"},
        _EXPERTS,
    ),
    "qwen3": Naming(_PLAIN | _NORMED),
    "qwen3_moe": Naming(_PLAIN | _NORMED | {"ffn_gate_inp": "mlp.gate"}, _EXPERTS),
    "gemma2": Naming(_PLAIN | _GEMMA),
    "gemma3_text": Naming(_PLAIN | _NORMED | _GEMMA),
    "phi3": Naming(
        _ATTENTION
        | {
            "attn_qkv": "self_attn.qkv_proj",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        }
    ),
    "deepseek": Naming(
        _PLAIN
        | _shared("shared_experts")
        | {
            "attn_q_a": "self_attn.q_a_proj",
            "attn_q_a_norm": "self_attn.q_a_layernorm",
            "attn_q_b": "self_attn.q_b_proj",
            "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
            "attn_kv_a_norm": "self_attn.kv_a_layernorm",
            "attn_kv_b": "self_attn.kv_b_proj",
            "attn_k_b": "self_attn.kv_b_proj",
            "attn_v_b": "self_attn.kv_b_proj",
            "ffn_gate_inp": "mlp.gate",
            "exp_probs_b": "mlp.gate.e_score_correction",
        },
        _EXPERTS,
    ),
    "gpt_oss": Naming(
        _ATTENTION
        | {
            "post_attention_norm": "post_attention_layernorm",
            "attn_sinks": "self_attn.sinks",
            "ffn_gate_inp": "mlp.router",
        },
        {
            "ffn_gate_exps": "mlp.experts.gate_up_proj",
            "ffn_up_exps": "mlp.experts.gate_up_proj",
            "ffn_down_exps": "mlp.experts.down_proj",
        },
        is_woven=True,
    ),
    "grok-1": Naming(
        {
            "attn_norm": "rms_norm",
            "attn_output_norm": "rms_norm_1",
            "ffn_norm": "rms_norm_2",
            "layer_output_norm": "rms_norm_3",
            "attn_q": "multi_head_attention.query",
            "attn_k": "multi_head_attention.key",
            "attn_v": "multi_head_attention.value",
            "attn_output": "multi_head_attention.linear",
            "ffn_gate_inp": "router",
        },
        {
            "ffn_gate_exps": "moe.{}.linear",
            "ffn_up_exps": "moe.{}.linear_v",
            "ffn_down_exps": "moe.{}.linear_1",
        },
        layers="transformer.decoder_layer",
        top={
            "token_embd": "transformer.in_out_embed",
            "output_norm": "transformer.rms_norm",
            "output": "lm_head",
        },
    ),
    "grok-2": Naming(
        _PLAIN
        | {
            "attn_norm": "pre_attn_norm",
            "attn_output_norm": "post_attn_norm",
            "ffn_norm": "pre_moe_norm",
            "post_ffw_norm": "post_moe_norm",
            "ffn_gate_inp": "block_sparse_moe.gate",
        },
        _MIXTRAL,
    ),
}
"""By what `recover.containers.huggingface.configuration` finds a model to be."""


class Strided(NamedTuple):
    """A dimension: how many, and how many weights of the array from one to the next."""

    size: int
    stride: int


class Share(NamedTuple):
    """Weights of a GGUF tensor that go to one array of a folder."""

    array: str
    shape: tuple[int, ...]
    """Of the array, row length last."""
    start: int
    end: int
    """The weights of the tensor."""
    offset: int = 0
    """Weights of the array in front of the first one."""
    axes: tuple[Strided, ...] = ()
    """Where the others are, as an array, the slowest dimension first; empty: behind it."""


class Sizes(NamedTuple):
    """What a layout depends on beside the shape of a tensor."""

    n_heads: int
    n_heads_kv: int
    n_key: int = 0
    """Of DeepSeek's heads: the part of keys that is not rotated."""
    n_value: int = 0


class Sharing:
    """Which arrays of a folder the tensors of a GGUF file go to.

    Parameters
    ----------
    naming : Naming
        Of the architecture.
    sizes : Sizes
        Of the model.
    permutes_heads : bool
        Whether rows of queries and keys are reordered in the GGUF file.
    """

    def __init__(self, naming: Naming, sizes: Sizes, *, permutes_heads: bool) -> None:
        self._naming = naming
        self._sizes = sizes
        self._permutes_heads = permutes_heads

    def shares(self, name: str, dims: Sequence[int]) -> tuple[Share, ...] | None:
        """The shares of a tensor; None if the architecture has no such tensor.

        Parameters
        ----------
        name : str
            In the GGUF file.
        dims : sequence of int
            Row length first.

        Raises
        ------
        SafetensorsError
            If its shape does not go with the model's sizes.
        """
        if (match := _OF_ALL.fullmatch(name)) is not None:
            module = self._naming.top.get(match["role"])
            if module is None or match["leaf"] != "weight":
                return None
            return _whole(f"{module}.weight", dims)
        match = _OF_LAYER.fullmatch(name)
        if match is None:
            return None
        role, leaf = match["role"], match["leaf"]
        prefix = f"{self._naming.layers}.{match['layer']}."
        if (one := _ONE_EXPERT.fullmatch(role)) is not None:
            module = self._naming.experts.get(f"{one['role']}_exps")
            if module is None or self._naming.is_woven:
                return None
            return _whole(prefix + module.format(one["number"]) + f".{leaf}", dims)
        if role == "ffn_gate_up_exps":
            return self._fused(prefix, leaf, name, dims)
        if role in self._naming.experts:
            return self._of_experts(prefix, role, leaf, name, dims)
        module = self._naming.roles.get(role)
        if module is None:
            return None
        array = f"{prefix}{module}.{leaf}"
        if role == "exp_probs_b":
            array = f"{prefix}{module}_bias"
        elif role == "attn_sinks":
            array = prefix + module
        elif role == "ffn_gate_inp_shexp":
            dims = (math.prod(dims), 1)
        elif role in ("attn_k_b", "attn_v_b"):
            return (self._of_latent(array, role, name, dims),)
        if role in ("attn_q", "attn_k") and self._permutes_heads:
            return (self._of_heads(array, role, name, dims),)
        return _whole(array, dims)

    def _of_heads(self, array: str, role: str, name: str, dims: Sequence[int]) -> Share:
        """Rows (i, j) of a head become rows (j, i): see `placing.rotary_order`."""
        n_heads = self._sizes.n_heads if role == "attn_q" else self._sizes.n_heads_kv
        length, n_rows = (dims[0], dims[1]) if len(dims) > 1 else (1, dims[0])
        if n_rows % (2 * n_heads):
            raise _misfit(name, dims, f"{n_heads} heads")
        half = n_rows // n_heads // 2
        axes = (
            Strided(n_heads, 2 * half * length),
            Strided(half, length),
            Strided(2, half * length),
            Strided(length, 1),
        )
        return Share(array, tuple(dims[::-1]), 0, math.prod(dims), 0, axes)

    def _of_latent(self, array: str, role: str, name: str, dims: Sequence[int]) -> Share:
        """DeepSeek's keys (transposed by head) or values, of the projection to both."""
        n_heads, _, n_key, n_value = self._sizes
        is_key = role == "attn_k_b"
        n_latent = dims[1] if is_key else dims[0]
        wanted = (n_key, n_latent, n_heads) if is_key else (n_latent, n_value, n_heads)
        if tuple(dims) != wanted:
            raise _misfit(name, dims, f"{n_heads} heads of {n_key} and {n_value} numbers")
        per_head = (n_key + n_value) * n_latent
        shape = (n_heads * (n_key + n_value), n_latent)
        n_weights = math.prod(dims)
        if is_key:
            turned = (Strided(n_heads, per_head), Strided(n_latent, 1), Strided(n_key, n_latent))
            return Share(array, shape, 0, n_weights, 0, turned)
        axes = (Strided(n_heads, per_head), Strided(n_value * n_latent, 1))
        return Share(array, shape, 0, n_weights, n_key * n_latent, axes)

    def _of_experts(
        self, prefix: str, role: str, leaf: str, name: str, dims: Sequence[int]
    ) -> tuple[Share, ...]:
        module = prefix + self._naming.experts[role]
        if self._naming.is_woven:
            return (_woven(module, role, leaf, name, dims),)
        if len(dims) != 3:
            raise _misfit(name, dims, "a stack of experts")
        length, n_rows, n_experts = dims
        each = length * n_rows
        return tuple(
            Share(f"{module.format(i)}.{leaf}", (n_rows, length), i * each, (i + 1) * each)
            for i in range(n_experts)
        )

    def _fused(
        self, prefix: str, leaf: str, name: str, dims: Sequence[int]
    ) -> tuple[Share, ...] | None:
        """Gate and up of all experts in one tensor, the rows of gate first."""
        modules = [self._naming.experts.get(role) for role in ("ffn_gate_exps", "ffn_up_exps")]
        if None in modules or self._naming.is_woven:
            return None
        if len(dims) != 3 or dims[1] % 2:
            raise _misfit(name, dims, "a stack of gate and up")
        length, n_rows, n_experts = dims
        each = length * n_rows // 2
        return tuple(
            Share(
                f"{prefix}{str(modules[i % 2]).format(i // 2)}.{leaf}",
                (n_rows // 2, length),
                i * each,
                (i + 1) * each,
            )
            for i in range(2 * n_experts)
        )


def _woven(module: str, role: str, leaf: str, name: str, dims: Sequence[int]) -> Share:
    """All experts of gpt-oss: inputs come before outputs, and gate and up alternate."""
    is_bias = leaf == "bias"
    if len(dims) != (2 if is_bias else 3):
        raise _misfit(name, dims, "a stack of experts")
    length, n_rows, n_experts = (1, *dims) if is_bias else dims
    n_woven = 1 if role == "ffn_down_exps" else 2
    width = n_woven * n_rows
    axes = (Strided(n_experts, length * width), Strided(n_rows, n_woven), Strided(length, width))
    shape = (n_experts, width) if is_bias else (n_experts, length, width)
    array = f"{module}_bias" if is_bias else module
    return Share(array, shape, 0, math.prod(dims), int(role == "ffn_up_exps"), axes)


def _whole(array: str, dims: Sequence[int]) -> tuple[Share]:
    return (Share(array, tuple(dims[::-1]), 0, math.prod(dims)),)


def _misfit(name: str, dims: Sequence[int], what: str) -> SafetensorsError:
    return SafetensorsError(f"tensor {quoted(name)} of shape {list(dims)} is not of {what}")
