"""How far codes of other encoders than llama.cpp's are off (see `recover.inputs.provenance`).

Such codes confine the weights to no cells that are known: those of GPTQ, for instance, round
weights that were moved to make up for the errors of others.

Each code is taken to be off by a normal error. In units of the squared scale its variance is 1/12
if the codes are rounded weights, and more if they are compensated, as GPTQ's are. Beside an input
whose error is known the difference of the two tells.
"""

import numpy as np

from recover.containers.model import Model, StoredTensor
from recover.evidence.buffer import EvidenceBuffer, Witness
from recover.inputs.provenance import is_foreign
from recover.inputs.samples import runs
from recover.quants import GROUP, ScalarType

TYPICAL_NOISE = 1.45 / 12
"""Of compensated codes, where nothing tells more; in units of the squared scale."""

_N_RUNS = 16
_SMALLEST_NOISE, _LARGEST_NOISE = 1 / 12, 4 / 12
# Relative deviations: of what is typical, and of the known error of another input.
_TYPICAL_DEVIATION, _KNOWN_DEVIATION = 0.25, 0.05


def measure_noise(tensor: StoredTensor, known: StoredTensor | None) -> float:
    """The mean square error of foreign codes, in units of the squared scale.

    Parameters
    ----------
    tensor : StoredTensor
        Of a scalar type.
    known : StoredTensor, optional
        The same weights from llama.cpp's encoder, whose errors are independent.

    Returns
    -------
    float
        `TYPICAL_NOISE` if nothing is known.
    """
    if known is None:
        return TYPICAL_NOISE
    difference = own = other = 0.0
    for start, end in runs(tensor.n_weights, _N_RUNS):
        off = tensor.read(start, end).astype(np.float64) - known.read(start, end)
        difference += float(off @ off)
        own += _squared_scales(tensor, start, end)
        other += _squared_scales(known, start, end) * _noise_of(known)
    if own <= 0:
        return TYPICAL_NOISE
    measured = (difference - other) / own
    deviation = _KNOWN_DEVIATION * other / own / TYPICAL_NOISE
    trust = _TYPICAL_DEVIATION**2 / (_TYPICAL_DEVIATION**2 + deviation**2)
    noise = trust * measured + (1 - trust) * TYPICAL_NOISE
    return float(np.clip(noise, _SMALLEST_NOISE, _LARGEST_NOISE))


def foreign_noise(model: Model, tensor: StoredTensor) -> float | None:
    """What is typical, without a look at other inputs; None of all but foreign codes."""
    return TYPICAL_NOISE if is_foreign(model, tensor) else None


def _noise_of(tensor: StoredTensor) -> float:
    assert isinstance(tensor.type, ScalarType)
    return tensor.type.noise


def _squared_scales(tensor: StoredTensor, start: int, end: int) -> float:
    """The squared scales of a range of weights, summed over the weights."""
    evidence = EvidenceBuffer([Witness(tensor.type)]).read([tensor], start, end)
    scale = evidence.scale[0].astype(np.float64)
    return GROUP * float(scale @ scale)
