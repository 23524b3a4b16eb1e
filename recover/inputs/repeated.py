"""Inputs that are there more than once: by one path, as links, or as copies."""

from collections.abc import Sequence
from pathlib import Path

from recover._text import printable
from recover.containers.gguf.reader import Model


def is_same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, as links do."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def describe_repeated(models: Sequence[Model], twins: Sequence[Sequence[int]]) -> list[str]:
    """A warning for each input that has the weights of an earlier one.

    Parameters
    ----------
    models : sequence of Model
        The inputs.
    twins : sequence of sequence of int
        Of each tensor for each input the first one with the same bytes.
    """
    found = []
    for other in range(1, len(models)):
        first = next((i for i in range(other) if all(t[i] == t[other] for t in twins)), other)
        if first == other:
            continue
        one, two = models[first].path, models[other].path
        if one == two:
            what = f"{printable(one)} is given more than once"
        elif is_same_file(one, two):
            what = f"{printable(two)} and {printable(one)} are the same file"
        else:
            what = f"{printable(two)} has the same weights as {printable(one)}, byte for byte"
        found.append(f"{what}: it counts once")
    return list(dict.fromkeys(found))
