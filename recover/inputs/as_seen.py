"""Folders whose encoder saw the original as it was stored, as other inputs prove.

What a code proves holds of the floats that the encoder saw. Of an original in finer ones it holds
but for their rounding, so that bounds are wider by that. Scales of blocks that come from one weight
each tell whether weights are bfloat16 numbers (see `recover.inputs.precision`): then nothing was
rounded before an encoder of bfloat16 weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from recover.containers.huggingface.scaled import UnscaledMatrix
from recover.containers.huggingface.tensors import QuantizedTensor
from recover.containers.model import Model, StoredTensor
from recover.evidence.intervals import Intervals
from recover.inputs.precision import fit_of


def as_seen(
    tensors: Mapping[str, StoredTensor], others: Sequence[Model]
) -> dict[str, QuantizedTensor]:
    """Those tensors of a folder of which nothing was rounded before, without the wider bounds.

    Parameters
    ----------
    tensors : mapping of str to StoredTensor
        By name.
    others : sequence of Model
        Other inputs of the same original.
    """
    intervals, found = Intervals(), dict[str, QuantizedTensor]()
    for name, tensor in tensors.items():
        if isinstance(tensor, QuantizedTensor) and _may_be(tensor):
            beside = [model for model in others if name in model.tensors]
            if fit_of(name, beside, "bf16", intervals).is_confirmed:
                found[name] = replace(tensor, is_as_seen=True)
    return found


def _may_be(tensor: QuantizedTensor) -> bool:
    """Whether bfloat16 weights were quantized; columns that were scaled are rounded once more."""
    matrices = [run.matrix for run in tensor.runs]
    return tensor.has_cells and all(
        each.seen_as == "BF16" and not isinstance(each, UnscaledMatrix) for each in matrices
    )
