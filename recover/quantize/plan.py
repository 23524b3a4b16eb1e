"""What a quantization will do, decided from the headers by llama.cpp's rules."""

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recover._brief import Brief
from recover._text import printable, quoted, some
from recover.containers.gguf.header import ValueType, lay_out
from recover.containers.gguf.metadata import IMATRIX_PREFIX, QUANTIZER_KEY, derived_metadata
from recover.containers.gguf.parts import check_whole_name
from recover.containers.gguf.reader import GGUFModel, Tensor, open_gguf
from recover.errors import PlanError, UsageError
from recover.execution.output import check_output_path
from recover.execution.tiles import whole_rows
from recover.inputs.originals.coded import code_warnings
from recover.quantize.choose import ANY, Chooser, TensorDraft, needs_rows
from recover.quantize.imatrix import Imatrix, Importance, load_imatrix
from recover.quantize.mixes import Mix, mix_of
from recover.quants import (
    DEFAULT_QUANTIZER,
    TILE,
    BlockIntervals,
    TensorType,
    type_by_name,
    types_of_files,
)
from recover.quants.variants import variant_encoder

QUANTIZATION_VERSION = 2
"""`GGML_QNT_VERSION`."""

# What `llama_model_kv_override` holds of a text, in bytes.
_LONGEST_TEXT = 127


