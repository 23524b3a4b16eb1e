"""What a merge will do, decided from the headers (and from which tensors are the same bytes)."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from recover._brief import Brief
from recover._text import path_text
from recover._version import __version__
from recover.calibration.weights import Calibration, read_calibration
from recover.containers.gguf.names import n_layers
from recover.containers.mapping import check_unchanged
from recover.containers.model import Model
from recover.containers.places import FilePlan, Place, whole_place
from recover.containers.safetensors.reader import CONFIG
from recover.errors import PlanError, UsageError
from recover.estimators import DEFAULT_METHOD, MEAN, estimator
from recover.evidence.lattice import SIGNIFICAND_BITS
from recover.execution.folder import check_output_folder
from recover.execution.output import check_output_path
from recover.inputs.alignment import align
from recover.inputs.completion import complete
from recover.inputs.descent import Descent
from recover.inputs.matching import typical_error
from recover.inputs.metadata import metadata_warnings
from recover.inputs.open import open_models
from recover.inputs.originals.agreement import with_originals
from recover.inputs.originals.coded import code_warnings
from recover.inputs.provenance import look_at_marks
from recover.inputs.recorded import Input
from recover.inputs.repeated import describe_repeated
from recover.merge.calibrated import with_calibration, with_error_calibration, with_network
from recover.merge.decide import Decider, Draft
from recover.merge.exact import unquantized_warnings
from recover.merge.layout import (
    SecondOutput,
    large_tensors,
    lay_out_deviations,
    lay_out_output,
    places_in_folder,
)
from recover.merge.lineage import merged_before
from recover.merge.options import check_options, files_of, folder_options
from recover.merge.records import (
    Record,
    as_text,
    descent_record,
    file_record,
    plain,
    read_descents,
    read_file,
    read_tensor,
    tensor_record,
    tuples,
)
from recover.merge.redundant import describe, find_redundant, foreign_codes, searched_codes
from recover.merge.source_format import with_source_format
from recover.quants import ScalarType, type_by_name

# Where the finest input's is larger, hardly a cell is so narrow that it holds one BF16 number.
_TOO_COARSE = 1e-4
_NOWHERE = Path(os.devnull)
_FORMAT = "recover.merge.plan/1"
_PLAIN = ("method", "estimate", "source_format", "snaps", "decides")

# Of a tensor's plan, what is left out as JSON: it follows from the inputs and the other entries.
_UNTOLD = (
    "sources",
    "confining",
    "compared_noises",
    "error_calibration",
    "follows",
    "shift",
    "places",
)

# Keys of the JSON that are not the names of attributes.
_KEYS = {"used": "sources", "duplicate_of": "twins"}


@dataclass(frozen=True, repr=False)
class TensorPlan(Draft):
    """What happens to one tensor, and where its output goes.

    Attributes
    ----------
    places : tuple of Place
        Of its weights in the output's files, in their order.
    """

    places: tuple[Place, ...] = ()

    @classmethod
    def of(cls, draft: Draft, places: tuple[Place, ...]) -> Self:
        """What happens to a tensor, at its places; there may be very many."""
        tensor = object.__new__(cls)
        vars(tensor).update(vars(draft), places=places)
        return tensor

    @property
    def position(self) -> int:
        """Of its first byte in the output file."""
        return self.places[0].position

    @property
    def part(self) -> int:
        """Which file of a split output, counted from 0."""
        return self.places[0].file

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        told = {key: value for key, value in vars(self).items() if key not in _UNTOLD}
        document = {_KEYS.get(key, key): value for key, value in told.items()}
        document |= {"position": self.position, "part": self.part}
        return document | {"descents": [asdict(each) for each in self.descents]}


@dataclass(frozen=True, repr=False)
class MergePlan(Brief):
    """A whole merge: every output byte has its place before the first weight is read.

    It is plain data but for the opened inputs: it goes to JSON and back, and pickles.

    Attributes
    ----------
    models : tuple of Model
        The opened inputs.
    inputs : tuple of Input
        What these are.
    output : Path
        File to be written, of a split output the first part; or the folder.
    parts : tuple of FilePlan
        All that becomes of it: one file, the parts of a split one, or the files of a folder.
    is_folder : bool
        Whether it is a folder.
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
    warnings : tuple of str
        What the user should know.
    densities : mapping or None
        Densities from the model's own weights (`recover.merge.resimulate`), by `density_key`.
    calibration : Calibration or None
        Weights or densities that were fitted on another model.
    redundant : tuple of Descent
        Inputs that were quantized from others as a whole, and from which.
    undecided : frozenset of str
        Tensors whose weights were, or may have been, stored in another format than `source_format`:
        none is set to its numbers.
    decides : bool
        Whether bounds are so narrow that they would show where weights had another format: then
        those that hold a single number of it prove a weight.
    """

    models: tuple[Model, ...] = field(compare=False)
    inputs: tuple[Input, ...]
    output: Path
    parts: tuple[FilePlan, ...]
    is_folder: bool
    method: str
    estimate: str
    source_format: str
    snaps: bool
    uncertainty: SecondOutput | None
    tensors: tuple[TensorPlan, ...]
    warnings: tuple[str, ...]
    calibration: Calibration | None = None
    densities: Mapping[tuple[str, bool, bool], Sequence[Sequence[float]]] | None = None
    redundant: tuple[Descent, ...] = ()
    undecided: frozenset[str] = frozenset()
    decides: bool = True

    def facts(self) -> Iterator[tuple[str, object]]:
        """See `recover._brief.Brief`."""
        yield "inputs", " + ".join(each.path.name for each in self.models)
        yield "output", self.output
        yield "method", self.method
        yield "tensors", len(self.tensors)
        yield "weights", sum(each.n_weights for each in self.tensors)
        yield "bytes", self.n_bytes
        yield "warnings", len(self.warnings)

    def rows(self) -> Iterator[Sequence[object]]:
        """See `recover._brief.Brief`."""
        yield "tensor", "shape", "action", "inputs", "output"
        for each in self.tensors:
            yield each.name, each.dims[::-1], each.action, " ".join(each.types), each.outtype

    @property
    def n_bytes(self) -> int:
        """Size of the output, of all parts together."""
        return sum(part.n_bytes for part in self.parts)

    @property
    def n_parts(self) -> int:
        """Number of files with weights."""
        return sum(part.path.suffix in (".gguf", ".safetensors") for part in self.parts)

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
        bits = SIGNIFICAND_BITS.get(self.source_format, 0)
        if not bits or tensor.is_known or not (self.snaps or self.may_decide(tensor)):
            return 0
        return bits

    def may_decide(self, tensor: TensorPlan) -> bool:
        """Whether cells may be so narrow that they hold a single number of the source's format."""
        finest = self.models[tensor.used[0]].tensors[tensor.name].type
        quantized = isinstance(finest, ScalarType) and typical_error(finest) < _TOO_COARSE
        return quantized and estimator(self.method).decides and self.decides

    @cached_property
    def digest(self) -> str:
        """A digest of what is read and written; all else that it says follows from the inputs."""
        whole = hashlib.sha256()
        for part in (
            __version__,
            [(each.path, each.fingerprint) for each in self.inputs],
            [getattr(self, name) for name in _PLAIN],
            sorted(self.undecided),
            [(each.path, each.n_bytes, each.header) for each in self.files],
            None if self.calibration is None else self.calibration.to_json(),
            None if self.densities is None else sorted(self.densities.items()),
        ):
            whole.update(repr(part).encode())
        for t in self.tensors:
            told = t.name, t.action, t.used, t.compared, t.method, t.outtype, t.shift, t.places
            whole.update(repr(told).encode())
        return whole.hexdigest()

    def to_record(self) -> Record:
        """All of it as plain data that JSON can hold; `to_json` has what people read."""
        return self._record(as_text)

    def _record(self, header: Callable[[bytes], str]) -> Record:
        second, calibration, densities = self.uncertainty, self.calibration, self.densities
        record = {
            "format": _FORMAT,
            "version": __version__,
            "inputs": [each.to_record() for each in self.inputs],
            **{name: getattr(self, name) for name in _PLAIN},
            "undecided": sorted(self.undecided),
            "output": str(self.output),
            "is_folder": self.is_folder,
            "parts": [file_record(each, header) for each in self.parts],
            "uncertainty": None if second is None else file_record(second, header),
            "tensors": [tensor_record(each) for each in self.tensors],
            "warnings": list(self.warnings),
            "redundant": [descent_record(each) for each in self.redundant],
            "calibration": None if calibration is None else calibration.to_json(),
            "densities": None if densities is None else [*densities.items()],
        }
        return {name: plain(value) for name, value in record.items()}

    @classmethod
    def from_record(cls, record: Record) -> Self:
        """The plan of a record, perhaps by way of JSON; the inputs are opened again.

        Raises
        ------
        InputError
            If an input was changed since the merge was planned.
        PlanError
            If it is no plan, or one of another version of this program.
        RecoverError
            If an input cannot be opened.
        """
        try:
            made_by = record["format"], record["version"]
            if made_by != (_FORMAT, __version__):
                raise PlanError(
                    f"the plan was made by version {made_by[1]} of this program, which is"
                    f" {__version__} ({made_by[0]}, {_FORMAT}); plan the merge again"
                )
            return cls._read(record)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"this is no plan of a merge, or a damaged one: {error!r}") from None

    @classmethod
    def _read(cls, record: Record) -> Self:
        inputs = tuple(map(Input.from_record, record["inputs"]))
        models = tuple(each.open() for each in inputs)
        parts = tuple(map(read_file, record["parts"]))
        if not parts:
            raise ValueError("parts")
        second, calibration = record["uncertainty"], record["calibration"]
        uncertainty = None if second is None else read_file(second)
        if not isinstance(uncertainty, SecondOutput | None):
            raise ValueError("uncertainty")
        densities = record["densities"]
        return cls(
            models=models,
            inputs=inputs,
            output=Path(record["output"]),
            parts=parts,
            is_folder=record["is_folder"],
            uncertainty=uncertainty,
            tensors=tuple(TensorPlan(**read_tensor(each, models)) for each in record["tensors"]),
            warnings=tuple(record["warnings"]),
            redundant=read_descents(record["redundant"]),
            undecided=frozenset(record["undecided"]),
            calibration=None if calibration is None else read_calibration(calibration),
            densities=None if densities is None else dict(tuples(densities)),
            **{name: record[name] for name in _PLAIN},
        )

    def __reduce__(self) -> tuple[Callable[[Record], Self], tuple[Record]]:
        return type(self).from_record, (self.to_record(),)

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
            "inputs": [path_text(model.path) for model in self.models],
            "n_bytes": self.n_bytes,
            "parts": [{"path": str(part.path), "n_bytes": part.n_bytes} for part in self.parts],
            "warnings": list(self.warnings),
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }


