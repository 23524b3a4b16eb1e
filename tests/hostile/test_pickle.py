"""Pickles that lie or want to run something: refused in one line, nothing imported."""

import io
import pickle
import pickletools
import struct
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recover.errors import ReblockError, RecoverError
from recover.reblock.jax_pickle import PickledArray, QuantizedWeight, parse_pickle
from tests.hostile.checks import check_line
from tests.hostile.pickles import EMPTY, F4, HEAD, RECONSTRUCT, array, name, text
from tests.support import memory


class QuantizedWeight8bit:
    """Stands for the class of the checkpoint."""

    def __init__(self, weight: Any, scales: Any) -> None:
        self.weight = weight
        self.scales = scales


WEIGHT = np.arange(128, dtype=np.int8).reshape(2, 64)
SCALES = np.arange(1, 65).astype(ml_dtypes.bfloat16).reshape(1, 64)


def parse(raw: bytes) -> PickledArray | QuantizedWeight:
    return parse_pickle(np.frombuffer(raw, np.uint8))


def refusal(raw: bytes, most_memory: int = 1 << 18) -> str:
    before = set(sys.modules)
    with memory.at_most(most_memory), pytest.raises(ReblockError) as caught:
        parse(raw)
    assert set(sys.modules) == before
    check_line(str(caught.value))
    assert len(str(caught.value)) < 400
    return str(caught.value)


# What must be read


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("n", [3, 70_000])
def test_real_arrays(protocol: int, n: int) -> None:
    x = np.arange(2 * n, dtype=np.float32).reshape(2, n)
    raw = pickle.dumps(x, protocol=protocol)
    if protocol == 2:  # bytes are texts there
        assert "import" in refusal(raw)
        return
    found = parse(raw)
    assert isinstance(found, PickledArray)
    assert (found.dtype, found.shape) == ("f4", (2, n))
    assert np.array_equal(found.values, x)


@pytest.mark.parametrize("old_numpy", [False, True])
@pytest.mark.parametrize("main", [False, True])
def test_real_quantized_weights(old_numpy: bool, main: bool) -> None:
    raw = pickle.dumps(QuantizedWeight8bit(WEIGHT, SCALES), protocol=4)
    if old_numpy:
        raw = raw.replace(text("numpy._core.multiarray"), text("numpy.core.multiarray"))
    if main:
        raw = raw.replace(text(__name__), text("__main__"))
    found = parse(raw)
    assert isinstance(found, QuantizedWeight)
    assert (found.weight.dtype, found.scales.dtype) == ("i1", "bfloat16")
    assert np.array_equal(found.weight.values, WEIGHT)
    assert np.array_equal(found.scales.values, SCALES.view(np.uint16))


def test_arrays_of_jax() -> None:
    """As `jax.Array.__reduce__` makes them: numpy's function, arguments and state, and more."""
    arguments = name("numpy", "ndarray") + b"K\0\x85C\x01b\x87"
    state = b"(K\x01K\x02K\x03\x86" + F4 + b"\x89C\x18" + bytes(24) + b"t"
    aval = b"}" + text("weak_type") + b"\x89s"
    wrapped = name("jax._src.array", "_reconstruct_array")
    raw = HEAD + wrapped + b"(" + RECONSTRUCT + arguments + state + aval + b"tR."
    found = parse(raw)
    assert isinstance(found, PickledArray)
    assert (found.dtype, found.shape, found.raw.size) == ("f4", (2, 3), 24)


def test_written_by_hand() -> None:
    raw = HEAD + array() + b"."
    pickletools.dis(raw, out=io.StringIO())  # raises if it is no pickle
    found = parse(raw)
    assert isinstance(found, PickledArray)
    assert np.array_equal(found.values, np.zeros((2, 3), np.float32))
    assert not found.raw.flags.writeable


# What must be refused


