"""The arrays in a pickled checkpoint, found without unpickling anything.

A small machine runs the opcodes that arrays need and no others. It imports and calls nothing:
names of classes stay names, and of the few calls that it knows it keeps the arguments. The bytes of
an array stay where they are in the mapped file. What it understands:

- numpy's pickles of arrays (``_reconstruct`` and the state tuple, or, since protocol 5,
  ``_frombuffer``), with ml_dtypes' bfloat16;
- the same wrapped by JAX (``_reconstruct_array``);
- an object of Grok-1's class ``QuantizedWeight8bit``, under any module, with ``weight`` and
  ``scales``.

Anything else, for instance a name that is not on the list below, is refused by that name.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._text import quoted
from recover.errors import ReblockError
from recover.quants import U8Array

QUANTIZED = "QuantizedWeight8bit"

_RECONSTRUCT = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}
_FROM_BUFFER = {
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
}
_NDARRAYS = {("numpy", "ndarray")}
_DTYPE = ("numpy", "dtype")
_BFLOAT16 = {
    ("ml_dtypes", "bfloat16"),
    ("ml_dtypes._ml_dtypes_ext", "bfloat16"),
    ("jaxlib.xla_extension", "bfloat16"),
}
_JAX_ARRAY = {
    ("jax._src.array", "_reconstruct_array"),
    ("jax._src.device_array", "reconstruct_device_array"),
}
_ITEM_SIZES = {"i1": 1, "f4": 4, "f2": 2, "bfloat16": 2}
_FORMATS = {"i1": "<i1", "f4": "<f4", "f2": "<f2", "bfloat16": "<u2"}

# Far beyond what two arrays take.
_MAX_STEPS = 2_000
_MAX_STACK = 200
_MAX_DIMS = 8
_MAX_SIZE = 1 << 62


@dataclass(frozen=True)
class PickledArray:
    """An array whose bytes lie in the mapped file."""

    dtype: str
    """``i1``, ``f4``, ``f2`` or ``bfloat16``."""
    shape: tuple[int, ...]
    """Row length last."""
    raw: U8Array
    """uint8 (n_bytes,): A read-only view of the file, perhaps not aligned."""

    @property
    def values(self) -> NDArray[Any]:
        """The numbers; bfloat16 as their bits, uint16."""
        return self.raw.view(np.dtype(_FORMATS[self.dtype])).reshape(self.shape)


@dataclass(frozen=True)
class QuantizedWeight:
    """Integers and their scales."""

    weight: PickledArray
    """int8 (..., K, N)."""
    scales: PickledArray
    """(..., G, N): each covers K / G integers along K."""


def parse_pickle(data: U8Array) -> PickledArray | QuantizedWeight:
    """Find the array, or the quantized weight, in a pickle.

    Parameters
    ----------
    data : uint8 (n,)
        The whole file (usually mapped: the arrays' bytes are not touched).

    Returns
    -------
    PickledArray or QuantizedWeight

    Raises
    ------
    ReblockError
        If the pickle is truncated or damaged, or wants anything but that.
    """
    result = _Machine(data).run()
    if isinstance(result, _Array):
        return result.checked()
    if isinstance(result, _Object):
        if set(result.state) != {"weight", "scales"}:
            raise ReblockError(f"pickle: a {QUANTIZED} is not made of weight and scales")
        weight, scales = result.state["weight"], result.state["scales"]
        if isinstance(weight, _Array) and isinstance(scales, _Array):
            return QuantizedWeight(weight.checked(), scales.checked())
    raise ReblockError(f"pickle: holds neither an array nor a {QUANTIZED} of arrays")


class _Name(NamedTuple):
    """What a pickle wants to import; it never is."""

    module: str
    name: str


class _Bytes(NamedTuple):
    """Where a run of bytes lies in the file."""

    start: int
    end: int


@dataclass
class _Dtype:
    name: str
    is_big_endian: bool = False


@dataclass
class _Array:
    """An array under construction."""

    data: U8Array
    shape: Any = None
    dtype: Any = None
    fortran: Any = None
    span: Any = None

    def checked(self) -> PickledArray:
        """What was put together, if it is an array after all."""
        shape, dtype, span = self.shape, self.dtype, self.span
        if not isinstance(dtype, _Dtype) or not isinstance(span, _Bytes):
            raise ReblockError("pickle: an array without its state")
        if dtype.is_big_endian:
            raise ReblockError("pickle: an array of big-endian numbers, which are not supported")
        if self.fortran is not False:
            raise ReblockError("pickle: an array in Fortran order, which is not supported")
        if (
            not isinstance(shape, tuple)
            or len(shape) > _MAX_DIMS
            or not all(type(n) is int and 0 < n < _MAX_SIZE for n in shape)
        ):
            raise ReblockError(f"pickle: an array whose shape is {_shown(shape)}")
        n_bytes = prod(shape) * _ITEM_SIZES[dtype.name]
        if span.end - span.start != n_bytes:
            raise ReblockError(
                f"pickle: an array of {span.end - span.start} bytes, but {dtype.name} numbers of"
                f" shape {shape} take {n_bytes}"
            )
        return PickledArray(dtype.name, shape, self.data[span.start : span.end])


@dataclass
class _Object:
    """An object of the quantized weights' class."""

    state: dict[Any, Any]


class _Mark:
    """Where a tuple's or a dictionary's items begin on the stack."""


class _Machine:
    """Runs the opcodes of one pickle."""

    def __init__(self, data: U8Array) -> None:
        self._data = data
        self._view = data.data
        self._position = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What the pickle stands for."""
        for _ in range(_MAX_STEPS):
            at = self._position
            code = self._number("<B")
            if code == 0x2E:  # STOP
                if self._position != len(self._view):
                    rest = len(self._view) - self._position
                    raise ReblockError(f"pickle: {rest} bytes follow its end")
                return self._pop()
            action = _ACTIONS.get(code)
            if action is None:
                raise ReblockError(
                    f"pickle: opcode {code:#04x} at position {at} is not needed for arrays"
                )
            action(self)
            if len(self._stack) > _MAX_STACK:
                raise ReblockError(f"pickle: more than {_MAX_STACK} values at once")
        raise ReblockError(f"pickle: more than {_MAX_STEPS} steps")

    # Reading and the stack

    def _take(self, n_bytes: int) -> int:
        start = self._position
        if n_bytes > len(self._view) - start:
            raise ReblockError(
                f"pickle: needs {n_bytes} bytes at position {start}, but only"
                f" {len(self._view) - start} are left; the file is truncated"
            )
        self._position = start + n_bytes
        return start

    def _number(self, layout: str) -> int:
        at = self._take(struct.calcsize(layout))
        return int(struct.unpack_from(layout, self._view, at)[0])

    def _pop(self) -> Any:
        if not self._stack or isinstance(self._stack[-1], _Mark):
            raise ReblockError("pickle: takes a value from an empty stack")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        for i in reversed(range(len(self._stack))):
            if isinstance(self._stack[i], _Mark):
                items = self._stack[i + 1 :]
                del self._stack[i:]
                return items
        raise ReblockError("pickle: there is no mark")

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self._stack.append(value)

    # Opcodes

    def proto(self) -> None:
        """Check the version."""
        version = self._number("<B")
        if not 2 <= version <= 5:
            raise ReblockError(f"pickle: protocol {version} is not supported")

    def frame(self) -> None:
        """Frames only help those who read from a stream."""
        self._number("<Q")

    def integer(self, layout: str) -> None:
        """A number that fits a machine word."""
        self.push(self._number(layout))

    def long1(self) -> None:
        """A longer number."""
        length = self._number("<B")
        at = self._take(length)
        self.push(int.from_bytes(self._view[at : at + length], "little", signed=True))

    def text(self, layout: str) -> None:
        """A short text: a name, a key."""
        length = self._number(layout)
        if length > 200:
            raise ReblockError(f"pickle: a text of {length} bytes at {self._position}")
        at = self._take(length)
        try:
            self.push(str(self._view[at : at + length], "utf-8"))
        except UnicodeDecodeError:
            raise ReblockError(f"pickle: text at position {at} is not UTF-8") from None

    def binary(self, layout: str) -> None:
        """Bytes stay where they are."""
        length = self._number(layout)
        at = self._take(length)
        self.push(_Bytes(at, at + length))

    def tuple_of(self, n_items: int) -> None:
        """A tuple of the last values."""
        items = [self._pop() for _ in range(n_items)]
        self.push(tuple(reversed(items)))

    def marked_tuple(self) -> None:
        """A tuple of all values since the mark."""
        self.push(tuple(self._pop_to_mark()))

    def mark(self) -> None:
        """Begin a tuple or a dictionary."""
        self.push(_Mark())

    def memoize(self) -> None:
        """Remember the last value under the next number."""
        self._remember(len(self._memo))

    def put(self, layout: str) -> None:
        """Remember the last value under a number."""
        self._remember(self._number(layout))

    def _remember(self, number: int) -> None:
        value = self._pop()
        self._memo[number] = value
        self.push(value)

    def get(self, layout: str) -> None:
        """A value that was remembered."""
        number = self._number(layout)
        if number not in self._memo:
            raise ReblockError(f"pickle: value {number} was never remembered")
        self.push(self._memo[number])

    def stack_global(self) -> None:
        """A name of something to be imported, from two texts."""
        name, module = self._pop(), self._pop()
        self._push_name(module, name)

    def old_global(self) -> None:
        """The same from two lines."""
        module, name = self._line(), self._line()
        self._push_name(module, name)

    def _line(self) -> str:
        found = bytes(self._view[self._position : self._position + 200]).partition(b"\n")
        if not found[1]:
            raise ReblockError(f"pickle: no name ends near position {self._position}")
        self._position += len(found[0]) + 1
        return found[0].decode("utf-8", "replace")

    def _push_name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ReblockError("pickle: wants to import what has no name")
        wanted = _Name(module, name)
        known = (
            wanted in _RECONSTRUCT | _FROM_BUFFER | _BFLOAT16 | _JAX_ARRAY | _NDARRAYS | {_DTYPE}
            or wanted.name == QUANTIZED
        )
        if not known:
            raise ReblockError(
                f"pickle: wants to import {_shown(wanted)}, which no"
                " array needs; refused, nothing of it was run"
            )
        self.push(wanted)

    def new_object(self) -> None:
        """An object of the quantized weights' class, still empty."""
        arguments, kind = self._pop(), self._pop()
        if not isinstance(kind, _Name) or kind.name != QUANTIZED or arguments != ():
            raise ReblockError(f"pickle: makes an object of {_shown(kind)}")
        self.push(_Object({}))

    def reduce(self) -> None:
        """One of the few calls that make arrays and their types."""
        arguments, function = self._pop(), self._pop()
        if not isinstance(arguments, tuple) or not isinstance(function, _Name):
            raise ReblockError("pickle: calls what is no function")
        if function in _RECONSTRUCT and _is_call(arguments, _NDARRAYS):
            self.push(_Array(self._data))
        elif function in _FROM_BUFFER and len(arguments) == 4:
            span, dtype, shape, order = arguments
            self.push(_Array(self._data, shape, dtype, order != "C", span))
        elif function == _DTYPE and len(arguments) == 3:
            self.push(_dtype(arguments[0]))
        elif function in _JAX_ARRAY and _is_call(arguments, _RECONSTRUCT):
            array = _Array(self._data)
            _set_array(array, arguments[2])
            self.push(array)
        elif function.name == QUANTIZED and len(arguments) == 2:
            self.push(_Object({"weight": arguments[0], "scales": arguments[1]}))
        else:
            raise ReblockError(f"pickle: calls {_shown(function)} in an unknown way")

    def build(self) -> None:
        """Give an object its state."""
        state = self._pop()
        if not self._stack:
            raise ReblockError("pickle: a state without an object")
        target = self._stack[-1]
        if isinstance(target, _Array):
            _set_array(target, state)
        elif isinstance(target, _Object) and isinstance(state, dict):
            target.state.update(state)
        elif isinstance(target, _Dtype) and isinstance(state, tuple) and len(state) > 1:
            target.is_big_endian = state[1] == ">"
        else:
            raise ReblockError("pickle: gives a state to what has none")

    def set_items(self) -> None:
        """Entries of a dictionary."""
        self._set(self._pop_to_mark())

    def set_item(self) -> None:
        """One entry of a dictionary."""
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1] if self._stack else None
        if not isinstance(target, dict) or len(items) % 2:
            raise ReblockError("pickle: entries without a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise ReblockError("pickle: a key that is no text")
            target[key] = value


def _shown(value: Any) -> str:
    """A value for a message; a tuple of tuples may be huge, so it is only called by its kind."""
    if isinstance(value, _Name):
        return quoted(f"{value.module}.{value.name}")
    return quoted(value) if isinstance(value, str) else f"a {type(value).__name__}"


def _is_call(arguments: tuple[Any, ...], first: set[tuple[str, str]]) -> bool:
    """Whether there are at least three arguments, and the first is one of some names."""
    return len(arguments) >= 3 and isinstance(arguments[0], _Name) and arguments[0] in first


def _dtype(name: Any) -> _Dtype:
    if isinstance(name, _Name) and name in _BFLOAT16:
        return _Dtype("bfloat16")
    if isinstance(name, str) and name in _ITEM_SIZES:
        return _Dtype(name)
    raise ReblockError(f"pickle: numbers of type {_shown(name)} are not supported")


def _set_array(array: _Array, state: Any) -> None:
    """The state of numpy's arrays: version, shape, dtype, Fortran order, bytes."""
    if not isinstance(state, tuple) or len(state) != 5:
        raise ReblockError("pickle: an array's state is no tuple of five")
    _, array.shape, array.dtype, array.fortran, array.span = state


def _constant(value: Any) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(value)


_ACTIONS: dict[int, Callable[[_Machine], None]] = {
    ord("\x80"): _Machine.proto,
    ord("\x95"): _Machine.frame,
    ord("N"): _constant(None),
    ord("\x88"): _constant(True),
    ord("\x89"): _constant(False),
    ord("K"): lambda machine: machine.integer("<B"),
    ord("M"): lambda machine: machine.integer("<H"),
    ord("J"): lambda machine: machine.integer("<i"),
    ord("\x8a"): _Machine.long1,
    ord("\x8c"): lambda machine: machine.text("<B"),
    ord("X"): lambda machine: machine.text("<I"),
    ord("C"): lambda machine: machine.binary("<B"),
    ord("B"): lambda machine: machine.binary("<I"),
    ord("\x8e"): lambda machine: machine.binary("<Q"),
    ord("\x96"): lambda machine: machine.binary("<Q"),
    ord(")"): _constant(()),
    ord("\x85"): lambda machine: machine.tuple_of(1),
    ord("\x86"): lambda machine: machine.tuple_of(2),
    ord("\x87"): lambda machine: machine.tuple_of(3),
    ord("t"): _Machine.marked_tuple,
    ord("("): _Machine.mark,
    ord("}"): lambda machine: machine.push({}),
    ord("u"): _Machine.set_items,
    ord("s"): _Machine.set_item,
    ord("\x94"): _Machine.memoize,
    ord("q"): lambda machine: machine.put("<B"),
    ord("r"): lambda machine: machine.put("<I"),
    ord("h"): lambda machine: machine.get("<B"),
    ord("j"): lambda machine: machine.get("<I"),
    ord("\x93"): _Machine.stack_global,
    ord("c"): _Machine.old_global,
    ord("\x81"): _Machine.new_object,
    ord("R"): _Machine.reduce,
    ord("b"): _Machine.build,
}
