"""What a quantization will do, decided from the headers by llama.cpp's rules."""

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recover._text import printable, quoted, some
from recover.containers.gguf.header import ValueType, lay_out
from recover.containers.gguf.metadata import IMATRIX_PREFIX, QUANTIZER_KEY, derived_metadata
from recover.containers.gguf.reader import GGUFModel, Tensor, open_gguf
from recover.containers.gguf.side_scales import folded
from recover.containers.model import GGML_DIMS, Model, StoredTensor
from recover.errors import PlanError, UsageError
from recover.execution.output import check_output_path
from recover.execution.tiles import whole_rows
from recover.quantize.imatrix import Imatrix, Importance, load_imatrix
from recover.quants import (
    DEFAULT_QUANTIZER,
    TILE,
    FloatType,
    OpaqueType,
    ScalarType,
    TensorType,
    type_by_name,
    types_of_files,
)
from recover.quants.variants import variant_encoder

QUANTIZATION_VERSION = 2
"""`GGML_QNT_VERSION`."""

# `tensor_allows_quantization`: what is left as it is, small or sensitive.
_LEFT_NAMES = ("position_embd.weight", "token_types.weight")
_LEFT_PARTS = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    *(f"time_mix_{part}.weight" for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2")),
    *(f"time_mix_{part}.weight" for part in ("a0", "a1", "a2", "g1", "g2")),
    *(f"time_mix_{part}.weight" for part in ("decay_w1", "decay_w2", "lerp_fused")),
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)
_LEFT_PARTS_OF = {
    "glm5-next": (
        "hc_",
        "indexer.attn_q_b",
        "indexer.attn_k",
        "indexer.proj",
        "indexer_compressor_gate",
        "indexer_compressor_ape",
        "ssm_f_a.weight",
        "ssm_f_b.weight",
        "ssm_g_a.weight",
        "ssm_g_b.weight",
        "ssm_beta.weight",
        "attn_kv_a_mqa.weight",
        "attn_k_b.weight",
        "attn_v_b.weight",
    )
}
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")

_LONGEST_ROW = 8 * TILE  # of types whose encoder looks at whole rows

# What `llama_model_kv_override` holds of a text, in bytes.
_LONGEST_TEXT = 127


_ANY = re.compile("")


@dataclass(frozen=True)
class TensorPlan:
    """What happens to one tensor.

    Attributes
    ----------
    name : str
        Name of the tensor.
    dims : tuple of int
        Row length first.
    action : str
        ``copy`` (stored bytes) or ``quantize``.
    type : str
        How the input stores it.
    outtype : str
        How the output stores it.
    uses_imatrix : bool
        Whether the importance matrix has a say.
    position : int
        Of its first byte in the output file.
    """

    name: str
    dims: tuple[int, ...]
    action: str
    type: str
    outtype: str
    uses_imatrix: bool
    position: int

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return math.prod(self.dims)

    @property
    def tile_size(self) -> int:
        """Weights that are worked on at once: whole rows, but of rows that are longer a part."""
        if self.action == "copy" or (self.dims[0] > TILE and not self._needs_rows):
            return TILE
        return whole_rows(self.dims[0])

    @property
    def _needs_rows(self) -> bool:
        return self.uses_imatrix and _weighs_rows(type_by_name(self.outtype))


