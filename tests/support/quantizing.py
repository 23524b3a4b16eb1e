"""Models to quantize, importance matrices, and the command."""

import struct
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from recover.cli import main
from recover.containers.gguf.reader import GGUFModel, Tensor, open_gguf
from recover.quants import dequantize
from tests.support.gguf_files import write_out
from tests.support.models import TINY

F32 = NDArray[np.float32]


def run(*arguments: object) -> None:
    assert main(["quantize", *map(str, arguments), "--quiet"]) == 0


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which a command fails."""
    assert main(["quantize", *map(str, arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("recover: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def stored(model: GGUFModel[Tensor]) -> dict[str, tuple[str, bytes]]:
    return {name: (each.type.name, bytes(each.raw)) for name, each in model.tensors.items()}


def weights(model: GGUFModel[Tensor], name: str) -> F32:
    """Rows of a tensor."""
    tensor = model.tensors[name]
    return dequantize(tensor.raw, tensor.type).reshape(-1, tensor.dims[0])


def write_model(
    path: Path, tensors: Mapping[str, NDArray[np.generic]], architecture: str = "llama"
) -> Path:
    """A file that llama.cpp can quantize, and whose header holds no type or version."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(288)
    writer.add_feed_forward_length(80)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(8)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    write_out(writer)
    return path


def normal(rng: np.random.Generator, *shape: int) -> F32:
    return (0.02 * rng.standard_normal(shape)).astype(np.float32)


def write_legacy(path: Path, entries: Mapping[str, F32], n_calls: int) -> Path:
    parts = [struct.pack("<i", len(entries))]
    for name, values in entries.items():
        parts += [struct.pack("<i", len(name)), name.encode()]
        parts += [struct.pack("<ii", n_calls, values.size), values.tobytes()]
    path.write_bytes(b"".join([*parts, struct.pack("<ii", 17, 8), b"some.txt"]))
    return path


def write_gguf_imatrix(path: Path, entries: Mapping[str, tuple[F32, F32]]) -> Path:
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["some.txt", "other.txt"])
    writer.add_uint32("imatrix.chunk_count", 17)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, (sums, counts) in entries.items():
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", counts.reshape(-1, 1))
    write_out(writer)
    return path


def importances(rng: np.random.Generator) -> dict[str, F32]:
    """For every tensor that is quantized, except the embeddings."""
    return {
        tensor.name: rng.random(tensor.dims[0]).astype(np.float32) + np.float32(0.01)
        for tensor in open_gguf(TINY).tensors.values()
        if len(tensor.dims) > 1 and tensor.name != "token_embd.weight"
    }
