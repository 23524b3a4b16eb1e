"""A merge without Python, for `tests.benchmarks.floor`: its kernels, called by a compiled loop.

Each thread runs one loop over the tiles that are its own: it unpacks a tile of three mapped files,
estimates, looks at what a merge looks at besides, encodes as F16 and calls the system's `pwrite`.
Nothing waits for the interpreter, no memory is made, nothing is planned, checked or added up.
"""

import ctypes
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from recover._compiled.memory import aligned
from recover.estimators import Tally
from recover.estimators._combine import _combine_by_group, _n_scratch
from recover.estimators._product import _integrate_each
from recover.estimators._product_tables import NO_OTHERS, Outputs, has_atoms, tabulate
from recover.estimators._superblock import new_superblock
from recover.estimators._variances import group_variances
from recover.estimators.error_calibration import _relative_fourths
from recover.evidence.buffer import EvidenceBuffer, Source
from recover.evidence.cells import count_contradictions
from recover.evidence.rounding import bound_errors, rounding_of
from recover.merge.compare import _look, step_for
from recover.merge.finite import _count_broken
from recover.quants import TILE, F32Array, U8Array, type_by_name
from recover.quants.floats import _encode_f16_words
from recover.quants.q2_k import _unpack as _unpack_q2_k
from recover.quants.q4_k import _unpack as _unpack_q4_k
from recover.quants.q5_k import _unpack as _unpack_q5_k
from tests.benchmarks.core_speed import KINDS

_LOOKED_AT = 64
"""Superblocks of a tile whose tails are looked at."""
_ENCODED = 2 * TILE

_pwrite = ctypes.CDLL(None).pwrite
_pwrite.argtypes = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
_pwrite.restype = ctypes.c_ssize_t


class Files(NamedTuple):
    """What all threads are given."""

    output: int
    """Descriptor."""
    inputs: tuple[U8Array, ...]
    n_bytes: tuple[int, ...]
    """Of a tile in each."""
    roundings: tuple[NDArray[np.float64], ...]


class Own(NamedTuple):
    """Memory of a thread."""

    evidence: Any
    out: F32Array
    variance: F32Array
    tallies: NDArray[np.float64]
    counts: NDArray[np.int64]
    proves: NDArray[np.bool_]
    fourths: NDArray[np.float64]
    known: NDArray[np.bool_]
    encoded: U8Array
    words: NDArray[np.uint16]


