"""What a merge will do, decided from the headers (and from which tensors are the same bytes)."""

import math
import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from recover._text import printable, quoted, some
from recover._version import __version__
from recover.calibration.weights import Calibration, load_calibration
from recover.containers.gguf.header import ValueType, lay_out
from recover.containers.gguf.metadata import FILE_TYPES, IMATRIX_PREFIX, derived_metadata
from recover.containers.gguf.names import layer_of, n_layers, role_of
from recover.containers.gguf.parts import PREFIX, lay_out_parts, part_paths
from recover.containers.gguf.reader import Model, open_gguf
from recover.containers.gguf.side_scales import folded
from recover.containers.mapping import check_unchanged
from recover.errors import CalibrationError, PlanError, UsageError
from recover.estimators import DEFAULT_METHOD, ESTIMATES, MEAN, estimator
from recover.evidence.buffer import Witness
from recover.evidence.intervals import Intervals
from recover.evidence.lattice import SIGNIFICAND_BITS
from recover.execution.output import check_output_path
from recover.inputs.descent import Descent
from recover.inputs.matching import check_match, select_tensors, typical_error
from recover.inputs.originals.agreement import with_originals
from recover.inputs.precision import fit_of, source_precision
from recover.inputs.provenance import searched_tensors, witness_of
from recover.inputs.repeated import describe_repeated
from recover.merge.decide import Decider, Draft, witnesses_for
from recover.merge.exact import unquantized_warnings
from recover.merge.lineage import (
    METHOD_KEY,
    NAMES_KEY,
    SIZES_KEY,
    TYPES_KEY,
    merged_before,
    types_of,
)
from recover.merge.redundant import describe, find_redundant
from recover.quants import (
    OpaqueType,
    ScalarType,
    TensorType,
    type_by_name,
)

OUTTYPES = ("f16", "bf16", "f32", "q8_0")
SNAPS = ("auto", "none", "bf16", "f16")
# Where the finest input's is larger, hardly a cell is so narrow that it holds one BF16 number.
_TOO_COARSE = 1e-4
# Of the weights that would be certain, how many must be able to show that they had another format.
_LEAST_EVIDENCE = 0.25

