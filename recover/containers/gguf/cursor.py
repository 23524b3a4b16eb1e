"""Reading the bytes of a header forward, distrustful of every count and length."""

import codecs
import struct
from collections.abc import Mapping
from enum import IntEnum
from functools import cache
from typing import Any

from recover._text import quoted
from recover.errors import GGUFError

MAX_NAME = 65_535
"""Bytes of a key or of a tensor's name; the format sets this limit for keys."""

# Far beyond every model, so that a hostile file costs seconds and megabytes at most.
_MAX_HEADER = 1 << 27
MAX_ITEMS = {
    "tensors": 1 << 17,
    "metadata entries": 1 << 17,
    "strings": 1 << 23,
    "arrays": 1 << 20,
}
# Of values that are read; longer ones are only passed on.
_MAX_TEXT = 1 << 20
MAX_READ = {"strings": 1 << 20, "arrays": 1 << 16, "elements": 1 << 20}
_CHUNK = 1 << 16

U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")
_UTF8 = codecs.getincrementaldecoder("utf-8")


class ValueType(IntEnum):
    """Types of metadata values (`enum gguf_type`)."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


FORMATS = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
_SIZES = {kind: struct.calcsize(layout) for kind, layout in FORMATS.items()}
_VALUE_TYPES = {kind.value: kind for kind in ValueType}
_MAX_ARRAY_DEPTH = 4


@cache
def _numbers(letter: str, number: int) -> struct.Struct:
    return struct.Struct(f"<{number}{letter}")


class ShortError(GGUFError):
    """The header goes on behind the bytes at hand, the beginning of a file.

    Attributes
    ----------
    needed : int
        So many bytes of the file have to be there, at least.
    """

    def __init__(self, needed: int) -> None:
        super().__init__(f"the header needs {needed} bytes of the file")
        self.needed = needed


class Cursor:
    """Reads forward through a buffer; every step is checked against its end."""

    def __init__(
        self, buffer: memoryview, what: str, limits: Mapping[str, int], total: int | None = None
    ) -> None:
        self.length = U64  # of counts and lengths
        self.buffer = buffer
        self.size = len(buffer)
        self.total = self.size if total is None else total  # of which the buffer may be the start
        self.position = 0
        self._what: tuple[str, str | None] = (what, None)
        self._limits = limits
        self.items_left = dict(limits)

    @property
    def what(self) -> str:
        """What is read, for messages."""
        kind, name = self._what
        return f"{kind} {quoted(name)}" if name is not None else kind

    def begin(self, kind: str, name: str | None = None) -> None:
        """Read something else from now on: an entry of a kind, perhaps with a name."""
        self._what = kind, name

    def skip(self, n_bytes: int) -> int:
        """Step over `n_bytes`; their position."""
        start = self.position
        if n_bytes > self.total - start:
            raise GGUFError(
                f"{self.what}: needs {n_bytes} bytes at position {start},"
                f" but only {self.total - start} are left"
            )
        if n_bytes > self.size - start:
            self.position = start + n_bytes
            self.check_end()
            raise ShortError(self.position)
        self.position = start + n_bytes
        return start

    def u32(self) -> int:
        """A number of 4 bytes."""
        start = self.position
        if start + 4 > self.size:
            self.skip(4)
        self.position = start + 4
        number: int = U32.unpack_from(self.buffer, start)[0]
        return number

    def u64(self) -> int:
        """A number of 8 bytes."""
        start = self.position
        if start + 8 > self.size:
            self.skip(8)
        self.position = start + 8
        number: int = U64.unpack_from(self.buffer, start)[0]
        return number

    def n(self) -> int:
        """A count or a length."""
        start, size = self.position, self.length.size
        if start + size > self.size:
            self.skip(size)
        self.position = start + size
        number: int = self.length.unpack_from(self.buffer, start)[0]
        return number

    def sizes(self, number: int) -> tuple[int, ...]:
        """So many counts."""
        numbers = _numbers(self.length.format[-1], number)
        return numbers.unpack_from(self.buffer, self.skip(numbers.size))

    def count(self, smallest: int, of_what: str, *, n_lengths: int = 0) -> int:
        """A number of items that take at least `smallest` bytes each, and so many lengths."""
        number = self.n()
        smallest += n_lengths * self.length.size
        if number * smallest > self.total - self.position:
            raise GGUFError(
                f"{self.what}: announces {number} {of_what},"
                f" more than the {self.total - self.position} bytes that follow can hold"
            )
        self.items_left[of_what] -= number
        if self.items_left[of_what] < 0:
            raise GGUFError(
                f"{self.what}: announces {number} {of_what}; more than {self._limits[of_what]}"
                " are not supported"
            )
        return number

    def string(self, most: int = _MAX_TEXT) -> str:
        """A text of at most `most` bytes."""
        start, size = self.position, self.length.size
        if start + size > self.size:
            self.skip(size)
        length = self.length.unpack_from(self.buffer, start)[0]
        self.position = start + size
        start = self.skip(length)
        if length > most:
            raise GGUFError(
                f"{self.what}: text of {length} bytes at position {start}; more than {most}"
                " are not supported"
            )
        try:
            return str(self.buffer[start : start + length], "utf-8")
        except UnicodeDecodeError:
            raise self._no_text(start) from None

    def _no_text(self, start: int) -> GGUFError:
        return GGUFError(f"{self.what}: text at position {start} is not UTF-8")

    def skip_string(self) -> None:
        """Step over a text of any length, which must be UTF-8."""
        length = self.n()
        start = self.skip(length)
        self.check_end()
        decoder = _UTF8()
        try:
            for position in range(start, start + length, _CHUNK):
                decoder.decode(self.buffer[position : min(position + _CHUNK, start + length)])
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            raise self._no_text(start) from None

    def check_end(self) -> None:
        """Refuse a header that is longer than any."""
        if self.position > _MAX_HEADER:
            raise GGUFError(
                f"{self.what}: ends at position {self.position}; headers of more than"
                f" {_MAX_HEADER} bytes are not supported"
            )

    def value_type(self) -> ValueType:
        """A known type of values."""
        number = self.u32()
        found = _VALUE_TYPES.get(number)
        if found is None:
            raise GGUFError(f"{self.what}: value type {number} is unknown")
        return found

    def skip_value(self, value_type: ValueType, depth: int = 0) -> None:
        """Step over a value without building it."""
        size = _SIZES.get(value_type)
        if size is not None:
            if size > self.size - self.position:
                self.skip(size)
            self.position += size
        elif value_type == ValueType.STRING:
            self.skip_string()
        else:
            self._skip_array(depth)

    def _skip_array(self, depth: int) -> None:
        if depth == _MAX_ARRAY_DEPTH:
            raise GGUFError(f"{self.what}: arrays are nested more than {depth} deep")
        element = self.value_type()
        if element == ValueType.STRING:
            self._skip_strings(self.count(0, "strings", n_lengths=1))
        elif element == ValueType.ARRAY:
            for _ in range(self.count(4, "arrays", n_lengths=1)):
                self._skip_array(depth + 1)
        else:
            self.skip(_SIZES[element] * self.n())

    def _skip_strings(self, number: int) -> None:
        # Vocabularies have 10^5 strings: the position only grows, so that an impossible length
        # shows at the next step or at the end.
        position, buffer, unpack_from = self.position, self.buffer, self.length.unpack_from
        size = self.length.size
        try:
            for _ in range(number):
                position += size + unpack_from(buffer, position)[0]
        except (struct.error, OverflowError):
            position += size  # of a length that is not there
        if position > self.total:
            raise GGUFError(f"{self.what}: a string reaches beyond the end of the file")
        self.position = position
        if position > self.size:
            self.check_end()
            raise ShortError(position)

    def value(self, value_type: ValueType) -> Any:
        """A value as int, float, bool, str or (nested) list."""
        if value_type == ValueType.STRING:
            return self.string()
        if value_type != ValueType.ARRAY:
            layout = f"<{FORMATS[value_type]}"
            return struct.unpack_from(layout, self.buffer, self.skip(struct.calcsize(layout)))[0]
        element = self.value_type()
        if element == ValueType.STRING:
            return [self.string() for _ in range(self.count(0, "strings", n_lengths=1))]
        if element == ValueType.ARRAY:
            return [self.value(element) for _ in range(self.count(4, "arrays", n_lengths=1))]
        size = struct.calcsize(FORMATS[element])
        number = self.count(size, "elements")
        layout = f"<{number}{FORMATS[element]}"
        return list(struct.unpack_from(layout, self.buffer, self.skip(size * number)))
