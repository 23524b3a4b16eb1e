"""What came before GGUF version 2: version 1, whose values are read, and formats that are named.

Before GGUF, llama.cpp had three formats, told by the first four bytes, a little-endian number that
spells the name backwards: ``ggml`` (without version; whisper.cpp and others still write it),
``ggmf`` and ``ggjt``. Version 2 of ggjt changed the blocks of all quantized types, version 3 those
of Q4_0, Q4_1 and Q8_0 (https://github.com/ggml-org/llama.cpp/pull/1405 and 1508).
"""

import struct
from typing import NamedTuple

from recover.containers.gguf.cursor import FORMATS, MAX_ITEMS, U32, U64, Cursor, ValueType

_CONVERTER = "convert_llama_ggml_to_gguf.py of llama.cpp"


class _Older(NamedTuple):
    """A format from before GGUF."""

    name: str
    written: str
    """When, and by what."""
    way_out: str


_FLOATS_ONLY = (
    f"{_CONVERTER} makes GGUF of its F32 and F16; quantized tensors are read by llama.cpp of that"
    " time alone, since their blocks were laid out anew in May 2023"
)
_FORMATS = {
    (b"lmgg", None): _Older(
        "ggml, without version",
        "llama.cpp until March 2023, and other programs such as whisper.cpp",
        f"for LLaMA, {_FLOATS_ONLY}",
    ),
    (b"fmgg", 1): _Older("ggmf version 1", "llama.cpp of March 2023", _FLOATS_ONLY),
    (b"tjgg", 1): _Older("ggjt version 1", "llama.cpp from March to May 2023", _FLOATS_ONLY),
    (b"tjgg", 2): _Older(
        "ggjt version 2",
        "llama.cpp of May 2023",
        f"{_CONVERTER} makes GGUF of it unless it has Q4_0, Q4_1 or Q8_0, whose blocks were laid"
        " out anew a week later",
    ),
    (b"tjgg", 3): _Older(
        "ggjt version 3",
        "llama.cpp from May to August 2023",
        f"{_CONVERTER} makes GGUF of it (--input IN --output OUT) and keeps every block",
    ),
}


def described_older(buffer: memoryview) -> str | None:
    """What a file from before GGUF is, and what converts it; None if it is none.

    Parameters
    ----------
    buffer : memoryview
        The file.
    """
    if len(buffer) < 8:
        return None
    magic, (version,) = bytes(buffer[:4]), U32.unpack_from(buffer, 4)
    found = _FORMATS.get((magic, None)) or _FORMATS.get((magic, version))
    if found is None:
        return None
    return f"the format is {found.name}, from before GGUF ({found.written}); {found.way_out}"


def widened(value: memoryview, value_type: ValueType) -> bytes:
    """A metadata value of version 1 as later versions store it: counts and lengths in 8 bytes.

    Parameters
    ----------
    value : memoryview
        Its bytes, without the type; they are known to be a value of the type.
    value_type : ValueType
        The type.
    """
    cursor = Cursor(value, "metadata", MAX_ITEMS)
    cursor.length = U32
    parts: list[bytes] = []
    _widen(cursor, value_type, parts)
    return b"".join(parts)


def _widen(cursor: Cursor, value_type: ValueType, parts: list[bytes]) -> None:
    """Add the bytes of the next value."""
    if value_type == ValueType.STRING:
        _add_bytes(cursor, cursor.n(), parts, is_counted=True)
    elif value_type != ValueType.ARRAY:
        _add_bytes(cursor, struct.calcsize(FORMATS[value_type]), parts)
    else:
        element = cursor.value_type()
        number = cursor.n()
        parts.append(U32.pack(element) + U64.pack(number))
        if element in (ValueType.STRING, ValueType.ARRAY):
            for _ in range(number):
                _widen(cursor, element, parts)
        else:
            _add_bytes(cursor, number * struct.calcsize(FORMATS[element]), parts)


def _add_bytes(
    cursor: Cursor, n_bytes: int, parts: list[bytes], *, is_counted: bool = False
) -> None:
    start = cursor.skip(n_bytes)
    if is_counted:
        parts.append(U64.pack(n_bytes))
    parts.append(bytes(cursor.buffer[start : start + n_bytes]))
