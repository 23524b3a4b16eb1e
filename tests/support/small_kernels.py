"""Small inputs for kernels that a small merge does not reach: cases of `tests.support.small_cases`.

Each yields arrays by name. The types of inputs, what the weights are like and what a method is
asked for are chosen so that every branch of a kernel is taken.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = Iterator[tuple[str, Array]]

_SETS = (
    ("Q5_K+Q4_K+Q2_K", "pruned", ("posterior", "joint")),
    ("Q6_K+Q4_K", "outliers", ("joint",)),
    ("Q5_K+IQ3_XXS+TQ2_0", "far outliers", ("posterior", "linear")),
    ("IQ4_K+IQ3_K+Q4_K", "heavy tails", ("posterior", "linear", "midpoint")),
    ("IQ5_K+IQ2_KS", "one sign", ("posterior", "midpoint")),
    ("Q6_K+Q3_K", "tiny", ("posterior", "midpoint")),
)


def _encoded(name: str, x: Array) -> Array:
    from recover.quants import has_encoder, quantize, type_by_name
    from tests.oracle import libggml
    from tests.support.encoders import ik

    kind = type_by_name(name)
    if name in ik.FORMATS:
        return ik.encode(name, x).reshape(-1)
    return quantize(x, kind) if has_encoder(kind) else libggml.quantize(kind.type_id, x)


def estimates(_folder: Path) -> Arrays:
    """One superblock by inputs of every kind; estimates, deviations, sums, bounds."""
    from recover.bounds.measuring import mark_conflicts, measure, measure_cells, round_outward
    from recover.estimators.uncorrected import UncorrectedTileEstimator
    from recover.evidence.buffer import Source
    from recover.evidence.cells import intersect_cells
    from recover.evidence.lattice import any_empty, count_empty, count_without, snap
    from recover.quants import type_by_name
    from tests.support.joint_inputs import hard_weights

    for label, kind, methods in _SETS:
        x, names = hard_weights(8)[kind][:1], label.split("+")
        raws = [_encoded(name, x) for name in names]
        for method in methods:
            tile = UncorrectedTileEstimator([Source(type_by_name(name)) for name in names], method)
            out, deviation, lower, upper = np.empty((4, x.size), np.float32)
            tally = tile.estimate(raws, 0, x.size, out, deviation)
            yield f"{label} {method}", np.stack([out, deviation])
            yield f"{label} {method} sums", tally.array
        intersect_cells(tile.evidence, lower, upper)
        yield f"{label} bounds", np.stack([lower, upper])
        found = np.empty((1, 4))
        measure_cells(tile.evidence, found)
        yield f"{label} widths", np.append(found, measure(lower[:-7], upper[:-7]))
        for name, n_bits in (("bf16", 8), ("f16", 11)):
            empty = any_empty(tile.evidence, n_bits), *count_empty(lower, upper, n_bits)
            yield f"{label} {name} bounds", np.array([*empty, *count_without(lower, upper, n_bits)])
            for rounds in (False, True):
                moved = out.copy(), deviation.copy()
                said = snap(lower, upper, n_bits, True, rounds, *moved)
                yield f"{label} {name} {rounds} snapped", np.array(said)
                yield f"{label} {name} {rounds} weights", np.stack(moved)
        lower[3], upper[3] = upper[3] + 1, lower[3] - 1
        mark_conflicts(lower, upper)
        for up, each in enumerate((lower, upper)):
            words = np.empty(x.size, np.uint16)
            round_outward(each, bool(up), words)
            yield f"{label} as float16 {up}", words


def folders(_folder: Path) -> Arrays:
    """One superblock by a GGUF file and a folder, and what a calibration says of its weights."""
    from recover.containers.huggingface.rows import Rows
    from recover.containers.huggingface.tensors import QuantizedTensor
    from recover.containers.model import ArrayTensor
    from recover.estimators.uncorrected import UncorrectedTileEstimator
    from recover.evidence.buffer import Source
    from recover.quants import type_by_name
    from recover.training.simulate import tell
    from tests.support.format_checks import matrix_of
    from tests.support.joint_inputs import encode, hard_weights, sources_of
    from tests.support.plain_weights import FORMATS

    rng = np.random.default_rng(16)
    kind = type_by_name("Q4_K")
    for name in ("nf4", "hqq", "fp8 rows"):
        made = FORMATS[name](rng, 1, 256)
        x = (made.exact() * (1 + 1e-3 * rng.standard_normal((1, 256)))).astype(np.float32)
        matrix = matrix_of(made.arrays, made.config)
        tensor = QuantizedTensor("weight", (256, 1), (Rows(matrix),), 0)
        first = ArrayTensor("weight", (256, 1), kind, _encoded("Q4_K", x))
        sources = [Source(kind), Source(tensor.type, matrix.has_cells)]
        for method in ("posterior", "midpoint"):
            out, deviation = np.empty((2, 256), np.float32)
            tile = UncorrectedTileEstimator(sources, method)
            tally = tile.estimate([first, tensor], 0, 256, out, deviation)
            yield f"{name} {method}", np.stack([out, deviation])
            yield f"{name} {method} sums", tally.array
    x = hard_weights(8)["heavy tails"][:1]
    x[0, 16:48] = 0
    told = [Source(type_by_name(name), weight=w) for name, w in (("Q4_K", 0.7), ("Q3_K", 0.3))]
    tile = UncorrectedTileEstimator(told, "linear")
    tally = tile.estimate(encode(told, x), 0, 256, out, deviation)
    yield "by a calibration", np.stack([out, deviation])
    yield "by a calibration sums", tally.array
    sources = sources_of("Q6_K+Q4_K")
    for name, each in tell(x, sources, encode(sources, x))._asdict().items():
        yield f"told {name}", each


def trellis(_folder: Path) -> Arrays:
    """The search of seeds, of which there are fewer here than those types have."""
    from recover.quants import iq2_kt, iq3_kt, iq4_kt
    from recover.quants._trellis_encode import encode

    rng = np.random.default_rng(11)
    x = (0.02 * rng.standard_t(5, (2, 64))).astype(np.float32)
    x[0, :32], x[1] = 0, 0
    for module in (iq2_kt, iq3_kt, iq4_kt):
        shape = module._SHAPE._replace(n_seeds=4096)
        for imatrix in (np.empty(0, np.float32), rng.lognormal(0, 1, 64).astype(np.float32)):
            scales, found = encode(shape, x, imatrix)
            name = f"{module.__name__} {imatrix.size}"
            yield f"{name} scales", scales
            for what, each in found._asdict().items():
                yield f"{name} {what}", each


def comparisons(_folder: Path) -> Arrays:
    """What is asked of two inputs of one tensor."""
    from recover.calibration.moments import _add_gram
    from recover.estimators._combine import square_difference
    from recover.estimators.uncorrected import UncorrectedTileEstimator
    from recover.evaluate.histograms import _count_errors, _count_widths
    from recover.evaluate.token_figures import compare_chunk
    from recover.evidence.buffer import Source
    from recover.evidence.cells import count_contradictions
    from recover.inputs.nearest import _nearest
    from recover.merge.columns import excess_of_columns, sums_of_columns, without_others
    from recover.merge.superblocks import compare_each, find_lost
    from recover.quants import type_by_name

    rng = np.random.default_rng(12)
    x = rng.standard_t(4, (6, 256)).astype(np.float32)
    other = (x + 0.1 * rng.standard_normal(x.shape)).astype(np.float32)
    other[1], other[2], other[3] = 0, 3 * x[2], rng.standard_normal(256)
    x[4], other[5] = 0, 0.3 * x[5]
    for is_typical in (True, False):
        found = np.zeros((6, 4))
        compare_each(x.reshape(-1), other.reshape(-1), 1.25, 0.5, is_typical, 1e-3, found)
        yield f"compared {is_typical}", found
    empty, large = np.empty((2, 6), np.bool_)
    find_lost(other.reshape(-1), 1e-3, empty, large)
    yield "lost", np.stack([empty, large])
    variances = np.full((2, x.size // 16), 0.01, np.float32)
    variances[0, 5] = np.inf
    pair = variances[0], variances[1]
    of_columns = sums_of_columns(x.reshape(-1), other.reshape(-1), pair, 64, 128)
    assert of_columns is not None
    yield "columns", np.array(excess_of_columns(of_columns))
    yield "kept", np.stack(without_others(x.reshape(-1), other.reshape(-1), of_columns, 64))
    yield "squares", np.array(square_difference(x.reshape(-1), other.reshape(-1)))
    names = "Q5_K", "Q4_K", "IQ4_K"
    tile = UncorrectedTileEstimator([Source(type_by_name(name)) for name in names], "posterior")
    raws = [_encoded(name, each) for name, each in zip(names, (x, other, x), strict=True)]
    evidence = tile.read(raws, 0, x.size)
    for step in (1, 2):
        n_found = np.zeros(3, np.int64)
        count_contradictions(evidence, step, n_found)
        yield f"contradictions {step}", n_found
    book = rng.standard_normal((9, 4)).astype(np.float32)
    yield "nearest", _nearest(np.ascontiguousarray(x[0].reshape(-1, 4)), book)
    gram = np.zeros((3, 3))
    both = np.stack([x.reshape(-1), other.reshape(-1)])[:, :700]
    _add_gram(np.ascontiguousarray(both), rng.standard_normal(700).astype(np.float32), gram)
    yield "gram", gram
    counts, by_weight = np.zeros(1 << 16, np.int64), np.zeros(1 << 11, np.int64)
    square_by_weight = np.zeros(1 << 11)
    _count_errors(x[0], other[0], counts, by_weight, square_by_weight)
    yield "errors", counts
    yield "by weight", np.stack([by_weight, square_by_weight])
    _count_widths(x[0], other[0], counts)
    yield "widths", counts
    logits = (4 * rng.standard_normal((2, 5, 40))).astype(np.float32)
    logits[1, 0, 7:9] = logits[1, 0].max() + 1
    tokens = rng.integers(0, 40, 9).astype(np.int32)
    with ThreadPoolExecutor(1) as threads:
        figures = compare_chunk(logits[0], logits[1], tokens, 0, threads)
    for name in ("kl", "nll_truth", "nll", "rank", "position"):
        yield name, getattr(figures, name)


def _coded(rng: np.random.Generator) -> Iterator[tuple[str, Any]]:
    """Codes whose scales lie in runs, anywhere, or apart, on a grid of levels or of integers."""
    from recover.containers.huggingface.formats._coded import (
        WHOLE_NUMBERS,
        Coded,
        Runs,
        in_order,
        joined,
    )

    codes = rng.integers(0, 16, 4 * 96, np.uint8)
    levels = np.sort(rng.standard_normal(256)).astype(np.float32)
    scale, shift = 0.01 * np.exp(rng.standard_normal(12)), rng.uniform(0, 15, 12)
    runs = Coded(codes, levels, Runs(96, 32, 0), scale, shift)
    yield "runs", runs
    yield "a part", runs.part(32, 320)
    yield "no whole vectors", runs.part(5, 322)
    yield "in another order", runs.taken(rng.permutation(codes.size))
    yield "whole numbers", Coded(codes, WHOLE_NUMBERS, Runs(96, 96, 0), scale[:1], base=scale[:4])
    yield "joined", joined([runs.part(0, 96), runs.part(96, 192)])
    places = np.stack([rng.permutation(96), rng.integers(0, 3, 96)]).astype(np.int32)
    numbers = (each.reshape(4, 3).astype(np.float32) for each in (scale, shift))
    yield "scattered", in_order(places, codes.reshape(4, 96), *numbers)


def stored(_folder: Path) -> Arrays:
    """Weights that codes stand for, as floats of every kind, and bytes in another order."""
    from recover.containers.huggingface.mxfp4 import repack
    from recover.containers.huggingface.tensors import widen
    from recover.quants import type_by_name
    from recover.quants._float_cells import narrow_bf16, narrow_f16
    from recover.quants._ternary import narrow_ternary
    from recover.quants.rounding import round_weights
    from recover.reblock.schemes.fp4 import _repack_nvfp4
    from recover.reblock.transposing import transpose

    rng = np.random.default_rng(13)
    kinds = [type_by_name(name) for name in ("F32", "F16", "BF16")]
    for name, coded in _coded(rng):
        for kind in kinds:
            out = np.empty(kind.n_bytes(coded.codes.size), np.uint8)
            lost = coded.store(kind, out)
            yield f"{name} as {kind.name}", out
            yield f"{name} as {kind.name} lost", np.array([*lost.to_record(), lost.fits])
    x = np.append(rng.standard_normal(45) * 2.0 ** rng.integers(-30, 20, 45), [0, 65520, 3.39e38])
    weights = x.astype(np.float32)
    for kind in kinds:
        out = np.empty(kind.n_bytes(x.size), np.uint8)
        lost = round_weights(weights, kind, out, 0.7, 0.1)
        yield f"rounded to {kind.name}", out
        yield f"rounded to {kind.name} lost", np.array([*lost.to_record(), lost.fits])
    words = np.append(rng.integers(0, 1 << 16, 90), [0, 0x7BFF, 0x7F80, 0xFC00, 0x7F7F, 0x8000])
    for narrow in (narrow_f16, narrow_bf16):
        bounds = np.full(96, -np.inf, np.float32), np.full(96, np.inf, np.float32)
        narrow(words.astype(np.uint16), *bounds)
        yield narrow.__name__, np.stack(bounds)
    digits = np.float32(0.25) * rng.integers(-1, 2, 512).astype(np.float32)
    digits[300] = np.inf
    bounds = np.full(512, -np.inf, np.float32), np.full(512, np.inf, np.float32)
    narrow_ternary(digits, *bounds)
    yield "ternary", np.stack(bounds)
    lower, upper = np.sort(rng.standard_normal((2, 64)).astype(np.float32), axis=0)
    widen(lower, upper, np.float32(2**-9), np.float32(1e-3))
    yield "widened", np.stack([lower, upper])
    packed = rng.integers(0, 256, (8, 16), np.uint8)
    exponents = rng.integers(0, 256, 8, np.uint8)
    blocks = np.empty(8 * 17, np.uint8)
    repack(packed, exponents, blocks)
    yield "MXFP4", blocks
    blocks = np.empty(8 * 9, np.uint8)
    _repack_nvfp4(packed[:4].reshape(-1), exponents, blocks)
    yield "NVFP4", blocks
    source = rng.integers(-128, 128, (70, 150)).astype(np.int8)
    turned = np.empty((130, 70), np.int8)
    transpose(source, 20, turned)
    yield "transposed", turned


def scalings(_folder: Path) -> Arrays:
    """Scales of rows and columns, found and undone."""
    from recover.containers.huggingface.scaled import Scales, UnscaledMatrix
    from recover.inputs._overlaps import Side, most_likely
    from tests.support.foreign_modules import state
    from tests.support.format_checks import matrix_of
    from tests.support.plain_weights import FORMATS

    rng = np.random.default_rng(14)
    made = FORMATS["int8"](rng, 24, 64)
    matrix = matrix_of(made.arrays, made.config)
    told = state(matrix)

    def bounds(start: int, end: int) -> tuple[Array, Array]:
        return 2 * told.lower[start:end], 2 * told.upper[start:end]

    for by_row, n in ((True, 24), (False, 64)):
        found = most_likely([Side(matrix, bounds, by_row)], n)
        yield f"scales {by_row}", np.stack([found.values, found.deviations])
        scales = Scales(found.values, np.where(np.arange(n) % 5, found.deviations, np.float32(2)))
        plain = Scales(np.ones(88 - n, np.float32), np.zeros(88 - n, np.float32))
        pair = (plain, scales) if by_row else (scales, plain)
        for what, each in state(UnscaledMatrix(matrix, *pair))._asdict().items():
            yield f"undone {by_row} {what}", each


def floats(_folder: Path) -> Arrays:
    """Steps of 4-bit floats behind stored ones; integers packed into blocks."""
    from recover.inputs.originals._fit import STORAGES
    from recover.inputs.originals._fit_fp4 import LEVELS, Search, step_intervals
    from recover.inputs.originals.fp4 import power_steps, read_fp4, scaled_steps
    from recover.quants import all_types

    rng = np.random.default_rng(15)
    codes = LEVELS[rng.integers(0, 8, (12, 32))] * rng.choice([-1, 1], (12, 32))
    codes[1], codes[2, 5:] = 0, 0
    scales = 2.0 ** rng.integers(-9, -5, (12, 1))
    x = (codes * scales).astype(np.float32)
    x[3, 4] *= 1.01  # off the grid
    x[4] = rng.standard_normal(32)
    x[5, 0] = np.inf
    common = np.float32(0.75)
    for name, words in (("F32", x.view(np.uint32)), ("BF16", (x.view(np.uint32) >> 16))):
        stored_words = words.reshape(-1).astype(np.uint32 if name == "F32" else np.uint16)
        for steps in (power_steps(), scaled_steps(common, None), scaled_steps(common, "BF16")):
            for finest in (False, True):
                found = read_fp4(stored_words, name, steps, Search(finest, 4))
                label = f"{name} {steps.type_name} {steps.rounded_to} {finest}"
                for what, each in found._asdict().items():
                    yield f"{label} {what}", np.asarray(each)
        for finest in (False, True):
            low, high, top = np.empty((3, 24))
            step_intervals(stored_words, STORAGES[name], finest, (low, high), top)
            yield f"{name} intervals {finest}", np.stack([low, high, top])
    for kind in all_types():
        integers = getattr(kind, "integers", None)
        if integers is not None:
            n = 2 * kind.block_size
            numbers = rng.integers(integers.lowest, integers.highest + 1, n).astype(np.int8)
            d, m = rng.integers(0, 1 << 15, (2, n // min(32, kind.block_size)), np.uint16)
            raw = np.zeros(2 * kind.type_size, np.uint8)
            integers.pack(numbers, d, m, min(32, kind.block_size), raw)
            yield f"{kind.name} packed", raw


def grids(_folder: Path) -> Arrays:
    """What groups of floats say of codes: multiples of a step, from 0 or shifted, and others."""
    from recover.inputs.originals._fit_codes import look_at_groups

    rng = np.random.default_rng(16)
    x = np.stack([rng.integers(-7, 8, 32) * 0.013, rng.integers(0, 16, 32) * 0.02 - 0.11])
    x = np.concatenate([x, [np.zeros(32), np.full(32, 0.3), rng.standard_normal(32)]])
    values = x.astype(np.float16).astype(np.float64).reshape(-1)
    half = np.spacing(values.astype(np.float16)).astype(np.float64) / 2
    counts, levels = np.empty((2, 5), np.int16)
    units = np.empty(5)
    look_at_groups(values, np.abs(half), 32, counts, units, levels)
    assert list(levels) == [14, 16, 0, 0, 0]
    yield "levels", np.stack([counts, levels])
    yield "units", units


def kernels(folder: Path) -> Arrays:
    """All of these."""
    for case in (estimates, folders, trellis, comparisons, stored, scalings, floats, grids):
        yield from ((f"{case.__name__} {name}", array) for name, array in case(folder))
