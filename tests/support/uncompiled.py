"""Kernels as plain Python, without the compiler: for measuring which of their lines tests reach.

    python -m pytest -p tests.support.uncompiled FILE...

As a plugin, this module lets every kernel be the function that its source says, before any of them
is imported. Vectors of sixteen lanes (`recover._compiled.lanes`) are NumPy arrays then, numbers
that are read from arrays of integers are as wide as the compiler makes them. That is a
thousand times slower, so it is for small inputs only. Results are those of the compiled kernels,
but for products and sums that LLVM rounds once (`fused`). A test that takes more than
``RECOVER_INTERPRETED_SECONDS`` (10) of processor time is too large, and left out.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, NoReturn

import numpy as np
import pytest

LANES = 16


class _Lanes(np.ndarray[Any, Any]):
    """Sixteen numbers; what they are combined with becomes a number of their type."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **_options: Any) -> Any:
        plain = [np.asarray(each).astype(self.dtype) for each in inputs]
        return lanes(getattr(ufunc, method)(*plain))


class _Array(np.ndarray[Any, Any]):
    """An argument of a kernel: reads wide integers, and stores the low bits of any."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        if isinstance(found, np.integer):
            return np.int64(found)
        return found

    def __setitem__(self, at: Any, value: Any) -> None:
        if self.dtype.kind in "iu" and not isinstance(value, np.ndarray):
            value = np.asarray(value).astype(self.dtype)
        super().__setitem__(at, value)


def lanes(values: Any, dtype: Any = None) -> Any:
    """Values (16,) as a vector of their own."""
    return np.array(values, dtype).view(_Lanes)


def plain(value: Any) -> Any:
    """A vector as an array, anything else as it is."""
    return value.view(np.ndarray) if isinstance(value, np.ndarray) else value


def _load(array: Any, at: int) -> Any:
    return lanes(plain(array)[at : at + LANES])


def _store(array: Any, at: int, value: Any) -> None:
    plain(array)[at : at + LANES] = plain(value)


def _store_f16(array: Any, at: int, value: Any) -> None:
    _store(array, at, plain(value).astype(np.float16).view(np.uint16))


def _store_low(array: Any, at: int, value: Any) -> None:
    _store(array, at, plain(value).astype(array.dtype))


def _where(mask: Any, yes: Any, no: Any) -> Any:
    kind = next((each.dtype for each in (yes, no) if isinstance(each, _Lanes)), np.float32)
    return lanes(np.where(plain(mask), plain(yes), plain(no)), kind)


def _fused(factor: Any, other: Any, summand: Any) -> Any:
    wide = [np.asarray(plain(each), np.float64) for each in (factor, other, summand)]
    return lanes(wide[0] * wide[1] + wide[2], np.float32)


def _truncate(value: Any) -> Any:
    value = plain(value)
    fits = np.abs(value) < 2.0**31
    return lanes(np.where(fits, np.trunc(np.where(fits, value, 0)), -(2.0**31)), np.int32)


def _round_away(value: Any) -> Any:
    wide = plain(value).astype(np.float64)
    return lanes(np.trunc(wide + np.copysign(0.5, wide)), np.float32)


def _mask_bits(first: Any, second: Any) -> int:
    both = np.concatenate([plain(first), plain(second)])
    return int((both.astype(np.uint64) << np.arange(2 * LANES, dtype=np.uint64)).sum())


def _sum_lanes(value: Any) -> Any:
    total = plain(value)
    while total.size > 1:
        total = total[: total.size // 2] + total[total.size // 2 :]
    return total[0]


def _add_up(value: Any) -> Any:
    total = plain(value)[0]
    for each in plain(value)[1:]:
        total = total + each
    return total


def _write_f16(raw: Any, at: int, value: Any) -> None:
    plain(raw)[at : at + 2] = np.array([np.float16(value)]).view(np.uint8)


def _bits_to(dtype: Any, source: Any) -> Callable[[Any], Any]:
    return lambda value: np.asarray(value).astype(source).view(dtype)[()]


TWINS: dict[str, Callable[..., Any]] = {
    "load": _load,
    "load_f64": _load,
    "load_bytes": lambda array, at: lanes(plain(array)[at : at + LANES], np.int32),
    "load_two": lambda array, *places: lanes(
        np.concatenate([plain(array)[at : at + LANES // 2] for at in places])
    ),
    "bytes_of_words": lambda *words: lanes(
        np.array([int(each) for each in words], np.uint64).view(np.uint8), np.int32
    ),
    "load_strided": lambda array, at, step: lanes(plain(array)[at : at + step * LANES : step]),
    "store": _store,
    "store_f64": _store,
    "store_f16": _store_f16,
    "store_bytes": _store_low,
    "store_words": _store_low,
    "splat": lambda value: lanes(np.full(LANES, value, np.float32)),
    "spread": lambda array, at: lanes(np.full(LANES, plain(array)[at], np.float32)),
    "where": _where,
    "fused": _fused,
    "larger": lambda one, other: lanes(np.maximum(plain(one), plain(other))),
    "smaller": lambda one, other: lanes(np.minimum(plain(one), plain(other))),
    "sqrt": lambda value: lanes(np.sqrt(plain(value))),
    "round_away": _round_away,
    "truncate": _truncate,
    "to_f32": lambda value: lanes(plain(value), np.float32),
    "bits": lambda value: lanes(plain(value).view(np.int32)),
    "gather": lambda table, index: lanes(plain(table)[plain(index)]),
    "any_lane": lambda mask: bool(plain(mask).any()),
    "mask_bits": _mask_bits,
    "first_lane": lambda one, other: int(np.argmax(np.concatenate([plain(one), plain(other)]))),
    "largest_lane": lambda value: plain(value).max(),
    "add_up": _add_up,
    "sum_lanes": _sum_lanes,
    "sum_rows": lambda array, at: lanes(
        np.array([_sum_lanes(plain(array)[at + LANES * k :][:LANES]) for k in range(LANES)])
    ),
    "to_f64": lambda value: lanes(plain(value), np.float64),
    "nearest_f32": lambda value: lanes(plain(value), np.float32),
    "from_bits": lambda value: lanes(plain(value).astype(np.int32).view(np.float32)),
    "as_f16": lambda value: lanes(plain(value).astype(np.float16), np.float32),
    "n_true": lambda mask: int(plain(mask).sum()),
    "f16_to_f32": lambda bits: np.float32(_bits_to(np.float16, np.uint16)(bits)),
    "f32_to_f16": lambda value: int(_bits_to(np.uint16, np.float16)(value)),
    "f32_bits": _bits_to(np.uint32, np.float32),
    "f32_from_bits": _bits_to(np.float32, np.uint32),
    "read_f16": lambda raw, at: np.float32(plain(raw)[at : at + 2].view(np.float16)[0]),
    "write_f16": _write_f16,
}
"""What each function that the compiler makes of LLVM's instructions does."""


