"""Numbers of tensor types in files that other programs write, or that llama.cpp once wrote.

None of them is read; a message names the type and says what to take instead. Programs that part
from llama.cpp number their own types as they like, so that a number may have several meanings.
Sources: ``ggml.h`` of llama.cpp (past and present), of microsoft/BitNet, of ikawrakow/ik_llama.cpp.
"""

from collections.abc import Iterator
from typing import NamedTuple


class Project(NamedTuple):
    """Who writes some types."""

    name: str
    way_out: str
    """What to take instead of a file with such a type."""


_EARLY = Project("llama.cpp of May 2023", "take another quantization of the model")
_ARM = Project(
    "llama.cpp from July to December 2024: interleaved {plain} for ARM",
    "take the model in {plain}, which has the same codes",
)
_INTERNAL = Project(
    "llama.cpp, for activations only",
    "the file is damaged, or of a program that this one does not know",
)
_BITNET = Project("bitnet.cpp", "take the model's original weights, or a TQ1_0 or TQ2_0 file of it")
_IK = Project(
    "ik_llama.cpp",
    "take another quantization of the model, or decode it with that program's quantizer"
    " (llama-quantize --allow-requantize IN OUT F32)",
)

_IK_INTERNAL = Project("ik_llama.cpp, for activations only", _INTERNAL.way_out)

_INTERLEAVED_FOR_ARM = {36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"}
_OF_IK = {
    142: "IQ2_TN",
    143: "IQ1_TN",
    230: "BF16_R16",
    397: "Q8_K_R16",
}
_OF_IK_FOR_ACTIVATIONS = {
    97: "Q8_0_X4",
    98: "Q8_1_X4",
    99: "Q8_2_X4",
    136: "Q8_K64",
    147: "Q8_K16",
    148: "Q8_K32",
    149: "Q8_KR8",
    150: "Q8_K128",
}


def _rows() -> Iterator[tuple[int, str, Project]]:
    """The whole table: number, name, project; what a number more often means comes first."""
    yield from ((number, name, _EARLY) for number, name in {4: "Q4_2", 5: "Q4_3"}.items())
    yield from ((number, name, _INTERNAL) for number, name in {9: "Q8_1", 15: "Q8_K"}.items())
    bitnet = {36: "I2_S", 37: "I8_S", 38: "TL1"}  # 39, TL2, is MXFP4 in llama.cpp
    yield from ((number, name, _BITNET) for number, name in bitnet.items())
    for number, name in _INTERLEAVED_FOR_ARM.items():
        plain = name.rsplit("_", 2)[0]
        yield number, name, Project(*(text.format(plain=plain) for text in _ARM))
    yield from ((number, name, _IK) for number, name in _OF_IK.items())
    yield from ((number, name, _IK_INTERNAL) for number, name in _OF_IK_FOR_ACTIVATIONS.items())


TYPES_ELSEWHERE = tuple(_rows())
"""Number, name and project of each."""

AMBIGUOUS = (41, 42)
"""Numbers that other programs gave to types of other sizes before llama.cpp had them."""


def described_elsewhere(type_id: int) -> str | None:
    """What a number means elsewhere, and the way out; None if it means nothing that is known."""
    found = [(name, project) for number, name, project in TYPES_ELSEWHERE if number == type_id]
    if not found:
        return None
    names = " or ".join(f"{name} (of {project.name})" for name, project in found)
    ways = "; or ".join(dict.fromkeys(project.way_out for _, project in found))
    return f"tensor type {type_id} is {names}, which is not read; {ways}"
