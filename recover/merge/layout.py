"""Where the tensors of a merge go: every byte of the output has its place beforehand."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from recover._text import printable, quoted, some
from recover._version import __version__
from recover.containers.gguf.header import ValueType, lay_out
from recover.containers.gguf.metadata import IMATRIX_PREFIX, derived_metadata
from recover.containers.gguf.parts import PREFIX, check_whole_name, lay_out_parts, part_paths
from recover.containers.huggingface.folder_layout import FolderLayout
from recover.containers.model import Model
from recover.containers.places import FilePlan, Place, rows_behind, whole_place
from recover.errors import PlanError
from recover.execution.output import check_output_path
from recover.inputs.metadata import METHOD_KEY
from recover.inputs.open import metadata_source
from recover.merge.decide import Draft
from recover.merge.lineage import NAMES_KEY, SIZES_KEY, TYPES_KEY, types_of
from recover.merge.options import MergeOptions
from recover.quants import OpaqueType, TensorType, type_by_name

Places = tuple[Place, ...]

# Keys of the first input that would be wrong in the output.
_DROPPED_PREFIXES = (IMATRIX_PREFIX, "recover.", PREFIX)


@dataclass(frozen=True)
class SecondOutput(FilePlan):
    """Where the standard deviations go: BF16, under the same names, 0 where nothing is estimated.

    Attributes
    ----------
    positions : mapping of str to int
        First byte of each tensor.
    """

    positions: Mapping[str, int]


def lay_out_output(
    models: Sequence[Model], drafts: Sequence[Draft], output: Path, options: MergeOptions
) -> tuple[tuple[FilePlan, ...], list[Places]]:
    """The files of the output, and the places of each tensor in them.

    Parameters
    ----------
    models : sequence of Model
        The opened inputs; metadata come from the first GGUF file.
    drafts : sequence of Draft
        The tensors in output order.
    output : Path
        The file, or what parts are named after.
    options : MergeOptions
        Among them the largest size of a part.

    Raises
    ------
    PlanError
        If there were more parts than a file may have.
    """
    metadata = _metadata(models, options)
    shapes = [(each.name, each.dims, output_type_of(each)) for each in whole_tensors(drafts)]
    alignment = metadata_source(models).header.alignment
    paths: tuple[Path, ...] = (output,)
    if options.split_max_size is None:
        check_whole_name(output)
        layouts = [lay_out(metadata, shapes, alignment)]
    else:
        layouts = lay_out_parts(metadata, shapes, alignment, options.split_max_size)
        paths = part_paths(output, len(layouts))
    starts = [(part, at) for part, layout in enumerate(layouts) for at in layout.positions]
    whole = {
        name: whole_place(part, position, math.prod(dims))
        for (name, dims, _), (part, position) in zip(shapes, starts, strict=True)
    }
    places = _places_of(drafts, whole, [output_type_of(draft) for draft in drafts])
    files = tuple(
        FilePlan(path, layout.header, layout.n_bytes)
        for path, layout in zip(paths, layouts, strict=True)
    )
    return files, places


def places_in_folder(drafts: Sequence[Draft], layout: FolderLayout) -> list[Places]:
    """The places of each tensor in the shards of a folder."""
    return _places_of(drafts, layout.places, [output_type_of(draft) for draft in drafts])


def whole_tensors(drafts: Sequence[Draft]) -> list[Draft]:
    """The tensors of the output: further rows are counted to the tensor that they follow."""
    whole: dict[str, Draft] = {}
    for draft in drafts:
        if first := whole.get(draft.follows):
            n_rows = first.dims[-1] + draft.dims[-1]
            whole[first.name] = replace(first, dims=(*first.dims[:-1], n_rows))
        else:
            whole[draft.name] = draft
    return list(whole.values())


def _places_of(
    drafts: Sequence[Draft], whole: Mapping[str, Places], kinds: Sequence[TensorType]
) -> list[Places]:
    """The places of each draft, by those of whole tensors: further rows are behind the others."""
    places: list[Places] = []
    n_before: dict[str, int] = {}
    for draft, kind in zip(drafts, kinds, strict=True):
        name = draft.follows or draft.name
        first = n_before.get(name, 0)
        places.append(rows_behind(whole[name], first, draft.n_weights, kind))
        n_before[name] = first + draft.n_weights
    return places


def lay_out_deviations(
    models: Sequence[Model],
    drafts: Sequence[Draft],
    path: Path,
    outputs: Sequence[FilePlan],
    read: Sequence[Path],
    folder: Path | None = None,
) -> SecondOutput:
    """The file with the standard deviations; `outputs` are those with the weights, in a folder.

    It is none of the files that are `read`.

    Raises
    ------
    OutputError, PlanError
        If it cannot be written there.
    """
    check_whole_name(path)
    check_output_path(path, read)
    if path.resolve() in [file.path.resolve() for file in outputs]:
        raise PlanError(f"{printable(path)}: is the output as well; name another file")
    if folder is not None and folder.resolve() in path.resolve().parents:
        raise PlanError(f"{printable(path)}: is in the folder that is written; name another file")
    told = [draft for draft in drafts if not isinstance(output_type_of(draft), OpaqueType)]
    bf16 = type_by_name("BF16")
    entries = [
        ("general.architecture", ValueType.STRING, str(models[0].get("general.architecture"))),
        ("general.type", ValueType.STRING, "uncertainty"),
        ("general.file_type", ValueType.UINT32, bf16.file_type),
        ("recover.version", ValueType.STRING, __version__),
        ("recover.uncertainty", ValueType.STRING, "standard deviation of each weight"),
    ]
    layout = lay_out(
        derived_metadata({}, (), entries),
        [(draft.name, draft.dims, bf16) for draft in whole_tensors(told)],
        metadata_source(models).header.alignment,
    )
    whole = {
        draft.name: whole_place(0, position, draft.n_weights)
        for draft, position in zip(whole_tensors(told), layout.positions, strict=True)
    }
    places = _places_of(told, whole, [bf16] * len(told))
    names = (draft.name for draft in told)
    positions = {name: place.position for name, (place,) in zip(names, places, strict=True)}
    return SecondOutput(path, layout.header, layout.n_bytes, MappingProxyType(positions))


def large_tensors(drafts: Sequence[Draft], split_max_size: int) -> list[str]:
    """A warning, if there are tensors that no part of that size can hold."""
    sizes = {each.name: output_type_of(each).n_bytes(each.n_weights) for each in drafts}
    large = [
        f"{quoted(name)} ({size:,} bytes)" for name, size in sizes.items() if size > split_max_size
    ]
    if not large:
        return []
    return [f"parts are larger than asked for where one tensor alone is: {some(large)}"]


def output_type_of(draft: Draft) -> TensorType:
    """How the output stores a tensor."""
    return type_by_name(draft.outtype)


def _metadata(models: Sequence[Model], options: MergeOptions) -> list[bytes]:
    """Spans of the first GGUF input, without those that would be wrong; and provenance."""
    calibration = options.calibration
    return derived_metadata(
        metadata_source(models).metadata,
        _DROPPED_PREFIXES,
        [
            ("general.file_type", ValueType.UINT32, type_by_name(options.outtype).file_type),
            ("recover.version", ValueType.STRING, __version__),
            (METHOD_KEY, ValueType.STRING, options.method),
            ("recover.calibration", ValueType.STRING, calibration.label if calibration else "none"),
            (NAMES_KEY, ValueType.STRING, [model.path.name for model in models]),
            (SIZES_KEY, ValueType.UINT64, [model.n_bytes for model in models]),
            (TYPES_KEY, ValueType.STRING, [types_of(model) for model in models]),
        ],
    )
