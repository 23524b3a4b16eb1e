"""Types of other programs, and of llama.cpp's past, are named where they are met."""

import re
from pathlib import Path

import gguf
import pytest

from recover.containers.gguf.reader import open_gguf
from recover.errors import GGUFError, QuantError
from recover.quants import all_types, type_by_id
from recover.quants._elsewhere import TYPES_ELSEWHERE
from tests.hostile.builder import gguf as gguf_bytes
from tests.hostile.builder import tensor

KNOWN = {kind.type_id: kind.name for kind in all_types() if not kind.is_alternative}
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (4, ("Q4_2", "May 2023")),
        (
            36,
            ("I2_S (of bitnet.cpp)", "original weights", "IQ4_NL_4_4", "take the model in IQ4_NL"),
        ),
        (142, ("IQ2_TN (of ik_llama.cpp)", "--allow-requantize")),
        (397, ("Q8_K_R16 (of ik_llama.cpp)",)),
        (136, ("Q8_K64 (of ik_llama.cpp, for activations only)",)),
        (999, ("tensor type 999 is unknown", "Q4_K")),
    ],
)
def test_the_message_names_the_type(number: int, words: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes([], [tensor("t", dims=(256, 2), kind=number)], bytes(4096)))
    with pytest.raises(GGUFError) as caught:
        open_gguf(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: tensor 't': tensor type {number} is ")
    assert [word for word in words if word not in message] == []
    assert ("unknown" in message) == (number == 999)


def test_types_that_are_read_are_not_named_as_unread() -> None:
    for number, name, project in TYPES_ELSEWHERE:
        if number not in KNOWN:
            with pytest.raises(QuantError, match=re.escape(f"{name} (of {project.name})")):
                type_by_id(number)
        else:
            assert "llama.cpp" not in project.name


def test_numbers_of_gguf_py_are_known_or_named() -> None:
    named = {number: name for number, name, _ in TYPES_ELSEWHERE}
    for kind in gguf.GGMLQuantizationType:
        assert (KNOWN.get(kind.value) or named.get(kind.value)) == kind.name


def test_numbers_of_ik_llama_cpp_are_those_of_the_golden_data() -> None:
    table = ROOT.parent / "shared" / "golden-ik" / "README.md"
    if not table.exists():
        pytest.skip("the golden data of ik_llama.cpp are not here")
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", table.read_text(), re.MULTILINE)
    found = {int(number): name for number, name in rows if int(number) > 100}
    assert len(found) > 15
    assert {number: KNOWN.get(number) for number in found} == found