def new_own() -> Own:
    """Memory of a thread."""
    evidence = EvidenceBuffer([Source(type_by_name(name)) for name in KINDS])._tile_of(TILE)
    encoded = aligned(_ENCODED, np.uint8)
    return Own(
        evidence=evidence,
        out=aligned(TILE, np.float32),
        variance=np.empty(TILE // 16, np.float32),
        tallies=np.zeros((1, Tally.size_for(len(KINDS)))),
        counts=np.zeros(1, np.int64),
        proves=np.empty(len(KINDS), np.bool_),
        fourths=np.zeros((1, _LOOKED_AT)),
        known=np.empty((1, _LOOKED_AT), np.bool_),
        encoded=encoded,
        words=encoded.view(np.uint16),
    )


def for_linear(_own: Own) -> tuple[Any, ...]:
    """What the loop of `linear` needs besides."""
    memory = np.zeros(_n_scratch(len(KINDS), len(KINDS)), np.float32)
    return memory, np.empty(len(KINDS) + 1), np.empty(len(KINDS), np.int32), step_for(1 << 30)


def for_posterior(own: Own) -> tuple[Any, ...]:
    """What that of `posterior` needs besides."""
    scalars = tabulate(own.evidence)
    atoms, none = has_atoms(scalars), np.empty(0, np.float32)
    errors = np.zeros(16 * (len(KINDS) + 1), np.float32)
    plain = not atoms.any()
    outputs = Outputs(False, plain, atoms, own.variance, none, errors, TILE // 16)
    return scalars, new_superblock(len(KINDS)), outputs


@numba.njit(error_model="numpy")  # type: ignore[untyped-decorator]
def _read(files: Files, own: Own, tile: int) -> None:
    evidence, raws, n = own.evidence, files.inputs, files.n_bytes
    codes, scale, offset = evidence.codes, evidence.scale, evidence.offset
    first = raws[0][n[0] * tile : n[0] * (tile + 1)]
    second = raws[1][n[1] * tile : n[1] * (tile + 1)]
    third = raws[2][n[2] * tile : n[2] * (tile + 1)]
    _unpack_q5_k(first, codes[0], scale[0], offset[0])
    _unpack_q4_k(second, codes[1], scale[1], offset[1])
    _unpack_q2_k(third, codes[2], scale[2], offset[2])
    scale_error, offset_error = evidence.scale_error, evidence.offset_error
    told = files.roundings
    bound_errors(first, told[0], scale[0], offset[0], scale_error[0], offset_error[0])
    bound_errors(second, told[1], scale[1], offset[1], scale_error[1], offset_error[1])
    bound_errors(third, told[2], scale[2], offset[2], scale_error[2], offset_error[2])


@numba.njit(error_model="numpy")  # type: ignore[untyped-decorator]
def _write(files: Files, own: Own, tile: int) -> bool:
    evidence = own.evidence
    levels = evidence.lower_levels, evidence.upper_levels
    bounds = evidence.interval_lower, evidence.interval_upper
    _look(levels[0], levels[1], bounds[0], bounds[1], evidence.scale, 1, own.proves)
    stated, decoded = evidence.interval_values, evidence.values
    _count_broken(evidence.scale, evidence.offset, stated, decoded, own.counts)
    step = TILE // 256 // _LOOKED_AT
    _relative_fourths(own.out, TILE, step, own.fourths, own.known)
    _encode_f16_words(own.out, own.words)
    written = _pwrite(files.output, own.encoded.ctypes, _ENCODED, tile * _ENCODED)
    return bool(written == _ENCODED)


@numba.njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _merge_linear(files: Files, own: Own, others: Any, first: int, n: int, n_threads: int) -> bool:
    memory, sums, lowest, step = others
    for tile in range(first, n, n_threads):
        _read(files, own, tile)
        _combine_by_group(
            own.evidence, own.out, own.variance, own.tallies, True, memory, sums, lowest
        )
        count_contradictions(own.evidence, step, own.counts)
        if not _write(files, own, tile):
            return False
    return True


@numba.njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _merge_posterior(
    files: Files, own: Own, others: Any, first: int, n: int, n_threads: int
) -> bool:
    scalars, block, outputs = others
    for tile in range(first, n, n_threads):
        _read(files, own, tile)
        group_variances(own.evidence, own.evidence.finest, own.variance)
        _integrate_each(scalars, None, NO_OTHERS, block, own.out, outputs, own.tallies)
        if not _write(files, own, tile):
            return False
    return True


LOOPS: dict[str, Any] = {
    "linear": (_merge_linear, for_linear),
    "posterior": (_merge_posterior, for_posterior),
}


def merge(method: str, inputs: Sequence[Path], output: Path, n_threads: int) -> tuple[float, float]:
    """Merge files of whole tiles of blocks of `KINDS`: wall and processor seconds."""
    loop, new_others = LOOPS[method]
    kinds = [type_by_name(name) for name in KINDS]
    descriptor = os.open(output, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    files = Files(
        descriptor,
        tuple(np.asarray(np.memmap(path, np.uint8, "r")) for path in inputs),
        tuple(kind.n_bytes(TILE) for kind in kinds),
        tuple(rounding_of(kind) for kind in kinds),
    )
    n = files.inputs[0].size // files.n_bytes[0]
    done: list[bool] = []

    def work(first: int) -> None:
        own = new_own()
        others = new_others(own)
        loop(files, own, others, n, n, n_threads)  # compile
        ready.wait()
        done.append(loop(files, own, others, first, n, n_threads))

    ready = threading.Barrier(n_threads + 1)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(n_threads)]
    for thread in threads:
        thread.start()
    ready.wait()
    start, processor = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start, time.process_time() - processor
    os.close(descriptor)
    if done != [True] * n_threads:
        raise SystemExit(f"{output} cannot be written")
    return seconds
