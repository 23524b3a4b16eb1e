"""What a calibration says of the inputs that take part: weights, or densities."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from recover._text import quoted
from recover.calibration.weights import Calibration
from recover.containers.gguf.names import layer_of, role_of
from recover.errors import CalibrationError
from recover.estimators import estimator
from recover.evidence.buffer import Witness
from recover.merge.decide import Draft

AnyDraft = TypeVar("AnyDraft", bound=Draft)


def with_calibration(
    tensors: Sequence[AnyDraft], method: str, calibration: Calibration, n_all: int
) -> tuple[AnyDraft, ...]:
    """The tensors with what the method takes from a calibration.

    Parameters
    ----------
    tensors : sequence of AnyDraft
        Those that are merged are changed.
    method : str
        Name of the estimator.
    calibration : Calibration
        Weights or densities.
    n_all : int
        Layers of the model.

    Raises
    ------
    CalibrationError
        If it does not know a tensor's types.
    """
    gives_weights = estimator(method).CALIBRATED == "weights"
    changed = []
    for tensor in tensors:
        try:
            if tensor.action != "merge":
                changed.append(tensor)
            elif gives_weights:
                changed.append(_with_weights(tensor, calibration, n_all))
            else:
                changed.append(with_densities(tensor, calibration.with_density))
        except CalibrationError as error:
            raise CalibrationError(f"tensor {quoted(tensor.name)}: {error}") from None
    return tuple(changed)


def _with_weights(tensor: AnyDraft, calibration: Calibration, n_all: int) -> AnyDraft:
    """A tensor whose witnesses have weights, unless llama.cpp did not make all of the codes."""
    if any(noise is not None for noise in tensor.noises):
        return tensor
    layer = layer_of(tensor.name)
    weights = calibration.weights_for(
        [tensor.types[i] for i in tensor.sources],
        role_of(tensor.name),
        None if layer is None else layer / n_all,
    )
    pairs = zip(tensor.witnesses, weights, strict=True)
    return replace(tensor, witnesses=tuple(replace(each, weight=weight) for each, weight in pairs))


def with_densities(tensor: AnyDraft, give: Callable[[Witness], Witness]) -> AnyDraft:
    """A tensor whose witnesses `give` a density, those apart whose codes llama.cpp did not make."""
    witnesses = (each if each.noise is not None else give(each) for each in tensor.witnesses)
    return replace(tensor, witnesses=tuple(witnesses))
