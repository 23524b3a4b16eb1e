"""Every type, ours and those of another package, through `tests.conformance`.

The other package is this file: it declares types, as data and NumPy functions, and its entry points
are faked. Nothing in `recover` knows of them.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from pickle import PicklingError, dumps
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from recover import (
    evaluate_models,
    execute_bounds,
    execute_merge,
    inspect_files,
    open_gguf,
    plan_bounds,
    plan_merge,
)
from recover.cli import main
from recover.containers.gguf.header import ValueType, encode_key_value, lay_out
from recover.errors import GGUFError, QuantError
from recover.evidence.densities import correlation, density, likelihood, tempering
from recover.quants import (
    OpaqueType,
    ScalarType,
    TensorType,
    U8Array,
    VectorType,
    _registry,
    all_types,
    dequantize,
    quantize,
    type_by_id,
    type_by_name,
)
from recover.quants.base import integer_levels, rounding_cells, table
from tests import conformance

F32 = NDArray[np.float32]


# Blocks of 32 weights: 16 bytes with codes of 4 bits, even weights low, and a scale d, an f16, of
# which the largest weight is 7. Codes are round(x / d) + 7 with the stored d: 0 to 14.


def _unpack(raw: U8Array, codes: U8Array, scale: F32, offset: F32) -> None:
    blocks = raw.reshape(-1, 18)
    pairs = codes.reshape(-1, 16, 2)
    pairs[:, :, 0], pairs[:, :, 1] = blocks[:, :16] & 15, blocks[:, :16] >> 4
    d = np.ascontiguousarray(blocks[:, 16:]).view("<f2").astype(np.float32)
    scale.reshape(-1, 2)[:] = d
    offset[:] = -0.0


def _quantize(x: F32, _imatrix: F32, raw: U8Array) -> None:
    blocks, x = raw.reshape(-1, 18), x.reshape(-1, 32)
    d = (np.abs(x).max(axis=1, keepdims=True) / np.float32(7)).astype("<f2")
    scaled = np.divide(x, d.astype(np.float32), out=np.zeros_like(x), where=d > 0)
    codes = (np.clip(np.rint(scaled), -7, 7) + 7).astype(np.uint8)
    blocks[:, :16] = codes[:, ::2] | codes[:, 1::2] << 4
    blocks[:, 16:] = d.view(np.uint8).reshape(-1, 2)


_LOWER, _UPPER = rounding_cells(15, first=-7)

TOY = ScalarType(
    name="TOY_4",
    type_id=241,
    file_type=1241,
    block_size=32,
    type_size=18,
    levels=integer_levels(first=-7),
    lower_levels=_LOWER,
    upper_levels=_UPPER,
    d_at=16,
    unpack=_unpack,
    quantize=_quantize,
    noise=0.082,
    relative_mse=0.0104,
)

# The same blocks, whose codes stand for levels of a book of their own; only decoded.
BOOK = table(np.sign(np.arange(-7, 8)) * np.abs(np.arange(-7, 8)) ** 1.2)


def _decode(raw: U8Array, out: F32) -> None:
    codes, (scale, offset) = np.empty(out.size, np.uint8), np.empty((2, out.size // 16), np.float32)
    _unpack(raw, codes, scale, offset)
    out[:] = np.repeat(scale, 16) * BOOK[codes]


VECTOR = VectorType(
    name="TOY_V",
    type_id=242,
    block_size=32,
    type_size=18,
    decode=_decode,
    relative_mse=0.0091,
)
BY_ROWS = OpaqueType(
    name="TOY_R4", type_id=243, block_size=32, type_size=18, row_header=4, rows_interleaved=4
)
NOT_IN_GGUF = replace(TOY, name="TOY_S", type_id=None, file_type=None, file_types={})
THEIRS = (TOY, VECTOR, BY_ROWS, NOT_IN_GGUF)


class EntryPoint:
    """What `importlib.metadata` gives of an installed package."""

    def __init__(self, value: Any) -> None:
        self.value = "toys:TYPES"
        self._loaded = value

    def load(self) -> Any:
        if isinstance(self._loaded, Exception):
            raise self._loaded
        return self._loaded


Install = Callable[..., list[str]]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Fake that packages are installed; returns the groups whose entry points are asked for."""

    def fake(*values: Any) -> list[str]:
        asked: list[str] = []

        def entry_points(*, group: str) -> list[EntryPoint]:
            asked.append(group)
            return [EntryPoint(value) for value in values if group == "recover.types"]

        monkeypatch.setattr(metadata, "entry_points", entry_points)
        _registry.forget_types_of_others()
        return asked

    yield fake
    monkeypatch.undo()
    _registry.forget_types_of_others()


