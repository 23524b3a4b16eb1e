"""Best possible full-precision weights from the quantizations of a model.

The public names (`__all__`) are loaded on first use, so that importing the package costs nothing.
"""

from importlib import import_module

from recover._version import __version__
from recover.errors import (
    CalibrationError,
    EvaluationError,
    ExecutionError,
    GGUFError,
    InputError,
    OutputError,
    PlanError,
    QuantError,
    ReblockError,
    RecoverError,
    SafetensorsError,
    UsageError,
)

TYPE_CHECKING = False  # as in `typing`, which takes long to import
if TYPE_CHECKING:
    from recover.bounds.execute import execute_bounds
    from recover.bounds.plan import plan_bounds
    from recover.bounds.verify import verify_model
    from recover.calibration.fit import calibrate
    from recover.calibration.weights import load_calibration
    from recover.containers.gguf.reader import open_gguf
    from recover.evaluate.divergence import measure_divergence
    from recover.evaluate.errors import evaluate_models
    from recover.inspect.report import inspect_files
    from recover.merge.execute import execute_merge
    from recover.merge.plan import plan_merge
    from recover.quantize.execute import execute_quantize
    from recover.quantize.plan import plan_quantize
    from recover.quants import dequantize
    from recover.reblock.dispatch import open_original
    from recover.reblock.execute import execute_reblock
    from recover.reblock.plan import plan_reblock

__all__ = [
    "CalibrationError",
    "EvaluationError",
    "ExecutionError",
    "GGUFError",
    "InputError",
    "OutputError",
    "PlanError",
    "QuantError",
    "ReblockError",
    "RecoverError",
    "SafetensorsError",
    "UsageError",
    "__version__",
    "calibrate",
    "dequantize",
    "evaluate_models",
    "execute_bounds",
    "execute_merge",
    "execute_quantize",
    "execute_reblock",
    "inspect_files",
    "load_calibration",
    "measure_divergence",
    "open_gguf",
    "open_original",
    "plan_bounds",
    "plan_merge",
    "plan_quantize",
    "plan_reblock",
    "verify_model",
]

_HOME = {
    "calibrate": "recover.calibration.fit",
    "dequantize": "recover.quants",
    "evaluate_models": "recover.evaluate.errors",
    "execute_bounds": "recover.bounds.execute",
    "execute_merge": "recover.merge.execute",
    "execute_quantize": "recover.quantize.execute",
    "execute_reblock": "recover.reblock.execute",
    "inspect_files": "recover.inspect.report",
    "load_calibration": "recover.calibration.weights",
    "measure_divergence": "recover.evaluate.divergence",
    "open_gguf": "recover.containers.gguf.reader",
    "open_original": "recover.reblock.dispatch",
    "plan_bounds": "recover.bounds.plan",
    "plan_merge": "recover.merge.plan",
    "plan_quantize": "recover.quantize.plan",
    "plan_reblock": "recover.reblock.plan",
    "verify_model": "recover.bounds.verify",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'recover' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