@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("subprocess", "Popen"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy", "ndarray.tofile"),
        ("ml_dtypes", "float8_e4m3"),
        ("__main__", "Other"),
        ("x\n\x1b[31m", "y" * 150),
    ],
)
def test_other_imports(module: str, attribute: str, tmp_path: Path) -> None:
    target = tmp_path / "run"
    call = text(f"touch {target}") + b"\x85R."
    message = refusal(HEAD + name(module, attribute) + call)
    assert "wants to import" in message
    assert "nothing of it was run" in message
    if module.isprintable():
        assert f"{module}.{attribute}" in message
        old = f"c{module}\n{attribute}\n".encode()
        assert "wants to import" in refusal(HEAD + old + call)
    assert not target.exists()


class _Evil:
    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self._target,)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_real_hostile_pickles(protocol: int, tmp_path: Path) -> None:
    target = tmp_path / "run"
    for evil in (_Evil(target), QuantizedWeight8bit(WEIGHT, _Evil(target)), [_Evil(target)]):
        refusal(pickle.dumps(evil, protocol=protocol))
    assert not target.exists()
    pickle.loads(pickle.dumps(_Evil(target), protocol=protocol))
    assert target.exists()  # it is really hostile


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "needs 1 bytes"),
        (HEAD, "needs 1 bytes"),
        (b"\x80\x09.", "protocol 9"),
        (HEAD + b".", "empty stack"),
        (HEAD + b"N.", "neither an array"),
        (HEAD + b"(.", "empty stack"),
        (HEAD + b"t.", "no mark"),
        (HEAD + b"h\x05.", "never remembered"),
        (HEAD + b"\x81.", "empty stack"),
        (HEAD + b"R.", "empty stack"),
        (HEAD + b"b.", "empty stack"),
        (HEAD + b"Nb.", "a state without an object"),
        (HEAD + b"NNb.", "what has none"),
        (HEAD + b"Ns.", "empty stack"),
        (HEAD + b"NNs.", "without a dictionary"),
        (HEAD + b"NNNs.", "without a dictionary"),
        (HEAD + b"}(NNu.", "no text"),
        (HEAD + b"}(Nu.", "without a dictionary"),
        (HEAD + b"NN\x93.", "no name"),
        (HEAD + b"NNR.", "no function"),
        (HEAD + b"cnumpy", "no name ends"),
        (HEAD + b"P1\n.", "opcode 0x50"),
        (HEAD + b"Q.", "opcode 0x51"),
        (HEAD + b"i", "opcode 0x69"),
        (HEAD + b"o", "opcode 0x6f"),
        (HEAD + b"\x92", "opcode 0x92"),
        (HEAD + b"\x82\x01", "opcode 0x82"),
        (HEAD + b"\xff", "opcode 0xff"),
        (HEAD + b"X" + struct.pack("<I", 2**31) + b"x", "a text of"),
        (HEAD + b"\x8c\x02\xff\xff.", "not UTF-8"),
        (HEAD + b"B" + struct.pack("<I", 2**32 - 1) + b"x", "truncated"),
        (HEAD + b"\x8e" + struct.pack("<Q", 2**64 - 1) + b"x", "truncated"),
        (HEAD + b"\x8a\xff" + bytes(3), "truncated"),
        (HEAD + b"K\x01" * 300, "values at once"),
        (HEAD + b"N" + b"\x94" * 3000, "steps"),
        (HEAD + array() + b".x", "1 bytes follow"),
        (HEAD + EMPTY + b".", "without its state"),
        (HEAD + array(shape=b"K\x02K\x04\x86") + b".", "take 32"),
        (HEAD + array(shape=b"K\0K\x04\x86") + b".", "shape is a tuple"),
        (HEAD + array(shape=b"J" + b"\xff" * 4 + b"K\x04\x86") + b".", "shape is a tuple"),
        (HEAD + array(shape=b"K\x06") + b".", "shape is a int"),
        (HEAD + array(shape=text("abc")) + b".", "shape is 'abc'"),
        (HEAD + array(shape=b"\x88\x85") + b".", "shape is a tuple"),
        (HEAD + array(shape=b"(" + b"K\x01" * 9 + b"t") + b".", "shape is a tuple"),
        (HEAD + array(shape=b"(" + (b"\x8a\x09" + b"\0" * 8 + b"\x01") * 4 + b"t") + b".", "shape"),
        (HEAD + array(fortran=b"\x88") + b".", "Fortran"),
        (HEAD + array(fortran=b"N") + b".", "Fortran"),
        (HEAD + array(dtype=F4.replace(b"<", b">")) + b".", "big-endian"),
        (HEAD + array(dtype=F4.replace(b"f4", b"O8")) + b".", "numbers of type 'O8'"),
        (HEAD + array(dtype=b"N") + b".", "without its state"),
        (HEAD + array(data=b"N") + b".", "without its state"),
        (HEAD + EMPTY + b"K\x01\x85b.", "no tuple of five"),
        (HEAD + RECONSTRUCT + b"K\0K\0K\0\x87R.", "unknown way"),
        (HEAD + RECONSTRUCT + b")R.", "unknown way"),
        (HEAD + name("numpy._core.numeric", "_frombuffer") + b")R.", "unknown way"),
        (HEAD + name("numpy._core.numeric", "_frombuffer") + b"(NNNNtR.", "without its state"),
        (HEAD + name("numpy", "dtype") + b"N\x89\x88\x87R.", "numbers of type a NoneType"),
        (HEAD + name("m", "QuantizedWeight8bit") + b")\x81.", "not made of weight and scales"),
        (HEAD + name("m", "QuantizedWeight8bit") + b"N\x81.", "makes an object"),
        (HEAD + name("numpy", "ndarray") + b")\x81.", "makes an object"),
        (HEAD + name("m", "QuantizedWeight8bit") + b"NN\x86R.", "neither"),
    ],
)
def test_damaged(raw: bytes, expected: str) -> None:
    assert expected in refusal(raw)


