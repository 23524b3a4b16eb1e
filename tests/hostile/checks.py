"""What holds for every refusal, and for every file that is not refused."""

import os
from pathlib import Path

import pytest

from recover._text import printable
from recover.containers.gguf.header import encode_header, parse_header
from recover.containers.gguf.reader import GGUFModel, Tensor, open_gguf
from recover.errors import GGUFError
from tests.support import memory
from tests.support.models import TINY

LONGEST_MESSAGE = 600


def check_line(message: str) -> None:
    """One line without control characters."""
    assert message.isprintable()
    assert message


def check_message(message: str, path: Path) -> None:
    """One line that begins with the file's name."""
    check_line(message)
    start = f"{printable(path)}: "
    assert message.startswith(start)
    assert 5 < len(message) - len(start) < LONGEST_MESSAGE


def refusal(path: Path, blamed: Path | None = None) -> str:
    """The message with which a file is refused; `blamed` is the file that it has to name."""
    with pytest.raises(GGUFError) as caught:
        open_gguf(path)
    check_message(str(caught.value), blamed or path)
    return str(caught.value)


def refusal_of(
    path: Path, content: bytes, size: int | None = None, most_memory: int = 1 << 20
) -> str:
    """The message with which a file of that content is refused, at little cost of memory.

    `size` makes the file larger, with zeros that take no space on the disk.
    """
    path.write_bytes(content)
    if size is not None:
        os.truncate(path, size)
    open_gguf(TINY)  # what the first file costs once
    with memory.at_most(most_memory):
        return refusal(path)


def exercise(model: GGUFModel[Tensor]) -> None:
    """Touch everything in an opened file: it must be there, and survive being written again."""
    for key, entry in model.metadata.items():
        try:
            assert entry.value is not None
            assert model.get(key) is entry.value
        except GGUFError as error:
            check_line(str(error))
    for tensor in model.tensors.values():
        assert tensor.raw.size == tensor.info.n_bytes > 0
        assert not tensor.raw.flags.writeable
        tensor.raw.max()
    header = model.header
    spans = [entry.span for entry in header.metadata.values()]
    again = encode_header(spans, header.tensors, header.alignment)
    end = max((tensor.offset + tensor.n_bytes for tensor in header.tensors), default=0)
    assert len(again) % header.alignment == 0
    if end < 1 << 20:
        parsed = parse_header(again + bytes(end))
        assert parsed.tensors == header.tensors
        assert parsed.metadata == header.metadata
