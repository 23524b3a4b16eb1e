"""Safetensors files that lie: refused in one line that names the file, at little cost."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from recover.containers.safetensors.reader import Model, open_safetensors, parse_header
from recover.errors import RecoverError, SafetensorsError
from recover.reblock.integers import Request
from recover.reblock.quantized_safetensors import holds_integers, open_integers
from tests.hostile.checks import check_line, check_message
from tests.hostile.safetensors_files import entry, file
from tests.support import memory


def refusal(path: Path, raw: bytes, size: int | None = None) -> str:
    path.write_bytes(raw)
    if size is not None:
        os.truncate(path, size)
    with memory.at_most(1 << 21), pytest.raises(SafetensorsError) as caught:
        open_safetensors(path)
    check_message(str(caught.value), path)
    return str(caught.value)


def test_real_files(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "a.safetensors"
    tensors: dict[str, NDArray[Any]] = {
        "a": rng.standard_normal((3, 5)).astype(np.float32),
        "b": rng.integers(-9, 9, (7,)).astype(np.int8),
        "scalar": np.array(3.5, np.float32),
        "empty": np.zeros((0, 4), np.float16),
        "c.d": rng.standard_normal((2, 3, 4)),
    }
    save_file(tensors, path, metadata={"format": "np"})
    model = open_safetensors(path)
    expected = load_file(path)
    assert set(model.tensors) == set(expected)
    for name, tensor in model.tensors.items():
        assert tensor.shape == expected[name].shape
        assert tensor.raw.tobytes() == expected[name].tobytes()
        assert tensor.n_weights == expected[name].size
        assert not tensor.raw.flags.writeable
    assert model.metadata == {"format": "np"}
    assert (model.parts, model.config) == ((path,), {})


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "the file is empty"),
        (b"1234567", "too few for a header"),
        (file({}, b"", 2**63), "announces a header of 9223372036854775808"),
        (file({}, b"", 3), "announces a header of 3 bytes"),
        (b"GGUF" + bytes(100), "not a safetensors file"),
        (file(b"[]"), "no JSON object"),
        (file(b"{"), "is no JSON"),
        (file(b"\xff{}"), "is no JSON"),
        (file(b"[" * 100_000), "is no JSON"),
        (file(b'{"a":' * 100_000), "is no JSON"),
        (file(b'{"a": 1' + b"0" * 5000 + b"}"), "is no JSON"),
        (file({}), "8 bytes behind the start of the data belong to no tensor"),
        (file({"__metadata__": 3}), "no object of texts"),
        (file({"__metadata__": {"a": 3}}), "no object of texts"),
        (file({"a": 3}), "tensor 'a': its entry"),
        (file({"a": {}}), "tensor 'a': its entry"),
        (file({"a": entry() | {"more": 1}}), "tensor 'a': its entry"),
        (file({"a": entry(dtype="F31")}), "type 'F31' is unknown"),
        (file({"a": entry(dtype=["F32"])}), "is unknown"),
        (file({"a": entry(shape=3)}), "no list of sizes"),
        (file({"a": entry(shape=[-2])}), "no list of sizes"),
        (file({"a": entry(shape=[2.0])}), "no list of sizes"),
        (file({"a": entry(shape=[True, 2])}), "no list of sizes"),
        (file({"a": entry(shape=[2**70])}), "no list of sizes"),
        (file({"a": entry(shape=[2**61, 2**61])}), "take"),
        (file({"a": entry(shape=[1] * 9 + [2])}), "10 dimensions"),
        (file({"a": entry(offsets=[0])}), "no two positions"),
        (file({"a": entry(offsets=[-8, 0])}), "no two positions"),
        (file({"a": entry(offsets=[8, 0])}), "tensor 'a': -8 bytes"),
        (file({"a": entry(offsets=[0, 4])}), "tensor 'a': 4 bytes"),
        (file({"a": entry(offsets=[8, 16])}), "begins 8 bytes behind"),
        (file({"a": entry(), "b": entry()}), "tensor 'b' overlaps tensor 'a'"),
        (file({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "overlaps"),
        (file({"a": entry()}, bytes(7)), "ends 1 bytes beyond"),
        (file({"a": entry()}, bytes(9)), "1 bytes behind tensor 'a'"),
        (file(b'{"a": 1, "a": 2}'), "'a' is there twice"),
        (file({"\x1b[31m\n": entry(dtype="x\n")}), "is unknown"),
        (file({"a" * 70_000: entry()}), "names of more than"),
    ],
)
def test_damaged(raw: bytes, expected: str, tmp_path: Path) -> None:
    assert expected in refusal(tmp_path / "a.safetensors", raw)


def test_a_huge_file_costs_nothing(tmp_path: Path) -> None:
    header = {"a": entry(dtype="U8", shape=[1 << 36], offsets=[0, 1 << 36])}
    raw = file(header, b"")
    path = tmp_path / "a.safetensors"
    assert "beyond the end of the file" in refusal(path, raw, len(raw) + (1 << 35))
    os.truncate(path, len(raw) + (1 << 36))
    assert open_safetensors(path).tensors["a"].raw.size == 1 << 36


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ({}, "no weight_map"),
        ({"weight_map": {}}, "no weight_map"),
        ({"weight_map": []}, "no weight_map"),
        ({"weight_map": {"a": 3}}, "no name of a file beside it"),
        ({"weight_map": {"a": "../a.safetensors"}}, "no name of a file beside it"),
        ({"weight_map": {"a": "/etc/passwd"}}, "no name of a file beside it"),
        ({"weight_map": {"a": ".."}}, "no name of a file beside it"),
        ({"weight_map": {"a": "x/../a"}}, "no name of a file beside it"),
        ({"weight_map": {"a": "missing"}}, "missing: there is no such file"),
        ({"weight_map": {"b": "good"}}, "does not hold what"),
        ({"weight_map": {"a": "good", "b": "other"}}, "good, too; move one"),
        ({"weight_map": {"a": "x-TP-0", "b": "x-TP-1"}}, "a slice for one GPU"),
        ({"weight_map": {"b": "same"}}, "holds more than"),
        ({"weight_map": {"a": "a\0b"}}, "cannot be read"),
    ],
)
def test_index(index: Any, expected: str, tmp_path: Path) -> None:
    for name in ("good", "same"):
        (tmp_path / name).write_bytes(file({"a": entry()}))
    two = {"a": entry(), "b": entry(offsets=[8, 16])}
    (tmp_path / "x-TP-0").write_bytes(file({"a": entry()}))
    others = dict.fromkeys(("other", "x-TP-1"), bytes(range(16)))
    for name, numbers in {"same": bytes(16), **others}.items():
        (tmp_path / name).write_bytes(file(two, numbers))
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(SafetensorsError) as caught:
        open_safetensors(tmp_path)
    check_line(str(caught.value))
    assert expected in str(caught.value)


@pytest.mark.parametrize("of_a", ["good", "same"])
def test_a_tensor_in_two_files_is_taken_once(of_a: str, tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(file({"a": entry(), "c": entry(offsets=[8, 16])}, bytes(16)))
    (tmp_path / "same").write_bytes(file({"a": entry(), "b": entry(offsets=[8, 16])}, bytes(16)))
    index = {"weight_map": {"a": of_a, "b": "same", "c": "good"}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert sorted(open_safetensors(tmp_path).tensors) == ["a", "b", "c"]


def test_folder_without_anything(tmp_path: Path) -> None:
    with pytest.raises(SafetensorsError, match="holds no safetensors files"):
        open_safetensors(tmp_path)


@pytest.mark.parametrize("raw", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_config(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(file({"a": entry()}))
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(SafetensorsError, match=r"config\.json: is no JSON"):
        open_safetensors(tmp_path)


GOOD = file({"a": entry(), "__metadata__": {"x": "y"}, "b": entry(offsets=[8, 16])}, bytes(16))


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_every_changed_byte(position: int, change: int) -> None:
    raw = bytearray(GOOD)
    raw[position] ^= change
    try:
        header = parse_header(bytes(raw))
    except RecoverError as error:
        check_line(str(error))
    else:
        assert all(0 <= tensor.start <= tensor.end <= 16 for tensor in header.tensors)


# Schemes whose tensors do not fit together: every shape and type is checked before it is used.

LEAVES = (
    *("qweight", "qzeros", "scales", "g_idx", "weight", "weight_packed", "weight_scale"),
    *("weight_shape", "weight_zero_point", "weight_g_idx", "biases", "weight_scale_inv"),
)
TYPES = ("I32", "I64", "I8", "U8", "U32", "F16", "BF16", "F32", "F8_E4M3", "F8_E8M0", "BOOL")
SHAPES = ((), (0,), (1,), (2,), (64,), (1, 1), (64, 64), (8, 64), (64, 8), (64, 2), (2, 64), (1, 0))
CONFIGS: tuple[dict[str, Any], ...] = (
    {},
    {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    {"quantization_config": {"quant_method": "awq", "bits": "x", "version": 3}},
    {"quantization_config": {"quant_method": 7, "weight_block_size": [0, "a"]}},
    {"quantization": {"group_size": 32, "bits": 4}},
    {"quantization": {"group_size": -1}},
    {"quantization_config": {"a": {"group_size": 0}}},
)


@given(
    st.dictionaries(
        st.sampled_from(LEAVES),
        st.tuples(st.sampled_from(TYPES), st.sampled_from(SHAPES), st.integers(0, 255)),
        min_size=1,
    ),
    st.sampled_from(CONFIGS),
)
def test_tensors_that_do_not_fit(
    tmp_path_factory: pytest.TempPathFactory,
    leaves: dict[str, tuple[str, tuple[int, ...], int]],
    config: dict[str, Any],
) -> None:
    width = {"I32": 4, "U32": 4, "F32": 4, "I64": 8, "F16": 2, "BF16": 2}
    header, data = {}, b""
    for leaf, (dtype, shape, fill) in leaves.items():
        size = int(np.prod(shape, dtype=int)) * width.get(dtype, 1)
        header[f"a.{leaf}"] = entry(dtype, shape, [len(data), len(data) + size])
        data += bytes([fill]) * size
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(file(header, data))
    opened = open_safetensors(path)
    model = Model(opened.path, opened.parts, opened.tensors, opened.metadata, config)
    holds_integers(model)
    try:
        source = open_integers(model, Request())
    except RecoverError as error:
        check_line(str(error))
        return
    for tensor in source.tensors:
        assert tensor.n_weights > 0
        out = np.empty(tensor.outtype.n_bytes(tensor.n_weights), np.uint8)
        tensor.encode(0, tensor.n_weights, out)
        if tensor.reference is not None:
            assert tensor.reference(0, tensor.n_weights).shape == (tensor.n_weights,)
