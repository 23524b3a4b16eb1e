"""Scales of columns and rows that a folder does not hold, found beside an input of the original's.

AWQ and SmoothQuant multiply columns of matrices by scales, and divide what comes before by them: a
norm, or the rows of the matrix in front (see `recover.containers.huggingface.scaled`). GGUF files
keep the original's norms in F32, so that those of a folder tell its scales but for the rounding of
a norm. Scales that are taken back by rows of a matrix are told by the weights: `shared_scales`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from recover.containers.huggingface.formats.base import Matrix
from recover.containers.huggingface.scaled import Scales
from recover.inputs._overlaps import Side, most_likely
from recover.quants import F32Array

Bounds = Callable[[int, int], tuple[F32Array, F32Array]]
"""``bounds(start, end) -> lower, upper`` (n,) of the original's weights, by another input."""


@dataclass(frozen=True)
class ByNorm:
    """Columns whose scales a norm takes back; names as in GGUF, without block and ``.weight``.

    Attributes
    ----------
    norm : str
        The norm, which is divided by them.
    columns : tuple of str
        The matrices that have such columns, those of all experts alike. A router is one of them,
        though it is not quantized.
    """

    norm: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class ByRows:
    """Columns whose scales the rows of the matrix in front take back.

    Where the latter has more rows than there are scales (queries, keys and values in one, or gate
    and up), its last ones are meant. Its bias is divided by them, too: where there is one, it tells
    the scales as a norm does. Each expert has scales of its own.

    Attributes
    ----------
    rows : str
        The matrix in front.
    columns : str
        The matrix behind it.
    only_if_alike : bool
        Whether there are scales only where both have one shape: where each head of queries has keys
        and values of its own. Otherwise neither is scaled.
    """

    rows: str
    columns: str
    only_if_alike: bool = False


SCALINGS: tuple[ByNorm | ByRows, ...] = (
    ByNorm("attn_norm", ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_q_a", "attn_kv_a_mqa")),
    ByNorm("attn_q_a_norm", ("attn_q_b",)),
    ByNorm("attn_kv_a_norm", ("attn_kv_b",)),
    ByRows("attn_v", "attn_output", only_if_alike=True),
    ByRows("attn_qkv", "attn_output"),
    ByNorm(
        "ffn_norm",
        (
            *("ffn_gate", "ffn_up", "ffn_gate_exps", "ffn_up_exps", "ffn_gate_inp"),
            *("ffn_gate_shexp", "ffn_up_shexp"),
        ),
    ),
    ByRows("ffn_up", "ffn_down"),
    ByRows("ffn_up_exps", "ffn_down_exps"),
    ByRows("ffn_up_shexp", "ffn_down_shexp"),
)
"""What AutoAWQ scales (awq/models and awq/quantize/scale.py of its release 0.2.9).

Of the architectures llama, mistral, mixtral, qwen2, qwen3 and their mixtures of experts, phi3,
gemma, gemma2 and deepseek2. llm-compressor's AWQ does the same; its SmoothQuant the norms only.
"""

# Digits of floats, and the least number that they tell from 0.
_DIGITS = {"F16": 11, "BF16": 8, "F32": 24}
_LEAST = {"F16": 2.0**-24, "BF16": 2.0**-133, "F32": 2.0**-149}

# Norms of another revision of a model differ by less than this; scales differ by more.
_SPREAD = 0.02


def _half_ulp(x: F32Array, dtype: str) -> F32Array:
    """How far a number may be from one that is rounded to it."""
    ulp = np.ldexp(np.float32(1), np.frexp(x)[1] - _DIGITS[dtype])
    return (np.maximum(ulp, _LEAST[dtype]) / 2).astype(np.float32)


def norm_scales(original: F32Array, stored: F32Array, dtype: str, offset: float = 0) -> Scales:
    """Scales of columns, from the norm that takes them back; or of rows, from their bias.

    Parameters
    ----------
    original : float32 (n,)
        The original's norm, as GGUF has it.
    stored : float32 (n,)
        That of the folder: the original's over the scales.
    dtype : str
        How the folder stores it: ``F16``, ``BF16`` or ``F32``.
    offset : float
        What the folder's norm lacks: 1 for Gemma's (see `Floats.adds_one`).

    Returns
    -------
    Scales
        Not known where a norm is 0 or changes its sign. Three deviations are sure to hold.
    """
    whole = stored + np.float32(offset)
    rounding = _half_ulp(whole, dtype) + (_half_ulp(stored, dtype) if offset else 0)
    rounding += _half_ulp(whole, "F32")  # of the quotient below
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        relative = rounding / np.abs(whole) + _half_ulp(original, dtype) / np.abs(original)
        values = original / whole
    known = (values > 0) & np.isfinite(values) & (relative < 1)
    deviations = np.where(known, relative / np.float32(np.sqrt(3)), np.inf)
    return Scales(
        np.where(known, values, 1).astype(np.float32, copy=False), deviations.astype(np.float32)
    )


def compare_norms(
    original: F32Array, stored: F32Array, dtype: str, offset: float = 0
) -> Literal["plain", "scaled", "other"]:
    """What a norm of a folder is: the original's but for rounding, scaled, or another model's.

    See `norm_scales`. Norms of another revision of a model are all within a few percent of each
    other; scales are not.
    """
    whole = stored + np.float32(offset)
    slack = _half_ulp(original, dtype) + _half_ulp(stored, dtype)
    if offset:
        slack += _half_ulp(whole, dtype)
    if bool(np.all(np.abs(whole - original) <= slack)):
        return "plain"
    scales = norm_scales(original, stored, dtype, offset)
    known = np.isfinite(scales.deviations)
    if np.count_nonzero(known) * 2 > known.size and np.std(np.log(scales.values[known])) > _SPREAD:
        return "scaled"
    return "other"


def shared_scales(
    after: Matrix,
    after_bounds: Bounds,
    before: Matrix | None = None,
    before_bounds: Bounds | None = None,
) -> Scales:
    """Scales of the columns of a matrix, which the rows of the one before take back.

    The scales are those under which the cells of the codes have most in common with what another
    input says (see `recover.inputs._overlaps`). Each is told by a thousand weights or two, to half
    a percent beside Q4_K, and to a fifth beside Q8_0.

    Parameters
    ----------
    after : Matrix
        That with the columns (N, n), its rows unscaled; what is stored of it, if nothing else is
        scaled.
    after_bounds : Bounds
        Of its weights, by another input.
    before : Matrix, optional
        That with the rows (n, K), its columns unscaled. It is read as a whole, a sample of `after`
        only. Both together tell more, and what is a little off has opposite signs.
    before_bounds : Bounds, optional
        Of its weights.

    Returns
    -------
    Scales
        (n,); of the rows of `before` and of the columns of `after`. Not known where the inputs
        have nothing in common.
    """
    sides = [Side(after, after_bounds, by_row=False)]
    if before is not None and before_bounds is not None:
        sides.append(Side(before, before_bounds, by_row=True))
    return most_likely(sides, after.row_length)
