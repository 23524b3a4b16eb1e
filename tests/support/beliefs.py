"""What each input says of each weight, for the naive posterior: on blocks of libggml."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from recover.evidence.buffer import Evidence, EvidenceBuffer, Source
from recover.evidence.densities import (
    ABOVE,
    ATOM,
    BELOW,
    DEGREE,
    HIGHEST,
    LOWEST,
    VARYING,
    density,
    end_codes,
    likelihood,
    tempering,
)
from recover.quants import ScalarType, U8Array, VectorType, type_by_name
from tests.naive import estimators as naive
from tests.oracle import libggml
from tests.support.coarse_scales import factors_of, inner_edges

EXTREMES = {
    "Q4_0": ({0},),
    "Q5_0": ({0},),
    "Q4_1": ({0}, {15}),
    "Q5_1": ({0}, {31}),
    "Q8_0": ({1, 255},),
}


def load(mix: tuple[str, ...], raws: list[U8Array], n_weights: int) -> Evidence:
    return EvidenceBuffer([Source(type_by_name(name)) for name in mix]).load(raws, n_weights)


def n_extreme(name: str, codes: U8Array, i: int) -> int:
    """How many weights of the block have an extreme code like that of weight `i`; 0 if it has none.

    One of them is the block's extreme.
    """
    block = codes[i // 32 * 32 :][:32].tolist()
    alike = [some for some in EXTREMES.get(name, ()) if codes[i] in some]
    return sum(q in alike[0] for q in block) if alike else 0


def extremes(mix: tuple[str, ...], raws: list[U8Array], n: int) -> NDArray[np.bool_]:
    """Weights that are known but for rounding."""
    found = np.zeros(n, np.bool_)
    for name, raw in zip(mix, raws, strict=True):
        kind = type_by_name(name)
        if isinstance(kind, ScalarType):
            codes, (scale, offset) = np.empty(n, np.uint8), np.empty((2, n // 16), np.float32)
            kind.unpack(raw, codes, scale, offset)
            found |= [n_extreme(name, codes, i) == 1 for i in range(n)]
    return found


def believe(mix: tuple[str, ...], raws: list[U8Array], n: int) -> list[list[naive.Belief]]:
    """What each input believes of each weight, for the naive posterior."""
    columns: list[list[naive.Belief]] = []
    vectors: list[list[naive.Belief]] = []
    scalars: list[tuple[NDArray[np.float64], NDArray[np.float64], float]] = []
    outlier, _ = calm(mix, raws, n)
    for name, raw in zip(mix, raws, strict=True):
        kind = type_by_name(name)
        values = libggml.dequantize(kind.type_id, raw).astype(np.float64)
        beside = [type_by_name(other) for other in mix if other != name]
        if not isinstance(kind, ScalarType):
            assert isinstance(kind, VectorType)
            gain, typical = likelihood(kind)
            spreads = np.mean(values.reshape(-1, 256) ** 2, axis=1) * typical
            sharpness, noise = first_of(scalars)
            spreads = spreads_of(scalars[0][0], gain * values, spreads, sharpness, noise)
            counts = tempering(kind, beside)
            spreads = np.maximum(spreads, 1e-30)
            precisions = counts * np.maximum(1 / spreads - sharpness.repeat(8), 0)
            heard = np.where(precisions > 0, precisions, np.inf).repeat(32)
            said = values * gain * counts / spreads.repeat(32) / heard
            column = []
            for i, (value, precision) in enumerate(zip(said, heard, strict=True)):
                belief = naive.Belief(value, precision**-0.5, (0, -0.5), 0, (-4, 4))
                if not naive.meet([belief], [c[i] for c in columns if c[i].scale]):
                    belief = naive.Belief(0.0, 0.0, (), 0, (0, 0))  # not believed
                column.append(belief)
            vectors.append(column)
            continue
        codes = np.empty(n, np.uint8)
        scale, offset = np.empty((2, n // 16), np.float32)
        kind.unpack(raw, codes, scale, offset)
        rows, ends = density(kind, beside=beside).astype(np.float64), end_codes(kind)
        scalars.append((values, scale.repeat(16).astype(np.float64), kind.noise))
        column = []
        stretch, left = (each.repeat(16) for each in factors_of(kind, scale, offset))
        for i, (value, q, s) in enumerate(zip(values, codes, scale.repeat(16), strict=True)):
            row = rows[1 if q == ends[0] else 2 if q == ends[1] else 0]
            coefficients = row[:DEGREE]
            if q not in ends:
                z = (2 * float(q) - sum(ends)) / (ends[1] - ends[0])
                coefficients = row[:DEGREE] + rows[VARYING, :DEGREE] * (z, z**2)
                coefficients = coefficients * left[i]
            level = float(kind.levels[q])
            edges = float(kind.lower_levels[q]) - level, float(kind.upper_levels[q]) - level
            reach = (
                edges[0] if math.isfinite(edges[0]) else rows[LOWEST, BELOW],
                edges[1] if math.isfinite(edges[1]) else rows[HIGHEST, ABOVE],
            )
            if q in ends and kind.scale_steps:
                inner, wider = inner_edges(kind)[ends.index(q)], stretch[i]
                reach = tuple(inner + (edge - inner) * wider for edge in reach)
                c, d = coefficients
                coefficients = np.array([c + 2 * d * inner * (1 - 1 / wider), d / wider]) / wider
            if q in ends and 0 in edges:  # rounding may have moved the level
                slack = abs(level) * 2**-11
                reach = (reach[0] or -slack, reach[1] or slack)
            atom, n_alike = 0.0, n_extreme(name, codes, i)
            if n_alike > 1:
                atom = row[ATOM] / (n_alike - 1)
            if outlier[i]:
                coefficients = np.array([0, -2 / kind.noise])
            belief = naive.Belief(float(value), float(s), tuple(coefficients), atom, reach)
            column.append(belief)
        columns.append(column)
    columns += [*believe_lost(mix, raws, n, scalars), *vectors]
    return [[each for each in beliefs if each.scale] for beliefs in zip(*columns, strict=True)]


def believe_lost(
    mix: tuple[str, ...],
    raws: list[U8Array],
    n: int,
    scalars: list[tuple[NDArray[np.float64], NDArray[np.float64], float]],
) -> Iterator[list[naive.Belief]]:
    """What scales of 0 tell: beside other inputs those of types without minima alone."""
    has_scale = np.any([scale != 0 for _, scale, _ in scalars], axis=0)
    evidence = load(mix, raws, n)
    for k, (size, _, counts) in enumerate(evidence.lost):
        centers, errors = evidence.offset[k].astype(np.float64), evidence.scale_error[k]
        spreads = np.maximum(-errors.astype(np.float64), 0) * size
        if evidence.scale_steps[k] and evidence.levels[k, evidence.end_codes[k, 0]] == 0:
            dmin = np.abs(centers).reshape(-1, min(16, centers.size)).max(axis=1)
            rounded = (dmin / evidence.scale_steps[k]).repeat(min(16, centers.size)) ** 2 / 12
            n_steps = evidence.end_codes[k, 1] - evidence.end_codes[k, 0]
            reach = n_steps * np.maximum(-errors.astype(np.float64), 0) / 4
            middles = np.sign(centers) * np.maximum(np.abs(centers) - reach, 0)
            of_minima = (0.4 * spreads) ** 2 + ((centers - middles) ** 2 + rounded) / 4
            of_minima = np.sqrt(of_minima + np.where(middles != 0, rounded, 0))
            centers, spreads = middles, np.where(spreads > 0, of_minima, 0)
        centers, spreads = centers.repeat(16), spreads.repeat(16)
        spreads[has_scale & (counts == 0)] = 0
        places = zip(centers.tolist(), spreads.tolist(), strict=True)
        yield [naive.Belief(at, spread, (0, -0.5), 0, (-8, 8)) for at, spread in places]


def calm(
    mix: tuple[str, ...], raws: list[U8Array], n: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which weights are outliers, and the variance of the prior of all."""
    center, errors = np.zeros((2, n))
    for name, raw in reversed(list(zip(mix, raws, strict=True))):
        kind = type_by_name(name)
        if not isinstance(kind, ScalarType):
            continue
        values = libggml.dequantize(kind.type_id, raw).astype(np.float64)
        codes, (scale, offset) = np.empty(n, np.uint8), np.empty((2, n // 16), np.float32)
        kind.unpack(raw, codes, scale, offset)
        center = np.where(scale.repeat(16) != 0, values, center)
        errors = scale.repeat(16).astype(np.float64) ** 2 * kind.noise
    outlier, prior = np.zeros(n, np.bool_), np.empty(n)
    for start in range(0, n, 256):
        part = slice(start, start + 256)
        squares = center[part] ** 2
        prior[part] = squares.mean()
        if np.max(errors[part]) <= 3.5 * np.mean(errors[part]):
            continue
        groups = squares.reshape(16, 16)
        own = 1.28 * (groups.sum(axis=1) - groups.max(axis=1)) / 15
        typical = np.sort(own[own > 0])[np.count_nonzero(own) // 2] if own.any() else 0.0
        large = own > np.maximum(typical, 5 * errors[part][::16])
        width = np.where(large, own, typical).repeat(16)
        outlier[part] = (squares > 40 * width) | (width == 0)
        prior[part] = np.where(outlier[part], np.inf, width)
    return outlier, prior


def first_of(
    scalars: list[tuple[NDArray[np.float64], NDArray[np.float64], float]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One over the mean square of the first scalar input, by superblock; its noise, by 32."""
    values, scale, noise = scalars[0]
    known = np.where(scale == 0, 0, values)
    mean = np.mean(known.reshape(-1, 256) ** 2, axis=1)
    with np.errstate(divide="ignore"):
        return 1 / mean, noise * np.mean(scale.reshape(-1, 32) ** 2, axis=1)


def spreads_of(
    center: NDArray[np.float64],
    said: NDArray[np.float64],
    typical: NDArray[np.float64],
    sharpness: NDArray[np.float64],
    noise: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The spread of a vector type by 32 weights: between what is typical and what is seen.

    With an outlier, as is typical of weights as large.
    """
    spreads = np.empty(noise.size)
    for i in range(0, noise.size, 8):
        squares = center.reshape(-1, 32)[i : i + 8] ** 2
        known = typical[i // 8]
        sharp = min(sharpness[i // 8], 1e30)
        calm = squares.max(axis=1) * sharp <= 40
        of_all = known
        if calm.any() and known > 0:
            off = (center - said).reshape(-1, 32)[i : i + 8][calm]
            error = noise[i : i + 8][calm].mean()
            ratio = error / known
            trust = 0.04 / (0.04 + (1 + ratio) ** 2 * 2 / 256 + 0.02 * ratio**2)
            of_all = known + trust * (max(np.mean(off**2) - error, 0.1 * known) - known)
        beside = 1.5 * squares.mean(axis=1) * sharp * known
        spreads[i : i + 8] = np.where(calm, of_all, beside)
    return spreads
