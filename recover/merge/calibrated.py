"""What a calibration, or the merged weights themselves, say of the inputs that take part.

And what the errors that are expected of them are worth, once that is known.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from recover._text import quoted
from recover.calibration.weights import Calibration
from recover.containers.gguf.names import layer_of, role_of
from recover.errors import CalibrationError, UsageError
from recover.estimators import estimator
from recover.estimators.base import having
from recover.estimators.error_calibration import calibrate_errors
from recover.evidence.buffer import Source
from recover.merge.decide import AnyDraft, changed


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
    calibrate = estimator(method).calibrate
    changed = []
    for tensor in tensors:
        if tensor.action != "merge":
            changed.append(tensor)
            continue
        layer = layer_of(tensor.name)
        depth = None if layer is None else layer / n_all
        try:
            sources = calibrate(tensor.sources, calibration, role_of(tensor.name), depth)
        except CalibrationError as error:
            raise CalibrationError(f"tensor {quoted(tensor.name)}: {error}") from None
        changed.append(replace(tensor, sources=sources))
    return tuple(changed)


def with_network(
    tensors: Sequence[AnyDraft], method: str, path: Path
) -> tuple[tuple[AnyDraft, ...], int]:
    """The tensors with the network in a file where it is of their inputs, and how many have it.

    Raises
    ------
    UsageError
        If the method takes no network.
    PlanError
        If the file is none.
    """
    give = estimator(method).with_network
    if give is None:
        those = having(lambda each: each.with_network)
        raise UsageError(f"the method {method} uses no network; {those} does")
    changed, n_with = [], 0
    for tensor in tensors:
        sources = give(tensor.sources, path) if tensor.action == "merge" else None
        n_with += sources is not None
        changed.append(tensor if sources is None else replace(tensor, sources=sources))
    return tuple(changed), n_with


def with_densities(tensor: AnyDraft, give: Callable[[Source], Source]) -> AnyDraft:
    """A tensor whose sources `give` a density, those apart whose codes llama.cpp did not make."""
    sources = (each if each.noise is not None else give(each) for each in tensor.sources)
    return replace(tensor, sources=tuple(sources))


def with_error_calibration(tensors: Sequence[AnyDraft], estimate: str) -> tuple[AnyDraft, ...]:
    """The tensors with what the errors are worth that are expected of their estimates.

    Parameters
    ----------
    tensors : sequence of AnyDraft
        Their methods, and what their sources weigh, are decided.
    estimate : {"mean", "map"}
        What is asked of the estimators.
    """
    return tuple(
        changed(tensor, error_calibration=calibrate_errors(tensor.sources, tensor.method, estimate))
        if tensor.action != "copy" and tensor.sources
        else tensor
        for tensor in tensors
    )
