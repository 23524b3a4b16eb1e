"""Rotary embeddings of a model, from the metadata of a GGUF file to ``config.json``."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from recover.containers.model import StoredTensor
from recover.errors import SafetensorsError

_BASES = {"gemma3": 1e6}  # that llama.cpp takes where none is said; else 10000
_CLOSE = 1e-5  # of factors, relatively: float32 arithmetic in another order
_CONTEXTS = (8192, 4096, 2048, 16384, 32768, 65536, 131072)


class Said(Protocol):
    """See `recover.containers.huggingface.configuration.Said`."""

    @property
    def architecture(self) -> str: ...  # noqa: D102
    @property
    def tensors(self) -> Mapping[str, StoredTensor]: ...  # noqa: D102

    def get(self, key: str) -> Any: ...  # noqa: D102
    def integer(self, key: str, default: int | None = None) -> int: ...  # noqa: D102
    def number(self, key: str, default: float | None = None) -> float | None: ...  # noqa: D102


def rope_entries(said: Said) -> dict[str, Any]:
    """The entries of ``config.json`` on rotary embeddings.

    Raises
    ------
    SafetensorsError
        If they are scaled in a way that it has no words for.
    """
    base = said.number("rope.freq_base", _BASES.get(said.architecture, 10000.0))
    assert base is not None
    entries: dict[str, Any] = {"rope_theta": base, "rope_scaling": _scaling(said, base)}
    original = said.get("rope.scaling.original_context_length")
    if said.architecture == "phi3" and original is not None:
        entries["original_max_position_embeddings"] = original
    return entries


def _scaling(said: Said, base: float) -> dict[str, Any] | None:
    if (factors := _factors(said, "rope_freqs.weight")) is not None:
        return _llama3(said, base, factors)
    short = _factors(said, "rope_factors_short.weight")
    long = _factors(said, "rope_factors_long.weight")
    if short is not None and long is not None:
        lists = {"short_factor": _decimals(short), "long_factor": _decimals(long)}
        return {"type": "longrope", **lists}  # what transformers asks of Phi 3
    kind = said.get("rope.scaling.type")
    factor = said.number("rope.scaling.factor", said.number("rope.scale_linear"))
    if kind in (None, "linear") and factor not in (None, 0.0, 1.0):
        return {"rope_type": "linear", "factor": factor}
    if kind in (None, "none", "linear"):
        return None
    if kind != "yarn":
        raise SafetensorsError(
            f"rotary embeddings are scaled in a way ({kind}) that config.json cannot be rebuilt"
            " from; take one with --config"
        )
    return _yarn(said, factor)


def _yarn(said: Said, factor: float | None) -> dict[str, Any]:
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": said.get("rope.scaling.original_context_length"),
        "beta_fast": said.number("rope.scaling.yarn_beta_fast"),
        "beta_slow": said.number("rope.scaling.yarn_beta_slow"),
        "attention_factor": said.number("rope.scaling.yarn_attn_factor"),
    }
    multiplier = said.number("rope.scaling.yarn_log_multiplier")
    if multiplier:  # a tenth of it is what llama.cpp's converter writes
        scaling["mscale"] = scaling["mscale_all_dim"] = round(multiplier * 10, 6)
    if said.architecture == "gpt-oss":
        scaling["truncate"] = False
    return {key: value for key, value in scaling.items() if value is not None}


def _factors(said: Said, name: str) -> NDArray[np.float64] | None:
    tensor = said.tensors.get(name)
    if tensor is None:
        return None
    return tensor.read(0, tensor.n_weights).astype(np.float64)


def _decimals(factors: NDArray[np.float64]) -> list[float]:
    return [float(str(np.float32(each))) for each in factors]


class _Llama3(NamedTuple):
    """Waves shorter than context / high stay, those longer than context / low are stretched."""

    factor: float
    low: float
    high: float
    context: int

    def factors(self, waves: NDArray[np.float64]) -> NDArray[np.float64]:
        """What waves of these lengths are stretched by."""
        smooth = np.clip((self.context / waves - self.low) / (self.high - self.low), 0, 1)
        stretched: NDArray[np.float64] = 1 / ((1 - smooth) / self.factor + smooth)
        return stretched


def _llama3(said: Said, base: float, factors: NDArray[np.float64]) -> dict[str, Any] | None:
    """The parameters that give these factors (see `LlamaModel.generate_extra_tensors`)."""
    factor = float(factors.max())
    if factor == factors.min() == 1:
        return None
    n = factors.size
    waves = 2 * math.pi * base ** (np.arange(n) / n)
    for found in _candidates(waves, factors, factor):
        if np.allclose(found.factors(waves), factors, rtol=_CLOSE, atol=0):
            return {
                "rope_type": "llama3",
                "factor": float(str(np.float32(found.factor))),
                "low_freq_factor": found.low,
                "high_freq_factor": found.high,
                "original_max_position_embeddings": found.context,
            }
    raise SafetensorsError(
        "tensor 'rope_freqs.weight' has other factors than those of Llama 3, so that config.json"
        " cannot be rebuilt; take one with --config"
    )


def _candidates(
    waves: NDArray[np.float64], factors: NDArray[np.float64], factor: float
) -> Iterator[_Llama3]:
    """Parameters to try, those of published models first."""
    for context in _CONTEXTS:
        yield _Llama3(factor, 1.0, 4.0, context)
    smooth = (1 / factors - 1 / factor) / (1 - 1 / factor)
    inner = np.flatnonzero((smooth > 0) & (smooth < 1))
    if inner.size > 1:  # smooth = (context / wave - low) / (high - low), and low is 1
        slope, below = np.polyfit(1 / waves[inner], smooth[inner], 1)
        high = round(1 - 1 / below, 3)
        yield _Llama3(factor, 1.0, high, round(slope * (high - 1)))
        return
    if inner.size == 1:  # any range that gives this wave its factor
        (only,) = inner
        for high in (4.0, 2.0, 8.0, 16.0):
            yield _Llama3(factor, 1.0, high, round(waves[only] * (1 + smooth[only] * (high - 1))))
    if inner.size == 0 and (factors == 1).any():  # between the last wave that stays and the next
        last = int(np.flatnonzero(factors == 1)[-1])
        ratio = float(waves[last + 1] / waves[last]) ** (1 / 3)
        yield _Llama3(factor, 1.0, ratio, round(waves[last] * ratio**2))
