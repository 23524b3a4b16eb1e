"""What an export does: which arrays a folder gets, of which weights, and where they go."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recover._text import printable, quoted
from recover.containers.gguf.side_scales import folded
from recover.containers.huggingface.folder_layout import (
    DTYPES,
    FolderLayout,
    Shared,
    lay_out_folder,
    plain_kind,
)
from recover.containers.huggingface.plain import PlainFolder, open_plain
from recover.containers.huggingface.reader import CONTAINER as FOLDER
from recover.containers.huggingface.writing import (
    Written,
    stored_kind,
    write_as_folder,
    write_as_gguf,
)
from recover.containers.mapping import check_unchanged
from recover.containers.model import Model, StoredTensor
from recover.errors import PlanError, UsageError
from recover.execution.folder import check_output_folder
from recover.inputs.open import open_model
from recover.inputs.precision import source_precision
from recover.quants import FloatType, OpaqueType, TensorType

OUTTYPES = tuple(name.lower() for name in ("BF16", "F16", "F32"))
NAMES = ("huggingface", "gguf")


@dataclass(frozen=True)
class ExportedTensor:
    """A tensor of the model, and what becomes of it."""

    name: str
    """As the model calls it."""
    source: StoredTensor
    """Its weights."""
    kind: TensorType
    """How the folder stores them."""
    shift: float
    """What is added to them, in float32, before they are stored."""
    arrays: tuple[str, ...]
    """What the folder calls them."""

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return self.source.n_weights

    @property
    def is_copied(self) -> bool:
        """Whether the stored bytes are taken."""
        return self.source.type is self.kind and not self.shift


@dataclass(frozen=True)
class ExportPlan:
    """A whole export: every byte has its place before the first weight is read."""

    path: Path
    """The model."""
    parts: tuple[Path, ...]
    """All files that it is read from."""
    output: Path
    """The folder."""
    outtype: str
    """How most weights are stored."""
    architecture: str
    """As the model calls it."""
    tensors: tuple[ExportedTensor, ...]
    """In the order in which they are written."""
    layout: FolderLayout
    """Where their weights go."""
    left_out: tuple[str, ...]
    """Tensors that the folder does not get."""
    replaces: bool
    """Whether a model's folder that is there already may be replaced."""
    warnings: tuple[str, ...]
    """What the user should know."""
    asked: dict[str, Any]
    """The parameters of `plan_export` as plain data, with absolute paths."""

    @property
    def n_weights(self) -> int:
        """Weights in the folder."""
        return sum(tensor.n_weights for tensor in self.tensors)

    @property
    def n_bytes(self) -> int:
        """Size of all its files."""
        return sum(file.n_bytes for file in self.layout.files)


def plan_export(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    outtype: str | None = None,
    max_shard_size: int | None = None,
    config: str | os.PathLike[str] | None = None,
    names: str = NAMES[0],
    force: bool = False,
) -> ExportPlan:
    """Decide what an export does; nothing is written.

    Parameters
    ----------
    model : path-like
        A GGUF file, any part of a split one, or a Hugging Face folder.
    output : path-like
        The folder to be written.
    outtype : {"bf16", "f16", "f32"}, optional
        How weights are stored; default: as the original's were, where that is known, else BF16.
        Vectors that this type does not hold exactly stay F32.
    max_shard_size : int, optional
        Most bytes of weights in a file; default 5 GB.
    config : path-like, optional
        A folder whose ``config.json`` and tokenizer are taken; default: rebuilt from the metadata.
    names : {"huggingface", "gguf"}
        How tensors are called and laid out; GGUF's are those of every architecture, but no program
        loads them as a model.
    force : bool
        Replace a model's folder that is there already.

    Returns
    -------
    ExportPlan

    Raises
    ------
    OutputError
        If the folder cannot be written there.
    PlanError
        If the architecture is not known, or the configuration contradicts the model.
    RecoverError
        If the model cannot be read.
    UsageError
        If an option has no such value.
    """
    if outtype is not None and outtype not in OUTTYPES:
        raise UsageError(f"output type {outtype!r} is unknown; known are {', '.join(OUTTYPES)}")
    if names not in NAMES:
        raise UsageError(f"names {names!r} are unknown; known are {', '.join(NAMES)}")
    asked = {
        "model": str(Path(model).absolute()),
        "output": str(Path(output).absolute()),
        "outtype": outtype,
        "max_shard_size": max_shard_size,
        "config": None if config is None else str(Path(config).absolute()),
        "names": names,
        "force": True,  # whoever writes the folder has asked
    }
    if names != "gguf" and FOLDER.reads(Path(model)):
        if config is not None:
            raise UsageError(f"{printable(Path(model))} has a configuration of its own")
        plain = open_plain(Path(model))
        check_output_folder(Path(output), plain.parts, replaces=force)
        return _plan_folder(plain, Path(output), outtype, max_shard_size, force, asked)
    opened = open_model(model)
    check_output_folder(Path(output), opened.parts, replaces=force)
    folder = None if config is None else Path(config)
    return _plan_gguf(opened, Path(output), outtype, max_shard_size, folder, names, force, asked)


