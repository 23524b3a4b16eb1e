"""Parameters and stacks of matrices as modules of their own.

What is stored as a parameter of a module, such as the experts ``gate_up_proj`` with the scales
``gate_up_proj_scale_inv``, becomes a module with the names that most programs give such arrays. A
stack has one more dimension than a matrix, in the codes as well as in the scales.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from recover.containers.huggingface.architectures import MAX_EXPERTS
from recover.containers.huggingface.modules import FLOATS, Module, values
from recover.containers.safetensors.reader import Tensor

_OF_PARAMETERS = {
    "": "weight",
    "_scale": "weight_scale",
    "_weight_scale": "weight_scale",
    "_scale_inv": "weight_scale_inv",
    "_weight_scale_inv": "weight_scale_inv",
    "_scale_2": "weight_scale_2",
    "_weight_scale_2": "weight_scale_2",
    "_global_scale": "weight_global_scale",
    "_packed": "weight_packed",
    "_blocks": "weight_blocks",
    "_scales": "weight_scales",
    "_input_scale": "input_scale",
}
# Their number of dimensions, of one matrix.
_N_DIMS = {"weight": 2, "weight_packed": 2, "qweight": 2, "weight_blocks": 3}
_SHAPE = "weight_shape"


def parameters_apart(module: Module) -> tuple[Module, list[Module]]:
    """The module without its quantized parameters, and these, each as a module of its own.

    What is one has a name and beside it scales whose names begin with it.
    """
    tensors, found = dict(module.tensors), []
    for parameter in _parameters(module.tensors):
        own = {
            usual: tensors.pop(parameter + ending)
            for ending, usual in _OF_PARAMETERS.items()
            if parameter + ending in tensors
        }
        name = f"{module.name}.{parameter}".lstrip(".")
        found.append(replace(module, name=name, tensors=own))
    return replace(module, tensors=tensors), found


def _parameters(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of parameters that are stored as codes with scales."""
    found = []
    for leaf, tensor in tensors.items():
        if tensor.dtype in FLOATS or leaf == "weight":
            continue
        name = leaf.removesuffix("_blocks").removesuffix("_packed")
        scales = (name + ending for ending in _OF_PARAMETERS if "scale" in ending)
        if name != "weight" and any(scale in tensors for scale in scales):
            found.append(name)
    return found


def matrices_of(module: Module) -> list[Module] | None:
    """The matrices of a stack, each as a module; None of a module with no more than one matrix.

    Arrays that are no stack themselves, such as one scale of all, belong to every matrix.

    Raises
    ------
    SafetensorsError
        If there are more than `MAX_EXPERTS`.
    """
    stacked = [
        tensor
        for leaf, tensor in module.tensors.items()
        if leaf in _N_DIMS and len(tensor.shape) == _N_DIMS[leaf] + 1 and tensor.dtype not in FLOATS
    ]
    if len(stacked) != 1 or not stacked[0].n_weights:
        return None
    n = stacked[0].shape[0]
    if n > MAX_EXPERTS:
        raise module.error(f"a stack of {n} matrices; at most {MAX_EXPERTS} are read")
    return [
        replace(
            module,
            name=f"{module.name}[{i}]",
            tensors={leaf: _part(leaf, each, i, n) for leaf, each in module.tensors.items()},
        )
        for i in range(n)
    ]


def _part(leaf: str, tensor: Tensor, i: int, n: int) -> Tensor:
    """What matrix `i` of `n` has of an array of a module."""
    if leaf == _SHAPE:
        sizes = values(tensor).reshape(-1)[-2:]
        return replace(tensor, shape=(sizes.size,), raw=np.array(sizes).view(np.uint8))
    if not tensor.shape or tensor.shape[0] != n:
        return tensor
    return part_of(tensor, i, n)


def part_of(tensor: Tensor, i: int, n: int) -> Tensor:
    """Matrix `i` of an array of `n`, or what is beside it."""
    size = tensor.raw.size // n
    return replace(tensor, shape=tensor.shape[1:], raw=tensor.raw[i * size : (i + 1) * size])
