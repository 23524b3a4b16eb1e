"""Best possible full-precision weights from the quantizations of a model.

The public names are loaded on first use, so that importing the package costs nothing:
`open_gguf`, `dequantize`, `plan_merge`, `execute_merge`, `plan_quantize`, `execute_quantize`,
`evaluate_models`, `calibrate`, `load_calibration`, and the errors.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from recover.errors import (
    CalibrationError,
    EvaluationError,
    GGUFError,
    OutputError,
    PlanError,
    QuantError,
    RecoverError,
)

if TYPE_CHECKING:
    from recover.calibration.fit import calibrate
    from recover.calibration.weights import load_calibration
    from recover.evaluate.errors import evaluate_models
    from recover.gguf.reader import open_gguf
    from recover.merge.execute import execute_merge
    from recover.merge.plan import plan_merge
    from recover.quantize.execute import execute_quantize
    from recover.quantize.plan import plan_quantize
    from recover.quants import dequantize

__version__ = "0.1.0"

__all__ = [
    "CalibrationError",
    "EvaluationError",
    "GGUFError",
    "OutputError",
    "PlanError",
    "QuantError",
    "RecoverError",
    "__version__",
    "calibrate",
    "dequantize",
    "evaluate_models",
    "execute_merge",
    "execute_quantize",
    "load_calibration",
    "open_gguf",
    "plan_merge",
    "plan_quantize",
]

_HOME = {
    "calibrate": "recover.calibration.fit",
    "dequantize": "recover.quants",
    "evaluate_models": "recover.evaluate.errors",
    "execute_quantize": "recover.quantize.execute",
    "execute_merge": "recover.merge.execute",
    "load_calibration": "recover.calibration.weights",
    "open_gguf": "recover.gguf.reader",
    "plan_quantize": "recover.quantize.plan",
    "plan_merge": "recover.merge.plan",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'recover' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
