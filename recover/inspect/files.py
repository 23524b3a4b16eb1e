"""What one file is: its types, who quantized it with what, and what it was quantized from."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from recover._text import path_text, quoted
from recover.containers.gguf.metadata import QUANTIZER_KEY
from recover.containers.model import Model, StoredTensor
from recover.inputs.metadata import METHOD_KEY
from recover.inputs.originals.coded import of_codes
from recover.inputs.precision import SourcePrecision, source_of_file
from recover.inputs.provenance import imatrix_of, look_at_marks, marks_hold_with_imatrix, marks_of
from recover.quants import ScalarType, name_of_file_type, type_by_name

_ENOUGH_BLOCKS = 500  # an importance matrix leaves a mark out in one of ten blocks, or oftener


@dataclass(frozen=True)
class TypeMarks:
    """Marks of llama.cpp's encoder (see `recover.inputs.provenance`) in the tensors of one type."""

    type: str
    """The type."""
    n_tensors: int
    n_tensors_without: int
    """Tensors, and those of them with blocks that lack the mark."""
    n_blocks: int
    n_without: int
    """Blocks that were looked at, and those that lack the mark."""


@dataclass(frozen=True)
class FileReport:
    """One file."""

    path: str
    """As given."""
    architecture: str | None
    name: str | None
    file_type: str | None
    quantized_by: str | None
    """As the metadata say."""
    n_weights: int
    n_bytes: int
    """Weights, and the size of all parts."""
    bits_per_weight: float
    """Of the tensors' bytes."""
    types: dict[str, int]
    """Number of tensors of each type, side tensors left out."""
    stored_as: dict[str, str]
    """Of each type of `types` that other programs than llama.cpp of today write: how it is stored,
    and by which."""
    side_tensors: tuple[str, ...]
    """Names of scales beside NVFP4 matrices (see `recover.containers.gguf.side_scales`), which are
    multiplied into the weights, and of what else belongs to such a matrix."""
    imatrix: dict[str, Any] | None
    """What the metadata say of the importance matrix."""
    quantizer: str | None
    """A quantizer that the metadata name."""
    marks: tuple[TypeMarks, ...]
    """What the bytes say."""
    source: SourcePrecision
    """What the original was stored as."""
    codes: dict[int, tuple[str, ...]]
    """Matrices of floats that are no more than the values of codes, by the bits of a code (see
    `recover.inputs.originals.coded`)."""

    @property
    def quantizer_from_bytes(self) -> str:
        """Who the bytes say was at work."""
        always = [each for each in self.marks if marks_hold_with_imatrix(type_by_name(each.type))]
        plain = [each for each in self.marks if each not in always]
        foreign = [each.type for each in always if each.n_without]
        if foreign:
            return f"not llama.cpp's ({', '.join(foreign)})"
        searched = [each.type for each in plain if each.n_without]
        if searched:
            return f"an importance matrix, or not llama.cpp's ({', '.join(searched)})"
        if sum(each.n_blocks for each in plain) >= _ENOUGH_BLOCKS:
            return "like llama.cpp's without an importance matrix"
        if sum(each.n_blocks for each in always) >= _ENOUGH_BLOCKS:
            return "like llama.cpp's, with or without an importance matrix"
        return "unknown"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "path": self.path,
            "architecture": self.architecture,
            "name": self.name,
            "parameters": self.n_weights,
            "n_bytes": self.n_bytes,
            "bits_per_weight": self.bits_per_weight,
            "types": self.types,
            **({"stored_as": self.stored_as} if self.stored_as else {}),
            "side_tensors": list(self.side_tensors),
            "file_type": self.file_type,
            "imatrix": self.imatrix,
            "quantized_by": self.quantized_by,
            "quantizer": self.quantizer,
            "quantizer_from_bytes": self.quantizer_from_bytes,
            "marks": [asdict(each) for each in self.marks],
            "source_precision": self.source.to_json() | {"evidence": self.source.evidence},
            "values_of_codes": {str(n_bits): list(names) for n_bits, names in self.codes.items()},
        }


def inspect_model(model: Model) -> FileReport:
    """Say what an open file is."""
    look_at_marks([model], list(model.tensors))
    tensors = model.tensors.values()
    types = Counter(tensor.type.name for tensor in tensors)
    stored = [each for tensor in tensors for each in (tensor, *tensor.side_tensors)]
    return FileReport(
        path=path_text(model.path),
        architecture=_text(model, "general.architecture"),
        name=_text(model, "general.name"),
        file_type=_file_type(model),
        quantized_by=_text(model, "general.quantized_by"),
        n_weights=model.n_weights,
        n_bytes=model.n_bytes,
        bits_per_weight=8 * sum(each.n_bytes for each in stored) / max(model.n_weights, 1),
        types=dict(types.most_common()),
        stored_as=_stored_as(tensors),
        side_tensors=tuple(side.name for each in tensors for side in each.side_tensors),
        imatrix=imatrix_of(model) or None,
        quantizer=_quantizer(model),
        marks=_marks(model),
        source=source_of_file(model),
        codes={n_bits: tuple(names) for n_bits, names in of_codes(model).items()},
    )


def _text(model: Model, key: str) -> str | None:
    value = model.get(key)
    return None if value is None else str(value)


def _file_type(model: Model) -> str | None:
    value = model.get("general.file_type")
    if value is None:
        return None
    known = name_of_file_type(value) if isinstance(value, int) else None
    return known or f"number {value}"


def _quantizer(model: Model) -> str | None:
    """A quantizer that the metadata name, or that left keys of its own."""
    if QUANTIZER_KEY in model.metadata:
        return f"recover ({_text(model, QUANTIZER_KEY)})"
    if METHOD_KEY in model.metadata:
        return f"recover (merged, {_text(model, METHOD_KEY)})"
    version = model.get("general.quantization_version")
    return None if version is None else f"ggml, version {version} of its formats"


def _stored_as(tensors: Iterable[StoredTensor]) -> dict[str, str]:
    """Of types that other programs write, how and by whom; by the name of the type."""
    found: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for tensor in tensors:
        kind = tensor.stored_type
        if kind.writer:
            how = (
                "" if kind is tensor.type else f"{kind.name}, {kind.rows_interleaved} rows mixed, "
            )
            found[tensor.type.name][f"{how}of {kind.writer}"] = None
    return {name: "; ".join(each) for name, each in found.items()}


def _marks(model: Model) -> tuple[TypeMarks, ...]:
    figures: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for tensor in model.tensors.values():
        marks = marks_of(tensor)
        if isinstance(tensor.type, ScalarType) and marks is not None:
            here = (1, marks.n_without > 0, marks.n_blocks, marks.n_without)
            sums = figures[tensor.type.name]
            figures[tensor.type.name] = [a + b for a, b in zip(sums, here, strict=True)]
    return tuple(TypeMarks(kind, *counts) for kind, counts in sorted(figures.items()))


def described_imatrix(report: FileReport) -> str:
    """What the metadata say of the importance matrix, for people."""
    if report.imatrix is None:
        return "none in the metadata"
    return ", ".join(f"{key} {quoted(str(value))}" for key, value in report.imatrix.items())
