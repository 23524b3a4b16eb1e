"""Right sets: inputs that were all quantized from one original, by any importance matrix."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from recover.errors import RecoverError
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from recover.quants import (
    F32Array,
    FloatType,
    TensorType,
    U8Array,
    VectorType,
    all_types,
    has_encoder,
    quantize,
    type_by_name,
)
from tests.hostile.builder import kv, string
from tests.hostile.kinds import STRING
from tests.oracle import libggml
from tests.oracle.weights import gguf_weights, sentence_encoder_weights
from tests.support.fork_files import Part, file_of
from tests.support.models import SHARED, TINY

Rng = np.random.Generator

# Not that one was quantized from another: of a tensor that both hold without an error it may be so.
ALARMS = "contradict", "disagree"
N_ROWS, N_COLUMNS = 16, 512
FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_SHORT = "IQ4_NL"  # what is taken for rows that the type's blocks do not divide


def trained() -> Iterator[tuple[str, F32Array]]:
    """Some rows of trained weights."""
    models = {"llama": SHARED / "llama-29m-bf16.gguf", "tiny": TINY}
    for label, path in models.items():
        if path.exists():
            yield from _some(label, gguf_weights(path))
    yield from _some("minilm", sentence_encoder_weights())


def _some(label: str, matrices: Iterator[F32Array]) -> Iterator[tuple[str, F32Array]]:
    for i, x in enumerate(itertools.islice(matrices, 0, 12, 4)):
        width = min(N_COLUMNS, x.shape[1] // 256 * 256)
        yield f"{label}.{i}", np.ascontiguousarray(x[:N_ROWS, :width])


def _student(rng: Rng, degrees: float) -> F32Array:
    return (0.02 * rng.standard_t(degrees, (N_ROWS, N_COLUMNS))).astype(np.float32)


def _where(x: F32Array, kept: NDArray[np.bool_]) -> F32Array:
    return np.where(kept, x, np.float32(0))


def odd(x: F32Array, rng: Rng) -> dict[str, F32Array]:
    """What is made of trained weights (n, k), and what is drawn."""
    n, k = x.shape
    rows, columns = np.arange(n)[:, None], np.arange(k)
    order = np.argsort(np.argsort(abs(x).reshape(n, -1, 4))).reshape(x.shape)
    is_large: NDArray[np.bool_] = order > 1
    powers = np.exp2(rng.uniform(-12, 12, (n, 1))).astype(np.float32)
    return {
        "sparse": _where(x, rng.random(x.shape) < 0.1),
        "very sparse": _where(x, rng.random(x.shape) < 0.005),
        "dead columns": _where(x, rng.random((k,)) < 0.5),
        "dead rows": _where(x, rows % 3 != 0),
        "dead but for one": _where(x, (columns % 256 == 3) | (rows % 2 == 0)),
        "2 of 4": _where(x, is_large),
        "student 3": _student(rng, 3),
        "student 1.5": _student(rng, 1.5),
        "one outlier": np.where((rows == 2) & (columns == 7), np.float32(50), x),
        "large columns": x * np.where(columns % 100 == 5, np.float32(300), np.float32(1)),
        "rows of any size": x * powers,
        "smooth columns": x * np.exp2(8 * np.sin(columns / 40)).astype(np.float32),
        "times 1e-5": x * np.float32(1e-5),
        "times 1e-3": x * np.float32(1e-3),
        "times 1e4": x * np.float32(1e4),
        "constant": np.full_like(x, 0.37),
        "constant rows": np.broadcast_to(x[:, :1], x.shape).copy(),
        "nearly constant": np.float32(1) + x * np.float32(1e-2),
        "positive": abs(x),
        "offset": x + 2 * x.std(),
        "signs": np.sign(x) * np.float32(0.02),
        "ternary": np.rint(np.clip(x / x.std(), -1, 1)) * np.float32(0.013),
        "integers": rng.integers(-3, 4, x.shape).astype(np.float32),
        "uniform": rng.uniform(-1, 1, x.shape).astype(np.float32),
        "low rank": (rng.standard_normal((n, 1)) * x[:1]).astype(np.float32),
        "zeros": np.zeros_like(x),
        "one row": x[:1, :256],
        "32 columns": x[:, :32],
        "one row of 32": x[:1, :32],
        "experts": x[: n // 4 * 4].reshape(4, -1, k),
        "dead expert": _where(x, rows >= n // 4).reshape(4, -1, k),
    }


def _peaked(x: F32Array, rng: Rng) -> F32Array:
    importance = np.abs(rng.standard_normal(x.shape[-1])).astype(np.float32) + np.float32(0.01)
    importance[rng.integers(0, importance.size, max(1, importance.size // 100))] *= 1e4
    return importance


def _with_zeros(x: F32Array, rng: Rng) -> F32Array:
    n = x.shape[-1]
    return np.where(rng.random(n) < 0.5, rng.random(n), 0).astype(np.float32)


def _smooth(x: F32Array, rng: Rng) -> F32Array:
    return np.exp(rng.standard_normal(x.shape[-1])).astype(np.float32)


def _uneven(x: F32Array, rng: Rng) -> F32Array:
    return np.exp(4 * rng.standard_normal(x.shape[-1])).astype(np.float32)


IMATRICES: dict[str, Callable[[F32Array, Rng], F32Array | None]] = {
    "": lambda x, rng: None,
    "smooth": _smooth,
    "peaked": _peaked,
    "zeros": _with_zeros,
    "uneven": _uneven,
}


@cache
def originals() -> dict[str, F32Array]:
    """All tensors, each rounded to a float type; its name ends in that."""
    rng = np.random.default_rng(1)
    real = dict(trained())
    tensors = real | odd(real["tiny.0"], rng)
    rounded = {
        f"{label} {kind}": x.astype(dtype).astype(np.float32)
        for label, x in tensors.items()
        for kind, dtype in FLOATS.items()
    }
    return {name: x for name, x in rounded.items() if np.isfinite(x).all()}


class Made(NamedTuple):
    """How an input is made."""

    kind: str
    imatrix: str

    def __str__(self) -> str:
        return f"{self.kind}({self.imatrix})" if self.imatrix else self.kind


def given(text: str) -> list[Made]:
    """A set like ``Q4_K(peaked)+Q8_0``."""
    parts = (each.removesuffix(")").partition("(") for each in text.split("+"))
    return [Made(kind, imatrix) for kind, _, imatrix in parts]


def kinds() -> list[str]:
    """The types that can be encoded, by recover or by ggml, and that files have."""
    return [kind.name for kind in all_types() if kind.type_id is not None and _is_made(kind)]


def _is_made(kind: TensorType) -> bool:
    return has_encoder(kind) or isinstance(kind, VectorType)


def takes_imatrix(kind: TensorType) -> bool:
    """Whether an importance matrix may matter to a type."""
    return not isinstance(kind, FloatType)


def encode(made: Made, x: F32Array, seed: int) -> tuple[TensorType, U8Array]:
    """Weights (..., k) in the type of an input, or what rows that are too short get."""
    kind = type_by_name(made.kind)
    if x.shape[-1] % kind.block_size:
        kind = type_by_name(_SHORT)
    importance = IMATRICES[made.imatrix](x, np.random.default_rng(seed))
    rows = x.reshape(-1, x.shape[-1])
    if has_encoder(kind):
        return kind, quantize(rows, kind, importance)
    needed = np.ones(x.shape[-1], np.float32) if importance is None else importance
    return kind, libggml.quantize(kind.type_id, rows, needed)


@cache
def encoded(made: Made, name: str) -> tuple[TensorType, U8Array]:
    """One of the originals in the type of an input."""
    return encode(made, originals()[name], sorted(originals()).index(name))


def write(path: Path, made: Made, names: Sequence[str]) -> Path:
    """A file of some tensors."""
    entries = [kv("general.architecture", STRING, string("llama"))]
    if made.imatrix:
        entries.append(kv("quantize.imatrix.file", STRING, string(f"{made.imatrix}.dat")))
    parts = []
    for name in names:
        kind, raw = encoded(made, name)
        assert kind.type_id is not None
        dims = originals()[name].shape[::-1]
        parts.append(Part(f"{name}.weight", dims, kind.type_id, raw.tobytes()))
    path.write_bytes(file_of(parts, entries))
    return path


def said(inputs: Sequence[Made], names: Sequence[str], method: str, folder: Path) -> str:
    """What a merge of some tensors says against its inputs; nothing if it is right."""
    paths = [write(folder / f"{i}.gguf", made, names) for i, made in enumerate(inputs)]
    try:
        plan = plan_merge(paths, folder / "out.gguf", method=method)
        result = execute_merge(plan, n_threads=1)
    except RecoverError as error:
        return str(error)
    warnings = [*plan.warnings, *result.warnings]
    return "\n".join(text for text in warnings if any(each in text for each in ALARMS))
