"""Whether tensors have the shapes that ``config.json`` asks for.

A configuration of another model would have rows of queries and keys put in a wrong order, and hides
experts that are missing. Sizes that it leaves out, as transformers has defaults for them, are not
looked at.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from recover._text import quoted, some
from recover.containers.huggingface.architectures import Architecture, text_config
from recover.containers.model import StoredTensor
from recover.errors import SafetensorsError

_LAYER = re.compile(r"blk\.(\d+)\.")
_STORED_LAYER = re.compile(r"(?:language_model\.)?model\.(?:language_model\.)?layers\.(\d{1,9})\.")
N_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""What ``config.json`` calls the number of experts."""
_OF_EXPERTS = ("moe_intermediate_size", "intermediate_size")


class _Wanted(NamedTuple):
    """A size that a configuration states."""

    axis: int
    """Of the tensor; 0 is the row length."""
    size: int
    keys: str
    may_be_more: bool = False


class _Placed(Protocol):
    """The tensors of a folder, and arrays without a place."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]: ...

    @property
    def unplaced(self) -> list[str]: ...


def check_sizes(
    placed: _Placed, architecture: Architecture, config: Mapping[str, Any], *, is_whole: bool
) -> None:
    """Refuse a configuration that contradicts the tensors.

    Parameters
    ----------
    placed
        Has the tensors, and the names of arrays without a place.
    architecture : Architecture
        Of the model.
    config : mapping of str to Any
        Of ``config.json``.
    is_whole : bool
        Whether no layer may be missing.

    Raises
    ------
    SafetensorsError
        With the first tensor and the size that contradict each other.
    """
    if not placed.tensors:
        raise SafetensorsError(
            f"{some([quoted(name) for name in placed.unplaced]) or 'nothing that it holds'}: no"
            f" tensor of the architecture that config.json names"
            f" ({quoted(str(text_config(config).get('model_type')))}); is it that of another model?"
        )
    sizes = Sizes(architecture, config)
    for name, tensor in placed.tensors.items():
        for axis, size, keys, may_be_more in sizes.of(name):
            found = tensor.dims[axis] if axis < len(tensor.dims) else 1
            if found < size or (found > size and not may_be_more):
                what = ("columns", "rows", "experts")[axis]
                raise SafetensorsError(
                    f"tensor {quoted(name)} has {found} {what}, but config.json says {size}"
                    f" ({keys})"
                )
    sizes.check_layers(placed.unplaced)
    if is_whole:
        sizes.check_all_there(placed.tensors)


class Sizes:
    """The sizes of tensors that a configuration states.

    Parameters
    ----------
    architecture : Architecture
        Of the model.
    config : mapping of str to Any
        Of ``config.json``.
    """

    def __init__(self, architecture: Architecture, config: Mapping[str, Any]) -> None:
        self._architecture = architecture
        self._config = text_config(config)

    def of_matrix(self, name: str) -> tuple[int | None, int | None]:
        """Row length and rows of a matrix by its name in GGUF files; None of what is not stated."""
        known = {axis: size for axis, size, _, may_be_more in self.of(name) if not may_be_more}
        return known.get(0), known.get(1)

    def _number(self, *keys: str) -> tuple[int, str] | None:
        """The first of these sizes that is given, and its key."""
        found = ((self._config.get(key), key) for key in keys)
        return next(((value, key) for value, key in found if type(value) is int), None)

    def of(self, name: str) -> Iterator[_Wanted]:
        """The sizes of a tensor by its name in GGUF files, as far as they are given."""
        role = _LAYER.sub("", name.removesuffix(".weight"))
        width, n_tokens = self._number("hidden_size"), self._number("vocab_size")
        inner, of_expert = self._number("intermediate_size"), self._number(*_OF_EXPERTS)
        n_experts = self._number(*N_EXPERTS)
        match role:
            case "token_embd" | "output":
                known = [(0, width)]
                if n_tokens is not None:  # rows are often padded
                    yield _Wanted(1, *n_tokens, may_be_more=True)
            case "output_norm" | "attn_norm" | "attn_qkv" | "ffn_up":
                known = [(0, width)]
            case "attn_q":
                known = [(0, width), (1, self._of_heads("num_attention_heads"))]
            case "attn_k" | "attn_v":
                known = [(0, width), (1, self._of_heads("num_key_value_heads"))]
            case "attn_output":
                known = [(0, self._of_values()), (1, width)]
            case "attn_q_a" | "attn_kv_a_mqa" | "ffn_gate_shexp" | "ffn_up_shexp":
                known = [(0, width)]
            case "attn_q_b":
                known = [(0, self._number("q_lora_rank"))]
            case "attn_kv_b":
                known = [(0, self._number("kv_lora_rank"))]
            case "ffn_down_shexp":
                known = [(0, self._of_shared_experts()), (1, width)]
            case "ffn_gate":
                known = [(0, width), (1, inner)]
            case "ffn_down":
                known = [(0, inner), (1, width)]
            case "ffn_gate_exps" | "ffn_up_exps":
                known = [(0, width), (1, of_expert), (2, n_experts)]
            case "ffn_down_exps":
                known = [(0, of_expert), (1, width), (2, n_experts)]
            case _:
                known = []
        for axis, number in known:
            if number is not None:
                yield _Wanted(axis, *number)

    def _of_heads(self, key: str) -> tuple[int, str] | None:
        """Rows of all heads; DeepSeek's have other sizes."""
        n_heads, head = self._number(key), self._number("head_dim")
        if n_heads is None or self._architecture.splits_kv:
            return None
        if head is not None:
            return n_heads[0] * head[0], f"{key} x head_dim"
        width, n_queries = self._number("hidden_size"), self._number("num_attention_heads")
        if not self._architecture.permutes_heads or width is None or n_queries is None:
            return None  # they may have a head_dim by default
        size = n_heads[0] * (width[0] // max(1, n_queries[0]))
        return size, f"{key} x hidden_size / num_attention_heads"

    def _of_values(self) -> tuple[int, str] | None:
        """Columns of what joins the heads."""
        if not self._architecture.splits_kv:
            return self._of_heads("num_attention_heads")
        n_heads, head = self._number("num_attention_heads"), self._number("v_head_dim")
        if n_heads is None or head is None:
            return None
        return n_heads[0] * head[0], "num_attention_heads x v_head_dim"

    def _of_shared_experts(self) -> tuple[int, str] | None:
        """Width of experts that see every token; several are stored as one."""
        size, n_shared = self._number("moe_intermediate_size"), self._number("n_shared_experts")
        if size is None or n_shared is None:
            return self._number("shared_expert_intermediate_size")
        return size[0] * n_shared[0], "moe_intermediate_size x n_shared_experts"

    def check_layers(self, unplaced: list[str]) -> None:
        """Refuse layers beyond the last one; those that predict further tokens have no place."""
        n_layers, more = self._number("num_hidden_layers"), self._number("num_nextn_predict_layers")
        if n_layers is None:
            return
        end = n_layers[0] + (0 if more is None else more[0])
        beyond = [
            name
            for name in unplaced
            if (match := _STORED_LAYER.match(name)) and int(match[1]) >= end
        ]
        if beyond:
            raise SafetensorsError(
                f"{some([quoted(name) for name in beyond])}: config.json says that there are"
                f" {n_layers[0]} layers (num_hidden_layers)"
            )

    def check_all_there(self, names: Iterable[str]) -> None:
        """Refuse layers that are missing altogether, where others are there."""
        n_layers = self._number("num_hidden_layers")
        if n_layers is None:
            return
        found = {int(match[1]) for name in names if (match := _LAYER.match(name))}
        missing = [str(i) for i in range(n_layers[0]) if i not in found]
        if found and missing:
            raise SafetensorsError(
                f"nothing of layer {some(missing)} is there, but config.json says that there are"
                f" {n_layers[0]} layers (num_hidden_layers); load the missing files, or name those"
                " that are meant instead of the folder"
            )
