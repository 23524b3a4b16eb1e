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

KNOWN = {kind.type_id: kind.name for kind in all_types()}
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (4, ("Q4_2", "May 2023")),
        (31, ("Q4_0_4_4", "ARM", "take the model in Q4_0")),
        (32, ("Q4_0_4_8", "take the model in Q4_0")),
        (33, ("Q4_0_8_8", "take the model in Q4_0")),
        (
            36,
            ("I2_S (of bitnet.cpp)", "original weights", "IQ4_NL_4_4", "take the model in IQ4_NL"),
        ),
        (41, ("Q1_0 (of llama.cpp)",)),
        (154, ("IQ3_KT (of ik_llama.cpp)", "--allow-requantize")),
        (353, ("MXFP4_R8 (of ik_llama.cpp)",)),
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


def test_types_that_are_read_have_no_other_name() -> None:
    for number, name, project in TYPES_ELSEWHERE:
        if number in KNOWN and project.name in ("llama.cpp", "ik_llama.cpp"):
            assert KNOWN[number] == name
            assert type_by_id(number).name == name
        elif number not in KNOWN:
            with pytest.raises(QuantError, match=re.escape(f"{name} (of {project.name})")):
                type_by_id(number)


def test_numbers_of_gguf_py_are_known_or_named() -> None:
    named = {number: name for number, name, _ in TYPES_ELSEWHERE}
    for kind in gguf.GGMLQuantizationType:
        assert (KNOWN.get(kind.value) or named.get(kind.value)) == kind.name


def test_numbers_of_ik_llama_cpp_are_those_of_the_golden_data() -> None:
    table = ROOT.parent / "shared" / "golden-ik" / "README.md"
    if not table.exists():
        pytest.skip("the golden data of ik_llama.cpp are not here")
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", table.read_text(), re.MULTILINE)
    named = {number: name for number, name, project in TYPES_ELSEWHERE if "ik_" in project.name}
    found = {int(number): name for number, name in rows if int(number) > 100}
    assert len(found) > 15
    assert {number: named.get(number) for number in found} == found
