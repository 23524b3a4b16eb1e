"""Make ``docs/formats.md``, the list of all tensor types that are read, from what they declare.

python -m tests.golden.make_formats
"""

import inspect
import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

import recover.quants
from recover.quants import (
    BlockIntervals,
    FloatType,
    InterleavedType,
    OpaqueType,
    ScalarType,
    Stated,
    TensorType,
    all_types,
    makes_files,
)

OUT = Path(__file__).parents[2] / "docs" / "formats.md"

HEAD = """# Tensor types of GGUF files

All types that `recover` reads, as they declare themselves in `recover/quants`
(`python -m tests.golden.make_formats` writes this file). What codes prove is the matter of
[evidence](evidence.md); formats of Hugging Face folders are [elsewhere](foreign.md).

A row has its header, if there is one, and then its blocks; of interleaved types the headers of some
rows come first, and then, block by block, those of all of them. Where a number stands twice, the
size of a tensor tells which type is meant, or the other inputs do.

"""
COLUMNS = (
    "type",
    "number",
    "weights in a block",
    "bytes of a block",
    "header of a row",
    "bits per weight",
    "`general.file_type`",
    "what a code proves",
    "`recover quantize`",
    "written by",
)


def text() -> str:
    """The whole file."""
    kinds = all_types()
    lines = [HEAD + _row(COLUMNS), _row(["---"] * len(COLUMNS))]
    lines += [_row(_cells(kind)) for kind in kinds]
    lines += ["", "## Layouts and sources", ""]
    for module, declared in _modules():
        names = ", ".join(kind.name for kind in declared)
        lines += [f"### {names}", "", _described(module), ""]
        if sources := sorted(set(re.findall(r"Mirrors `(\w+)`", inspect.getsource(module)))):
            lines += ["Source: " + ", ".join(f"`{each}`" for each in sources) + ".", ""]
    return "\n".join(lines).rstrip() + "\n"


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(kind: TensorType) -> list[str]:
    return [
        kind.name,
        "-" if kind.type_id is None else str(kind.type_id),
        str(kind.block_size),
        str(kind.type_size),
        f"{kind.row_header}" if kind.row_header else "-",
        f"{kind.bits_per_weight:.4g}",
        ", ".join(f"{number} {name}" for number, name in sorted(kind.file_types.items())) or "-",
        _proves(kind),
        "makes files" if makes_files(kind) else "-",
        kind.writer or "llama.cpp",
    ]


def _proves(kind: TensorType) -> str:
    match kind:
        case InterleavedType():
            return f"as {kind.plain.name}; {kind.rows_interleaved} rows interleaved"
        case FloatType():
            return "the numbers that are rounded to it" if kind.narrow else "nothing"
        case OpaqueType():
            return "taken as it is"
        case ScalarType():
            if kind.cells_need_marks:
                return "a cell, where the encoder left its mark"
            if kind.refits_scale_with_imatrix:
                return "a cell, without an importance matrix"
            return "a cell"
        case BlockIntervals():
            return _stated(kind)
    return "nothing; a value with an error that is typical of the type"


def _stated(kind: BlockIntervals) -> str:
    if not kind.has_cells:
        return "nothing; a value with an error that depends on the code"
    if kind.hidden is not None and kind.hidden.reach != (1, 1):
        (low, high), usual = kind.hidden.reach, kind.hidden.usual_reach
        return (
            f"a cell, times an unknown ratio of each 256 weights from {low:g} to {high:g}"
            f" (usually {usual[0]:g} to {usual[1]:g}), which other inputs narrow"
        )
    raw = np.random.default_rng(1).integers(0, 256, 64 * kind.part_size, np.uint8)
    stated = Stated.of(64 * kind.block_size)
    kind.state(raw, stated)
    is_cell = (np.isfinite(stated.lower) & np.isfinite(stated.upper)).any()
    return "a cell" if is_cell else "the sign"


def _modules() -> Iterator[tuple[ModuleType, list[TensorType]]]:
    """Files with the types that they declare, in the order of the numbers."""
    found: list[tuple[ModuleType, list[TensorType]]] = []
    seen: set[str] = set()
    order = {kind.name: place for place, kind in enumerate(all_types())}
    for info in pkgutil.iter_modules(recover.quants.__path__):
        module = import_module(f"recover.quants.{info.name}")
        own = [
            value
            for name, value in vars(module).items()
            if isinstance(value, TensorType)
            and f"\n{name} = " in inspect.getsource(module)
            and value.name not in seen
        ]
        seen.update(kind.name for kind in own)
        if own and not info.name.startswith("_"):
            found.append((module, sorted(own, key=lambda kind: order[kind.name])))
    return iter(sorted(found, key=lambda each: order[each[1][0].name]))


def _described(module: ModuleType) -> str:
    """What a file says of its types: each paragraph in one line."""
    paragraphs = inspect.cleandoc(module.__doc__ or "").split("\n\n")
    joined = [" ".join(each.split()) for each in paragraphs]
    return "\n\n".join(joined).replace("``", "`")


if __name__ == "__main__":
    OUT.write_text(text(), encoding="utf-8")
