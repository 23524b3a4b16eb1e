"""Files of very many keys and tensors."""

from pathlib import Path

from recover.quants import type_by_id
from tests.hostile.builder import gguf, kv, string, tensor, u32
from tests.hostile.kinds import STRING, UINT32

MANY = 30_000


def many(
    path: Path,
    kind: int,
    dims: tuple[int, int] = (256, 1),
    data: bytes = bytes(range(256)) * 2,
    n: int = MANY,
) -> Path:
    """As many keys as tensors, all of 256 weights and with the same bytes."""
    size = type_by_id(kind).n_bytes(256)
    step = -(-size // 32) * 32
    entries = [kv("general.architecture", STRING, string("llama"))]
    entries += [kv(f"k.{i}", UINT32, u32(i)) for i in range(n)]
    names = [f"blk.{i}.ffn_up.weight" for i in range(n)]
    tensors = [tensor(name, dims, kind, i * step) for i, name in enumerate(names)]
    path.write_bytes(gguf(entries, tensors, data[:step] * n))
    return path
