"""What files that this program wrote say of the files that they were made from."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from recover._text import printable, quoted, some
from recover.containers.model import Model
from recover.errors import GGUFError
from recover.inputs.metadata import METHOD_KEY

NAMES_KEY, SIZES_KEY, TYPES_KEY = (f"recover.source.{each}" for each in ("names", "sizes", "types"))


def types_of(model: Model) -> str:
    """How many tensors of each type a file has, the most frequent first: ``Q4_K:33 F32:17``."""
    counts = Counter(tensor.type.name for tensor in model.tensors.values())
    return " ".join(f"{name}:{n}" for name, n in counts.most_common())


def declared_parents(models: Sequence[Model]) -> dict[int, tuple[int, ...]]:
    """Inputs that were made from a merge of other inputs, and which these are.

    ``recover merge`` writes names, sizes and types of its inputs into the output's metadata, and
    those who quantize the output pass them on. Of files with other names the bytes have to tell.
    """
    found: dict[int, tuple[int, ...]] = {}
    for child, model in enumerate(models):
        sources = _sources(model)
        parents = [
            next((j for j, other in enumerate(models) if j != child and _is(other, source)), None)
            for source in sources
        ]
        known = tuple(dict.fromkeys(parent for parent in parents if parent is not None))
        if known and None not in parents:
            found[child] = known
    return found


def merged_before(models: Sequence[Model]) -> list[str]:
    """A warning for each input that is itself an estimate, of files that are not all here."""
    declared = declared_parents(models)
    return [
        f"{printable(model.path)}: was made from a merge of"
        f" {some([quoted(str(name)) for name in _value(model, NAMES_KEY)] or ['other files'])}, not"
        " from the original: merge those files instead; the expected error leaves out what that"
        " merge was off"
        for i, model in enumerate(models)
        if METHOD_KEY in model.metadata and i not in declared
    ]


def _sources(model: Model) -> list[tuple[str, int, str]]:
    """Name, size and types of the files that a file was merged from; empty if it does not say."""
    sizes, types = _value(model, SIZES_KEY), _value(model, TYPES_KEY)
    if len(sizes) != len(types) or not all(isinstance(size, int) for size in sizes):
        return []
    names = map(str, _value(model, NAMES_KEY))
    return list(zip(names, sizes, map(str, types), strict=False))


def _value(model: Model, key: str) -> list[Any]:
    """A metadata array; empty if there is none that can be read."""
    try:
        value = model.get(key, [])
    except GGUFError:
        return []
    return list(value) if isinstance(value, list | tuple) else []


def _is(model: Model, source: tuple[str, int, str]) -> bool:
    return (model.path.name, model.n_bytes, types_of(model)) == source
