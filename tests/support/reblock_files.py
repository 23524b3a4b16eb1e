"""Checkpoints and quantized safetensors as the tests make them, by code that is not `recover`'s."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray

from recover.reblock.dispatch import open_original
from recover.reblock.execute import ReblockResult, execute_reblock
from recover.reblock.integers import Request
from recover.reblock.plan import plan_reblock

ROOT = Path(__file__).parents[2]
F64Array = NDArray[np.float64]


def example() -> ModuleType:
    """``examples/make_grok_checkpoint.py`` as a module."""
    name = "make_grok_checkpoint"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def reblock(
    source: Path,
    output: Path,
    *,
    outtype: str | None = None,
    allow_inexact: bool = False,
    verify: bool = True,
    **options: Any,
) -> ReblockResult:
    """Everything that the command does, in this process."""
    request = Request(outtype=outtype, allow_inexact=allow_inexact)
    plan = plan_reblock(open_original(source, request, **options), output)
    return execute_reblock(plan, verify=verify, n_threads=2)


def read_gguf(path: Path) -> dict[str, tuple[str, NDArray[np.float32]]]:
    """Every tensor's type, and its weights as gguf-py decodes them (row length last)."""
    found = {}
    for tensor in GGUFReader(path).tensors:
        if tensor.tensor_type.name == "I32":
            found[tensor.name] = ("I32", np.array(tensor.data).astype(np.float32))
            continue
        shape = tensor.shape.tolist()[::-1]
        weights = dequantize(np.array(tensor.data), tensor.tensor_type).reshape(shape)
        found[tensor.name] = (tensor.tensor_type.name, weights)
    return found
