"""Quantized experts of a layer in one array each, taken apart: every one is a module of its own.

MLX stacks what other programs store by expert: ``X.switch_mlp.up_proj.weight`` (experts, rows,
words), its scales and biases likewise. FP8 folders of fused experts have ``X.experts.gate_up_proj``
(experts, rows, columns) beside ``X.experts.gate_up_proj_scale_inv``. (Sources: mlx-lm,
``models/switch_layers.py``; transformers, ``integrations/finegrained_fp8.py``.)
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from recover._text import quoted
from recover.containers.huggingface.architectures import MAX_EXPERTS
from recover.containers.huggingface.modules import FLOATS, Module
from recover.containers.huggingface.parameters import parameters_apart, part_of
from recover.containers.safetensors.reader import Tensor
from recover.errors import SafetensorsError

_SWITCH = re.compile(r"(?P<stem>.+)\.switch_mlp\.(?P<rest>gate_proj|up_proj|down_proj)")
_STACK = re.compile(r"(?P<stem>.+\.experts)\.(?P<rest>(gate|up|down|gate_up)_proj)")
_BIAS = "bias"


def unstacked(modules: Iterable[Module]) -> Iterator[Module]:
    """Modules of which none has a stack of quantized weights.

    Parameters
    ----------
    modules : iterable of Module
        All of a folder.

    Raises
    ------
    SafetensorsError
        If arrays of a stack do not have as many experts as its weights.
    """
    for each in modules:
        module = _renamed(each)
        match = _STACK.fullmatch(module.name)
        if match is not None and _is_stack(module.tensors.get("weight")):
            yield from _of_stack(module, match["stem"], match["rest"])
        elif module.name.endswith(".experts"):
            yield from _of_fused(module)
        else:
            yield module


def _renamed(module: Module) -> Module:
    """A module of MLX's under the name that the experts have elsewhere."""
    match = _SWITCH.fullmatch(module.name)
    if match is None:
        return module
    stem = re.sub(r"\.block_sparse_moe$", ".mlp", match["stem"])
    return replace(module, name=f"{stem}.experts.{match['rest']}")


def _is_stack(tensor: Tensor | None) -> bool:
    """Whether an array holds the codes of matrices."""
    return tensor is not None and len(tensor.shape) == 3 and tensor.dtype not in FLOATS


def _of_fused(module: Module) -> Iterator[Module]:
    """The modules of parameters that are stacks, and what is left of the module."""
    stacks = [
        each
        for each in parameters_apart(module)[1]
        if _STACK.fullmatch(each.name) and _is_stack(each.tensors.get("weight"))
    ]
    taken = {id(tensor) for stack in stacks for tensor in stack.tensors.values()}
    left = {leaf: each for leaf, each in module.tensors.items() if id(each) not in taken}
    if left:
        yield replace(module, tensors=left)
    for stack in stacks:
        yield from _of_stack(stack, module.name, stack.name.removeprefix(f"{module.name}."))


def _of_stack(module: Module, stem: str, name: str) -> Iterator[Module]:
    """The modules of a stack, whose biases are no stack of matrices and stay together."""
    stacked = {leaf: each for leaf, each in module.tensors.items() if leaf != _BIAS}
    if len(stacked) < len(module.tensors):
        bias = {_BIAS: module.tensors[_BIAS]}
        yield replace(module, name=f"{stem}.{name}", tensors=bias)
    n_experts = stacked["weight"].shape[0]
    _check(stacked, n_experts)
    for number in range(n_experts):
        own = {leaf: part_of(each, number, n_experts) for leaf, each in stacked.items()}
        yield replace(module, name=f"{stem}.{number}.{name}", tensors=own)


def _check(tensors: Mapping[str, Tensor], n_experts: int) -> None:
    """Refuse arrays of other sizes."""
    for tensor in tensors.values():
        if not tensor.shape or tensor.shape[0] != n_experts or not 0 < n_experts <= MAX_EXPERTS:
            raise SafetensorsError(
                f"tensor {quoted(tensor.name)} has the shape {list(tensor.shape)}, but there are"
                f" {n_experts} experts beside it"
            )
