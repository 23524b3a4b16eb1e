"""The network of the method `joint`: what it makes of what it is told of a superblock.

Each weight has `width` numbers, which `n_rounds` times are exchanged with those of its superblock:
a layer by itself; the means over its 16, over its 32 and over all 256 weights, of which a layer for
the group makes a gain and a shift of each number; a layer that adds to what the weight had. Sixteen
weights, and the sixteen groups, are worked on at once. Layers are float32, their sums are added up
input by input.
"""

from typing import Any, NamedTuple

import numpy as np

from recover._compiled.across import sum_lanes
from recover._compiled.jit import bare_inlined, bare_inner, bare_sized
from recover._compiled.lanes import (
    HELD,
    fused,
    larger,
    load,
    smaller,
    splat,
    spread,
    sqrt,
    store,
)
from recover._compiled.memory import aligned
from recover.quants import F32Array

OUTPUTS = 8  # rows of the last layer, of which the first two are of use
_ROWS = 8 if HELD > 16 else 4  # of a layer that are added up at once

_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)
_SIXTH = np.float32(1 / 6)


class Layer(NamedTuple):
    """A matrix, in bundles of eight rows, each of which begins with their biases.

    Attributes
    ----------
    terms : float32 (n_out / 8 * (n_in + 1) * 8,)
    n_in, n_out : int
    """

    terms: F32Array
    n_in: int
    n_out: int


class Round(NamedTuple):
    """The layers of one exchange."""

    enter: Layer
    gather: Layer
    spread: Layer
    leave: Layer


class Network(NamedTuple):
    """The layers of a network."""

    weights: Layer
    groups: Layer
    begin: Layer
    rounds: tuple[Round, ...]
    end: Layer


class Scratch(NamedTuple):
    """Memory for one superblock.

    Attributes
    ----------
    state, entered : float32 (16 * width * 16,)
        Of each group, weight by weight in each row.
    group : float32 (max(2 * width, 8) * 16,)
        Of the group at hand.
    told : float32 ((3 * width + embedding) * 16,)
        Of all groups, group by group in each row: means, then the embedding.
    context, spread : float32 (context * 16,), (2 * width * 16,)
    result : float32 (16 * 2 * 16,)
        Group by group 16 corrections in deviations, then 16 factors of variances.
    """

    state: F32Array
    entered: F32Array
    group: F32Array
    told: F32Array
    context: F32Array
    spread: F32Array
    result: F32Array


