"""Children whose codes prove nothing, beside their parents: their codes are too near to these."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from recover.containers.gguf.reader import open_gguf
from recover.errors import PlanError
from recover.inputs.nearest import _codes_of
from recover.inputs.samples import Sampler
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from tests.oracle import libggml
from tests.support.gguf_files import Stored, read_weights, stored, write_gguf

F32Array = NDArray[np.float32]

NAME = "blk.0.ffn_up.weight"
WORD = "quantized from"


def importance(kind: str, n: int, rng: np.random.Generator) -> F32Array:
    found = {
        "even": np.ones(n),
        "uneven": rng.lognormal(size=n),
        "peaked": np.where(rng.random(n) < 0.01, 1e4, np.abs(rng.standard_normal(n)) + 0.01),
    }[kind]
    return found.astype(np.float32)


def weighted(name: str, x: F32Array, columns: F32Array) -> Stored:
    raw = libggml.quantize(GGMLQuantizationType[name], x, columns)
    return Stored(name, raw.reshape(len(x), -1))


@pytest.mark.parametrize("matrix", ["even", "uneven", "peaked"])
@pytest.mark.parametrize(
    ("parent", "child"),
    [("Q4_K", "IQ3_S"), ("Q3_K", "IQ3_XXS"), ("Q4_K", "Q4_0"), ("Q5_K", "Q5_0")],
)
def test_they_are_told(
    parent: str,
    child: str,
    matrix: str,
    tmp_path: Path,
    real_rows: F32Array,
    rng: np.random.Generator,
) -> None:
    x = np.ascontiguousarray(real_rows[:128, :512])
    columns = importance(matrix, 512, rng)
    first = write_gguf(tmp_path / "parent.gguf", {NAME: stored(parent, x)})
    right = write_gguf(tmp_path / "right.gguf", {NAME: weighted(child, x, columns)})
    assert not [
        text for text in plan_merge([first, right], tmp_path / "o.gguf").warnings if WORD in text
    ]
    decoded = read_weights(first)[NAME]
    made = write_gguf(tmp_path / "made.gguf", {NAME: weighted(child, decoded, columns)})
    with pytest.raises(PlanError, match=r"made\.gguf was quantized from .*parent\.gguf"):
        execute_merge(plan_merge([first, made], tmp_path / "o.gguf"), n_threads=1)


@pytest.mark.parametrize("parent", ["Q2_K", "Q3_K"])
@pytest.mark.parametrize("child", ["IQ3_S", "IQ3_XXS"])
@pytest.mark.parametrize("matrix", ["even", "uneven", "peaked"])
def test_wide_cells(
    parent: str,
    child: str,
    matrix: str,
    tmp_path: Path,
    real_rows: F32Array,
    rng: np.random.Generator,
) -> None:
    """Weights lie in the middle of a coarse parent's cells more often than drawn ones."""
    x = np.ascontiguousarray(real_rows[:128, :512])
    x *= 1 + np.float32(1e-3) * rng.standard_normal(x.shape, np.float32)
    columns = importance(matrix, 512, rng)
    paths = [
        write_gguf(tmp_path / f"{kind}.gguf", {NAME: weighted(kind, x, columns)})
        for kind in (parent, child)
    ]
    assert not [text for text in plan_merge(paths, tmp_path / "o.gguf").warnings if WORD in text]


@pytest.mark.parametrize("kind", ["IQ3_S", "IQ2_S", "IQ2_XXS", "Q4_0"])
@pytest.mark.parametrize("odd", ["ternary", "sparse", "integers", "constant rows", "heavy"])
def test_exact_parents_tell_nothing(
    odd: str, kind: str, tmp_path: Path, real_rows: F32Array, rng: np.random.Generator
) -> None:
    x = np.ascontiguousarray(real_rows[:128, :512])
    x = {
        "ternary": np.sign(x) * (np.abs(x) > x.std()) * np.float32(0.02),
        "sparse": np.where(rng.random(x.shape) < 0.1, x, np.float32(0)),
        "integers": rng.integers(-3, 4, x.shape).astype(np.float32),
        "constant rows": np.broadcast_to(x[:, :1], x.shape).copy(),
        "heavy": (0.02 * rng.standard_t(1.5, x.shape)).astype(np.float32),
    }[odd].astype(np.float32)
    columns = importance("uneven", 512, rng)
    for parent in ("Q8_0", "Q6_K", "Q4_K", "Q3_K"):
        paths = [
            write_gguf(tmp_path / "a.gguf", {NAME: stored(parent, x)}),
            write_gguf(tmp_path / "b.gguf", {NAME: weighted(kind, x, columns)}),
        ]
        told = plan_merge(paths, tmp_path / "o.gguf").warnings
        assert not [text for text in told if WORD in text], parent


def test_the_last_code_of_all(tmp_path: Path) -> None:
    """Code 255 of Q8_0, which the encoder itself gives to each largest weight."""
    x = np.random.default_rng(2).standard_normal((64, 1024)).astype(np.float32)
    model = open_gguf(write_gguf(tmp_path / "model.gguf", {NAME: stored("Q8_0", x)}))
    child = Sampler().read(0, model.tensors[NAME], False, 0, 4096)
    found = _codes_of(child)
    assert found is not None
    assert found.book.shape == (255, 1)
    np.testing.assert_array_equal(found.nearest(child.values), found.codes)


@pytest.mark.parametrize(
    "pair",
    [
        *(("Q4_K", "Q4_1"), ("Q4_1", "Q4_K"), ("Q5_K", "Q5_1"), ("Q5_1", "Q5_K")),
        *(("IQ4_NL", "IQ4_XS"), ("IQ4_XS", "IQ4_NL"), ("Q4_1", "Q5_1")),
    ],
)
@pytest.mark.parametrize("matrix", ["none", "uneven"])
def test_which_is_the_child(
    pair: tuple[str, str],
    matrix: str,
    tmp_path: Path,
    real_rows: F32Array,
    rng: np.random.Generator,
) -> None:
    """Levels of one kind lie in the cells of both: scales tell, or what is held exactly."""
    parent, child = pair
    x = np.ascontiguousarray(real_rows[:32, :512])
    first = write_gguf(tmp_path / "parent.gguf", {NAME: stored(parent, x)})
    decoded = read_weights(first)[NAME]
    made = stored(child, decoded)
    if matrix != "none":
        made = weighted(child, decoded, importance(matrix, 512, rng))
    paths = [first, write_gguf(tmp_path / "made.gguf", {NAME: made})]
    for order, number in ((paths, 1), (paths[::-1], 0)):
        (tensor,) = plan_merge(order, tmp_path / "o.gguf").tensors
        assert [(each.child, each.parents) for each in tensor.descents] == [(number, (1 - number,))]
