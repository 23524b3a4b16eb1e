"""What llama.cpp's tensor names say."""

import re
from collections.abc import Iterable

_IN_BLOCK = re.compile(r"blk\.(?P<layer>\d+)\.(?P<rest>.+)")


def role_of(name: str) -> str:
    """What a tensor does, the same in every layer: ``attn_q`` for ``blk.7.attn_q.weight``."""
    match = _IN_BLOCK.fullmatch(name)
    rest = match["rest"] if match else name
    return rest.removesuffix(".weight")


def layer_of(name: str) -> int | None:
    """The layer that a tensor is in: 7 for ``blk.7.attn_q.weight``; None outside of the layers."""
    match = _IN_BLOCK.fullmatch(name)
    digits = match["layer"] if match else ""
    return int(digits) if digits.isascii() and 0 < len(digits) < 10 else None


def n_layers(names: Iterable[str]) -> int:
    """The number of layers that a model with tensors of these names has; at least 1."""
    return 1 + max((layer_of(name) or 0 for name in names), default=0)
