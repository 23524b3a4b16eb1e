"""AutoRound, whose layouts are those of GPTQ and AWQ.

See `recover.containers.huggingface.formats.autoround`.
"""

from dataclasses import replace

from recover.containers.huggingface.formats.autoround import as_known
from recover.containers.huggingface.modules import Module
from recover.reblock.schemes import awq, gptq
from recover.reblock.schemes.base import Weight


def read(module: Module) -> Weight | None:
    """The weight of a module that AutoRound quantized and stored by its own name."""
    known = as_known(module)
    weight = None if known is None else awq.read(known) or gptq.read(known)
    return weight and replace(weight, stored_as=f"AutoRound, as {weight.stored_as}")
