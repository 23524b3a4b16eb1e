"""The network of the method `joint`: what it makes of what it is told of a superblock.

Each weight has `width` numbers, which `n_rounds` times are exchanged with those of its superblock:
a layer by itself; the means over its 16, over its 32 and over all 256 weights, of which a layer for
the group makes a gain and a shift of each number; a layer that adds to what the weight had.

Layers are float32. What costs time are sums of products, of `_ROWS` rows of one matrix and sixteen
columns of another at once: as many as the registers of the CPU hold. Columns are sixteen weights,
and rows the outputs of a layer; of the layers for groups, columns are outputs and rows are groups.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from recover._compiled.across import sum_rows
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

_ROWS = 8 if HELD > 16 else 4  # of a layer that are added up at once
_PLAIN, _ACTIVE, _ADDED = 0, 1, 2  # what becomes of the results of a layer
_ALL = 4  # 2**4 groups share a row

_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)
_SIXTH = np.float32(1 / 6)


class Layer(NamedTuple):
    """A matrix in the order in which it is worked on, and biases.

    Attributes
    ----------
    terms : float32 (n_bundles * n_in * size,)
        Bundles of outputs; in each, one input after the other. Of weights, bundles have `_ROWS`
        outputs, of groups 16; the last of these begins early where `n_out` is no multiple of 16.
    bias : float32 (n_out,)
    n_in, n_out : int
    """

    terms: F32Array
    bias: F32Array
    n_in: int
    n_out: int


class Round(NamedTuple):
    """The layers of one exchange.

    `of_32` is told of means over 32 and 256 weights, `of_16` of those over 16 and of the group.
    """

    enter: Layer
    of_32: Layer
    of_16: Layer
    spread: Layer
    leave: Layer


class Network(NamedTuple):
    """The layers of a network; `groups`, `begin` and three of each round are for groups."""

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
    factor : float32 (16 * 16,)
        What makes the root mean square of each weight's state 1.
    group : float32 (width * 16,)
        Of the group at hand.
    by_16 : float32 (16 * 2 * width,)
        Of each group the means, then the embedding.
    by_32 : float32 (8 * 2 * width,)
        Of each 32 weights their means, then those of all.
    of_32 : float32 (8 * context,)
    context : float32 (16 * context,)
    spread : float32 (16 * 2 * width,)
        Of each group shifts, then gains.
    result : float32 (16 * 2 * 16,)
        Group by group 16 corrections in deviations, then 16 factors of variances.
    """

    state: F32Array
    entered: F32Array
    factor: F32Array
    group: F32Array
    by_16: F32Array
    by_32: F32Array
    of_32: F32Array
    context: F32Array
    spread: F32Array
    result: F32Array


def layer_of_weights(weight: F32Array, bias: F32Array) -> Layer:
    """A layer from its matrix (n_out, n_in) and biases; rows are filled up to whole bundles."""
    missing = -len(bias) % _ROWS
    whole = np.pad(weight, ((0, missing), (0, 0)))
    return _layer(whole, np.pad(bias, (0, missing)), range(0, len(whole), _ROWS), _ROWS)


def layer_of_groups(weight: F32Array, bias: F32Array) -> Layer:
    """A layer from its matrix (n_out, n_in) and biases; `n_out` is at least 16."""
    starts = [min(at, len(bias) - 16) for at in range(0, len(bias), 16)]
    return _layer(weight, bias, starts, 16)


def _layer(weight: F32Array, bias: F32Array, starts: Iterable[int], size: int) -> Layer:
    bundles = np.stack([weight[at : at + size].T for at in starts])
    terms = aligned(bundles.size, np.float32)
    terms[:] = bundles.reshape(-1)
    n_out, n_in = weight.shape
    return Layer(terms, np.array(bias, np.float32), n_in, n_out)


def new_scratch(network: Network) -> Scratch:
    """Memory for one superblock."""
    width, context = network.begin.n_out, network.rounds[0].of_16.n_out
    sizes = (
        16 * width * 16,
        16 * width * 16,
        16 * 16,
        width * 16,
        16 * 2 * width,
        8 * 2 * width,
        8 * context,
        16 * context,
        16 * 2 * width,
        16 * 2 * 16,
    )
    return Scratch(*(aligned(n, np.float32) for n in sizes))


@bare_inlined
def _active(value: object) -> object:
    """The hard swish: the value times a ramp from 0 at -3 to 1 at 3."""
    ramp = fused(value, splat(_SIXTH), splat(_HALF))
    return value * smaller(larger(ramp, splat(_ZERO)), splat(_ONE))


