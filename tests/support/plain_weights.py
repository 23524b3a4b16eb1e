"""Modules of random codes in every format of folders, and what they stand for in float64.

Everything is written from the definitions of the formats, in NumPy alone: no code is chosen by an
encoder, so that all codes occur.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tests.support.encoders import awq as awq_encoder
from tests.support.encoders import hqq as hqq_encoder
from tests.support.encoders import quanto as quanto_encoder
from tests.support.foreign_modules import FLOATS, Array
from tests.support.packed_weights import pack, spread

F64 = NDArray[np.float64]
Rng = np.random.Generator
E4M3, E5M2, E8M0 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e8m0fnu
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


class Made(NamedTuple):
    """A module, and what it stands for."""

    arrays: dict[str, Array]
    """By leaf."""
    config: dict[str, Any]
    """The quantization entry of ``config.json``."""
    exact: Callable[[], F64]
    """(n, k)"""


def scales_of(rng: Rng, shape: tuple[int, ...], kind: str, *, signed: bool = False) -> Array:
    """Scales of a typical size, whose last digits are as they come."""
    numbers = rng.uniform(0.5, 2, shape) * 0.01
    return (numbers * rng.choice([-1, 1], shape) if signed else numbers).astype(FLOATS[kind])


def wide(array: Array) -> F64:
    return array.astype(np.float64)


def _bytes_of(rng: Rng, shape: tuple[int, ...], kind: Any) -> Array:
    """All floats of 8 bits that are finite."""
    known = np.flatnonzero(np.isfinite(np.arange(256, dtype=np.uint8).view(kind).astype(float)))
    return known.astype(np.uint8)[rng.integers(0, known.size, shape)].view(kind)


def fp8_blocks(rng: Rng, n: int, k: int, scale: str = "F32", kind: Any = E4M3) -> Made:
    codes = _bytes_of(rng, (n, k), kind)
    scales = scales_of(rng, (-(-n // 128), -(-k // 128)), scale)
    config = {"quant_method": "fp8", "weight_block_size": [128, 128]}

    def exact() -> F64:
        return wide(codes) * np.repeat(np.repeat(wide(scales), 128, 0), 128, 1)[:n, :k]

    return Made({"weight": codes, "weight_scale_inv": scales}, config, exact)


def fp8_rows(rng: Rng, n: int, k: int, scale: str = "F32", kind: Any = E4M3) -> Made:
    codes, scales = _bytes_of(rng, (n, k), kind), scales_of(rng, (n, 1), scale)
    config = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    arrays = {"weight": codes, "weight_scale": scales}
    return Made(arrays, config, lambda: wide(codes) * wide(scales))


def fp8_whole(rng: Rng, n: int, k: int) -> Made:
    codes, scale = _bytes_of(rng, (n, k), E4M3), scales_of(rng, (), "F32")
    arrays = {"weight": codes, "weight_scale": scale}
    return Made(arrays, {"quant_method": "modelopt"}, lambda: wide(codes) * wide(scale))


def fp8_bare(rng: Rng, n: int, k: int, kind: Any = E5M2) -> Made:
    codes = _bytes_of(rng, (n, k), kind)
    return Made({"weight": codes}, {}, lambda: wide(codes))


def mxfp8(rng: Rng, n: int, k: int) -> Made:
    codes = _bytes_of(rng, (n, k), E4M3)
    exponents = rng.integers(115, 135, (n, k // 32)).astype(np.uint8)
    arrays = {"weight": codes, "weight_scale": exponents}

    def exact() -> F64:
        return wide(codes) * spread(np.exp2(exponents.astype(int) - 127), k)

    return Made(arrays, {"quant_method": "mxfp8"}, exact)


def compressed(
    rng: Rng,
    n: int,
    k: int,
    n_bits: int = 4,
    group: int = 32,
    scale: str = "BF16",
    *,
    has_zeros: bool = False,
    in_order: bool = True,
) -> Made:
    half, n_groups = 1 << (n_bits - 1), k // group
    codes = rng.integers(0, 2 * half, (n, k), np.uint8)
    scales = scales_of(rng, (n, n_groups), scale)
    arrays = {
        "weight_packed": pack(codes, n_bits, 1),
        "weight_scale": scales,
        "weight_shape": np.array([n, k], np.int64),
    }
    zeros = np.zeros((n, n_groups), np.int64)
    groups: NDArray[np.int64] = np.arange(k) // group
    if has_zeros:
        zeros = rng.integers(-half, half, (n, n_groups))
        arrays["weight_zero_point"] = pack(zeros + half, n_bits, 0)
    if not in_order:
        groups = rng.permutation(groups)
        arrays["weight_g_idx"] = groups.astype(np.int32)

    def exact() -> F64:
        return (codes.astype(float) - half - zeros[:, groups]) * wide(scales)[:, groups]

    return Made(arrays, {"quant_method": "compressed-tensors"}, exact)


def int8_rows(rng: Rng, n: int, k: int, scale: str = "F32") -> Made:
    codes = rng.integers(-128, 128, (n, k)).astype(np.int8)
    scales = scales_of(rng, (n, 1), scale)
    arrays = {"weight": codes, "weight_scale": scales}
    config = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    return Made(arrays, config, lambda: wide(codes) * wide(scales))


def gptq(
    rng: Rng, n: int, k: int, n_bits: int = 4, group: int = 128, *, in_order: bool = True
) -> Made:
    n_groups = k // group
    codes = rng.integers(0, 1 << n_bits, (k, n), np.uint8)
    zeros = rng.integers(1, 1 << n_bits, (n_groups, n))
    scales = scales_of(rng, (n_groups, n), "F16", signed=True)
    groups = np.arange(k) // group
    if not in_order:
        groups = rng.permutation(groups)
    arrays = {
        "qweight": pack(codes, n_bits, 0),
        "qzeros": pack(zeros - 1, n_bits, 1),
        "scales": scales,
        "g_idx": groups.astype(np.int32),
    }
    config = {"quant_method": "gptq", "bits": n_bits, "group_size": group}

    def exact() -> F64:
        return ((codes.astype(float) - zeros[groups]) * wide(scales)[groups]).T.copy()

    return Made(arrays, config, exact)


def autoround(rng: Rng, n: int, k: int, group: int = 128) -> Made:
    made = gptq(rng, n, k, 4, group)
    config = {
        "quant_method": "auto-round",
        "packing_format": "auto_round:auto_gptq",
        "bits": 4,
        "group_size": group,
    }
    return made._replace(config=config)


def exl2(rng: Rng, n: int, k: int, group: int = 64) -> Made:
    bits, half_way = (5, 4, 3), k // group
    codes, first_words, scales, steps = [], [], [], []
    words: list[Array] = []
    largest = scales_of(rng, (half_way,), "F16")
    n_bits = np.array([bits[g % len(bits)] for g in range(half_way)])
    for g in range(half_way):
        own = rng.integers(0, 1 << int(n_bits[g]), (group, n), np.uint8)
        first_words.append(sum(len(each) for each in words))
        words.append(pack(own, int(n_bits[g]), 0))
        step = rng.integers(0, 16, n)
        steps.append(step)
        most = np.float32(np.float16(np.float32(largest[g]) / 256))
        scale = (np.square(step + 1).astype(np.float32) * most).astype(np.float16)
        codes.append(own.astype(float) - (1 << (int(n_bits[g]) - 1)))
        scales.append(np.broadcast_to(wide(scale), own.shape))
    place = rng.permutation(k)
    arrays = {
        "q_weight": np.concatenate(words),
        "q_invperm": place.astype(np.int32),
        "q_scale": pack(np.stack(steps), 4, 1),
        "q_scale_max": largest,
        "q_groups": np.stack([n_bits, first_words], 1).astype(np.int16).reshape(-1),
    }

    def exact() -> F64:
        return (np.concatenate(codes) * np.concatenate(scales))[place].T.copy()

    return Made(arrays, {"quant_method": "exl2"}, exact)


def awq(rng: Rng, n: int, k: int, group: int = 128) -> Made:
    codes = rng.integers(0, 16, (n, k)).astype(np.float32)
    zeros = rng.integers(0, 16, (n, k // group)).astype(np.float32)
    steps = scales_of(rng, (n, k // group), "F16").astype(np.float32)
    arrays = awq_encoder.pack(awq_encoder.Grid(codes=codes, zeros=zeros, steps=steps))
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}

    def exact() -> F64:
        return (wide(codes) - spread(wide(zeros), k)) * spread(wide(steps), k)

    return Made(arrays, config, exact)


def four_bits(
    rng: Rng, n: int, k: int, kind: str = "nf4", block: int = 64, *, nested: bool = False
) -> Made:
    """Of bitsandbytes."""
    levels = np.sort(rng.uniform(-1, 1, 16)).astype(np.float32)  # any levels will do
    codes = rng.integers(0, 16, n * k, np.uint8)
    n_blocks = -(-n * k // block)
    state = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": [n, k]}
    padded = np.append(codes, np.zeros(codes.size % 2, np.uint8))
    arrays: dict[str, Array] = {
        "weight": (padded[0::2] << 4 | padded[1::2])[:, None],
        "weight.quant_map": levels,
        "weight.absmax": scales_of(rng, (n_blocks,), "F32"),
    }
    absmax = wide(arrays["weight.absmax"])
    if nested:
        numbers = rng.integers(0, 256, n_blocks, np.uint8)
        nested_map = np.linspace(-1, 1, 256, dtype=np.float32)
        nested_absmax = scales_of(rng, (-(-n_blocks // 256),), "F32")
        offset = float(np.float32(0.013))
        state |= {"nested_blocksize": 256, "nested_offset": offset, "nested_dtype": "float32"}
        arrays["weight.absmax"] = numbers
        arrays["weight.nested_absmax"] = nested_absmax
        arrays["weight.nested_quant_map"] = nested_map
        of_blocks = np.repeat(wide(nested_absmax), 256)[:n_blocks]
        absmax = wide(nested_map)[numbers] * of_blocks + offset
    text = json.dumps(state).encode()
    arrays[f"weight.quant_state.bitsandbytes__{kind}"] = np.frombuffer(text, np.uint8)

    def exact() -> F64:
        flat: F64 = wide(levels)[codes] * np.repeat(absmax, block)[: n * k]
        return flat.reshape(n, k)

    return Made(arrays, {"quant_method": "bitsandbytes", "load_in_4bit": True}, exact)


def llm_int8(rng: Rng, n: int, k: int) -> Made:
    codes = rng.integers(-127, 128, (n, k)).astype(np.int8)
    largest = scales_of(rng, (n,), "F32")
    arrays = {"weight": codes, "SCB": largest, "weight_format": np.zeros((), np.uint8)}
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    return Made(arrays, config, lambda: wide(codes) * (wide(largest) / 127)[:, None])


def hqq(
    rng: Rng, n: int, k: int, n_bits: int = 4, axis: int = 1, kind: str = "F16", group: int = 64
) -> Made:
    n_groups = n * k // group
    shape, of_groups = (n_groups, group), (n_groups, 1)
    if axis == 0:
        shape, of_groups = shape[::-1], of_groups[::-1]
    codes = rng.integers(0, 1 << n_bits, shape, np.uint8)
    scale, zero = scales_of(rng, of_groups, kind), rng.uniform(0, (1 << n_bits) - 1, of_groups)
    zero = zero.astype(FLOATS[kind])
    arrays: dict[str, Array] = {
        "W_q": hqq_encoder.pack(codes, n_bits),
        "scale": scale,
        "zero": zero,
        "axis": np.array([axis], np.int32),
        "nbits": np.array([n_bits], np.int32),
        "group_size": np.array([group], np.int32),
        "shape": np.array([n, k], np.int64),
    }

    def exact() -> F64:
        return ((wide(codes) - wide(zero)) * wide(scale)).reshape(n, k)

    return Made(arrays, {"quant_method": "hqq"}, exact)


def mlx(rng: Rng, n: int, k: int, n_bits: int = 4, group: int = 64, kind: str = "BF16") -> Made:
    codes = rng.integers(0, 1 << n_bits, (n, k), np.uint8)
    scales, biases = (scales_of(rng, (n, k // group), kind, signed=True) for _ in range(2))
    words = pack(codes, n_bits, 1).view(np.uint32)
    arrays = {"weight": words, "scales": scales, "biases": biases}

    def exact() -> F64:
        return codes * spread(wide(scales), k) + spread(wide(biases), k)

    return Made(arrays, {"group_size": group, "bits": n_bits}, exact)


def mxfp4(rng: Rng, n: int, k: int) -> Made:
    codes = rng.integers(0, 16, (n, k), np.uint8)
    exponents = rng.integers(110, 130, (n, k // 32)).astype(np.uint8)
    arrays = {"weight_packed": codes[:, 0::2] | codes[:, 1::2] << 4, "weight_scale": exponents}

    def exact() -> F64:
        return E2M1[codes] * spread(np.exp2(exponents.astype(int) - 127), k)

    config = {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}
    return Made(arrays, config, exact)


def nvfp4(rng: Rng, n: int, k: int, *, divides: bool = False) -> Made:
    codes = rng.integers(0, 16, (n, k), np.uint8)
    scales = rng.integers(1, 127, (n, k // 16)).astype(np.uint8).view(E4M3)
    common = scales_of(rng, (1,), "F32")
    packed = codes[:, 0::2] | codes[:, 1::2] << 4
    if divides:
        common = (1 / common).astype(np.float32)
        arrays = {"weight_packed": packed, "weight_global_scale": common}
        times, method = 1 / wide(common), "compressed-tensors"
    else:
        arrays = {"weight": packed, "weight_scale_2": common}
        times, method = wide(common), "modelopt"

    def exact() -> F64:
        by_block = wide(scales) / wide(common) if divides else wide(scales) * times
        return E2M1[codes] * spread(by_block, k)

    return Made({**arrays, "weight_scale": scales}, {"quant_method": method}, exact)


def qint8(rng: Rng, n: int, k: int, kind: str = "BF16") -> Made:
    codes = rng.integers(-128, 128, (n, k)).astype(np.int8)
    scale = scales_of(rng, (n, 1), kind)
    arrays = {"weight._data": codes, "weight._scale": scale}
    return Made(arrays, {"quant_method": "quanto"}, lambda: wide(codes) * wide(scale))


def qint4(rng: Rng, n: int, k: int, n_bits: int = 4, group: int = 128) -> Made:
    codes = rng.integers(0, 1 << n_bits, (n * k // group, group), np.uint8)
    scale, shift = (scales_of(rng, (len(codes), 1), "BF16") for _ in range(2))
    arrays = {
        "weight._data._data": quanto_encoder.pack(codes, n_bits),
        "weight._scale": scale,
        "weight._shift": shift,
        "bias": np.zeros(n, np.float32),
    }

    def exact() -> F64:
        return (codes * wide(scale) - wide(shift)).reshape(n, k)

    return Made(arrays, {"quant_method": "quanto"}, exact)


def torchao(rng: Rng, n: int, k: int, *, has_zeros: bool = True) -> Made:
    group = 64 if has_zeros else k
    codes = rng.integers(-128, 128, (n, k)).astype(np.int8)
    scale = scales_of(rng, (n, k // group), "F32")
    zero = rng.integers(-128, 128, scale.shape).astype(np.int8)
    arrays = {"_weight_qdata": codes, "_weight_scale": scale}
    if has_zeros:
        arrays["_weight_zero_point"] = zero

    def exact() -> F64:
        less = spread(wide(zero), k) if has_zeros else 0.0
        return (wide(codes) - less) * spread(wide(scale), k)

    return Made(arrays, {"quant_method": "torchao"}, exact)


FORMATS: dict[str, Callable[[Rng, int, int], Made]] = {
    "fp8": fp8_blocks,
    "fp8 blocks bf16": partial(fp8_blocks, scale="BF16"),
    "fp8 blocks f16": partial(fp8_blocks, scale="F16"),
    "fp8 rows": fp8_rows,
    "fp8 rows bf16": partial(fp8_rows, scale="BF16"),
    "fp8 rows e5m2": partial(fp8_rows, kind=E5M2),
    "fp8 whole": fp8_whole,
    "fp8 bare": fp8_bare,
    "fp8 bare e4m3": partial(fp8_bare, kind=E4M3),
    "mxfp8": mxfp8,
    "int4": compressed,
    "int4 f32": partial(compressed, scale="F32"),
    "int4 zeros": partial(compressed, has_zeros=True),
    "int4 act-order": partial(compressed, scale="F32", in_order=False),
    "int8 packed": partial(compressed, n_bits=8, scale="F32"),
    "int2": partial(compressed, n_bits=2),
    "int8": int8_rows,
    "int8 bf16": partial(int8_rows, scale="BF16"),
    "gptq": gptq,
    "gptq act-order": partial(gptq, in_order=False),
    "gptq 2": partial(gptq, n_bits=2),
    "gptq 3": partial(gptq, n_bits=3),
    "gptq 8": partial(gptq, n_bits=8),
    "autoround": autoround,
    "awq": awq,
    "exl2": exl2,
    "nf4": four_bits,
    "nf4 nested": partial(four_bits, nested=True),
    "fp4": partial(four_bits, kind="fp4", block=128),
    "llm.int8": llm_int8,
    "hqq": hqq,
    "hqq f32": partial(hqq, kind="F32"),
    "hqq 3": partial(hqq, n_bits=3, kind="BF16"),
    "hqq 8": partial(hqq, n_bits=8, kind="BF16"),
    "hqq columns": partial(hqq, axis=0),
    "mlx": mlx,
    "mlx 3": partial(mlx, n_bits=3),
    "mlx 6": partial(mlx, n_bits=6, kind="F16"),
    "mlx 8": partial(mlx, n_bits=8, kind="F32"),
    "mxfp4": mxfp4,
    "nvfp4": nvfp4,
    "nvfp4 divided": partial(nvfp4, divides=True),
    "qint8": qint8,
    "qint4": qint4,
    "qint2": partial(qint4, n_bits=2),
    "torchao": torchao,
    "torchao rows": partial(torchao, has_zeros=False),
}


def rounded_once(exact: F64, kind: str) -> NDArray[np.unsignedinteger[Any]]:
    """The bits of the nearest floats, ties to even: by looking at the two numbers around each.

    Parameters
    ----------
    exact : float64 (n, k)
    kind : str
        ``bf16``, ``f16`` or ``f32``.
    """
    n_bits, least, word, shift = {
        "bf16": (8, -133, np.uint16, 16),
        "f16": (11, -24, np.uint16, 0),
        "f32": (24, -149, np.uint32, 0),
    }[kind]
    _, exponent = np.frexp(exact)
    unit = np.maximum(exponent - n_bits, least)
    numbers = np.ldexp(np.rint(np.ldexp(exact, -unit)), unit)
    assert (np.abs(numbers) < 65520).all() or kind != "f16"
    if kind == "f16":
        return numbers.astype(np.float16).view(word)
    return (numbers.astype(np.float32).view(np.uint32) >> np.uint32(shift)).astype(word)
