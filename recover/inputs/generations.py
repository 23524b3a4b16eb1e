"""Which generation of a type a file has, where only the other inputs tell.

ik_llama.cpp's trellis types got another generator of levels in June 2025, under the same numbers
(see `recover.quants._trellis`). Decoded with the wrong one, the weights have nothing in common with
those of any other file of the model; decoded with the right one they are nearly the same.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from recover._text import printable
from recover.containers.gguf.tensor import Tensor
from recover.containers.model import Model, StoredTensor
from recover.quants import BlockIntervals, OpaqueType, TensorType, type_by_name

_N_TENSORS = 4
_N_WEIGHTS = 16_384
_ALIKE, _LESS = 0.4, 0.2  # correlations of the right generation; how much less the wrong one has
_BLOCK = 32


def twin_of(tensor: StoredTensor) -> TensorType | None:
    """The type of the same number and size that a tensor may be as well; None if there is none."""
    kind = tensor.type
    if not (isinstance(tensor, Tensor) and isinstance(kind, BlockIntervals) and kind.twin):
        return None
    return type_by_name(kind.twin)


def as_type(tensor: StoredTensor, kind: TensorType) -> StoredTensor:
    """The same bytes, taken for those of another type of their number and size."""
    assert isinstance(tensor, Tensor)
    return replace(tensor, info=replace(tensor.info, type=kind))


def with_generations(
    models: Sequence[Model], names: Collection[str], warnings: list[str]
) -> tuple[Model, ...]:
    """The models, with the generation of their trellis types that the others tell.

    Parameters
    ----------
    models : sequence of Model
        Aligned: all have the same tensors.
    names : collection of str
        Those tensors that are looked at.
    warnings : list of str
        Gets a line for each model that is of the generation that is not meant by default.

    Returns
    -------
    tuple of Model
        In the same order.
    """
    found = list(models)
    for number, model in enumerate(models):
        own = [name for name in names if twin_of(model.tensors[name]) is not None]
        if own and _is_other(own[:_N_TENSORS], number, found):
            tensors = model.tensors
            changed = {name: _changed(tensors[name]) for name in own}
            found[number] = model.with_tensors(changed)
            writer = changed[own[0]].type.writer
            warnings.append(f"{printable(model.path)}: its trellis codes are of {writer}")
    return tuple(found)


def _changed(tensor: StoredTensor) -> StoredTensor:
    twin = twin_of(tensor)
    assert twin is not None
    return as_type(tensor, twin)


def _is_other(names: Sequence[str], number: int, models: Sequence[Model]) -> bool:
    """Whether the twins of a model's tensors are more like another input's than these are."""
    for name in names:
        own = models[number].tensors[name]
        references = [model.tensors[name] for i, model in enumerate(models) if i != number]
        usual = [weights for each in references for weights in _ways(each)]
        alike, other = (
            max((_likeness(weights, each) for each in usual), default=0.0)
            for weights in (_sample(own), _sample(_changed(own)))
        )
        if max(alike, other) > _ALIKE:
            return other > alike + _LESS
    return False


def _ways(tensor: StoredTensor) -> list[NDArray[np.float64]]:
    """What a tensor decodes to, in each way that it may be read; nothing if it is absent."""
    if isinstance(tensor.type, OpaqueType):
        return []
    twin = twin_of(tensor)
    return [_sample(tensor), *([_sample(as_type(tensor, twin))] if twin is not None else [])]


def _sample(tensor: StoredTensor) -> NDArray[np.float64]:
    """Sizes of some decoded weights, over that of their block, and without their mean.

    Scales of blocks are right in either generation, and so are signs where they are stored apart.
    """
    n = min(_N_WEIGHTS, tensor.n_weights) // 256 * 256
    start = (tensor.n_weights - n) // 2 // 256 * 256
    sizes = np.abs(tensor.read(start, start + n).astype(np.float64)).reshape(-1, _BLOCK)
    mean = sizes.mean(1, keepdims=True)
    relative = np.divide(sizes, mean, out=np.ones_like(sizes), where=mean > 0)
    return (relative - 1).reshape(-1)


def _likeness(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The correlation of samples; 0 where there is none."""
    size = float(one @ one) * float(other @ other)
    found = float(one @ other) / size**0.5 if 0 < size < np.inf else 0.0
    return found if np.isfinite(found) else 0.0