@bare_inlined
def _sums(
    rows: F32Array, at: int, place: tuple[int, int], columns: F32Array, first: int, n: int
) -> Any:
    """Sums of `n` products, of rows that begin `at` and sixteen columns that begin at `first`.

    `place` is how far apart rows are, and the terms of a row. The second four are 0 of 4 rows.
    """
    row, step = place
    a = b = c = d = e = f = g = h = splat(_ZERO)
    for i in range(n):
        value = load(columns, first + 16 * i)
        a, b = fused(value, spread(rows, at), a), fused(value, spread(rows, at + row), b)
        c = fused(value, spread(rows, at + 2 * row), c)
        d = fused(value, spread(rows, at + 3 * row), d)
        if _ROWS == 8:
            e = fused(value, spread(rows, at + 4 * row), e)
            f = fused(value, spread(rows, at + 5 * row), f)
            g = fused(value, spread(rows, at + 6 * row), g)
            h = fused(value, spread(rows, at + 7 * row), h)
        at += step
    return (a, b, c, d), (e, f, g, h)


@bare_sized
def _apply(layer: Layer, bias: F32Array, x: F32Array, factor: Any, out: F32Array, mode: int) -> Any:
    """Apply a layer to sixteen weights times a factor of each; their sums of the results' squares.

    What is added to the results is `bias`, a number for each output. Where the results become
    active, nothing is said of squares.
    """
    squares = splat(_ZERO)
    for j in range(0, layer.n_out, _ROWS):
        first, second = _sums(layer.terms, layer.n_in * j, (1, _ROWS), x, 0, layer.n_in)
        squares = _finish(first, factor, bias, j, out, mode, squares)
        if _ROWS == 8:
            squares = _finish(second, factor, bias, j + 4, out, mode, squares)
    return squares


@bare_inlined
def _finish(
    rows: Any, factor: Any, bias: F32Array, j: int, out: F32Array, mode: int, squares: Any
) -> Any:
    """Store four rows of results from row `j` on; the squares with theirs."""
    a, b = fused(rows[0], factor, spread(bias, j)), fused(rows[1], factor, spread(bias, j + 1))
    c, d = fused(rows[2], factor, spread(bias, j + 2)), fused(rows[3], factor, spread(bias, j + 3))
    at = 16 * j
    if mode == _ACTIVE:
        a, b, c, d = _active(a), _active(b), _active(c), _active(d)
    if mode == _ADDED:
        a, b = a + load(out, at), b + load(out, at + 16)
        c, d = c + load(out, at + 32), d + load(out, at + 48)
    _store((a, b, c, d), out, at, 16)
    if mode != _ACTIVE:
        squares = fused(d, d, fused(c, c, fused(b, b, fused(a, a, squares))))
    return squares


@bare_inlined
def _store(rows: Any, out: F32Array, at: int, length: int) -> None:
    """Store four rows."""
    store(out, at, rows[0])
    store(out, at + length, rows[1])
    store(out, at + 2 * length, rows[2])
    store(out, at + 3 * length, rows[3])


@bare_inner
def _apply_to_groups(
    layer: Layer,
    x: F32Array,
    place: tuple[int, int],
    start: F32Array,
    share: int,
    out: F32Array,
    rows: tuple[int, int],
    mode: int,
) -> None:
    """Apply a layer to groups.

    Parameters
    ----------
    layer : Layer
    x : float32
    place : tuple of int
        How far apart groups are, and the numbers of a group.
    start : float32 (n_groups >> share, n_out)
        What is added to the results; 2**`share` groups have a row.
    out : float32
        To be filled.
    rows : tuple of int
        How many groups there are, and how far apart they are in `out`.
    mode : int
        Whether results become active.
    """
    n_rows, length = rows
    for t in range(0, layer.n_out, 16):
        j = min(t, layer.n_out - 16)
        for r in range(0, n_rows, _ROWS):
            first, second = _sums(x, r * place[0], place, layer.terms, layer.n_in * t, layer.n_in)
            _store(first, out, r * length + j, length)
            if _ROWS == 8:
                _store(second, out, (r + 4) * length + j, length)
            for k in range(r, r + _ROWS):
                value = load(out, k * length + j) + load(start, (k >> share) * layer.n_out + j)
                store(out, k * length + j, _active(value) if mode == _ACTIVE else value)


