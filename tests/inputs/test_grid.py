"""Hidden grids: data made by NumPy and ml_dtypes, the way back judged without our own code."""

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from recover.cli import main
from recover.errors import ReblockError
from recover.inputs.originals._fit import INEXACT, NONE, OFF_GRID, ON_GRID, ZERO
from recover.inputs.originals.grid import STRICT, Floats, Grid, find_grid, read
from recover.reblock.float_source import open_float_original
from recover.reblock.integers import Request
from recover.reblock.source import Original, OriginalTensor
from tests.naive.grids import TYPES, coarsest_grids, rounded, stored_bytes
from tests.oracle.weights import gguf_weights, sentence_encoder_weights
from tests.support.gguf_files import write_out

F64 = NDArray[np.float64]
Generator = np.random.Generator

STORED = tuple(TYPES)
storage = pytest.mark.parametrize("type_name", STORED)


def bf16_scales(rng: Generator, shape: tuple[int, ...]) -> F64:
    scales = 0.002 * np.exp(rng.standard_normal(shape))
    return scales.astype(TYPES["BF16"]).astype(np.float64)


def integers(rng: Generator, n_rows: int, row_length: int, run: int, largest: int) -> F64:
    """Codes whose runs all have the largest code."""
    x = rng.standard_normal((n_rows, row_length // run, run))
    return np.rint(x / np.abs(x).max(-1, keepdims=True) * largest)


def floats(x: F64, type_name: str) -> Floats:
    return Floats(stored_bytes(x, type_name), type_name, x.shape[-1])


def read_all(stored: Floats, grid: Grid) -> tuple[NDArray[np.int16], F64]:
    words = stored.words(0, stored.n_weights)
    runs = read(words, stored.type_name, grid.run_length, grid.expected)
    return runs.codes, runs.scales


@storage
@pytest.mark.parametrize("largest", [127, 7])
@pytest.mark.parametrize("run", [32, 64, 96, 128, 768, 2048, 6144])
def test_every_grid_is_found_with_all_its_codes(
    rng: Generator, type_name: str, largest: int, run: int
) -> None:
    codes = integers(rng, 24, 6144, run, largest)
    scales = bf16_scales(rng, (24, 6144 // run, 1))
    stored = floats((codes * scales).reshape(24, 6144), type_name)
    grid = find_grid(stored)
    assert grid is not None
    assert (grid.run_length, grid.n_off, grid.n_failed, grid.n_inexact) == (run, 0, 0, 0)
    assert grid.off_rows.size == 0
    found_codes, found_scales = read_all(stored, grid)
    np.testing.assert_array_equal(found_codes, codes.reshape(-1))
    np.testing.assert_array_equal(found_scales, scales.reshape(-1))


@storage
@pytest.mark.parametrize("largest", [127, 7])
@pytest.mark.parametrize("run", [32, 768, 6144])
def test_one_weight_in_ten_thousand_does_not_hide_the_grid(
    rng: Generator, type_name: str, largest: int, run: int
) -> None:
    codes = integers(rng, 100, 6144, run, largest)
    x = (codes * bf16_scales(rng, (100, 6144 // run, 1))).reshape(-1)
    patched = rng.random(x.size) < 1e-4
    x[patched] = x.std() * rng.standard_normal(np.count_nonzero(patched))
    stored = floats(x.reshape(100, 6144), type_name)
    grid = find_grid(stored)
    assert grid is not None
    assert grid.run_length == run
    found, _ = read_all(stored, grid)
    np.testing.assert_array_equal(found[~patched], codes.reshape(-1)[~patched])
    # A patched weight may lie on the grid by chance.
    assert np.all(patched[found == OFF_GRID])
    rows = np.unique(np.flatnonzero(found == OFF_GRID) // 6144)
    np.testing.assert_array_equal(grid.off_rows, rows)


def test_replaced_rows_do_not_hide_the_grid(rng: Generator) -> None:
    x = (integers(rng, 64, 1024, 128, 127) * bf16_scales(rng, (64, 8, 1))).reshape(64, 1024)
    x[[0, 17, 63]] = 0.02 * rng.standard_normal((3, 1024))
    grid = find_grid(floats(x, "BF16"))
    assert grid is not None
    assert grid.run_length == 128
    assert grid.off_rows.tolist() == [0, 17, 63]


@storage
def test_runs_agree_with_brute_force(rng: Generator, type_name: str) -> None:
    """Grids of few and many codes, of F16 scales, and none."""
    n_on = 0
    for i in range(60):
        largest = int(rng.choice([1, 2, 3, 7, 15, 40, 127, 128]))
        scale = np.float64(np.float16(10 ** rng.uniform(-6, 2)))
        codes = rng.integers(-largest, largest + 1, 32) * (rng.random(32) < rng.choice([0.2, 1]))
        noise = 1 + (0.01 * rng.standard_normal(32) if i % 4 == 0 else 0)
        x = rounded(codes * scale * noise, type_name)
        stored = floats(x[None], type_name)
        runs = read(stored.words(0, 32), type_name, 32, STRICT)
        expected = coarsest_grids(x, type_name, 128) if x.any() else np.zeros(1)
        if not expected.size:
            assert runs.status[0] in (NONE, INEXACT)
            continue
        n_on += 1
        assert runs.status[0] == (ON_GRID if x.any() else ZERO)
        assert runs.scales[0] in expected
        assert np.array_equal(rounded(runs.codes * runs.scales[0], type_name), x)
    assert n_on > 30


@settings(max_examples=60)
@given(
    type_name=st.sampled_from(STORED),
    codes=st.lists(st.integers(-128, 127), min_size=32, max_size=32),
    mantissa=st.integers(128, 255),
    exponent=st.integers(-17, 0),
    negative=st.booleans(),
)
def test_any_codes_come_back(
    type_name: str, codes: list[int], mantissa: int, exponent: int, negative: bool
) -> None:
    """Whatever they are, constant or with a factor in common: the products are the same."""
    scale = mantissa * 2.0 ** (exponent - 7) * (-1 if negative else 1)
    x = rounded(np.array(codes) * scale, type_name)
    runs = read(floats(x[None], type_name).words(0, 32), type_name, 32, STRICT)
    assert runs.status[0] in (ON_GRID, ZERO)
    assert np.array_equal(rounded(runs.codes * runs.scales[0], type_name), x)


def test_continuous_weights_have_none(llama_29m: Path) -> None:
    n_blocks = 0
    weights = [*sentence_encoder_weights()]
    assert weights, "the test extra is not installed: the sentence encoder is missing"
    for x in [*weights, *gguf_weights(llama_29m)]:
        for type_name in STORED:
            if x.shape[1] % 32:
                continue
            stored = floats(x[:200].astype(np.float64), type_name)
            assert find_grid(stored) is None
            words = stored.words(0, min(stored.n_weights, 32_768))
            assert not np.isin(read(words, type_name, 32, STRICT).status, (ON_GRID, INEXACT)).any()
            n_blocks += words.size // 32
    assert n_blocks > 150_000


@pytest.mark.parametrize("hard", ["zeros", "few nonzero", "nan", "infinite", "constants"])
def test_tensors_that_cannot_tell(rng: Generator, hard: str) -> None:
    x = np.zeros((40, 256))
    if hard == "few nonzero":
        x[:, 7] = 0.5
    elif hard == "constants":
        x[:] = rng.standard_normal((40, 1))
    elif hard != "zeros":
        x = integers(rng, 40, 256, 32, 7).reshape(40, 256)
        x[::2, ::32] = {"nan": np.nan, "infinite": np.inf}[hard]
    grid = find_grid(floats(x, "BF16"))
    # A constant is a grid, and stored exactly; nothing may fail.
    assert (grid is not None) == (hard == "constants")


def test_scales_that_f16_cannot_hold_are_refused(rng: Generator, tmp_path: Path) -> None:
    scales = (0.01 * np.exp(rng.standard_normal((40, 2, 1)))).astype(np.float32)
    x = (integers(rng, 40, 256, 128, 127) * scales).reshape(40, 256)
    source = opened(tmp_path, {"w": ("F32", x)})
    assert source.tensors[0].outtype.name == "F32"
    assert "are no F16 numbers" in source.tensors[0].reason


def write(path: Path, tensors: dict[str, tuple[str, F64]]) -> Path:
    writer = GGUFWriter(path, "llama")
    for name, (kind, x) in tensors.items():
        raw = stored_bytes(x, kind).reshape(*x.shape[:-1], -1)
        shaped = raw.view(TYPES[kind]) if kind != "BF16" else raw
        writer.add_tensor(name, shaped, raw_dtype=GGMLQuantizationType[kind])
    write_out(writer)
    return path


def opened(
    folder: Path, tensors: dict[str, tuple[str, F64]], outtype: str | None = None
) -> Original:
    request = Request(outtype=outtype and outtype.upper())
    return open_float_original(write(folder / "model.gguf", tensors), request)


def written(tensor: OriginalTensor) -> F64:
    """What gguf-py decodes."""
    raw = np.empty(tensor.outtype.n_bytes(tensor.n_weights), np.uint8)
    tensor.encode(0, tensor.n_weights, raw)
    kind = GGMLQuantizationType[tensor.outtype.name]
    decoded = gguf.quants.dequantize(raw.reshape(tensor.dims[1], -1), kind)
    return np.asarray(decoded).astype(np.float64)


CASES = [
    (127, None, "Q8_0"), (7, None, "Q4_0"), (15, None, "Q5_0"), (7, "Q4_1", "Q4_1"),
    (7, "q8_0", "Q8_0"), (7, "Q5_0", "Q5_0"), (127, "Q4_0", "BF16"),
]  # fmt: skip


@pytest.mark.parametrize(("largest", "wanted", "outtype"), CASES)
def test_the_output_is_code_times_scale(
    rng: Generator, tmp_path: Path, largest: int, wanted: str | None, outtype: str
) -> None:
    codes = integers(rng, 40, 768, 96, largest)
    codes[0, 0, ::2], codes[1], codes[2, 1, 5] = -largest - 1, 0, largest + 1
    scales = bf16_scales(rng, (40, 8, 1)) * rng.choice([-1, 1], (40, 8, 1))
    x = (codes * scales).reshape(40, 768)
    (tensor,) = opened(tmp_path, {"w": ("BF16", x)}, wanted).tensors
    assert tensor.outtype.name == outtype
    assert tensor.exact
    if outtype == "BF16":
        np.testing.assert_array_equal(written(tensor), rounded(x, "BF16"))
        assert "Q8_0 would" in tensor.reason
        return
    assert tensor.group == 96
    np.testing.assert_array_equal(written(tensor), x)
    assert tensor.reference is not None
    np.testing.assert_array_equal(tensor.reference(0, x.size), x.reshape(-1))
    np.testing.assert_array_equal(tensor.reference(1536, 2304), x[2])
    part = np.empty(tensor.outtype.n_bytes(64), np.uint8)
    tensor.encode(800, 864, part)
    whole = np.empty(tensor.outtype.n_bytes(x.size), np.uint8)
    tensor.encode(0, x.size, whole)
    start = tensor.outtype.n_bytes(800)
    np.testing.assert_array_equal(part, whole[start : start + part.size])


def patched(rng: Generator) -> F64:
    x = (integers(rng, 40, 512, 256, 127) * bf16_scales(rng, (40, 2, 1))).reshape(40, 512)
    x[5, 3], x[9] = 0.0312, 0.01 * rng.standard_normal(512)
    return x


def test_a_patched_tensor_stays_float_and_says_where(rng: Generator, tmp_path: Path) -> None:
    x = patched(rng)
    (tensor,) = opened(tmp_path, {"w": ("BF16", x)}).tensors
    assert tensor.outtype.name == "BF16"
    assert "8-bit integers times a scale per 256 weights" in tensor.reason
    assert "in rows 5, 9" in tensor.reason
    np.testing.assert_array_equal(written(tensor), rounded(x, "BF16"))


def test_with_a_wanted_type_patched_rows_are_written_apart(rng: Generator, tmp_path: Path) -> None:
    x = patched(rng)
    on_grid, off_grid, index = opened(tmp_path, {"w": ("BF16", x)}, "q8_0").tensors
    names = [tensor.name for tensor in (on_grid, off_grid, index)]
    assert names == ["w.grid_rows", "w.float_rows", "w.float_row_index"]
    raw = np.empty(8, np.uint8)
    index.encode(0, 2, raw)
    assert raw.view("<i4").tolist() == [5, 9]
    np.testing.assert_array_equal(written(off_grid), rounded(x[[5, 9]], "BF16"))
    np.testing.assert_array_equal(written(on_grid), np.delete(x, [5, 9], 0))


def test_a_file_that_changes_is_noticed(rng: Generator, tmp_path: Path) -> None:
    x = (integers(rng, 40, 512, 256, 127) * bf16_scales(rng, (40, 2, 1))).reshape(40, 512)
    path = write(tmp_path / "model.gguf", {"w": ("F32", x)})
    (tensor,) = open_float_original(path, Request()).tensors
    at = int(GGUFReader(path).tensors[0].data_offset)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(rng.standard_normal(256).astype(np.float32).tobytes())
    with pytest.raises(ReblockError, match="the file changed"):
        tensor.encode(0, 512, np.empty(544, np.uint8))


def both_kinds(rng: Generator, tmp_path: Path) -> Iterator[tuple[Path, F64]]:
    x = (integers(rng, 40, 512, 32, 7) * bf16_scales(rng, (40, 16, 1))).reshape(40, 512)
    yield write(tmp_path / "model.gguf", {"w": ("F16", x), "norm": ("F32", x[0])}), x
    path = tmp_path / "model.safetensors"
    save_file({"w": x.astype(np.float16), "norm": x[0].astype(np.float32)}, path)
    yield path, x


def test_from_the_command_line(rng: Generator, tmp_path: Path) -> None:
    for path, x in both_kinds(rng, tmp_path):
        output = tmp_path / f"{path.suffix[1:]}-out.gguf"
        assert main(["reblock", str(path), "-o", str(output), "--quiet"]) == 0
        tensors = {tensor.name: tensor for tensor in GGUFReader(output).tensors}
        assert tensors["norm"].tensor_type.name == "F32"
        assert tensors["w"].tensor_type.name == "Q4_0"
        decoded = gguf.quants.dequantize(tensors["w"].data, tensors["w"].tensor_type)
        np.testing.assert_array_equal(decoded.astype(np.float64), x)


def test_types_without_a_place_in_gguf_are_refused(tmp_path: Path) -> None:
    save_file({"w": np.ones((2, 32), np.uint8)}, tmp_path / "model.safetensors")
    with pytest.raises(ReblockError, match="'w' is U8, for which GGUF has no type"):
        open_float_original(tmp_path / "model.safetensors", Request())
