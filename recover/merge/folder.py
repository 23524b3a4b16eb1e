"""A merge whose output is a Hugging Face folder: what becomes of its tensors there."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from recover.containers.gguf.reader import GGUFModel
from recover.containers.huggingface.folder_layout import FolderLayout, Shared, lay_out_folder
from recover.containers.huggingface.writing import Written, stored_kind, write_as_folder
from recover.containers.model import ArrayTensor, Model, StoredTensor
from recover.inputs.open import reference_of
from recover.merge.decide import Draft
from recover.merge.layout import output_type_of, whole_tensors
from recover.merge.options import FolderOptions
from recover.quants import type_by_name


def as_folder(
    models: Sequence[Model],
    drafts: Sequence[Draft],
    output: Path,
    outtype: str,
    options: FolderOptions,
) -> tuple[list[Draft], FolderLayout, list[str]]:
    """What happens to the tensors of a folder, and where they go.

    Parameters
    ----------
    models : sequence of Model
        The opened inputs; the first GGUF file says what the model is, else the first folder.
    drafts : sequence of Draft
        What would happen to the tensors of a GGUF file.
    output : Path
        The folder.
    outtype : {"f16", "bf16", "f32"}
        How weights are stored.
    options : FolderOptions
        How the folder is written.

    Returns
    -------
    drafts : list of Draft
        Without those that the configuration tells; all of them floats, and norms lowered.
    layout : FolderLayout
        Where they go.
    warnings : list of str
        What the user should know.

    Raises
    ------
    PlanError
        If the architecture is not known, or the configuration contradicts the model.
    """
    reference = reference_of(models)
    config = options.config
    if config is None and not isinstance(reference, GGUFModel):
        config = reference.path
    written = write_as_folder(reference, _tensors(models, drafts), config)
    drafts = [
        _as_floats(draft, models, outtype, written)
        for draft in drafts
        if (draft.follows or draft.name) in written.shares
    ]
    layout = lay_out_folder(
        output,
        [
            Shared(each.name, output_type_of(each), written.shares[each.name])
            for each in whole_tensors(drafts)
        ],
        written.others(outtype.upper()),
        options.max_shard_size,
    )
    return drafts, layout, written.warnings


def _tensors(models: Sequence[Model], drafts: Sequence[Draft]) -> Mapping[str, StoredTensor]:
    """The tensors of the output; of those that get further rows the shape alone."""
    found: dict[str, StoredTensor] = {}
    for draft in whole_tensors(drafts):
        tensor = models[draft.used[0]].tensors[draft.name]
        if tensor.dims != draft.dims:
            nothing = np.empty(0, np.uint8)
            tensor = ArrayTensor(draft.name, draft.dims, tensor.type, nothing)
        found[draft.name] = tensor
    return found


def _as_floats(draft: Draft, models: Sequence[Model], outtype: str, written: Written) -> Draft:
    """A tensor as a folder has it."""
    shift = -1.0 if draft.name in written.lowered else 0.0
    source = models[draft.used[0]].tensors[draft.name]
    kind = stored_kind(source, type_by_name(outtype.upper()), shift)
    is_copied = draft.action == "copy" and kind is source.type and not shift
    action = "convert" if draft.action == "copy" and not is_copied else draft.action
    return replace(draft, action=action, outtype=kind.name, shift=shift)