@bare_inlined
def _factor_of(squares: Any, width: int) -> Any:
    """What makes the root mean square of `width` numbers 1."""
    share = fused(squares, splat(_ONE / np.float32(width)), splat(np.float32(1e-6)))
    return splat(_ONE) / sqrt(share)


@bare_inner
def _tell_means(entered: F32Array, width: int, told: F32Array) -> None:
    """Means over the sixteen weights of a group."""
    for i in range(0, width, 16):
        j = min(i, width - 16)
        store(told, j, sum_rows(entered, 16 * j) * np.float32(1 / 16))


@bare_inner
def _tell_means_of_blocks(by_16: F32Array, width: int, by_32: F32Array) -> None:
    """Means over 32 and 256 weights."""
    length = 2 * width
    for i in range(0, width, 16):
        j, total = min(i, width - 16), splat(_ZERO)
        for b in range(8):
            at = 2 * length * b + j
            mean = (load(by_16, at) + load(by_16, at + length)) * _HALF
            store(by_32, length * b + j, mean)
            total = total + mean
        for b in range(8):
            store(by_32, length * b + width + j, total * np.float32(1 / 8))


@bare_inner
def _tell_groups(layers: Round, width: int, scratch: Scratch) -> None:
    """The gains and shifts of a round."""
    _tell_means_of_blocks(scratch.by_16, width, scratch.by_32)
    context, of_32, n_out = scratch.context, scratch.of_32, layers.of_16.n_out
    told, rows = (2 * width, 1), (16, 2 * width)
    bias = layers.of_32.bias
    _apply_to_groups(layers.of_32, scratch.by_32, told, bias, _ALL, of_32, (8, n_out), _PLAIN)
    _apply_to_groups(layers.of_16, scratch.by_16, told, of_32, 1, context, (16, n_out), _ACTIVE)
    bias = layers.spread.bias
    _apply_to_groups(layers.spread, context, (n_out, 1), bias, _ALL, scratch.spread, rows, _PLAIN)


@bare_inner
def _exchange(layers: Round, width: int, scratch: Scratch) -> None:
    """One round."""
    group, size = scratch.group, 16 * width
    for g in range(16):
        state = scratch.state[g * size : (g + 1) * size]
        entered = scratch.entered[g * size : (g + 1) * size]
        _apply(
            layers.enter, layers.enter.bias, state, load(scratch.factor, 16 * g), entered, _ACTIVE
        )
        _tell_means(entered, width, scratch.by_16[2 * width * g : 2 * width * (g + 1)])
    _tell_groups(layers, width, scratch)
    for g in range(16):
        state = scratch.state[g * size : (g + 1) * size]
        row = 2 * width * g
        for j in range(width):
            shift, gain = spread(scratch.spread, row + j), spread(scratch.spread, row + width + j)
            value = fused(load(scratch.entered, g * size + 16 * j), gain, shift)
            store(group, 16 * j, _active(value))
        squares = _apply(layers.leave, layers.leave.bias, group, splat(_ONE), state, _ADDED)
        store(scratch.factor, 16 * g, _factor_of(squares, width))


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
    width, n_in = network.begin.n_out, 16 * network.weights.n_in
    size, rows = 16 * width, (16, 2 * width)
    groups, begin, told = network.groups, network.begin, scratch.by_16[width:]
    _apply_to_groups(groups, by_group, (1, 16), groups.bias, _ALL, told, rows, _ACTIVE)
    place, rows = (2 * width, 1), (16, width)
    _apply_to_groups(begin, told, place, begin.bias, _ALL, scratch.spread, rows, _PLAIN)
    for g in range(16):
        bias, x = scratch.spread[width * g : width * (g + 1)], by_weight[n_in * g : n_in * (g + 1)]
        state = scratch.state[g * size : (g + 1) * size]
        squares = _apply(network.weights, bias, x, splat(_ONE), state, _PLAIN)
        store(scratch.factor, 16 * g, _factor_of(squares, width))
    for layers in network.rounds:
        _exchange(layers, width, scratch)
    least = splat(np.float32(1 / 16))
    for g in range(16):
        state, factor = scratch.state[g * size : (g + 1) * size], load(scratch.factor, 16 * g)
        _apply(network.end, network.end.bias, state, factor, scratch.group, _PLAIN)
        store(scratch.result, 32 * g, load(scratch.group, 0))
        store(scratch.result, 32 * g + 16, larger(load(scratch.group, 16), least))