def cases(kinds: tuple[TensorType, ...]) -> list[Any]:
    return [
        pytest.param(kind, check, id=f"{kind.name}-{check.__name__.removeprefix('check_')}")
        for kind in kinds
        for check in conformance.checks(kind)
    ]


@pytest.mark.parametrize(("kind", "check"), cases(all_types()))
def test_our_types(kind: TensorType, check: conformance.Check) -> None:
    check(kind)


@pytest.mark.parametrize(("kind", "check"), cases(THEIRS))
def test_types_of_another_package(
    kind: TensorType, check: conformance.Check, install: Install
) -> None:
    install(TOY, [VECTOR, BY_ROWS], (NOT_IN_GGUF,))
    check(kind)


def test_types_come_by_their_ids(install: Install) -> None:
    install(THEIRS)
    ids = [kind.type_id for kind in all_types() if not kind.is_alternative]
    assert {241, 242, 243} < set(ids)
    known = [each for each in ids if each is not None]
    assert ids == [*known, *[None] * (len(ids) - len(known))]
    assert all(a < b for a, b in pairwise(known))
    assert all_types()[-1] is NOT_IN_GGUF


def test_entry_points_are_not_looked_for_without_need(install: Install) -> None:
    asked = install(THEIRS)
    assert type_by_name("q4_k") is type_by_id(12)
    dumps(type_by_id(12))
    assert not asked
    assert type_by_id(241) is TOY
    assert type_by_name("toy_v") is VECTOR
    assert asked == ["recover.types"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (ImportError("no module toys"), "'toys:TYPES' cannot be loaded: no module toys"),
        (7, "'toys:TYPES' gives no tensor types"),
        ([TOY, "Q4_K"], "'toys:TYPES' gives no tensor types"),
        (replace(TOY, name="Q4_k"), "two tensor types share the name Q4_k"),
        (replace(TOY, type_id=12), "two tensor types share the id 12"),
    ],
)
def test_packages_that_are_wrong(value: Any, expected: str, install: Install) -> None:
    install(value)
    with pytest.raises(QuantError, match=expected):
        type_by_name("TOY_4")
    assert type_by_name("Q4_K").type_id == 12  # ours are found all the same


def test_a_type_that_nobody_knows_is_not_pickled(install: Install) -> None:
    install()
    with pytest.raises(QuantError, match="'TOY_4' is unknown"):
        dumps(TOY)
    with pytest.raises(PicklingError, match="Q4_K is not the registered type"):
        dumps(replace(TOY, name="Q4_K"))


def test_types_without_a_table_of_densities() -> None:
    """Flat in closed cells, normal where a cell is open or nothing is proven."""
    rows = density(TOY)
    assert rows[0].tolist() == [0, 0, 0, -0.5, 0.5]
    lowest, highest = rows[1], rows[2]
    assert lowest[:2] == pytest.approx([0, -0.5 / TOY.noise])
    assert lowest[3:] == pytest.approx([-4 * TOY.noise**0.5, 0.5])
    assert highest[3:] == pytest.approx([-0.5, 4 * TOY.noise**0.5])
    assert not rows[3].any()
    assert density(TOY, has_cells=False)[0, 1] == pytest.approx(-0.5 / TOY.noise)
    assert likelihood(VECTOR) == (1, VECTOR.relative_mse)


def test_a_package_may_have_a_table_of_densities(tmp_path: Path) -> None:
    rows = [[0.0, -1.0, 0.0, -0.5, 0.5]] * 3 + [[0.0] * 5]
    path = tmp_path / "TOY_4.json"
    path.write_text(json.dumps({"plain": rows, "weighted": rows}))
    assert density(replace(TOY, densities=path))[0, 1] == -1


