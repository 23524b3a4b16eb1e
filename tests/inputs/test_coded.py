"""Floats that are no more than the values of codes, and genuine ones, which are not."""

from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from recover.cli import main
from recover.inputs.open import open_model
from recover.inputs.originals.coded import find_codes, of_codes
from recover.quants import F32Array, dequantize, quantize, type_by_name
from tests.hostile.builder import kv, string
from tests.hostile.kinds import STRING
from tests.oracle import libggml
from tests.oracle.weights import gguf_weights, sentence_encoder_weights
from tests.support.fork_files import Part, file_of
from tests.support.models import TINY
from tests.support.right_sets import FLOATS, originals

Console = pytest.CaptureFixture[str]

BITS = {
    "Q2_K": 2,
    "Q3_K": 3,
    "Q4_0": 4,
    "Q4_1": 4,
    "Q4_K": 4,
    "IQ4_NL": 4,
    "IQ4_XS": 4,
    "MXFP4": 4,
    "Q5_0": 5,
    "Q5_1": 5,
    "Q5_K": 5,
    "NVFP4": 5,
    "Q6_K": 6,
    "Q8_0": 8,
    "IQ2_XXS": 3,
    "IQ2_S": 3,
    "IQ3_XXS": 4,
    "IQ3_S": 4,
}
NAME = "blk.0.ffn_up.weight"
OF_FEW_VALUES = "signs", "ternary", "integers"


@pytest.fixture(scope="module")
def weights() -> F32Array:
    """Trained ones, (64, 256)."""
    x = next(each for each in gguf_weights(TINY) if each.shape[1] == 256)
    return np.ascontiguousarray(x[:64])


def decoded(x: F32Array, name: str) -> F32Array:
    kind = type_by_name(name)
    if name.startswith(("IQ2", "IQ3")):
        raw = libggml.quantize(kind.type_id, x, np.ones(x.shape[1], np.float32))
    else:
        raw = quantize(x, kind)
    return dequantize(raw.reshape(-1), kind).reshape(x.shape)


def write(path: Path, x: F32Array, stored: str) -> Path:
    kind = type_by_name(stored)
    assert kind.type_id is not None
    raw = x.astype(FLOATS[stored]).tobytes()
    entries = [kv("general.architecture", STRING, string("llama"))]
    path.write_bytes(file_of([Part(NAME, x.shape[::-1], kind.type_id, raw)], entries))
    return path


def bits_of(path: Path) -> int:
    """Of the codes; 0 if none are found."""
    found = find_codes(open_model(path).tensors[NAME])
    return found.n_bits if found else 0


@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize("name", BITS)
def test_codes_are_found(name: str, stored: str, weights: F32Array, tmp_path: Path) -> None:
    found = bits_of(write(tmp_path / "a.gguf", decoded(weights, name), stored))
    # Rounding to BF16 hides one of Q3_K's grids in ten; no claim is below what the codes have.
    assert BITS[name] <= found <= BITS[name] + (name == "Q3_K" and stored == "BF16")


def kinds_of_weights(rng: np.random.Generator) -> Iterator[F32Array]:
    """Of all sizes, of which small ones are few numbers in F16 by themselves."""
    shape = 64, 256
    draws: list[Callable[[], NDArray[np.float64]]] = [
        lambda: rng.standard_normal(shape),
        lambda: rng.standard_t(3, shape),
        lambda: rng.uniform(1, 2, shape),
        lambda: 1 + 0.02 * rng.standard_normal(shape),
        lambda: 1 + 0.002 * rng.standard_normal(shape),
        lambda: np.exp(2 * rng.standard_normal(shape)),
        lambda: rng.standard_normal(shape) * (rng.random(shape) < 0.8),
        lambda: rng.standard_normal(shape) * (rng.random(shape) < 0.3),
    ]
    for exponent in range(-9, 2):
        for draw in draws:
            yield (draw() * 10.0**exponent).astype(np.float32)


@pytest.mark.parametrize("stored", FLOATS)
def test_other_floats_are_no_codes(stored: str, rng: np.random.Generator, tmp_path: Path) -> None:
    for x in kinds_of_weights(rng):
        assert not bits_of(write(tmp_path / "a.gguf", x, stored))


def test_trained_floats_are_no_codes(tmp_path: Path) -> None:
    assert not of_codes(open_model(TINY))
    for x in sentence_encoder_weights():
        if x.shape[1] % 32 == 0:
            for stored in FLOATS:
                assert not bits_of(write(tmp_path / "a.gguf", np.ascontiguousarray(x), stored))


def test_odd_floats_are_no_codes_but_those_of_few_values(tmp_path: Path) -> None:
    found = {
        name.rpartition(" ")[0]
        for name, x in originals().items()
        if x.ndim == 2 and bits_of(write(tmp_path / "a.gguf", x, name.split()[-1]))
    }
    assert found == set(OF_FEW_VALUES)


def test_what_rounds_to_one_binade_is_no_code(tmp_path: Path, rng: np.random.Generator) -> None:
    """BF16 numbers are multiples of a step if they are of one size, as any are."""
    x = rng.uniform(1, 2, (64, 256)).astype(ml_dtypes.bfloat16).astype(np.float32)
    assert not bits_of(write(tmp_path / "a.gguf", x, "BF16"))


def test_commands_say_so(weights: F32Array, tmp_path: Path, capsys: Console) -> None:
    files = {
        "codes": write(tmp_path / "codes.gguf", decoded(weights, "Q4_K"), "F16"),
        "right": write(tmp_path / "right.gguf", weights, "BF16"),
    }
    for name in ("Q8_0", "Q4_K"):
        main(["quantize", str(files["right"]), name, "-o", str(tmp_path / f"{name}.gguf"), "-q"])
    capsys.readouterr()
    says = "no more than the values of 4-bit codes in 'blk.0.ffn_up.weight'"
    quantized = [str(tmp_path / f"{name}.gguf") for name in ("Q8_0", "Q4_K")]
    for kind, path in files.items():
        out = str(tmp_path / "out")
        for command in (
            ["inspect", str(path)],
            ["merge", str(path), "-o", f"{out}.gguf", "--outtype", "q8_0"],
            ["quantize", str(path), "Q8_0", "-o", f"{out}.gguf"],
            ["evaluate", *quantized, "--truth", str(path)],
            ["calibrate", *quantized, "--truth", str(path), "-o", f"{out}.json"],
        ):
            assert main(command) == 0, command
            told = "".join(capsys.readouterr())
            assert (says in told) == (kind == "codes"), (command, told)