def nested(n: int) -> bytes:
    """A tuple of two of a tuple of two of ...: tiny here, 2**n values when it is looked at."""
    return b")" + b"".join(b"\x94h" + bytes([i]) + b"\x86" for i in range(n))


@pytest.mark.parametrize(
    "end",
    [
        b".",
        b"\x85\x81.",
        b"K\x01\x86R.",
        name("numpy", "dtype") + b"\x85.",
        b"K\x01K\x01\x87R.",
    ],
)
def test_tuples_that_double(end: bytes) -> None:
    refusal(HEAD + nested(200) + end)
    refusal(HEAD + name("numpy", "dtype") + nested(200) + b"\x89\x88\x87R.")
    refusal(HEAD + RECONSTRUCT + nested(200) + b"\x89\x88\x87R.")
    jax = name("jax._src.array", "_reconstruct_array")
    refusal(HEAD + jax + nested(200) + b"\x89\x88\x87R.")
    refusal(HEAD + array(shape=nested(200)) + b".")
    refusal(HEAD + name("m", "QuantizedWeight8bit") + nested(200) + b"\x81.")


GOOD = pickle.dumps(QuantizedWeight8bit(WEIGHT, SCALES), protocol=4)


@given(st.integers(0, len(GOOD) - 1))
def test_every_truncation(length: int) -> None:
    with pytest.raises(ReblockError):
        parse(GOOD[:length])


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_every_changed_byte(position: int, change: int) -> None:
    raw = bytearray(GOOD)
    raw[position] ^= change
    try:
        found = parse(bytes(raw))
    except RecoverError as error:
        check_line(str(error))
    else:
        values = found.values if isinstance(found, PickledArray) else found.weight.values
        assert values.size > 0


@given(st.binary(max_size=60))
def test_noise(raw: bytes) -> None:
    for start in (b"", HEAD, HEAD + EMPTY, HEAD + RECONSTRUCT):
        try:
            found = parse(start + raw)
        except RecoverError as error:
            check_line(str(error))
        else:
            assert isinstance(found, PickledArray)
