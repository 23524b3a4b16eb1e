"""bitsandbytes' NF4, FP4 and LLM.int8 in NumPy."""

import json

import numpy as np

from tests.support.foreign_modules import Array, rounded

NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
_FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], np.float32) / np.float32(12)
LEVELS = {"nf4": NF4, "fp4": np.concatenate((_FP4, -_FP4))}
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def dynamic_map() -> Array:
    """``create_dynamic_map(signed=True)`` of bitsandbytes.functional."""
    found = [0.0, 1.0]
    for i in range(7):
        edges = np.linspace(0.1, 1, 2**i + 1, dtype=np.float32)
        means = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (i - 6)
        found += [*means, *-means]
    return np.sort(np.array(found, np.float32))


def _nearest(levels: Array, x: Array) -> Array:
    """Numbers of the nearest of levels that rise."""
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, x).astype(np.uint8)


def _blocks(flat: Array, block: int) -> Array:
    return np.pad(flat, (0, -flat.size % block)).reshape(-1, block)


def encode(
    w: Array,
    kind: str = "nf4",
    *,
    block: int = 64,
    nested: bool = True,
    seen_as: str = "BF16",
    levels: Array | None = None,
) -> dict[str, Array]:
    """The arrays of a module; `levels` of nested scales are bitsandbytes' if there are none."""
    x = _blocks(rounded(w, seen_as).reshape(-1), block)
    absmax = np.abs(x).max(1)
    scaled = x * (np.float32(1) / np.maximum(absmax, np.float32(1e-38)))[:, None]
    order = np.argsort(LEVELS[kind], kind="stable")
    codes = order[_nearest(LEVELS[kind][order], scaled)].astype(np.uint8).reshape(-1)
    codes = codes[: w.size + w.size % 2]
    state = {
        "quant_type": kind,
        "blocksize": block,
        "dtype": _DTYPES[seen_as],
        "shape": list(w.shape),
    }
    arrays = {
        "weight": (codes[0::2] << 4 | codes[1::2])[:, None],
        "weight.quant_map": LEVELS[kind],
        "weight.absmax": absmax,
    }
    if nested:
        levels = dynamic_map() if levels is None else levels
        offset = absmax.mean(dtype=np.float32)
        y = _blocks(absmax - offset, 256)
        scale = np.abs(y).max(1)
        nested_codes = _nearest(levels, y / np.maximum(scale, np.float32(1e-38))[:, None])
        arrays["weight.absmax"] = nested_codes.reshape(-1)[: absmax.size]
        arrays |= {"weight.nested_absmax": scale, "weight.nested_quant_map": levels}
        state |= {
            "nested_blocksize": 256,
            "nested_dtype": "float32",
            "nested_offset": float(offset),
        }
    text = json.dumps(state).encode()
    arrays[f"weight.quant_state.bitsandbytes__{kind}"] = np.frombuffer(text, np.uint8)
    return arrays


def encode_int8(w: Array) -> dict[str, Array]:
    """The arrays of a module that LLM.int8 quantized; a scale per row."""
    x = rounded(w, "F16")
    largest = np.abs(x).max(1)
    codes = np.rint(x * (np.float32(127) / np.maximum(largest, np.float32(1e-38)))[:, None])
    return {
        "weight": codes.astype(np.int8),
        "SCB": largest,
        "weight_format": np.array(0, np.uint8),
    }