def layer(weight: F32Array, bias: F32Array) -> Layer:
    """A layer from its matrix (n_out, n_in) and biases; rows are filled up to whole bundles."""
    missing = -len(bias) % _ROWS
    whole = np.concatenate([bias[:, None], weight], 1).astype(np.float32)
    whole = np.pad(whole, ((0, missing), (0, 0)))
    n_out, n_terms = whole.shape
    bundles = whole.reshape(n_out // _ROWS, _ROWS, n_terms).transpose(0, 2, 1)
    return Layer(np.ascontiguousarray(bundles).reshape(-1), n_terms - 1, n_out)


def new_scratch(network: Network) -> Scratch:
    """Memory for one superblock."""
    width, embedding = network.weights.n_out, network.groups.n_out
    context = network.rounds[0].gather.n_out
    sizes = (
        16 * width * 16,
        16 * width * 16,
        2 * max(width, OUTPUTS) * 16,
        (3 * width + embedding) * 16,
        context * 16,
        2 * width * 16,
        16 * 2 * 16,
    )
    return Scratch(*(aligned(n, np.float32) for n in sizes))


@bare_inlined
def _active(value: object) -> object:
    """The hard swish: the value times a ramp from 0 at -3 to 1 at 3."""
    ramp = fused(value, splat(_SIXTH), splat(_HALF))
    return value * smaller(larger(ramp, splat(_ZERO)), splat(_ONE))


@bare_inlined
def _finish(rows: Any, out: F32Array, at: int, mode: int) -> None:
    """Store four rows; mode as in `_apply`."""
    a, b, c, d = rows
    if mode == 1:
        a, b, c, d = _active(a), _active(b), _active(c), _active(d)
    if mode == 2:
        a, b = a + load(out, at), b + load(out, at + 16)
        c, d = c + load(out, at + 32), d + load(out, at + 48)
    store(out, at, a)
    store(out, at + 16, b)
    store(out, at + 32, c)
    store(out, at + 48, d)


@bare_sized
def _apply(layer: Layer, x: F32Array, x_at: int, out: F32Array, out_at: int, mode: int) -> None:
    """A layer of 16 columns; mode 1 lets the results become active, mode 2 adds them."""
    terms, n_in, at = layer.terms, layer.n_in, 0
    for j in range(0, layer.n_out, _ROWS):
        a, b = spread(terms, at), spread(terms, at + 1)
        c, d = spread(terms, at + 2), spread(terms, at + 3)
        e = f = g = h = a
        if _ROWS == 8:
            e, f = spread(terms, at + 4), spread(terms, at + 5)
            g, h = spread(terms, at + 6), spread(terms, at + 7)
        for i in range(n_in):
            at += _ROWS
            value = load(x, x_at + 16 * i)
            a, b = fused(value, spread(terms, at), a), fused(value, spread(terms, at + 1), b)
            c, d = fused(value, spread(terms, at + 2), c), fused(value, spread(terms, at + 3), d)
            if _ROWS == 8:
                e = fused(value, spread(terms, at + 4), e)
                f = fused(value, spread(terms, at + 5), f)
                g = fused(value, spread(terms, at + 6), g)
                h = fused(value, spread(terms, at + 7), h)
        at += _ROWS
        place = out_at + 16 * j
        _finish((a, b, c, d), out, place, mode)
        if _ROWS == 8:
            _finish((e, f, g, h), out, place + 64, mode)


@bare_inner
def _normalize(x: F32Array, at: int, width: int, out: F32Array) -> None:
    """Divide 16 columns by their root mean squares."""
    total = splat(_ZERO)
    for j in range(width):
        value = load(x, at + 16 * j)
        total = fused(value, value, total)
    share = fused(total, splat(_ONE / np.float32(width)), splat(np.float32(1e-6)))
    factor = splat(_ONE) / sqrt(share)
    for j in range(width):
        store(out, 16 * j, load(x, at + 16 * j) * factor)


@bare_inner
def _tell_means(entered: F32Array, width: int, told: F32Array) -> None:
    """Rows of means over 16, 32 and 256 weights, by group."""
    sixteenth = np.float32(1 / 16)
    for j in range(width):
        total = _ZERO
        for g in range(16):
            mean = sum_lanes(load(entered, 16 * (width * g + j))) * sixteenth
            told[16 * j + g] = mean
            total += mean
        of_all = 16 * (2 * width + j)
        store(told, of_all, splat(total * sixteenth))
        of_32 = 16 * (width + j)
        for g in range(0, 16, 2):
            mean = (told[16 * j + g] + told[16 * j + g + 1]) * _HALF
            told[of_32 + g] = mean
            told[of_32 + g + 1] = mean


@bare_inner
def _exchange(layers: Round, width: int, scratch: Scratch) -> None:
    """One round."""
    state, entered, group = scratch.state, scratch.entered, scratch.group
    size = 16 * width
    for g in range(16):
        _normalize(state, g * size, width, group)
        _apply(layers.enter, group, 0, entered, g * size, 1)
    _tell_means(entered, width, scratch.told)
    _apply(layers.gather, scratch.told, 0, scratch.context, 0, 1)
    _apply(layers.spread, scratch.context, 0, scratch.spread, 0, 0)
    for g in range(16):
        for j in range(width):
            shift = scratch.spread[16 * j + g]
            gain = _ONE + scratch.spread[16 * (width + j) + g]
            value = fused(load(entered, g * size + 16 * j), gain, splat(shift))
            store(group, 16 * j, _active(value))
        _apply(layers.leave, group, 0, state, g * size, 2)


@bare_inner
def infer(network: Network, by_weight: F32Array, by_group: F32Array, scratch: Scratch) -> None:
    """Fill in `Scratch.result` of a superblock.

    Parameters
    ----------
    network : Network
    by_weight, by_group : float32
        What `recover.estimators._joint_features.describe` tells.
    scratch : Scratch
    """
    width, state = network.weights.n_out, scratch.state
    size = 16 * width
    embedding = 3 * size
    _apply(network.groups, by_group, 0, scratch.told, embedding, 1)
    _apply(network.begin, scratch.told, embedding, scratch.spread, 0, 0)
    for g in range(16):
        _apply(network.weights, by_weight, 16 * network.weights.n_in * g, state, g * size, 0)
        for j in range(width):
            at = g * size + 16 * j
            store(state, at, load(state, at) + scratch.spread[16 * j + g])
    for layers in network.rounds:
        _exchange(layers, width, scratch)
    least = splat(np.float32(1 / 16))
    for g in range(16):
        _normalize(state, g * size, width, scratch.group)
        _apply(network.end, scratch.group, 0, scratch.group, size, 0)
        store(scratch.result, 32 * g, load(scratch.group, size))
        factor = load(scratch.group, size + 16) + _ONE
        store(scratch.result, 32 * g + 16, larger(factor, least))