def _as_argument(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.view(_Array)
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(map(_as_argument, value))
    if isinstance(value, tuple):
        return tuple(map(_as_argument, value))
    return value


def _as_result(value: Any) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(map(_as_result, value))
    if isinstance(value, tuple):
        return tuple(map(_as_result, value))
    return plain(value)


def _interpreted(function: Any) -> Any:
    """A kernel: arguments become arrays as kernels see them, and arithmetic is silent."""

    @wraps(function)
    def call(*arguments: Any) -> Any:
        with np.errstate(all="ignore"):
            return _as_result(function(*map(_as_argument, arguments)))

    call.py_func = function  # type: ignore[attr-defined]
    return call


def install() -> None:
    """Interpret all kernels that are imported from now on."""
    import recover._compiled.jit as jit

    loaded = [name for name in sys.modules if name.startswith("recover._compiled.lanes")]
    assert not loaded, "kernels were imported already"
    import numba.extending

    numba.extending.intrinsic = lambda function: TWINS[function.__name__]
    for name in ("kernel", "bare_kernel"):
        setattr(jit, name, _interpreted)
    for name in ("inner", "sized", "inlined", "bare_inner", "bare_sized", "bare_inlined"):
        setattr(jit, name, lambda function: function)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Leave a test out that takes too long."""

    def stop(*_: object) -> NoReturn:
        pytest.skip("too large without the compiler")

    before = signal.signal(signal.SIGVTALRM, stop)
    seconds = float(os.environ.get("RECOVER_INTERPRETED_SECONDS", "10"))
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


install()
