"""A text to read, and models as the tests write them for llama.cpp: by gguf-py alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFWriter

from tests.support.gguf_files import F32Array, stored, write_gguf

_PASSAGE = """
To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer the slings and
arrows of outrageous fortune, or to take arms against a sea of troubles and by opposing end them. To
die, to sleep; no more; and by a sleep to say we end the heart-ache and the thousand natural shocks
that flesh is heir to. The king doth wake tonight and takes his rouse, keeps wassail, and the
swaggering up-spring reels; my lord, he went but now; good night
"""


def some_text(n_words: int = 1500) -> str:
    """Words of a play in a random order, the same in every run."""
    return " ".join(np.random.default_rng(5).choice(_PASSAGE.split(), n_words))


def write_model(
    path: Path,
    source: Path,
    weights: Mapping[str, F32Array],
    **changes: Any,
) -> Path:
    """A file of F32 tensors with the metadata of `source`.

    Of the `changes`, ``a__b=value`` replaces the key ``a.b``; None drops it.
    """
    reader = GGUFReader(source)
    replaced = {key.replace("__", "."): value for key, value in changes.items()}

    def add(writer: GGUFWriter) -> None:
        for key, field in reader.fields.items():
            value = replaced[key] if key in replaced else field.contents()
            if not key.startswith(("GGUF.", "general.architecture")) and value is not None:
                kind, *element = field.types
                writer.add_key_value(key, value, kind, *element)

    architecture = replaced.get("general.architecture", "llama")
    tensors = {name: stored("F32", w) for name, w in weights.items()}
    return write_gguf(path, tensors, architecture=architecture, add=add)
