"""Inputs whose Q8_0 tensors were made from integers: these take the place of the bytes."""

from collections.abc import Sequence

from recover._text import printable, quoted, some
from recover.containers.model import Model, StoredTensor
from recover.inputs.alignment import is_absent
from recover.inputs.descent import FLOATS, Trial
from recover.inputs.originals.origin import MADE_FROM_INTEGERS, find_original
from recover.inputs.provenance import confines
from recover.inputs.samples import Sampler, rounded, runs
from recover.quants import FloatType, OpaqueType

_N_RUNS = 8


def with_originals(
    models: tuple[Model, ...], names: Sequence[str], warnings: list[str]
) -> tuple[Model, ...]:
    """Inputs with the integers that their Q8_0 tensors were made from, where they are found.

    An original is taken only if no other input contradicts it. Integers that llama.cpp made are
    taken for what they are, a Q4_0 or Q5_0.

    Parameters
    ----------
    models : tuple of Model
        The inputs.
    names : sequence of str
        Tensors to look at.
    warnings : list of str
        What was found is added.

    Returns
    -------
    tuple of Model
        In the same order.
    """
    replaced: list[dict[str, StoredTensor]] = [{} for _ in models]
    said: dict[str, list[str]] = {}
    sampler = Sampler()
    for name in names:
        tensors = [model.tensors[name] for model in models]
        if not any(tensor.type.name == MADE_FROM_INTEGERS for tensor in tensors):
            continue
        present = [tensor for tensor in tensors if not is_absent(tensor)]
        if any(isinstance(tensor.type, FloatType | OpaqueType) for tensor in present):
            continue
        for i, model in enumerate(models):
            found = find_original(tensors[i])
            if found is None:
                continue
            tensor, what = found
            if not tensor.is_original:
                text = f"{printable(model.path)} was made from a {what}, and counts as that"
            elif _is_contradicted(models, name, i, tensor, sampler):
                continue
            else:
                text = f"{printable(model.path)} was made from {what}, which are taken"
            replaced[i][name] = tensor
            said.setdefault(text, []).append(quoted(name))
            if tensor.is_original:
                break
    warnings += [f"{text}: {some(tensors)}" for text, tensors in said.items()]
    return tuple(
        model.with_tensors(tensors) if tensors else model
        for model, tensors in zip(models, replaced, strict=True)
    )


def _is_contradicted(
    models: Sequence[Model], name: str, number: int, original: StoredTensor, sampler: Sampler
) -> bool:
    """Whether another input's cells do not hold the weights, rounded to some float type or not."""
    for i, model in enumerate(models):
        tensor = model.tensors[name]
        if i == number or not confines(model, tensor):
            continue
        trials = {via: Trial() for via in FLOATS}
        for start, end in runs(tensor.n_weights, _N_RUNS):
            exact = sampler.read(number, original, False, start, end)
            other = sampler.read(i, tensor, True, start, end)
            for via, trial in trials.items():
                if trial.is_possible:
                    trial.add(rounded(exact.values, via), exact, other)
        if not any(trial.is_possible for trial in trials.values()):
            return True
    return False
