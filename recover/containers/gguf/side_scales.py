"""Side scales: numbers beside a matrix that all of its weights are multiplied by.

NVFP4 has two levels of scales, those of its blocks and one number per tensor, or per expert of a
stack. llama.cpp's converter stores the second beside the matrix ``NAME.weight``, as the F32 tensor
``NAME.scale``, and llama.cpp multiplies by it what the matrix gives. Without it every weight is off
by that factor. So it belongs to its matrix (`Tensor.scales`) and is no tensor of its own.

``NAME.input_scale``, beside the same matrices, is for activations that are rounded to NVFP4 as
well. It says nothing of the weights, and has no meaning but for an NVFP4 matrix: it goes with it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np

from recover._text import quoted, some
from recover.containers.gguf.tensor import Tensor
from recover.containers.model import StoredTensor
from recover.errors import GGUFError
from recover.quants import F32Array

AnyTensor = TypeVar("AnyTensor", bound=StoredTensor)

_WEIGHT = ".weight"
_SCALE, _INPUT_SCALE = ".scale", ".input_scale"


def with_side_scales(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model, side tensors put to their matrices.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        As stored, by name.

    Returns
    -------
    dict of str to Tensor
        In the same order.

    Raises
    ------
    GGUFError
        If a matrix has two tensors of scales, or one that does not fit it, or a scale is not a
        normal positive number.
    """
    matrices = {
        name: tensor for name, tensor in tensors.items() if tensor.type.largest_beside is not None
    }
    for tensor in matrices.values():
        _check_fit(tensor, tensors)
    sides = {name: _side_tensors(tensor, tensors) for name, tensor in matrices.items()}
    taken = {side.name for found in sides.values() for side in found}
    return {
        name: _scaled(tensor, sides[name]) if sides.get(name) else tensor
        for name, tensor in tensors.items()
        if name not in taken
    }


def folded(tensors: Iterable[StoredTensor]) -> str | None:
    """What is to be said where tensors are written in other types than they are stored in.

    None if they have no side tensors.
    """
    sides = [quoted(side.name) for tensor in tensors for side in tensor.side_tensors]
    if not sides:
        return None
    return (
        f"{some(sides)}: scales beside NVFP4 matrices are multiplied into the weights (those of"
        " activations mean nothing for other types), so they are not written"
    )


def unfolded_scale(matrix: StoredTensor, tensors: Mapping[str, StoredTensor]) -> str | None:
    """Name of a tensor that llama.cpp multiplies by, beside a matrix of another type than NVFP4.

    ``llama-quantize`` makes such files of NVFP4 ones: it copies the scales. Here they are tensors
    of their own.
    """
    found = [] if matrix.type.largest_beside is not None else _side_tensors(matrix, tensors)
    return next((side.name for side in found if not side.name.endswith(_INPUT_SCALE)), None)


def _side_tensors(matrix: StoredTensor, tensors: Mapping[str, AnyTensor]) -> tuple[AnyTensor, ...]:
    """Those of a matrix, as their names, type and sizes tell."""
    named = [tensors[name] for name in _names(matrix, _SCALE, _INPUT_SCALE) if name in tensors]
    return tuple(side for side in named if _fits(side, matrix))


def _names(matrix: StoredTensor, *leaves: str) -> list[str]:
    """How tensors beside a matrix may be called."""
    stems = dict.fromkeys((matrix.name.removesuffix(_WEIGHT), matrix.name))
    return [stem + leaf for leaf in leaves for stem in stems]


def _fits(side: StoredTensor, matrix: StoredTensor) -> bool:
    """Whether a tensor has an F32 number for a matrix, or for each expert of it."""
    sizes = 1, math.prod(matrix.dims[2:])
    is_a_row = max(side.dims) == side.n_weights
    return side.type.name == "F32" and side.n_weights in sizes and is_a_row


def _check_fit(matrix: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """Refuse what has the name of a matrix's scale, but not its size or type."""
    for name in _names(matrix, _SCALE):
        side = tensors.get(name)
        if side is not None and not _fits(side, matrix):
            raise GGUFError(
                f"tensor {quoted(name)}: has {side.n_weights:,} {side.type.name} numbers, where the"
                f" scale of {quoted(matrix.name)} is one F32 number, or one for each expert, so"
                " that its weights are not known; the file is damaged, or was made by a faulty"
                " converter"
            )


def _scaled(matrix: Tensor, sides: tuple[Tensor, ...]) -> Tensor:
    """A matrix with its side tensors."""
    found = [side for side in sides if not side.name.endswith(_INPUT_SCALE)]
    if len(found) > 1:
        names = " and ".join(quoted(side.name) for side in found)
        raise GGUFError(
            f"tensors {names} are both the scale of {quoted(matrix.name)}: one of them is too many"
        )
    scales = _checked(found[0], matrix) if found else None
    return replace(matrix, scales=scales, side_tensors=sides)


def _checked(side: Tensor, matrix: Tensor) -> F32Array:
    """The numbers of a tensor of scales."""
    scales = side.read(0, side.n_weights)
    wrong = np.flatnonzero(~((scales >= np.finfo(np.float32).tiny) & (scales < np.inf)))
    if wrong.size:
        where = f" of expert {wrong[0]}" if scales.size > 1 else ""
        raise GGUFError(
            f"tensor {quoted(side.name)}: the scale {scales[wrong[0]]:.6g}{where} is no normal"
            f" positive number, so that the weights of {quoted(matrix.name)} are not known; the"
            " file is damaged, or was made by a faulty converter"
        )
    return scales
