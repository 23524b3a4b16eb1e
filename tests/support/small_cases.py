"""Small inputs for every kernel, each case with the arrays that come of it.

    python -m tests.support.small_cases [--interpreted] OUT.npz [CASE...]

runs the cases with compiled kernels, or without the compiler (`tests.support.uncompiled`).
"""

import argparse
import contextlib
import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.small_kernels import kernels

Array = NDArray[Any]
Case = Callable[[Path], Iterator[tuple[str, Array]]]
UP, DOWN = "blk.0.ffn_up.weight", "blk.1.ffn_up.weight"


def _weights(n_rows: int = 4, row_length: int = 256, seed: int = 0) -> Array:
    """Trained weights look like these; with an outlier, a block of zeros, and a small one."""
    rng = np.random.default_rng(seed)
    x = (0.02 * rng.standard_t(5, (n_rows, row_length))).astype(np.float32)
    x[0, 3], x[1, :32] = 0.7, 0
    x[2, 64:96] *= np.float32(1e-3)
    return x


def encoders(_folder: Path) -> Iterator[tuple[str, Array]]:
    """Every encoder, with and without importances, and the named quantizers."""
    from recover.errors import QuantError
    from recover.quants import ScalarType, all_types, has_encoder, quantize, quantizer_names

    x = _weights()
    importance = np.random.default_rng(1).lognormal(0, 1, 256).astype(np.float32)
    for kind in filter(has_encoder, all_types()):
        if kind.name.endswith("_KT"):
            continue  # the search takes minutes
        yield kind.name, quantize(x, kind)
        with contextlib.suppress(QuantError):
            yield f"{kind.name} weighted", quantize(x, kind, importance)
        for name in quantizer_names(kind)[1:] if isinstance(kind, ScalarType) else ():
            yield f"{kind.name} {name}", quantize(x, kind, quantizer=name)


def decoders(_folder: Path) -> Iterator[tuple[str, Array]]:
    """Random codes of every type."""
    from recover.errors import QuantError
    from recover.quants import all_types, dequantize

    rng = np.random.default_rng(2)
    for kind in all_types():
        try:
            raw = rng.integers(0, 60, 4 * kind.part_size, np.uint8)
            yield kind.name, dequantize(raw, kind)
        except (QuantError, AttributeError):
            continue


def formats(_folder: Path) -> Iterator[tuple[str, Array]]:
    """What folders of every format state."""
    from tests.support.foreign_modules import state
    from tests.support.format_checks import matrix_of
    from tests.support.plain_weights import FORMATS

    for name, make in FORMATS.items():
        made = make(np.random.default_rng(7), 32, 256)
        try:
            matrix = matrix_of(made.arrays, made.config)
        except AssertionError:
            continue
        for what, each in state(matrix)._asdict().items():
            yield f"{name} {what}", each


_SETS = {
    "k": ("Q5_K", "Q4_K", "Q2_K"),
    "many": ("Q8_0", "Q6_K", "Q5_1", "IQ4_XS", "Q3_K", "Q4_0", "MXFP4"),
    "bf16": ("Q8_0", "Q5_0", "NVFP4", "Q4_1", "IQ4_NL"),
}


def _merged(name: str, methods: tuple[str, ...]) -> Case:
    def case(folder: Path) -> Iterator[tuple[str, Array]]:
        """Merges, bounds and a check of a set of types."""
        from recover.cli import main
        from tests.support.gguf_files import Stored, read_weights, stored, write_gguf

        truths = {UP: _weights(seed=3), DOWN: _weights(seed=4)}
        if name == "bf16":
            for x in truths.values():
                x.view(np.uint32)[...] &= np.uint32(0xFFFF0000)
        norm = Stored("F32", np.linspace(0.5, 1.5, 256, dtype=np.float32).astype(np.float16))
        norm = Stored("F32", norm.rows.astype(np.float32))
        more = {"blk.0.attn_norm.weight": norm}
        files = [
            write_gguf(
                folder / f"{kind}.gguf",
                {key: stored(kind, x) for key, x in truths.items()} | more,
            )
            for kind in _SETS[name]
        ]
        paths = [str(path) for path in files]
        for method in methods:
            out = folder / f"{method}.gguf"
            assert main(["merge", *paths, "-o", str(out), "--method", method, "--force", "-q"]) == 0
            yield from ((f"{method} {key}", x) for key, x in read_weights(out).items())
        main(["bounds", *paths, "-o", str(folder / "bounds"), "-q"])
        yield "bounds", np.fromfile(folder / "bounds", np.uint8)
        main(["inspect", *paths, "-q"])
        main(["evaluate", *paths, "--truth", paths[0], "-q"])
        main(["verify", str(folder / f"{methods[0]}.gguf"), *paths, "-q"])

    return case


def grids(folder: Path) -> Iterator[tuple[str, Array]]:
    """Integers behind floats, and behind a Q8_0 that was made of them."""
    from recover.cli import main
    from tests.support.gguf_files import read_tensors, stored, write_gguf

    rng = np.random.default_rng(5)
    codes = np.rint(np.clip(3 * rng.standard_normal((16, 8, 32)), -8, 7))
    codes[..., 0] = -8
    scales = (0.002 * np.exp(rng.standard_normal((16, 8, 1)))).astype(np.float16)
    x = (codes * scales.astype(np.float64)).astype(np.float32).reshape(16, 256)
    for kind in ("F32", "Q8_0"):
        source, out = folder / f"{kind}.gguf", folder / f"exact-{kind}.gguf"
        write_gguf(source, {UP: stored(kind, x)})
        hand = ["--second-hand"] * (kind == "Q8_0")
        main(["reblock", str(source), "-o", str(out), "--allow-inexact", "-q", *hand])
        if out.exists():
            yield kind, read_tensors(out)[UP].rows


CASES: dict[str, Case] = {
    "encoders": encoders,
    "decoders": decoders,
    "formats": formats,
    "k": _merged("k", ("linear", "midpoint", "posterior")),
    "many": _merged("many", ("posterior", "midpoint")),
    "bf16": _merged("bf16", ("posterior",)),
    "grids": grids,
    "kernels": kernels,
}


def main() -> None:
    """Write the arrays of all cases, or of some."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--interpreted", action="store_true")
    parser.add_argument("cases", nargs="*", metavar="CASE")
    args = parser.parse_intermixed_args()
    if args.interpreted:
        importlib.import_module("tests.support.uncompiled")
    found: dict[str, Any] = {}
    for name in args.cases or CASES:
        with tempfile.TemporaryDirectory() as folder:
            for key, array in CASES[name](Path(folder)):
                found[f"{name}/{key}"] = array
        print(name, file=sys.stderr)  # noqa: T201
    np.savez(args.out, **found)


if __name__ == "__main__":
    main()