# Keys of the first input that would be wrong in the output.
_DROPPED_PREFIXES = (IMATRIX_PREFIX, "recover.", PREFIX)


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
        ``copy`` (stored bytes), ``convert`` (one input, decoded) or ``merge``.
    types : tuple of str
        How each input stores it, in the order of the inputs.
    sources : tuple of int
        Inputs that take part, finest first.
    twins : tuple of int
        For each input, the first input with the same bytes.
    outtype : str
        How the output stores it.
    method : str
        Name of the estimator; ``best`` where nothing is estimated.
    compared : tuple of int
        Inputs that take no part, but must not contradict what is taken.
    descents : tuple of Descent
        Inputs that tell nothing new, since they were made from others.
    is_known : bool
        Whether the input that is taken has the original's weights: nothing is estimated.
    noises : tuple of float or None
        For each of the sources the mean square error of its codes, in units of the squared scale,
        if another encoder than llama.cpp's made them.
    position : int
        Of its first byte in the output file.
    part : int
        Which file of a split output, counted from 0.
    """

    name: str
    dims: tuple[int, ...]
    action: str
    types: tuple[str, ...]
    sources: tuple[int, ...]
    twins: tuple[int, ...]
    outtype: str
    method: str
    compared: tuple[int, ...]
    descents: tuple[Descent, ...]
    is_known: bool
    noises: tuple[float | None, ...]
    position: int
    part: int = 0

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return math.prod(self.dims)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return vars(self) | {"descents": [asdict(each) for each in self.descents]}


@dataclass(frozen=True)
class FilePlan:
    """A file to be written.

    Attributes
    ----------
    path : Path
        Where it appears.
    header : bytes
        Padded to where the data begins.
    n_bytes : int
        Size of the file.
    """

    path: Path
    header: bytes
    n_bytes: int


@dataclass(frozen=True)
class SecondOutput(FilePlan):
    """Where the standard deviations go: BF16, under the same names, 0 where nothing is estimated.

    Attributes
    ----------
    positions : mapping of str to int
        First byte of each tensor.
    """

    positions: Mapping[str, int]


@dataclass(frozen=True)
class MergePlan:
    """A whole merge: every output byte has its place before the first weight is read.

    Attributes
    ----------
    models : tuple of Model
        The opened inputs.
    output : Path
        File to be written; of a split output the first part.
    method : str
        Name of the estimator.
    estimate : str
        ``mean`` or ``map``.
    source_format : str
        What the original weights were stored as, as the norms tell (and no tensor contradicts) or
        as asked for: ``bf16``, ``f16`` or something that decides nothing.
    snaps : bool
        Round all estimates to that format's numbers.
    uncertainty : SecondOutput or None
        The file with the standard deviations, if one is written.
    tensors : tuple of TensorPlan
        In output order.
    header : bytes
        Of the output, padded to where the data begins.
    n_bytes : int
        Size of the output, of all parts together.
    warnings : tuple of str
        What the user should know.
    densities : mapping or None
        Densities from the model's own weights (`recover.merge.resimulate`), by `density_key`.
    calibration : Calibration or None
        Weights or densities that were fitted on another model.
    later_parts : tuple of FilePlan
        Of a split output, all parts but the first.
    redundant : tuple of Descent
        Inputs that were quantized from others as a whole, and from which.
    undecided : frozenset of str
        Tensors whose weights were, or may have been, stored in another format than `source_format`:
        none is set to its numbers.
    decides : bool
        Whether bounds are so narrow that they would show where weights had another format: then
        those that hold a single number of it prove a weight.
    """

    models: tuple[Model, ...]
    output: Path
    method: str
    estimate: str
    source_format: str
    snaps: bool
    uncertainty: SecondOutput | None
    tensors: tuple[TensorPlan, ...]
    header: bytes
    n_bytes: int
    warnings: tuple[str, ...]
    calibration: Calibration | None = None
    densities: Mapping[tuple[str, bool, bool], Sequence[Sequence[float]]] | None = None
    later_parts: tuple[FilePlan, ...] = ()
    redundant: tuple[Descent, ...] = ()
    undecided: frozenset[str] = frozenset()
    decides: bool = True

    @property
    def parts(self) -> tuple[FilePlan, ...]:
        """The output: one file, or all parts of a split one."""
        n_bytes = self.n_bytes - sum(part.n_bytes for part in self.later_parts)
        return FilePlan(self.output, self.header, n_bytes), *self.later_parts

    @property
    def files(self) -> tuple[FilePlan, ...]:
        """All files to be written, what people open first."""
        return self.parts if self.uncertainty is None else (*self.parts, self.uncertainty)

    def significand_bits(self, tensor: TensorPlan) -> int:
        """Precision of the source's numbers, if the weights of a tensor may be set to them; or 0.

        That is where all are rounded, and where cells may be so narrow that they hold one number.
        """
        return 0 if tensor.name in self.undecided else self.evidence_bits(tensor)

    def evidence_bits(self, tensor: TensorPlan) -> int:
        """As `significand_bits`, where weights could be set if they were not undecided."""
        if tensor.is_known:
            return 0
        if not (self.snaps or self.may_decide(tensor)):
            return 0
        return SIGNIFICAND_BITS.get(self.source_format, 0)

    def may_decide(self, tensor: TensorPlan) -> bool:
        """Whether cells may be so narrow that they hold a single number of the source's format."""
        finest = self.models[tensor.sources[0]].tensors[tensor.name].type
        quantized = isinstance(finest, ScalarType) and typical_error(finest) < _TOO_COARSE
        return quantized and self.method == DEFAULT_METHOD and self.decides

    def witness(self, tensor: TensorPlan, source: int) -> Witness:
        """Input `source`, one of those that take part, as a witness on a tensor."""
        key = tensor.name, source
        if key not in self._witnesses:
            noise = tensor.noises[tensor.sources.index(source)]
            (witness,) = witnesses_for(self.models, tensor.name, [source], [noise])
            if tensor.action == "merge" and not self._has_foreign_codes(tensor, witness):
                if self.calibration is not None:
                    witness = self._calibrated(self.calibration, witness, tensor, source)
                if self.densities is not None:
                    witness = self._simulated(self.densities, witness, tensor)
            self._witnesses[key] = witness
        return self._witnesses[key]

    @cached_property
    def _witnesses(self) -> dict[tuple[str, int], Witness]:
        """Those that were asked for: every thread asks again, and the answer takes a while."""
        return {}

    def _has_foreign_codes(self, tensor: TensorPlan, witness: Witness) -> bool:
        """Whether codes of llama.cpp's encoders tell nothing of these (or, as weights, of any)."""
        if estimator(self.method).CALIBRATED == "weights":
            return any(noise is not None for noise in tensor.noises)
        return witness.noise is not None

    def density_key(self, witness: Witness, others: Sequence[Witness]) -> tuple[str, bool, bool]:
        """Under which a witness's density is found in `densities`, next to all of a tensor."""
        n_alike = sum(other.type is witness.type for other in others)
        weighted = witness.weighted or not witness.has_cells or n_alike > 1
        return witness.type.name, weighted, witness.has_cells

    def _simulated(
        self,
        densities: Mapping[tuple[str, bool, bool], Sequence[Sequence[float]]],
        witness: Witness,
        tensor: TensorPlan,
    ) -> Witness:
        """A witness with the density that was simulated for it, if there is one."""
        models = [self.models[source] for source in tensor.sources]
        others = [witness_of(model, model.tensors[tensor.name]) for model in models]
        rows = densities.get(self.density_key(witness, others))
        return witness if rows is None else replace(witness, density=tuple(map(tuple, rows)))

    def _calibrated(
        self, calibration: Calibration, witness: Witness, tensor: TensorPlan, source: int
    ) -> Witness:
        """A witness with what the method takes from a calibration."""
        if estimator(self.method).CALIBRATED == "densities":
            return calibration.with_density(witness)
        layer = layer_of(tensor.name)
        weights = calibration.weights_for(
            [tensor.types[i] for i in tensor.sources],
            role_of(tensor.name),
            None if layer is None else layer / self._n_layers,
        )
        return replace(witness, weight=weights[tensor.sources.index(source)])

    @cached_property
    def _n_layers(self) -> int:
        return n_layers(self.models[0].tensors)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``--dry-run``."""
        return {
            "output": str(self.output),
            "method": self.method,
            "estimate": self.estimate,
            "source_format": self.source_format,
            "snaps": self.snaps,
            "undecided": sorted(self.undecided),
            "uncertainty": None if self.uncertainty is None else str(self.uncertainty.path),
            "inputs": [str(model.path) for model in self.models],
            "n_bytes": self.n_bytes,
            "parts": [{"path": str(part.path), "n_bytes": part.n_bytes} for part in self.parts],
            "warnings": list(self.warnings),
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }


def plan_merge(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    method: str = DEFAULT_METHOD,
    estimate: str = MEAN,
    outtype: str = "f16",
    snap: str = "none",
    uncertainty: str | os.PathLike[str] | None = None,
    tensors: str | None = None,
    calibration: Calibration | str | os.PathLike[str] | None = None,
    split_max_size: int | None = None,
) -> MergePlan:
    """Decide what a merge does; nothing is written.

    Parameters
    ----------
    inputs : sequence of path-like
        GGUF files quantized from the same original. Metadata comes from the first.
    output : path-like
        GGUF file to be written.
    method : str
        Name of an estimator (`recover.estimators.method_names`).
    estimate : {"mean", "map"}
        Of the posterior, its mean or its mode.
    outtype : {"f16", "bf16", "f32", "q8_0"}
        How merged and converted tensors are stored (rows that are no whole number of blocks as
        F16).
    snap : {"auto", "none", "bf16", "f16"}
        Round to the numbers of the format that the original weights had; ``auto``: as its norms
        tell.
    uncertainty : path-like, optional
        GGUF file to be written with the standard deviation of every weight.
    tensors : str, optional
        Regular expression; only tensors in whose name it is found are written.
    calibration : Calibration or path-like, optional
        Weights for the method ``linear``, densities for the method ``posterior``, fitted on a model
        whose original is known.
    split_max_size : int, optional
        Most bytes of tensors in a file: write parts ``...-00001-of-0000N.gguf`` as
        ``llama-gguf-split`` makes them, even if there is only one.

    Returns
    -------
    MergePlan

    Raises
    ------
    CalibrationError
        If the calibration cannot be read, or was not made for the types of the inputs.
    GGUFError, OutputError, PlanError
        If an input cannot be read, the output cannot be written, or the inputs do not fit together.
    InputError
        If an input was changed or truncated in the meantime.
    UsageError
        If an option has no such value, or does not go with another one.
    """
    estimator(method)
    if outtype not in OUTTYPES:
        raise UsageError(f"output type {outtype!r} is unknown; known are {', '.join(OUTTYPES)}")
    if estimate not in ESTIMATES:
        raise UsageError(f"estimate {estimate!r} is unknown; known are {', '.join(ESTIMATES)}")
    if estimate != MEAN and method != DEFAULT_METHOD:
        raise UsageError(f"method {method} has no {estimate} estimate; only {DEFAULT_METHOD} has")
    if snap not in SNAPS:
        raise UsageError(f"snap {snap!r} is unknown; known are {', '.join(SNAPS)}")
    if split_max_size is not None and split_max_size < 1:
        raise UsageError(f"parts of {split_max_size} bytes are too small")
    if not inputs:
        raise UsageError("there are no inputs")
    if isinstance(calibration, str | os.PathLike):
        calibration = load_calibration(calibration)
    if calibration is not None and estimator(method).CALIBRATED is None:
        raise UsageError(f"the method {method} uses no calibration; linear and posterior do")
    models = tuple(open_gguf(path) for path in inputs)
    output = Path(output)
    parts = [part for model in models for part in model.parts]
    check_output_path(output, parts if split_max_size is None else ())
    for model in models[1:]:
        check_match(models[0], model)
    names = select_tensors(models[0], tensors)
    warnings: list[str] = []
    models = with_originals(models, names, warnings)
    warnings += [
        f"{printable(model.path)}: another quantizer than llama.cpp's plain one, or an importance"
        f" matrix, made {some([quoted(name) for name in searched])}; their codes prove no bounds"
        for model in models
        if (searched := searched_tensors(model, names))
    ]
    for model in models:
        if sides := folded(model.tensors[name] for name in names):
            warnings.append(f"{printable(model.path)}: {sides}")
    decider = Decider(models, method)
    drafts = [decider.draft(name, type_by_name(outtype)) for name in names]
    warnings += decider.warnings + _foreign_codes(models, drafts)
    warnings += describe(models, drafts) + merged_before(models)
    warnings += describe_repeated(models, [draft.twins for draft in drafts])
    plan = _lay_out(models, output, method, outtype, drafts, calibration, split_max_size)
    warnings += unquantized_warnings(models, plan.tensors)
    if split_max_size is not None:
        for part in plan.parts:
            check_output_path(part.path, parts)
        warnings += _large_tensors(plan, split_max_size)
    source_format = snap if snap in SIGNIFICAND_BITS else "unknown"
    if snap == "auto" or (snap == "none" and any(plan.may_decide(each) for each in plan.tensors)):
        source_format = source_precision(models[0]).type
    if snap == "auto" and source_format not in SIGNIFICAND_BITS:
        warnings.append("the norms do not tell the source's number format: nothing is rounded")
    snaps = snap != "none" and outtype != "q8_0"
    if snap != "none" and not snaps:
        warnings.append("--outtype q8_0 rounds all weights again, so --snap is of no use there")
    plan = replace(plan, source_format=source_format, snaps=snaps)
    plan = _with_undecided(plan, snap in SIGNIFICAND_BITS, warnings)
    second = None
    if uncertainty is not None:
        second = _lay_out_deviations(plan, Path(uncertainty))
    if calibration is not None:
        _check_calibration(plan)
    redundant = find_redundant(models, drafts)
    check_unchanged(
        parts
    )  # zeros of a file that was truncated say nothing, nor do warnings on them
    return replace(
        plan,
        estimate=estimate,
        redundant=redundant,
        uncertainty=second,
        warnings=tuple(warnings),
    )


def _foreign_codes(models: Sequence[Model], drafts: Sequence[Draft]) -> list[str]:
    """A warning for each input whose codes another program than llama.cpp gave."""
    names: dict[int, list[str]] = {}
    for draft in drafts:
        for source, noise in zip(draft.sources, draft.noises, strict=True):
            if noise is not None:
                names.setdefault(source, []).append(quoted(draft.name))
    return [
        f"{printable(models[source].path)}: another program than llama.cpp gave the codes of"
        f" {some(tensors)} (GPTQ and AWQ, for instance): they prove no bounds, and how far off they"
        " are is estimated"
        for source, tensors in sorted(names.items())
    ]


def _with_undecided(plan: MergePlan, is_asked_for: bool, warnings: list[str]) -> MergePlan:
    """The plan, less the tensors that contradict the source's format.

    Where some do, only those of the others are left whose bytes confirm it, but where the user says
    what the format is.
    """
    intervals = Intervals()
    fits = {
        each.name: fit_of(
            each.name, [plan.models[i] for i in each.sources], plan.source_format, intervals
        )
        for each in plan.tensors
        if each.action != "copy" and plan.significand_bits(each)
    }
    evidence = sum(fit.expected for fit in fits.values())
    n_single = sum(fit.n_single for fit in fits.values())
    plan = replace(plan, decides=evidence >= _LEAST_EVIDENCE * n_single)
    wrong = [name for name, fit in fits.items() if fit.is_contradicted]
    if not wrong:
        return plan
    warnings.append(
        f"{some([quoted(name) for name in wrong])}: the bytes show that the weights were not stored"
        f" as {plan.source_format}, {'' if is_asked_for else 'as the norms were, '}so none of them"
        " is set to such numbers"
    )
    undecided = frozenset(
        name
        for name, fit in fits.items()
        if fit.is_contradicted or not (is_asked_for or fit.is_confirmed)
    )
    is_left = is_asked_for or len(undecided) < len(fits)
    source_format = plan.source_format if is_left else "unknown"
    return replace(plan, undecided=undecided, source_format=source_format)


def _lay_out_deviations(plan: MergePlan, path: Path) -> SecondOutput:
    check_output_path(path, [part for model in plan.models for part in model.parts])
    if path.resolve() in [part.path.resolve() for part in plan.parts]:
        raise PlanError(f"{printable(path)}: is the output as well; name another file")
    tensors = [
        tensor for tensor in plan.tensors if not isinstance(tensor_type_of(tensor), OpaqueType)
    ]
    bf16 = type_by_name("BF16")
    entries = [
        ("general.architecture", ValueType.STRING, str(plan.models[0].get("general.architecture"))),
        ("general.type", ValueType.STRING, "uncertainty"),
        ("general.file_type", ValueType.UINT32, FILE_TYPES["BF16"]),
        ("recover.version", ValueType.STRING, __version__),
        ("recover.uncertainty", ValueType.STRING, "standard deviation of each weight"),
    ]
    layout = lay_out(
        derived_metadata({}, (), entries),
        [(tensor.name, tensor.dims, bf16) for tensor in tensors],
        plan.models[0].header.alignment,
    )
    positions = zip((tensor.name for tensor in tensors), layout.positions, strict=True)
    return SecondOutput(path, layout.header, layout.n_bytes, MappingProxyType(dict(positions)))


def with_finest_alone(plan: MergePlan, names: Set[str]) -> tuple[MergePlan, set[int]]:
    """The plan that decodes the finest input of some tensors, and their indices where it differs.

    The other inputs stay among the sources: they are compared, and their expected errors told.
    """
    changed = {
        i
        for i, tensor in enumerate(plan.tensors)
        if tensor.name in names and tensor.method != "best" and tensor.action == "merge"
    }
    tensors = tuple(
        replace(tensor, method="best") if i in changed else tensor
        for i, tensor in enumerate(plan.tensors)
    )
    undecided = plan.undecided | {plan.tensors[i].name for i in changed}
    return replace(plan, tensors=tensors, undecided=undecided), changed


def tensor_type_of(tensor: TensorPlan) -> TensorType:
    """How the output stores a tensor."""
    return type_by_name(tensor.outtype)


def _check_calibration(plan: MergePlan) -> None:
    """Refuse a calibration that does not know a tensor's types, before anything is written."""
    for tensor in plan.tensors:
        try:
            for source in tensor.sources if tensor.action == "merge" else ():
                plan.witness(tensor, source)
        except CalibrationError as error:
            raise CalibrationError(f"tensor {quoted(tensor.name)}: {error}") from None