def _plan_gguf(
    model: Model,
    output: Path,
    outtype: str | None,
    max_shard_size: int | None,
    config: Path | None,
    names: str,
    force: bool,
    asked: dict[str, Any],
) -> ExportPlan:
    """The plan for a model whose tensors have GGUF's names."""
    kind = plain_kind(outtype or _own_precision(model))
    unreadable = [name for name, tensor in model.tensors.items() if not _is_readable(tensor.type)]
    if unreadable:
        first = model.tensors[unreadable[0]]
        raise PlanError(
            f"{printable(model.path)}: tensor {quoted(first.name)} is {first.type.name}, which"
            " cannot be decoded"
        )
    if names == "gguf":
        written = write_as_gguf(model.tensors)
    else:
        written = write_as_folder(model, model.tensors, config)
    tensors = [
        _exported(model.tensors[name], kind, written)
        for name in model.tensors
        if name in written.shares
    ]
    layout = lay_out_folder(
        output,
        [Shared(each.name, each.kind, written.shares[each.name]) for each in tensors],
        written.others(kind.name),
        max_shard_size,
    )
    sides = folded(model.tensors.values())
    warnings = [*([f"{printable(model.path)}: {sides}"] if sides else []), *written.warnings]
    check_unchanged(model.parts)
    return ExportPlan(
        path=model.path,
        parts=(*model.parts, *written.parts),
        output=output,
        outtype=kind.name.lower(),
        architecture=str(model.get("general.architecture")),
        tensors=tuple(tensors),
        layout=layout,
        left_out=tuple(name for name in model.tensors if name not in written.shares),
        replaces=force,
        warnings=tuple(warnings),
        asked=asked,
    )


def _plan_folder(
    plain: PlainFolder,
    output: Path,
    outtype: str | None,
    max_shard_size: int | None,
    force: bool,
    asked: dict[str, Any],
) -> ExportPlan:
    """The plan for a folder: its names stay, and so do its floats if no type is asked for."""
    kind = plain_kind(outtype or plain.precision or "BF16")
    tensors = []
    for name, tensor in plain.tensors.items():
        keeps = outtype is None and isinstance(tensor.type, FloatType)
        own = tensor.type if keeps else stored_kind(tensor, kind, 0.0)
        tensors.append(ExportedTensor(name, tensor, own, 0.0, (name,)))
    layout = lay_out_folder(
        output,
        [Shared(each.name, each.kind, (plain.shares[each.name],)) for each in tensors],
        plain.others(kind.name),
        max_shard_size,
    )
    check_unchanged(plain.parts)
    return ExportPlan(
        path=plain.path,
        parts=plain.parts,
        output=output,
        outtype=kind.name.lower(),
        architecture=str(plain.config.get("model_type", "unknown")),
        tensors=tuple(tensors),
        layout=layout,
        left_out=plain.left_out,
        replaces=force,
        warnings=(),
        asked=asked,
    )


def _is_readable(kind: TensorType) -> bool:
    return not isinstance(kind, OpaqueType) and not kind.is_by_rows


def _own_precision(model: Model) -> str:
    """What the original's weights were stored as, if the file tells; else BF16."""
    found = source_precision(model).type.upper()
    return found if found in DTYPES else "BF16"


def _exported(tensor: StoredTensor, kind: TensorType, written: Written) -> ExportedTensor:
    shift = -1.0 if tensor.name in written.lowered else 0.0
    arrays = tuple(share.array for share in written.shares[tensor.name])
    kept = stored_kind(tensor, kind, shift)
    return ExportedTensor(tensor.name, tensor, kept, shift, arrays)
