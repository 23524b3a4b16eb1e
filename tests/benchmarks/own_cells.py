"""Whether weights lie in the cells of what our own encoders make of them, in many of any kind.

    python -m tests.benchmarks.own_cells [--weights N] [WORD...]

As `tests.benchmarks.real_cells`, by the encoders of `tests.support.encoders`, which follow the
packages: of formats whose package needs a GPU as well. Prints how many of at least N originals in
F32, F16 and BF16 lie outside of what the codes prove: none, but for AWQ with scales that are found
beside Q4_K, of which 1e-5 may. Codes of GPTQ and EXL2 are those of inputs whose columns have
nothing in common, which are rounded weights; they are read as such. Only ways that have one of the
words in their names, if there are any.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from recover.containers.huggingface.formats import Matrix
from recover.containers.huggingface.formats._compensated import CompensatedMatrix
from recover.containers.huggingface.scaled import Scales
from recover.evidence.intervals import Intervals
from recover.inputs.scaled import norm_scales, shared_scales
from recover.quants import F32Array, quantize, type_by_name
from tests.benchmarks.real_cells import WIDTH, numbers_outside, weights
from tests.golden.make_sample_folders import ALL
from tests.support.encoders import awq, compressed_tensors, fp4, fp8, gptq, mlx
from tests.support.foreign_modules import FLOATS, Array, heavy_tailed, rounded
from tests.support.format_checks import awq_matrices, matrix_of
from tests.support.layer_inputs import synthetic_block
from tests.support.stated_intervals import tensor_of

_AT_ONCE = 2048  # rows
_FITTED = {"config_groups": {"group_0": {"weights": {"observer": "memoryless_minmax"}}}}
Encode = Callable[[F32Array], Mapping[str, Array]]


def _ways() -> Iterator[tuple[str, Callable[[F32Array], Matrix]]]:
    """Encoders that look at the weights alone, but for those of `_soft_ways`."""

    def way(encode: Encode, config: Mapping[str, Any] = {}, recipe: str = "") -> Any:
        return lambda w: matrix_of(encode(w), config, recipe)

    for name, setting in ALL.items():
        if not name.startswith(("AWQ", "GPTQ", "EXL2", "INT4-g128-unknown")):
            yield name, way(setting.encode, setting.config, setting.recipe)
    for extent in ("block", "row", "tensor"):
        for kind in ("e4m3", "e5m2"):
            plain = partial(fp8.encode, extent=extent, kind=kind)
            yield f"FP8 {kind}, {extent}", way(plain)
            yield f"FP8 {kind}, {extent}, in BF16", way(partial(plain, arithmetic="BF16"))
            yield f"FP8 {kind}, {extent}, of F32", way(partial(plain, seen_as="F32"))
    yield "FP8, factors", way(partial(fp8.encode, reciprocal=True))
    yield "FP8, E8M0 scales", way(partial(fp8.encode, power_of_two=True))
    compressed = partial(fp4.encode_nvfp4, by="compressed-tensors")
    yield "NVFP4, compressed-tensors", way(compressed, _FITTED)
    yield "NVFP4, in BF16", way(partial(compressed, arithmetic="BF16"), _FITTED)
    yield "NVFP4, of F32", way(partial(compressed, seen_as="F32"), _FITTED)
    for how in ("even", "up"):
        yield f"MXFP4, {how}", way(partial(fp4.encode_mxfp4, how=how))
    for n_bits in (2, 3, 4, 5, 6, 8):
        in_f16 = partial(mlx.encode, n_bits=n_bits, group=32, kind="F16")
        yield f"MLX {n_bits} bits, g32, F16", way(in_f16, {"group_size": 32})
    for n_bits in (4, 8):
        uneven = partial(compressed_tensors.encode, n_bits=n_bits, symmetric=False)
        yield f"INT{n_bits}, asymmetric", way(uneven, *_searched("minmax"))


def _searched(observer: str) -> tuple[Mapping[str, Any], str]:
    return compressed_tensors.config(f"memoryless_{observer}"), compressed_tensors.RECIPE


def _soft_ways() -> Iterator[tuple[str, Callable[[F32Array], Matrix]]]:
    inputs = np.eye(WIDTH, dtype=np.float32)

    def rounded_codes(arrays: Mapping[str, Array], config: Mapping[str, Any]) -> Matrix:
        found = matrix_of(arrays, config)
        assert isinstance(found, CompensatedMatrix)
        return found.as_rounded

    def by_gptq(w: F32Array, n_bits: int, **how: Any) -> Matrix:
        codes = gptq.quantize(w, inputs, n_bits, **how)
        config = {"quant_method": "gptq", "bits": n_bits, "group_size": how.get("group", 128)}
        return rounded_codes(gptq.pack(codes, n_bits), config)

    for n_bits in (2, 3, 4, 8):
        yield f"GPTQ {n_bits} bits", partial(by_gptq, n_bits=n_bits)
    yield "GPTQ 4 bits, asymmetric", partial(by_gptq, n_bits=4, symmetric=False)
    yield "GPTQ 4 bits, act-order", partial(by_gptq, n_bits=4, act_order=True)
    yield "GPTQ 4 bits, rows", partial(by_gptq, n_bits=4, group=-1)

    def by_exl2(w: F32Array, bits: tuple[int, ...]) -> Matrix:
        return rounded_codes(gptq.exl2(w, inputs, bits).arrays, {})

    for bits in ((4,), (5, 4, 3)):
        yield f"EXL2 {', '.join(map(str, bits))} bits", partial(by_exl2, bits=bits)


def _print(name: str, kind: str, n: int, n_outside: int) -> None:
    print(f"{name:32} {kind:4} originals: {n:,} weights, outside: {n_outside}", flush=True)


def _count(
    name: str, make: Callable[[F32Array], Matrix], draw: Callable[[Any], F32Array], n_least: int
) -> None:
    for kind in FLOATS:
        rng = np.random.Generator(np.random.Philox(key=17))
        n = n_outside = 0
        while n < n_least:
            w = rounded(draw(rng), kind)
            with np.errstate(all="ignore"):  # of what encoders do with subnormal weights
                matrix = make(w)
            n, n_outside = n + w.size, n_outside + numbers_outside(matrix, [w])[0]
        _print(name, kind, n, n_outside)


def _exact(values: F32Array) -> Scales:
    return Scales(values, np.zeros_like(values))


def _bounds(w: F32Array) -> Any:
    intervals = Intervals()
    intervals.look_at([tensor_of(quantize(w, type_by_name("Q4_K")), "Q4_K", w.size)])
    return intervals.bound


def _awq_block(rng: Any, kind: str) -> Iterator[tuple[str, Matrix, F32Array]]:
    """AWQ's matrices of a block, with the true scales and with those found beside Q4_K."""
    block = synthetic_block(rng, 512, WIDTH)
    originals = {name: rounded(w, kind) for name, w in block.matrices.items()}
    block = block._replace(matrices=originals)
    quantized = awq.quantize(block)
    modules = awq_matrices(quantized)
    for name, read in modules.items():
        columns, rows = _exact(quantized.columns[name]), _exact(quantized.rows[name])
        yield "AWQ, true scales", read.with_scales(columns, rows), originals[name]
    first, second = (
        norm_scales(block.norms[norm], quantized.norms[norm], "F16")
        for norm in ("attn_norm", "ffn_norm")
    )

    def shared(after: str, before: str, scales: Scales | None) -> tuple[Scales | None, Matrix]:
        """Of the columns of a matrix and the rows of the one before; the latter with both."""
        one, other = modules[after].with_scales(None), modules[before].with_scales(scales)
        bounds = _bounds(originals[after]), _bounds(originals[before])
        found = shared_scales(one, bounds[0], other, bounds[1])
        return found, modules[before].with_scales(scales, found)

    of_up, up = shared("ffn_down", "ffn_up", second)
    of_values, values = shared("attn_output", "attn_v", first)
    found = {
        "attn_q": modules["attn_q"].with_scales(first),
        "attn_k": modules["attn_k"].with_scales(first),
        "attn_v": values,
        "attn_output": modules["attn_output"].with_scales(of_values),
        "ffn_gate": modules["ffn_gate"].with_scales(second),
        "ffn_up": up,
        "ffn_down": modules["ffn_down"].with_scales(of_up),
    }
    for name, matrix in found.items():
        yield "AWQ, scales found", matrix, originals[name]


def _count_awq(n_least: int) -> None:
    for kind in FLOATS:
        rng = np.random.Generator(np.random.Philox(key=18))
        n: dict[str, int] = {}
        outside: dict[str, int] = {}
        while min(n.values(), default=0) < n_least:
            for name, matrix, w in _awq_block(rng, kind):
                n[name] = n.get(name, 0) + w.size
                outside[name] = outside.get(name, 0) + numbers_outside(matrix, [w])[0]
        for name in n:
            _print(name, kind, n[name], outside[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="ways to choose")
    parser.add_argument("--weights", type=int, default=10_000_000)
    args = parser.parse_args()

    def is_chosen(name: str) -> bool:
        return not args.words or any(word in name for word in args.words)

    for name, make in _ways():
        if is_chosen(name):
            _count(name, make, lambda rng: weights(rng, _AT_ONCE), args.weights)
    for name, make in _soft_ways():
        if is_chosen(name):
            _count(name, make, lambda rng: heavy_tailed(rng, _AT_ONCE, WIDTH), args.weights)
    if is_chosen("AWQ"):
        _count_awq(args.weights)


if __name__ == "__main__":
    main()
