"""GGUF files with types of forks: sizes by rows, numbers with several meanings, lost headers."""

from pathlib import Path

import numpy as np
import pytest

from recover.containers.gguf.reader import open_gguf
from recover.errors import GGUFError
from recover.quants import U8Array, quantize, type_by_name
from tests.support.fork_files import Part, file_of, names, rows_of

F32 = 0
AFTER = Part("after", (8,), F32, np.arange(8, dtype=np.float32).tobytes())


def part_of(name: str, room: int = -1) -> Part:
    rows = rows_of(name)
    assert rows.kind.type_id is not None
    return Part("rows", rows.original.shape[::-1], rows.kind.type_id, rows.raw.tobytes(), room)


@pytest.mark.parametrize(
    "name", [name for name in names() if name not in ("IQ2_KT_V1", "IQ3_KT_V1")]
)
def test_tensors_of_a_type(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(file_of([part_of(name), AFTER]))
    model, rows = open_gguf(path), rows_of(name)
    found = model.tensors["rows"]
    assert found.stored_type is rows.kind
    assert found.n_bytes == rows.raw.size
    assert found.type.rows_interleaved == 1
    assert model.tensors["after"].read(0, 8).tolist() == list(range(8))
    weights = found.read(0, found.n_weights)
    both = np.stack([weights, rows.original.reshape(-1)])
    roots = np.sign(both) * np.sqrt(np.abs(both))  # a few weights are large
    assert np.corrcoef(roots)[0, 1] > 0.7


def room_without_headers(name: str) -> int:
    """Bytes of a type's golden rows as that script counts them, up to where the next begins."""
    rows = rows_of(name)
    return -(-(rows.raw.size - len(rows.raw) * rows.kind.row_header) // 32) * 32


CUT = [
    name
    for name in ("IQ4_KSS", "IQ2_KL", "IQ4_KT", "IQ2_KS", "IQ5_KS")
    if room_without_headers(name) < rows_of(name).raw.size  # otherwise the padding has the rest
]


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("is_last", [False, True])
def test_files_without_the_headers_of_rows_are_named(
    name: str, is_last: bool, tmp_path: Path
) -> None:
    """A script that counts no headers gives a tensor too little room: its end is cut off."""
    kind, path = rows_of(name).kind, tmp_path / "a.gguf"
    path.write_bytes(
        file_of([part_of(name, room_without_headers(name)), *([] if is_last else [AFTER])])
    )
    with pytest.raises(GGUFError) as caught:
        open_gguf(path)
    message = str(caught.value)
    assert "tensor 'rows' is cut off" in message
    assert f"header of {kind.row_header} bytes" in message
    assert "gguf-py before September 2026" in message


def test_other_overlaps_are_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    large = Part("after", (1024,), F32, bytes(4096))
    path.write_bytes(file_of([part_of("IQ4_KSS", 512), large]))
    with pytest.raises(GGUFError, match="tensor 'after' overlaps tensor 'rows'"):
        open_gguf(path)


@pytest.mark.parametrize(
    ("number", "n", "n_bytes", "name"),
    [(41, 256, 36, "Q1_0"), (42, 256, 72, "Q2_0"), (42, 256, 68, "Q2_0_G128")],
)
@pytest.mark.parametrize("is_last", [False, True])
def test_one_number_of_several_types(
    number: int, n: int, n_bytes: int, name: str, is_last: bool, tmp_path: Path
) -> None:
    path, n_rows = tmp_path / "a.gguf", 64
    part = Part("t", (n, n_rows), number, bytes(n_bytes * n_rows))
    path.write_bytes(file_of([part, *([] if is_last else [AFTER])]))
    assert open_gguf(path).tensors["t"].type.name == name


@pytest.mark.parametrize("number", [41, 42])
def test_types_of_unknown_programs_are_refused(number: int, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(file_of([Part("t", (256, 64), number, bytes(42 * 64)), AFTER]))
    with pytest.raises(GGUFError, match=f"tensor type {number} means different types"):
        open_gguf(path)


def test_generation_of_trellis_codes_by_the_size_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    for name in ("IQ4_KT", "IQ4_KT_V1"):
        path.write_bytes(file_of([part_of(name), AFTER]))
        assert open_gguf(path).tensors["rows"].type.name == name


def test_weights_of_q2_0(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    codes, d = rng.integers(0, 4, (4, 64)), rng.uniform(0.01, 1, 4).astype("<f2")
    packed = (codes.reshape(4, 16, 4) << [0, 2, 4, 6]).sum(2).astype(np.uint8)
    raw = np.concatenate([d.view(np.uint8).reshape(4, 2), packed], 1)
    path = tmp_path / "a.gguf"
    path.write_bytes(file_of([Part("t", (128, 2), 42, raw.tobytes())]))
    expected = ((codes - 1) * d.astype(np.float32)[:, None]).reshape(-1)
    np.testing.assert_array_equal(open_gguf(path).tensors["t"].read(0, 256), expected)


def _for_arm(raw: U8Array, n_rows: int, run: int) -> U8Array:
    """Rows of Q4_0 as ``make_block_q4_0x4`` and ``make_block_q4_0x8`` of llama.cpp have them."""
    blocks = raw.reshape(len(raw) // n_rows, n_rows, -1, 18).transpose(0, 2, 1, 3)
    out = []
    for one in blocks.reshape(-1, n_rows, 18):
        out += [one[k, :2] for k in range(n_rows)]
        for i in range(16 // run):
            codes = slice(2 + run * i, 2 + run * (i + 1))
            out += [one[k, codes] ^ np.uint8(0x88) for k in range(n_rows)]
    return np.concatenate(out)


@pytest.mark.parametrize(
    ("number", "n_rows", "run"), [(31, 4, 4), (32, 4, 8), (33, 8, 8)], ids=["4_4", "4_8", "8_8"]
)
def test_q4_0_for_arm(number: int, n_rows: int, run: int, tmp_path: Path) -> None:
    x = np.random.default_rng(4).standard_normal((16, 96), np.float32)
    raw = quantize(x, type_by_name("Q4_0"))
    path = tmp_path / "a.gguf"
    mixed = _for_arm(raw.reshape(16, -1), n_rows, run)
    path.write_bytes(file_of([Part("t", (96, 16), number, mixed.tobytes())]))
    found = open_gguf(path).tensors["t"]
    assert found.type.name == "Q4_0"
    assert np.array_equal(found.part(0, x.size), raw)