def _lay_out(
    models: tuple[Model, ...],
    output: Path,
    method: str,
    outtype: str,
    drafts: Sequence[Draft],
    calibration: Calibration | None,
    split_max_size: int | None,
) -> MergePlan:
    metadata = _metadata(models, method, outtype, calibration)
    shapes = [(draft.name, draft.dims, draft.outtype) for draft in drafts]
    alignment = models[0].header.alignment
    paths: tuple[Path, ...] = (output,)
    if split_max_size is None:
        layouts = [lay_out(metadata, shapes, alignment)]
    else:
        layouts = lay_out_parts(metadata, shapes, alignment, split_max_size)
        paths = part_paths(output, len(layouts))
    places = [
        (position, part) for part, layout in enumerate(layouts) for position in layout.positions
    ]
    files = [
        FilePlan(path, layout.header, layout.n_bytes)
        for path, layout in zip(paths, layouts, strict=True)
    ]
    return MergePlan(
        models=models,
        output=files[0].path,
        method=method,
        estimate=MEAN,
        source_format="unknown",
        snaps=False,
        uncertainty=None,
        tensors=tuple(_place(draft, *place) for draft, place in zip(drafts, places, strict=True)),
        header=files[0].header,
        n_bytes=sum(file.n_bytes for file in files),
        warnings=(),
        calibration=calibration,
        later_parts=tuple(files[1:]),
    )


