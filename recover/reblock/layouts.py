"""From the layout of Hugging Face's transformers to that of llama.cpp: rows, stacks, norms.

Rows of queries and keys are reordered for llama, experts are stacked, and fused ones taken apart,
1 is added to Gemma's norms (see `recover.containers.huggingface.architectures`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from recover._text import quoted
from recover.containers.huggingface.architectures import (
    EXPERT,
    MAX_EXPERTS,
    QUERY_OR_KEY,
    Architecture,
    size_of,
)
from recover.containers.huggingface.placing import rotary_order
from recover.errors import ReblockError
from recover.reblock.drafts import Draft, selected, stacked, transposed
from recover.reblock.floats import F64Array
from recover.reblock.integers import check_row_length
from recover.reblock.schemes.base import FloatRows

# Constants that llama.cpp computes itself.
_DROPPED = re.compile(r".*(rotary_emb\.inv_freq|\.masked_bias|\.rotary_emb)")
_FUSED = re.compile(r"(?P<module>.+\.experts)\.gate_up_proj(?P<leaf>\.weight|_bias|)")
_DOWN = re.compile(r"(?P<module>.+\.experts)\.down_proj(?P<leaf>_bias|)")
_NORM = "norm.weight"
_OF_MLX = ".switch_mlp."


def laid_out(
    drafts: Sequence[Draft], architecture: Architecture, config: Mapping[str, Any]
) -> list[Draft]:
    """The tensors as llama.cpp has them, by the names that transformers would give them.

    Parameters
    ----------
    drafts : sequence of Draft
        As they are stored.
    architecture : Architecture
        Of the model.
    config : mapping of str to Any
        Of the language model.

    Raises
    ------
    ReblockError
        If experts are missing or differ, or shapes do not go with the configuration.
    """
    kept = [
        replace(draft, name=draft.name.replace(_OF_MLX, ".experts."))
        for draft in drafts
        if not _DROPPED.fullmatch(draft.name)
    ]
    apart = [part for draft in _with_experts(kept) for part in _experts_apart(draft, architecture)]
    if architecture.permutes_heads:
        apart = [_reordered(draft, config) for draft in apart]
    if architecture.norms_add_one:
        apart = [_plus_one(each) if _is_norm(each) else each for each in apart]
    return apart


def inputs_last(draft: Draft, architecture: Architecture) -> Draft:
    """Floats of experts with rows along their inputs: gpt-oss stores these the other way round."""
    match = _FUSED.fullmatch(draft.name) or _DOWN.fullmatch(draft.name)
    is_other = architecture.alternates and match is not None and not match["leaf"]
    return transposed(draft) if is_other and draft.plain is not None else draft


def _with_experts(drafts: Sequence[Draft]) -> list[Draft]:
    """Experts that are tensors of their own become one tensor each kind."""
    experts: dict[str, dict[int, Draft]] = {}
    order: dict[str, Draft | None] = {}
    for draft in drafts:
        match = EXPERT.fullmatch(draft.name)
        if match is None:
            order[draft.name] = draft
            continue
        number = int(match["number"])
        if number >= MAX_EXPERTS:
            raise ReblockError(f"tensor {quoted(draft.name)}: too many experts")
        name = f"{match['module']}.{match['rest']}"
        experts.setdefault(name, {})[number] = draft
        order.setdefault(name, None)
    found = []
    for name, single in order.items():
        if single is not None:
            found.append(single)
            continue
        numbered = experts[name]
        missing = next((i for i in range(len(numbered)) if i not in numbered), None)
        if missing is not None:
            raise ReblockError(f"tensor {quoted(name)}: expert {missing} is missing")
        found.append(stacked(name, [numbered[i] for i in range(len(numbered))]))
    return found


def _experts_apart(draft: Draft, architecture: Architecture) -> Iterator[Draft]:
    """Gate and up of experts that are stored together, and names of parameters as of modules."""
    fused, down = _FUSED.fullmatch(draft.name), _DOWN.fullmatch(draft.name)
    match = fused or down
    if match is None:
        yield draft
        return
    is_bias = match["leaf"] == "_bias"
    leaf = ".bias" if is_bias else ".weight"
    if fused is None:
        yield replace(draft, name=f"{match['module']}.down_proj{leaf}")
        return
    n_experts = draft.dims[-1]
    rows = as_column(draft) if is_bias else draft
    if rows.rows.n_rows % (2 * n_experts):
        raise ReblockError(f"tensor {quoted(draft.name)}: its rows are no gate and up")
    each = np.arange(rows.rows.n_rows).reshape(n_experts, -1)
    halves = np.split(each, 2, 1)
    if architecture.alternates:
        halves = [each[:, 0::2], each[:, 1::2]]
    for which, half in zip(("gate_proj", "up_proj"), halves, strict=True):
        dims: tuple[int, ...] = (half.shape[1], n_experts)
        if not is_bias:
            dims = (draft.dims[0], *dims)
        part = selected(rows, half.reshape(-1), dims)
        yield replace(part, name=f"{match['module']}.{which}{leaf}")


def _reordered(draft: Draft, config: Mapping[str, Any]) -> Draft:
    """Rows of queries and keys as llama.cpp's rotary embedding wants them for llama."""
    match = QUERY_OR_KEY.fullmatch(draft.name)
    if match is None:
        return draft
    n_heads = size_of(config, "num_attention_heads")
    if match["which"] == "k" and config.get("num_key_value_heads") is not None:
        n_heads = size_of(config, "num_key_value_heads")
    order = rotary_order(draft.name, draft.dims[-1], n_heads)
    return selected(as_column(draft) if len(draft.dims) == 1 else draft, order, draft.dims)


def as_column(draft: Draft) -> Draft:
    """Numbers as rows of one weight."""
    check_row_length(draft.name, draft.rows.row_length)
    whole = draft.rows.reference(0, draft.rows.n_rows).reshape(-1, 1)
    rows = FloatRows(
        n_rows=whole.size,
        row_length=1,
        group=None,
        obstacle="",
        reference=lambda first, last: whole[first:last],
    )
    return replace(draft, rows=rows, plain=None, stored=None)


def _is_norm(draft: Draft) -> bool:
    return draft.name.endswith(_NORM) and len(draft.dims) == 1


def _plus_one(draft: Draft) -> Draft:
    """A norm that is stored less 1; the sum is rounded to float32, as llama.cpp's converter does.

    The result is a tensor of F32.
    """
    rows = draft.rows
    assert isinstance(rows, FloatRows)

    def reference(first: int, last: int) -> F64Array:
        numbers = rows.reference(first, last).astype(np.float32)
        return (numbers + np.float32(1)).astype(np.float64)

    return replace(draft, rows=replace(rows, reference=reference), stored_as="F32", plain=None)