@dataclass(frozen=True)
class QuantizePlan:
    """A whole quantization: every output byte has its place before the first weight is read.

    Attributes
    ----------
    model : GGUFModel
        The opened input.
    output : Path
        File to be written.
    outtype : str
        The type that was asked for.
    quantizer : str
        Name of the encoder that makes this type.
    imatrix_path : Path or None
        Where the importance matrix was read from.
    imatrix : Imatrix or None
        The importance matrix.
    tensors : tuple of TensorPlan
        In output order.
    header : bytes
        Of the output, padded to where the data begins.
    n_bytes : int
        Size of the output.
    warnings : tuple of str
        What the user should know.
    """

    model: GGUFModel[Tensor]
    output: Path
    outtype: str
    quantizer: str
    imatrix_path: Path | None
    imatrix: Imatrix | None
    tensors: tuple[TensorPlan, ...]
    header: bytes
    n_bytes: int
    warnings: tuple[str, ...]

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
        quantized.
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
        Name of the encoder for the tensors that become `outtype`; others are encoded as llama.cpp
        does.

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
    default = _known(outtype)
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
    check_output_path(output, [*model.parts, *([imatrix_path] if imatrix_path else [])])
    chooser = _Chooser(model, [*rules, (_ANY, default)], weights)
    chooser.left_names += ("output.weight",) if leave_output_tensor else ()
    drafts = list(chooser.drafts())
    if chooser.requantized and not allow_requantize:
        raise PlanError(
            f"{printable(model.path)}: quantized already are {some(chooser.requantized)}; to encode"
            " them again loses precision: take the original, or allow it with --allow-requantize"
        )
    layout = lay_out(
        _metadata(model, default, weights, imatrix_path, quantizer),
        [(draft.tensor.name, draft.tensor.dims, draft.outtype) for draft in drafts],
        model.header.alignment,
    )
    return QuantizePlan(
        model=model,
        output=output,
        outtype=default.name,
        quantizer=quantizer,
        imatrix_path=imatrix_path,
        imatrix=weights,
        tensors=tuple(
            draft.placed(position) for draft, position in zip(drafts, layout.positions, strict=True)
        ),
        header=layout.header,
        n_bytes=layout.n_bytes,
        warnings=tuple(chooser.warnings()),
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


def _weighs_rows(outtype: TensorType) -> bool:
    """Whether an encoder with an importance matrix needs whole rows."""
    return isinstance(outtype, ScalarType) and outtype.weighs_whole_rows


@dataclass(frozen=True)
class _Draft:
    """A tensor's plan before it has its place."""

    tensor: StoredTensor
    outtype: TensorType
    uses_imatrix: bool

    def placed(self, position: int) -> TensorPlan:
        tensor = self.tensor
        return TensorPlan(
            tensor.name,
            tensor.dims,
            "copy" if self.outtype is tensor.type else "quantize",
            tensor.type.name,
            self.outtype.name,
            self.uses_imatrix,
            position,
        )


class _Chooser:
    """Decides for one tensor after the other, and remembers what the user should know."""

    def __init__(
        self,
        model: GGUFModel[Tensor],
        rules: Sequence[tuple[re.Pattern[str], TensorType]],
        imatrix: Imatrix | None,
    ) -> None:
        self.left_names: tuple[str, ...] = _LEFT_NAMES
        self.requantized: list[str] = []
        self._left_parts = _LEFT_PARTS + _LEFT_PARTS_OF.get(model.get("general.architecture"), ())
        self._model = model
        self._rules = rules
        self._unused = [pattern for pattern, _ in rules]
        self._imatrix = imatrix
        self._changed: list[StoredTensor] = []
        self._unweighted: list[str] = []
        self._fallbacks: defaultdict[tuple[str, str], list[str]] = defaultdict(list)

    def drafts(self) -> Iterator[_Draft]:
        """What happens to each tensor; a matrix whose bytes are kept keeps its side tensors."""
        for tensor in self._model.tensors.values():
            yield (draft := self._draft(tensor))
            if draft.outtype is tensor.type:
                yield from map(self._draft, tensor.side_tensors)
            else:
                self._changed.append(tensor)

    def _draft(self, tensor: StoredTensor) -> _Draft:
        """What happens to a tensor."""
        outtype = self._outtype(tensor) if self._is_eligible(tensor) else tensor.type
        if outtype is tensor.type:
            return _Draft(tensor, outtype, False)
        if not isinstance(tensor.type, FloatType):
            self.requantized.append(f"{quoted(tensor.name)} ({tensor.type.name})")
        weighs = isinstance(outtype, ScalarType) and self._weighs(tensor)
        if weighs and _weighs_rows(outtype) and tensor.dims[0] > _LONGEST_ROW:
            raise PlanError(
                f"tensor {quoted(tensor.name)}: with an importance matrix {outtype.name} is encoded"
                f" by whole rows, of at most {_LONGEST_ROW:,} weights, but its have"
                f" {tensor.dims[0]:,}; take another type for it, or no importance matrix"
            )
        return _Draft(tensor, outtype, weighs)

    def _is_eligible(self, tensor: StoredTensor) -> bool:
        """Mirrors `tensor_allows_quantization`, for tensors that ggml can have."""
        return (
            any(dim > 1 for dim in tensor.dims[1:])
            and len(tensor.dims) <= GGML_DIMS
            and not isinstance(tensor.type, OpaqueType)
            and tensor.name.endswith("weight")
            and tensor.name not in self.left_names
            and not any(part in tensor.name for part in self._left_parts)
        )

    def _outtype(self, tensor: StoredTensor) -> TensorType:
        """The type of the first rule that matches, or what it falls back to."""
        rules = self._rules
        pattern, wanted = next(rule for rule in rules if rule[0].search(tensor.name))
        if pattern in self._unused:
            self._unused.remove(pattern)
        row_length, outtype = tensor.dims[0], wanted
        if row_length % outtype.block_size:
            outtype = type_by_name(wanted.fallback)
        if row_length % outtype.block_size:
            outtype = type_by_name("F16")
        if outtype is not wanted:
            self._fallbacks[wanted.name, outtype.name].append(quoted(tensor.name))
        return outtype

    def _weighs(self, tensor: StoredTensor) -> bool:
        """Whether the importance matrix has a say on a tensor."""
        if self._imatrix is None:
            return False
        entry = self._imatrix.entries.get(tensor.name)
        n_matrices = tensor.dims[2] if len(tensor.dims) > 2 else 1
        if entry is not None and entry.n_values == tensor.dims[0] * n_matrices:
            return True
        if entry is not None and tensor.name not in _EMBEDDINGS:
            raise PlanError(
                f"tensor {quoted(tensor.name)} has {n_matrices} x {tensor.dims[0]} columns, but the"
                f" importance matrix has {entry.n_values} values for it: it is of another model"
            )
        self._unweighted.append(quoted(tensor.name))
        return False

    def warnings(self) -> Iterator[str]:
        """What the user should know, when all tensors have been seen."""
        if told := _unknown_architecture(self._model):
            yield told
        for pattern in self._unused:
            if pattern is not _ANY:
                yield f"no tensor was given its type by {quoted(pattern.pattern)}"
        for (wanted, outtype), names in self._fallbacks.items():
            yield f"rows are no whole {wanted} blocks, {outtype} is taken instead: {some(names)}"
        if self.requantized:
            yield f"precision is lost a second time, quantized already are {some(self.requantized)}"
        if self._unweighted:
            yield f"the importance matrix does not know {some(self._unweighted)}"
        if sides := folded(self._changed):
            yield sides


def _unknown_architecture(model: Model) -> str | None:
    """What is to be said of a model for which llama.cpp has no rules; None if it has."""
    from gguf import MODEL_ARCH_NAMES  # takes as long to import as all of this package

    architecture = model.get("general.architecture")
    if architecture in (*MODEL_ARCH_NAMES.values(), *_LEFT_PARTS_OF):
        return None
    said = f"the architecture {quoted(str(architecture))}" if architecture else "no architecture"
    return (
        f"{printable(model.path)}: has {said}, and llama.cpp is not known to have rules for it:"
        " which tensors its program wants unquantized is for you to say (--tensor-type REGEX=F16)"
    )


def _metadata(
    model: GGUFModel[Tensor],
    outtype: TensorType,
    imatrix: Imatrix | None,
    imatrix_path: Path | None,
    quantizer: str,
) -> list[bytes]:
    entries: list[tuple[str, ValueType, Any]] = [
        ("general.quantization_version", ValueType.UINT32, QUANTIZATION_VERSION),
        ("general.file_type", ValueType.UINT32, outtype.file_type),
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