def _large_tensors(plan: MergePlan, split_max_size: int) -> list[str]:
    """A warning, if there are tensors that no part of that size can hold."""
    sizes = {each.name: tensor_type_of(each).n_bytes(each.n_weights) for each in plan.tensors}
    large = [
        f"{quoted(name)} ({size:,} bytes)" for name, size in sizes.items() if size > split_max_size
    ]
    if not large:
        return []
    return [f"parts are larger than asked for where one tensor alone is: {some(large)}"]


def _place(draft: Draft, position: int, part: int) -> TensorPlan:
    return TensorPlan(
        draft.name,
        draft.dims,
        draft.action,
        draft.types,
        draft.sources,
        draft.twins,
        draft.outtype.name,
        draft.method,
        draft.compared,
        draft.descents,
        draft.is_known,
        draft.noises,
        position,
        part,
    )


def _metadata(
    models: Sequence[Model], method: str, outtype: str, calibration: Calibration | None
) -> list[bytes]:
    """Spans of the first input, without those that would be wrong; and provenance."""
    return derived_metadata(
        models[0].metadata,
        _DROPPED_PREFIXES,
        [
            ("general.file_type", ValueType.UINT32, FILE_TYPES[outtype.upper()]),
            ("recover.version", ValueType.STRING, __version__),
            (METHOD_KEY, ValueType.STRING, method),
            ("recover.calibration", ValueType.STRING, calibration.label if calibration else "none"),
            (NAMES_KEY, ValueType.STRING, [model.path.name for model in models]),
            (SIZES_KEY, ValueType.UINT64, [model.n_bytes for model in models]),
            (TYPES_KEY, ValueType.STRING, [types_of(model) for model in models]),
        ],
    )
