"""Rotary embeddings that are scaled for long contexts, from ``config.json`` to GGUF."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from recover._text import quoted
from recover.errors import ReblockError
from recover.reblock.drafts import Draft
from recover.reblock.floats import F64Array
from recover.reblock.schemes.base import FloatRows

_LONGEST_HEAD = 1 << 16


def rope_scaling(config: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Metadata, without the architecture's name.

    Raises
    ------
    ReblockError
        If the kind of scaling is unknown or incomplete.
    """
    scaling = _entry(config)
    kind = _kind(scaling)
    if kind in (None, "default", "llama3"):  # llama3 is a tensor, not metadata
        return {}
    if kind not in ("linear", "yarn"):
        raise ReblockError(
            f"config.json: rope_scaling of type {quoted(str(kind))} is not supported"
        )
    found: dict[str, int | float | str] = {
        "rope.scaling.type": kind,
        "rope.scaling.factor": _number(scaling, "factor"),
    }
    if kind == "yarn":
        original = _number(scaling, "original_max_position_embeddings")
        found["rope.scaling.original_context_length"] = int(original)
        if "mscale_all_dim" in scaling:
            # as llama.cpp's converter writes it for deepseek2
            multiplier = 0.1 * _number(scaling, "mscale_all_dim")
            found["rope.scaling.yarn_log_multiplier"] = multiplier
    return found


def rope_factors(config: Mapping[str, Any]) -> list[Draft]:
    """The tensor ``rope_freqs.weight`` of Llama 3.1 and later; an empty list for others.

    The formula is that of `LlamaModel.generate_extra_tensors` in llama.cpp's converter: long waves
    are stretched by the factor, short ones are not, those between by something between.
    """
    scaling = _entry(config)
    if _kind(scaling) != "llama3":
        return []
    n_heads = _number(config, "num_attention_heads")
    head_size = int(_number(config, "hidden_size") / n_heads)
    if config.get("head_dim") is not None:
        head_size = int(_number(config, "head_dim"))
    if not 0 < head_size <= _LONGEST_HEAD:
        raise ReblockError(
            f"config.json: heads of {head_size} numbers; possible are 1 to {_LONGEST_HEAD}"
        )
    factor, context = (
        _number(scaling, "factor"),
        _number(scaling, "original_max_position_embeddings"),
    )
    low, high = _number(scaling, "low_freq_factor"), _number(scaling, "high_freq_factor")
    if high <= low:
        raise ReblockError("config.json: rope_scaling has no range of frequencies")
    base = _number(config, "rope_theta") if "rope_theta" in config else 10000.0
    wave = 2 * math.pi * base ** (np.arange(0, head_size, 2) / head_size)
    smooth = np.clip((context / wave - low) / (high - low), 0, 1)
    factors: F64Array = (1 / ((1 - smooth) / factor + smooth)).reshape(1, -1)
    rows = FloatRows(
        n_rows=1,
        row_length=factors.size,
        group=None,
        obstacle="",
        reference=lambda first, last: factors[first:last].astype(np.float32).astype(np.float64),
    )
    return [
        Draft(
            name="rope_freqs.weight",
            dims=(factors.size,),
            stored_as="F32",
            rows=rows,
            is_float=True,
        )
    ]


def _entry(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("rope_scaling")
    return found if isinstance(found, dict) else {}


def _kind(scaling: Mapping[str, Any]) -> Any:
    return scaling.get("rope_type", scaling.get("type"))


def _number(config: Mapping[str, Any], key: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise ReblockError(f"config.json: {key} is {quoted(str(value))}, not a positive number")
    return float(value)
