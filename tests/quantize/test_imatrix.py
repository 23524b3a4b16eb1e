"""Files quantized with an importance matrix, as llama.cpp does it."""

import struct
from pathlib import Path

import numpy as np
import pytest

from recover.cli import main
from recover.containers.gguf.reader import open_gguf
from recover.quantize.imatrix import load_imatrix
from recover.quants import ScalarType, type_by_name, types_of_files
from tests.oracle import libggml
from tests.support.models import TINY
from tests.support.quantizing import (
    importances,
    normal,
    refusal,
    run,
    weights,
    write_gguf_imatrix,
    write_legacy,
    write_model,
)

pytestmark = pytest.mark.long

QUANTIZED = [name for name, kind in types_of_files().items() if isinstance(kind, ScalarType)]


@pytest.mark.parametrize("name", QUANTIZED)
def test_imatrix_in_both_formats(
    name: str, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = importances(rng)
    legacy = write_legacy(tmp_path / "imatrix.dat", entries, n_calls=3)
    counts = np.array([3.0], np.float32)
    modern = write_gguf_imatrix(
        tmp_path / "imatrix.gguf", {key: (x[None], counts) for key, x in entries.items()}
    )
    before = open_gguf(TINY)
    for path in (legacy, modern):
        out = tmp_path / "out.gguf"
        assert main(["quantize", str(TINY), name, "-o", str(out), "--imatrix", str(path)]) == 0
        message = capsys.readouterr().err
        assert message == (
            "recover: warning: the importance matrix does not know 'token_embd.weight'\n"
        )
        after = open_gguf(out)
        for tensor in after.tensors.values():
            if len(tensor.dims) > 1:
                known = entries.get(tensor.name)
                importance = None if known is None else known / np.float32(3)
                x = weights(before, tensor.name)
                expected = libggml.quantize(tensor.type.type_id, x, importance)
                assert np.array_equal(tensor.raw, expected), tensor.name
        assert [
            after.get(f"quantize.imatrix.{key}")
            for key in ("file", "dataset", "entries_count", "chunks_count")
        ] == [str(path)[:127], "some.txt", len(entries), 17]


def test_every_expert_has_importances_of_its_own(tmp_path: Path, rng: np.random.Generator) -> None:
    """Tiles that end inside an expert, one expert that was never used, and whole tiles of one."""
    name, n_experts = "blk.0.ffn_up_exps.weight", 5
    x = normal(rng, n_experts, 96, 512)
    sums = rng.random((n_experts, 512)).astype(np.float32)
    counts = np.array([3, 0, 1, 7, 2], np.float32)
    source = write_model(tmp_path / "in.gguf", {name: x})
    imatrix = write_gguf_imatrix(tmp_path / "imatrix.gguf", {name: (sums, counts)})
    run(source, "Q4_K", "-o", tmp_path / "out.gguf", "--imatrix", imatrix)
    raw = open_gguf(tmp_path / "out.gguf").tensors[name].raw.reshape(n_experts, -1)
    for expert in range(n_experts):
        importance = sums[expert] / counts[expert] if counts[expert] else np.ones(512, np.float32)
        expected = libggml.quantize(type_by_name("Q4_K").type_id, x[expert], importance)
        assert np.array_equal(raw[expert], expected)


def test_imatrix_of_another_model(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.gguf"
    entries = {"blk.1.ffn_down.weight": rng.random(256).astype(np.float32)}
    imatrix = write_legacy(tmp_path / "imatrix.dat", entries, n_calls=1)
    line = refusal(capsys, TINY, "Q4_K", "-o", out, "--imatrix", imatrix)
    assert "'blk.1.ffn_down.weight' has 1 x 768 columns" in line
    assert "256 values" in line
    assert not out.exists()
    # llama.cpp takes no offence at the embeddings, which it looks up instead of multiplying.
    entries = {"token_embd.weight": rng.random(8).astype(np.float32)}
    imatrix = write_legacy(tmp_path / "imatrix.dat", entries, n_calls=1)
    run(TINY, "Q4_K", "-o", out, "--imatrix", imatrix)


def test_imatrix_is_never_overwritten(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    imatrix = write_legacy(tmp_path / "imatrix.dat", importances(rng), n_calls=1)
    before = imatrix.read_bytes()
    line = refusal(capsys, TINY, "Q4_K", "-o", imatrix, "--imatrix", imatrix)
    assert "is one of the inputs" in line
    assert imatrix.read_bytes() == before


def test_old_imatrix_metadata_are_replaced(tmp_path: Path, rng: np.random.Generator) -> None:
    entries = importances(rng)
    one = write_legacy(tmp_path / "one.dat", entries, n_calls=1)
    two = tmp_path / "two.dat"
    end = struct.pack("<ii", 17, 8) + b"some.txt"
    two.write_bytes(one.read_bytes().removesuffix(end))
    run(TINY, "Q8_0", "-o", tmp_path / "one.gguf", "--imatrix", one)
    run(tmp_path / "one.gguf", "Q8_0", "-o", tmp_path / "two.gguf", "--imatrix", two)
    keys = [key for key in open_gguf(tmp_path / "two.gguf").metadata if "imatrix" in key]
    assert keys == ["quantize.imatrix.file", "quantize.imatrix.entries_count"]
    assert load_imatrix(two).n_chunks == 0