def test_a_table_may_tell_of_types_that_do_not_know_it(tmp_path: Path) -> None:
    """What coarser ones count beside the type, and how errors of vector types go together."""
    q2, q4, iq3 = map(type_by_name, ("Q2_K", "Q4_0", "IQ3_S"))
    path = tmp_path / "table.json"
    counts = {"pairs of coarser": {"Q2_K": 0.5}, "unproven of coarser": {"Q4_0": 1.5}}
    path.write_text(json.dumps(counts | {"pairs": {"Q8_0": 0.75}, "correlations": {"IQ3_S": 0.25}}))
    finer = replace(TOY, densities=path)
    assert tempering(q2, [finer]) == 0.5
    assert tempering(q2, [TOY]) == 1
    assert tempering(finer, [type_by_name("Q8_0")]) == 0.75
    assert tempering(q4, [finer]) == 1
    assert tempering(q4, [finer], has_cells=False) == 1.5
    vector = replace(VECTOR, densities=path)
    assert isinstance(iq3, VectorType)
    assert correlation(iq3, vector) == correlation(vector, iq3) == 0.25
    assert correlation(VECTOR, iq3) == 0
    assert correlation(VECTOR, VECTOR) == 0.5


# Files.


def gguf(path: Path, tensors: dict[str, tuple[TensorType, tuple[int, ...], U8Array]]) -> Path:
    layout = lay_out(
        [encode_key_value("general.architecture", ValueType.STRING, "llama")],
        [(name, dims, kind) for name, (kind, dims, _) in tensors.items()],
        32,
    )
    file = bytearray(layout.n_bytes)
    file[: len(layout.header)] = layout.header
    for position, (_, _, raw) in zip(layout.positions, tensors.values(), strict=True):
        file[position : position + raw.size] = raw.tobytes()
    path.write_bytes(file)
    return path


NAME = "blk.0.ffn_up.weight"