@dataclass(frozen=True)
class TensorPlan:
    """What happens to one tensor."""

    name: str
    """Name of the tensor."""
    dims: tuple[int, ...]
    """Row length first."""
    action: str
    """``copy`` (stored bytes) or ``quantize``."""
    type: str
    """How the input stores it."""
    outtype: str
    """How the output stores it."""
    uses_imatrix: bool
    """Whether the importance matrix has a say."""
    position: int
    """Of its first byte in the output file."""

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return math.prod(self.dims)

    @property
    def tile_size(self) -> int:
        """Weights that are worked on at once: whole rows, but of rows that are longer a part.

        An encoder of trellis codes takes some microseconds for each, so that it gets fewer.
        """
        kind = type_by_name(self.outtype)
        rows_are_needed = needs_rows(kind, weighted=self.uses_imatrix)
        if not rows_are_needed and (self.action == "copy" or self.dims[0] > TILE):
            return TILE
        is_slow = self.action != "copy" and isinstance(kind, BlockIntervals)
        return whole_rows(self.dims[0], TILE // 8 if is_slow else TILE)


@dataclass(frozen=True, repr=False)
class QuantizePlan(Brief):
    """A whole quantization: every output byte has its place before the first weight is read."""

    model: GGUFModel[Tensor]
    """The opened input."""
    output: Path
    """File to be written."""
    outtype: str
    """The type or mix that was asked for."""
    base: str
    """The type of most tensors: that one, or the mix's."""
    quantizer: str
    """Name of the encoder that makes this type."""
    imatrix_path: Path | None
    """Where the importance matrix was read from."""
    imatrix: Imatrix | None
    """The importance matrix."""
    tensors: tuple[TensorPlan, ...]
    """In output order."""
    header: bytes
    """Of the output, padded to where the data begins."""
    n_bytes: int
    """Size of the output."""
    warnings: tuple[str, ...]
    """What the user should know."""
    asked: dict[str, Any]
    """The parameters of `plan_quantize` as plain data, with absolute paths."""

    def facts(self) -> Iterator[tuple[str, object]]:
        """See `recover._brief.Brief`."""
        yield "input", self.model.path.name
        yield "output", self.output.name
        yield "outtype", self.outtype
        yield "tensors", len(self.tensors)
        yield "weights", self.n_weights
        yield "bytes", self.n_bytes
        yield "warnings", len(self.warnings)

    def rows(self) -> Iterator[Sequence[object]]:
        """See `recover._brief.Brief`."""
        yield "tensor", "weights", "action", "from", "to"
        for each in self.tensors:
            yield each.name, math.prod(each.dims), each.action, each.type, each.outtype

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return self.model.n_weights

    @property
    def bits_per_weight(self) -> float:
        """Average number of bits that one weight takes, without the header."""
        return 8 * (self.n_bytes - len(self.header)) / self.n_weights

    @property
    def inputs(self) -> list[Path]:
        """All files that are read."""
        return [*self.model.parts, *([self.imatrix_path] if self.imatrix_path else [])]

    def importance(self, tensor: TensorPlan) -> Importance | None:
        """What the importance matrix says of a tensor."""
        if self.imatrix is None or not tensor.uses_imatrix:
            return None
        return self.imatrix.entries[tensor.name]

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``--dry-run``."""
        return {
            "output": str(self.output),
            "type": self.outtype,
            "input": str(self.model.path),
            "imatrix": None if self.imatrix_path is None else str(self.imatrix_path),
            "n_bytes": self.n_bytes,
            "warnings": list(self.warnings),
            "tensors": [asdict(tensor) for tensor in self.tensors],
        }


def plan_quantize(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    outtype: str,
    *,
    imatrix: str | os.PathLike[str] | None = None,
    tensor_types: Sequence[tuple[str, str]] = (),
    allow_requantize: bool = False,
    leave_output_tensor: bool = False,
    quantizer: str = DEFAULT_QUANTIZER,
    mix: bool = False,
) -> QuantizePlan:
    """Decide what a quantization does; nothing is written.

    Parameters
    ----------
    source : path-like
        GGUF file.
    output : path-like
        GGUF file to be written.
    outtype : str
        One of `recover.quants.types_of_files`, for every tensor that llama.cpp's rules let be
        quantized; or one of `recover.quantize.mixes.MIXES`, whose rules give each its type.
    imatrix : path-like, optional
        Importance matrix, in either of llama.cpp's formats.
    tensor_types : sequence of (str, str)
        Regular expressions and the types of the tensors in whose names they are found; the first
        that matches counts.
    allow_requantize : bool
        Whether tensors may be encoded that are quantized already.
    leave_output_tensor : bool
        Leave ``output.weight`` as it is.
    quantizer : str
        Name of the encoder for the tensors that become `outtype`, or the base of the mix; others
        are encoded as llama.cpp does.
    mix : bool
        Whether a name that is both a type and a mix is the mix.

    Returns
    -------
    QuantizePlan

    Raises
    ------
    GGUFError, OutputError, PlanError
        If an input cannot be read, the output cannot be written, or what was asked for cannot be
        done with this input.
    """
    rules = [(_compiled(pattern), _known(name)) for pattern, name in tensor_types]
    wanted_mix = _mix(outtype, mix=mix)
    default = _known(wanted_mix.base if wanted_mix else outtype)
    if quantizer != DEFAULT_QUANTIZER:
        variant_encoder(quantizer, default.name)
        if imatrix is not None:
            raise UsageError(f"the quantizer {quantizer} takes no importance matrix")
    model = open_gguf(source)
    if not model.tensors:
        raise PlanError(f"{printable(model.path)}: holds no tensors")
    imatrix_path = None if imatrix is None else Path(imatrix)
    weights = None if imatrix_path is None else load_imatrix(imatrix_path)
    output = Path(output)
    check_whole_name(output)
    check_output_path(output, [*model.parts, *([imatrix_path] if imatrix_path else [])])
    chooser = Chooser(model, [*rules, (ANY, default)], weights, wanted_mix)
    chooser.left_names += ("output.weight",) if leave_output_tensor else ()
    drafts = list(chooser.drafts())
    chooser.check_imatrix()
    encoded = [each.tensor.name for each in drafts if each.outtype is not each.tensor.type]
    if chooser.requantized and not allow_requantize:
        raise PlanError(
            f"{printable(model.path)}: quantized already are {some(chooser.requantized)}; to encode"
            " them again loses precision: take the original, or allow it with --allow-requantize"
        )
    layout = lay_out(
        _metadata(
            model,
            wanted_mix.file_type if wanted_mix else default.file_type,
            weights,
            imatrix_path,
            quantizer,
        ),
        [(draft.tensor.name, draft.tensor.dims, draft.outtype) for draft in drafts],
        model.header.alignment,
    )
    return QuantizePlan(
        model=model,
        output=output,
        outtype=wanted_mix.name if wanted_mix else default.name,
        base=default.name,
        quantizer=quantizer,
        imatrix_path=imatrix_path,
        imatrix=weights,
        tensors=tuple(
            _placed(draft, position)
            for draft, position in zip(drafts, layout.positions, strict=True)
        ),
        header=layout.header,
        n_bytes=layout.n_bytes,
        warnings=(*chooser.warnings(), *code_warnings(model, encoded)),
        asked={
            "source": str(model.path.absolute()),
            "output": str(output.absolute()),
            "outtype": outtype,
            "imatrix": None if imatrix_path is None else str(imatrix_path.absolute()),
            "tensor_types": [list(each) for each in tensor_types],
            "allow_requantize": allow_requantize,
            "leave_output_tensor": leave_output_tensor,
            "quantizer": quantizer,
            "mix": mix,
        },
    )


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{quoted(pattern)} is no regular expression: {error}") from None


def _known(name: str) -> TensorType:
    known = types_of_files()
    if name.upper() not in known:
        names = ", ".join(known)
        raise UsageError(f"files cannot be made {quoted(name)}; known are {names}")
    return known[name.upper()]


def _mix(name: str, *, mix: bool) -> Mix | None:
    """The mix of a name; None if it is that of a type."""
    found = mix_of(name) if mix or name.upper() not in types_of_files() else None
    if mix and found is None:
        raise UsageError(f"llama.cpp has no mix {quoted(name)} that is written here")
    return found


def _placed(draft: TensorDraft, position: int) -> TensorPlan:
    tensor = draft.tensor
    return TensorPlan(
        tensor.name,
        tensor.dims,
        "copy" if draft.outtype is tensor.type else "quantize",
        tensor.type.name,
        draft.outtype.name,
        draft.uses_imatrix,
        position,
    )


def _metadata(
    model: GGUFModel[Tensor],
    file_type: int | None,
    imatrix: Imatrix | None,
    imatrix_path: Path | None,
    quantizer: str,
) -> list[bytes]:
    entries: list[tuple[str, ValueType, Any]] = [
        ("general.quantization_version", ValueType.UINT32, QUANTIZATION_VERSION),
        ("general.file_type", ValueType.UINT32, file_type),
    ]
    if quantizer != DEFAULT_QUANTIZER:
        entries.append((QUANTIZER_KEY, ValueType.STRING, quantizer))
    if imatrix is None:
        return derived_metadata(model.metadata, ("split.", QUANTIZER_KEY), entries)
    entries.append((f"{IMATRIX_PREFIX}file", ValueType.STRING, _cut(str(imatrix_path))))
    if imatrix.datasets:
        entries.append((f"{IMATRIX_PREFIX}dataset", ValueType.STRING, _cut(imatrix.datasets[0])))
    entries.append((f"{IMATRIX_PREFIX}entries_count", ValueType.UINT32, len(imatrix.entries)))
    if imatrix.n_chunks > 0:
        entries.append((f"{IMATRIX_PREFIX}chunks_count", ValueType.UINT32, imatrix.n_chunks))
    return derived_metadata(model.metadata, ("split.", IMATRIX_PREFIX, QUANTIZER_KEY), entries)


def _cut(text: str) -> str:
    return text.encode(errors="replace")[:_LONGEST_TEXT].decode(errors="ignore")
