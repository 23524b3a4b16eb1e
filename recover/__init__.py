"""Best possible full-precision weights from the quantizations of a model.

The public names are loaded on first use, so that importing the package costs nothing:
`open_gguf`, `dequantize`, `plan_merge`, `execute_merge`, `open_source`, `plan_reblock`,
`execute_reblock`, `evaluate_models`, and the errors.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from recover.errors import (
    EvaluationError,
    GGUFError,
    OutputError,
    PlanError,
    QuantError,
    ReblockError,
    RecoverError,
    SafetensorsError,
)

if TYPE_CHECKING:
    from recover.evaluate.errors import evaluate_models
    from recover.gguf.reader import open_gguf
    from recover.merge.execute import execute_merge
    from recover.merge.plan import plan_merge
    from recover.quants import dequantize
    from recover.reblock.dispatch import open_source
    from recover.reblock.execute import execute_reblock
    from recover.reblock.plan import plan_reblock

__version__ = "0.1.0"

__all__ = [
    "EvaluationError",
    "GGUFError",
    "OutputError",
    "PlanError",
    "QuantError",
    "ReblockError",
    "RecoverError",
    "SafetensorsError",
    "__version__",
    "dequantize",
    "evaluate_models",
    "execute_merge",
    "execute_reblock",
    "open_gguf",
    "open_source",
    "plan_merge",
    "plan_reblock",
]

_HOME = {
    "dequantize": "recover.quants",
    "evaluate_models": "recover.evaluate.errors",
    "execute_merge": "recover.merge.execute",
    "execute_reblock": "recover.reblock.execute",
    "open_gguf": "recover.gguf.reader",
    "open_source": "recover.reblock.dispatch",
    "plan_merge": "recover.merge.plan",
    "plan_reblock": "recover.reblock.plan",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'recover' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