@pytest.fixture
def x(rng: np.random.Generator) -> F32:
    return (rng.standard_t(20, (96, 512)) / 32).astype(np.float32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def model(path: Path, kind: TensorType, raw: U8Array, x: F32) -> Path:
    norm = np.linspace(0.5, 1.5, x.shape[1], dtype=np.float32)
    norms = {"output_norm.weight": (type_by_name("F32"), norm.shape, norm.view(np.uint8))}
    return gguf(path, {NAME: (kind, x.shape[::-1], raw), **norms})


@pytest.fixture
def files(x: F32, tmp_path: Path, install: Install) -> dict[str, Path]:
    """One matrix in several types, and the original."""
    install(THEIRS)
    raws = {kind.name: quantize(x, kind) for kind in (TOY, *map(type_by_name, ("Q5_K", "F32")))}
    # The nearest level of the book for the scale of the other type.
    raw = raws["TOY_4"].reshape(-1, 18).copy()
    d = raw[:, 16:].copy().view("<f2").astype(np.float32) * np.float32(7 / BOOK[:15].max())
    raw[:, 16:] = d.astype("<f2").view(np.uint8)
    scaled = x.reshape(-1, 32) / d
    codes = np.abs(scaled[:, :, None] - BOOK[:15]).argmin(axis=2).astype(np.uint8)
    raw[:, :16] = codes[:, ::2] | codes[:, 1::2] << 4
    raws["TOY_V"] = raw.reshape(-1)
    return {
        name: model(tmp_path / f"{name}.gguf", type_by_name(name), stored, x)
        for name, stored in raws.items()
    }


def mean_square(path: Path, x: F32) -> float:
    tensor = open_gguf(path).tensors[NAME]
    off = tensor.read(0, tensor.n_weights).astype(np.float64) - x.reshape(-1)
    return float(np.mean(off**2))


@pytest.mark.parametrize("names", [("TOY_4", "Q5_K"), ("TOY_4", "TOY_V"), ("TOY_V", "Q5_K")])
def test_merge(names: tuple[str, str], files: dict[str, Path], x: F32, tmp_path: Path) -> None:
    """Better than the best of the inputs; and the error that is expected is nearly the real one."""
    inputs = [files[name] for name in names]
    out = tmp_path / "out.gguf"
    plan = plan_merge(inputs, out)
    result = execute_merge(plan)
    alone = [mean_square(path, x) for path in inputs]
    merged = mean_square(out, x)
    assert merged < 0.98 * min(alone)
    (tensor,) = [each for each in result.tensors if each.plan.name == NAME]
    assert tensor.expected_rmse == pytest.approx(merged**0.5, rel=0.2)


def test_inspect(files: dict[str, Path]) -> None:
    found = inspect_files([files["TOY_4"], files["TOY_V"], files["Q5_K"]]).to_json()
    kinds = [each["types"] for each in found["files"]]
    assert [next(iter(each)) for each in kinds] == ["TOY_4", "TOY_V", "Q5_K"]


def test_bounds(files: dict[str, Path], x: F32, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    out = tmp_path / "bounds.safetensors"
    plan = plan_bounds([files["TOY_4"], files["Q5_K"]], out)
    execute_bounds(plan)
    found = load_file(out)
    assert (found[f"{NAME}.lower"].reshape(x.shape) <= x).all()
    assert (found[f"{NAME}.upper"].reshape(x.shape) >= x).all()
    width = found[f"{NAME}.upper"] - found[f"{NAME}.lower"]
    assert np.isfinite(width).mean() > 0.9


def test_evaluate(files: dict[str, Path], x: F32) -> None:
    (found,) = evaluate_models([files["TOY_4"]], files["F32"])
    (tensor,) = [each for each in found.tensors if each.name == NAME]
    assert tensor.errors.mse == pytest.approx(mean_square(files["TOY_4"], x), rel=1e-9)


def test_quantize(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "quantized.gguf"
    assert main(["quantize", str(files["F32"]), "toy_4", "-o", str(out)]) == 0
    made, expected = (open_gguf(path) for path in (out, files["TOY_4"]))
    assert made.get("general.file_type") == 1241
    assert np.array_equal(made.tensors[NAME].raw, expected.tensors[NAME].raw)


def test_without_the_package_its_files_are_refused(
    files: dict[str, Path], install: Install
) -> None:
    install()
    with pytest.raises(GGUFError, match=f"tensor '{NAME}': tensor type 241 is unknown"):
        open_gguf(files["TOY_4"])


def test_types_that_are_stored_by_rows(tmp_path: Path, install: Install) -> None:
    """Their sizes and those of what follows are found; weights are not."""
    install(THEIRS)
    raw = np.arange(8 * (4 + 2 * 18), dtype=np.uint8)
    after = np.arange(4, dtype=np.float32)
    tensors = {
        "rows": (BY_ROWS, (64, 8), raw),
        "after": (type_by_name("F32"), (4,), after.view(np.uint8)),
    }
    found = open_gguf(gguf(tmp_path / "rows.gguf", tensors)).tensors
    assert np.array_equal(found["rows"].raw, raw)
    assert found["rows"].n_bytes == raw.size
    assert np.array_equal(found["rows"].part(4 * 64, 8 * 64), raw[160:])
    assert np.array_equal(found["after"].read(0, 4), after)
    with pytest.raises(QuantError, match="64 weights are no whole number of 4 rows of 64"):
        found["rows"].part(64, 128)
    with pytest.raises(QuantError, match="TOY_R4"):
        dequantize(raw, BY_ROWS)
    four = gguf(tmp_path / "four.gguf", {"rows": (BY_ROWS, (64, 4), raw[:160])})
    broken = bytearray(four.read_bytes())
    at = broken.index((4).to_bytes(8, "little"), broken.index(b"rows"))
    broken[at : at + 8] = (3).to_bytes(8, "little")
    four.write_bytes(broken)
    with pytest.raises(GGUFError, match="tensor 'rows': 3 rows cannot be stored as TOY_R4"):
        open_gguf(four)


def test_a_type_without_an_id_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="tensor 'x': GGUF files cannot store TOY_S"):
        gguf(tmp_path / "x.gguf", {"x": (NOT_IN_GGUF, (32,), np.zeros(18, np.uint8))})
