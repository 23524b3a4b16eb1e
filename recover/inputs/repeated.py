"""Inputs that are there more than once: by one path, as links, or as copies."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from recover._text import printable
from recover.containers.model import Model
from recover.quants import FloatType, OpaqueType


def is_same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, as links do."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def describe_repeated(
    models: Sequence[Model], duplicate_of: Mapping[str, Sequence[int]]
) -> list[str]:
    """A warning for each input that has the weights of an earlier one.

    Parameters
    ----------
    models : sequence of Model
        The inputs.
    duplicate_of : mapping of str to sequence of int
        By name of a tensor, for each input the first one with the same bytes. Copies are told by
        quantized tensors: those of floats are alike in all quantizations of a model.
    """
    is_quantized = any(
        not isinstance(models[0].tensors[name].type, FloatType | OpaqueType)
        for name in duplicate_of
    )
    found = []
    for other in range(1, len(models)):
        first = next(
            (i for i in range(other) if all(t[i] == t[other] for t in duplicate_of.values())), other
        )
        if first == other:
            continue
        one, two = models[first].path, models[other].path
        if one == two:
            what = f"{printable(one)} is given more than once"
        elif is_same_file(one, two):
            what = f"{printable(two)} and {printable(one)} are the same file"
        elif not is_quantized:
            continue
        else:
            what = f"{printable(two)} has the same weights as {printable(one)}, byte for byte"
        found.append(f"{what}: it counts once")
    return list(dict.fromkeys(found))