def plan_merge(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None,
    *,
    method: str = DEFAULT_METHOD,
    estimate: str = MEAN,
    outtype: str = "f16",
    snap: str = "none",
    uncertainty: str | os.PathLike[str] | None = None,
    tensors: str | None = None,
    calibration: Calibration | str | os.PathLike[str] | None = None,
    split_max_size: int | None = None,
    max_shard_size: int | None = None,
    config: str | os.PathLike[str] | None = None,
    net: str | os.PathLike[str] | None = None,
) -> MergePlan:
    """Decide what a merge does; nothing is written.

    Parameters
    ----------
    inputs : sequence of path-like
        Models quantized from the same original. Metadata comes from the first GGUF file.
    output : path-like
        GGUF file to be written; or a Hugging Face folder, if it is one or ends in a slash. None if
        nothing is to be written (see `recover.merge.single`).
    method : str
        Name of an estimator (`recover.estimators.method_names`).
    estimate : {"mean", "map"}
        Of the posterior, its mean or its mode.
    outtype : {"f16", "bf16", "f32", "q8_0"}
        How merged and converted tensors are stored (rows of no whole blocks as F16).
    snap : {"auto", "none", "bf16", "f16"}
        Round to the numbers of the original weights' format; ``auto``: as its norms tell.
    uncertainty : path-like, optional
        GGUF file to be written with the standard deviation of every weight.
    tensors : str, optional
        Regular expression; only tensors in whose name it is found are written.
    calibration : Calibration or path-like, optional
        Weights for ``linear``, densities for ``posterior``, of a model whose original is known.
    split_max_size : int, optional
        Most bytes of tensors in a file: write parts ``...-00001-of-0000N.gguf`` as
        ``llama-gguf-split`` makes them, even if there is only one.
    max_shard_size : int, optional
        Of a folder, most bytes of weights in a file; default 5 GB.
    config : path-like, optional
        Of a folder, one whose ``config.json`` and tokenizer are taken; default: rebuilt.
    net : path-like, optional
        For the method ``joint``, a file of `recover.training`.

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
    if not inputs:
        raise UsageError("there are no inputs")
    options = check_options(method, estimate, outtype, snap, calibration, split_max_size)
    to_folder = folder_options(
        output,
        outtype,
        max_shard_size,
        config,
        split_max_size=split_max_size,
        tensors=tensors,
    )
    opened = open_models(inputs)
    output = None if output is None else Path(output)
    parts = [part for model in opened for part in model.parts]
    read = [*parts, *files_of(calibration, net, config and Path(config, CONFIG))]
    if output is not None and to_folder is not None:
        check_output_folder(output, read, replaces=True)
    elif output is not None:
        check_output_path(output, read if split_max_size is None else ())
    aligned = align(opened, tensors)
    models, names, warnings = aligned.models, aligned.names, list(aligned.warnings)
    models = with_originals(models, names, warnings)
    models = complete(models, names, warnings)
    look_at_marks(models, names)
    warnings += searched_codes(models, names)
    decider = Decider(models, method)
    drafts = decider.drafts(aligned, type_by_name(outtype))
    warnings += decider.warnings + foreign_codes(models, drafts)
    warnings += describe(models, drafts) + merged_before(models) + metadata_warnings(models)
    warnings += [line for model in models for line in code_warnings(model, names)]
    warnings += describe_repeated(models, {draft.name: draft.duplicate_of for draft in drafts})
    files: tuple[FilePlan, ...] = ()
    if output is None:
        places = [whole_place(0, 0, each.n_weights) for each in drafts]
    elif to_folder is not None:
        from recover.merge.folder import as_folder  # a twentieth of the start, for folders alone

        drafts, layout, more = as_folder(models, drafts, output, outtype, to_folder)
        files, places = layout.files, places_in_folder(drafts, layout)
        warnings += more
    else:
        files, places = lay_out_output(models, drafts, output, options)
    warnings += unquantized_warnings(models, drafts)
    if split_max_size is not None:
        for file in files:
            check_output_path(file.path, read)
        warnings += large_tensors(drafts, split_max_size)
    plan = MergePlan(
        models=models,
        inputs=(),
        output=_NOWHERE if output is None else output if to_folder else files[0].path,
        parts=files,
        is_folder=to_folder is not None,
        method=method,
        estimate=estimate,
        source_format="unknown",
        snaps=options.snaps,
        uncertainty=None,
        tensors=tuple(TensorPlan.of(draft, own) for draft, own in zip(drafts, places, strict=True)),
        warnings=(),
        calibration=options.calibration,
        redundant=find_redundant(models, drafts),
    )
    plan = with_source_format(plan, options, warnings)
    if uncertainty is not None:
        second = lay_out_deviations(
            models, drafts, Path(uncertainty), files, read, output if to_folder else None
        )
        plan = replace(plan, uncertainty=second)
    if options.calibration is not None:
        changed = with_calibration(plan.tensors, method, options.calibration, n_layers(names))
        plan = replace(plan, tensors=changed)
    if net is not None:
        plan = replace(plan, tensors=with_network(plan.tensors, method, Path(net), warnings))
    plan = replace(plan, tensors=with_error_calibration(plan.tensors, estimate))
    # Zeros of a file that was truncated say nothing, nor do warnings on them.
    check_unchanged(parts)
    plan = replace(plan, inputs=tuple(map(Input.of, opened, models)), warnings=tuple(warnings))
    check_unchanged(parts)
    return plan
