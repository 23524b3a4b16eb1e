"""Float32 arrays in files of several programs, as rows of 256 weights."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from recover.quants import F32Array
from tests.oracle.weights import gguf_weights

_FEWEST = 16384  # weights
_F32 = 1  # ONNX's number


def matrices_in(path: Path) -> Iterator[F32Array]:
    """Arrays of a GGUF (BF16), safetensors, ONNX or npz file that are not small, as superblocks."""
    readers = {".gguf": gguf_weights, ".safetensors": _safetensors, ".onnx": _onnx, ".npz": _npz}
    for array in readers[path.suffix](path):
        x = np.asarray(array, np.float32).reshape(-1)
        if x.size >= _FEWEST and np.isfinite(x).all() and x.std() > 0:
            yield np.ascontiguousarray(x[: x.size // 256 * 256].reshape(-1, 256))


def _npz(path: Path) -> Iterator[F32Array]:
    with np.load(path) as arrays:
        yield from arrays.values()


def _safetensors(path: Path) -> Iterator[F32Array]:
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    for name, entry in json.loads(raw[8:start]).items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            first, last = entry["data_offsets"]
            yield np.frombuffer(raw[start + first : start + last], np.float32)


def _onnx(path: Path) -> Iterator[F32Array]:
    """Initializers (graph.initializer), and constants (graph.node.attribute.t), in raw_data."""
    for tensor in (*_within(path.read_bytes(), 7, 5), *_within(path.read_bytes(), 7, 1, 5, 5)):
        of_tensor = dict(_fields(tensor))
        if of_tensor.get(2) == bytes([_F32]) and 9 in of_tensor:
            yield np.frombuffer(of_tensor[9], np.float32)


def _within(raw: bytes, *numbers: int) -> Iterator[bytes]:
    """Messages within messages, by the numbers of the fields that lead to them."""
    if not numbers:
        yield raw
        return
    for number, content in _fields(raw):
        if number == numbers[0]:
            yield from _within(content, *numbers[1:])


def _fields(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Fields of a protobuf message: number and content; integers as their bytes."""
    at = 0

    def varint() -> tuple[int, bytes]:
        nonlocal at
        start, value = at, 0
        while True:
            byte = raw[at]
            value |= (byte & 127) << (7 * (at - start))
            at += 1
            if byte < 128:
                return value, raw[start:at]

    while at < len(raw):
        key, _ = varint()
        match key & 7:
            case 0:
                yield key >> 3, varint()[1]
                continue
            case 1:
                size = 8
            case 5:
                size = 4
            case _:
                size, _ = varint()
        yield key >> 3, raw[at : at + size]
        at += size
