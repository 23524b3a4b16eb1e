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
    from recover.api.estimate import estimate
    from recover.api.progress import progress_bar
    from recover.bounds.execute import execute_bounds
    from recover.bounds.plan import plan_bounds
    from recover.bounds.single import bounds
    from recover.bounds.verify import verify_model
    from recover.calibration.fit import calibrate
    from recover.calibration.weights import load_calibration
    from recover.containers.gguf.reader import open_gguf
    from recover.evaluate.divergence import measure_divergence
    from recover.evaluate.errors import evaluate_models
    from recover.inputs.open import open_model
    from recover.inspect.report import inspect_files
    from recover.merge.execute import execute_merge
    from recover.merge.once import merge
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
    "bounds",
    "calibrate",
    "dequantize",
    "estimate",
    "evaluate_models",
    "execute_bounds",
    "execute_merge",
    "execute_quantize",
    "execute_reblock",
    "inspect_files",
    "load_calibration",
    "measure_divergence",
    "merge",
    "open_gguf",
    "open_model",
    "open_original",
    "plan_bounds",
    "plan_merge",
    "plan_quantize",
    "plan_reblock",
    "progress_bar",
    "verify_model",
]

_HOME = {
    "calibrate": "recover.calibration.fit",
    "dequantize": "recover.quants",
    "estimate": "recover.api.estimate",
    "evaluate_models": "recover.evaluate.errors",
    "execute_bounds": "recover.bounds.execute",
    "execute_merge": "recover.merge.execute",
    "execute_quantize": "recover.quantize.execute",
    "execute_reblock": "recover.reblock.execute",
    "inspect_files": "recover.inspect.report",
    "load_calibration": "recover.calibration.weights",
    "measure_divergence": "recover.evaluate.divergence",
    "open_model": "recover.inputs.open",
    "open_gguf": "recover.containers.gguf.reader",
    "open_original": "recover.reblock.dispatch",
    "plan_bounds": "recover.bounds.plan",
    "plan_merge": "recover.merge.plan",
    "plan_quantize": "recover.quantize.plan",
    "plan_reblock": "recover.reblock.plan",
    "progress_bar": "recover.api.progress",
    "verify_model": "recover.bounds.verify",
}


_CALLABLE = ("bounds", "merge")  # packages, which stand for functions (`recover._calling`)


def __getattr__(name: str) -> object:
    if name in _CALLABLE:
        return import_module(f"recover.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'recover' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
