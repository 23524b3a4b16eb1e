"""Calibration files that lie: one line that names the file, or a calibration as good as any."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recover.calibration.weights import load_calibration
from recover.cli import main
from recover.errors import CalibrationError
from tests.hostile.calibrations import GOOD
from tests.hostile.checks import check_message
from tests.support.models import DATA


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(CalibrationError) as caught:
        load_calibration(path)
    check_message(str(caught.value), path)
    return str(caught.value)


def changed(change: Callable[[Any], object]) -> bytes:
    document = json.loads(GOOD.to_bytes())
    change(document)
    return json.dumps(document).encode()


def test_the_good_one_is_good(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(GOOD.to_bytes())
    assert load_calibration(path) == GOOD


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no JSON"),
        (b"GGUF\x03\0\0\0", "no JSON"),
        (b"\xff\xfe{}", "no JSON"),
        (b"[1, 2]", "no JSON object"),
        (b"null", "no JSON object"),
        (b"{}", "its format is not"),
        (b'{"format": "recover.calibration"}', "no 'version'"),
        (b"[" * 100_000, "no JSON"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "no JSON"),
        (b'{"format": NaN}', "NaN is no JSON number"),
        (b"9" * 5000, "no JSON"),
        (GOOD.to_bytes()[:-200], "no JSON"),
        (GOOD.to_bytes().replace(b"0.75", b"1e999"), "is inf, but must be"),
    ],
    ids=range(13),
)
def test_no_calibration_at_all(tmp_path: Path, content: bytes, reason: str) -> None:
    assert reason in refusal(tmp_path / "c.json", content)


def test_another_version(tmp_path: Path) -> None:
    message = refusal(tmp_path / "c.json", changed(lambda d: d.update(version=4)))
    assert "version 4, but this program reads version 3; make it again" in message
    refusal(tmp_path / "c.json", changed(lambda d: d.update(version="2")))
    refusal(tmp_path / "c.json", changed(lambda d: d.update(version=True)))


LIES: dict[str, Callable[[Any], object]] = {
    "negative weight": lambda d: d["combinations"][0].update(weights=[1.5, -0.5]),
    "sum of weights": lambda d: d["combinations"][0].update(weights=[0.75, 0.5]),
    "number of weights": lambda d: d["combinations"][0].update(weights=[1.0]),
    "huge weight": lambda d: d["combinations"][0].update(weights=[10**400, 0]),
    "text as weight": lambda d: d["combinations"][0].update(weights=["1", 0]),
    "true as weight": lambda d: d["combinations"][0].update(weights=[True, 0]),
    "one type": lambda d: d["combinations"][0].update(types=["Q8_0"], weights=[1]),
    "many types": lambda d: d["combinations"][0].update(types=["Q8_0"] * 99, weights=[0] * 99),
    "types no array": lambda d: d["combinations"][0].update(types="Q8_0"),
    "no type": lambda d: d["combinations"][0].update(types=["", "Q8_0"]),
    "lone surrogate": lambda d: d["truth"].update(name="\ud800"),
    "long name": lambda d: d["truth"].update(name="x" * 10**6),
    "no name": lambda d: d["truth"].pop("name"),
    "truth no object": lambda d: d.update(truth=[]),
    "depth too large": lambda d: d["combinations"][1].update(depth=2),
    "depth a fraction": lambda d: d["combinations"][1].update(depth=0.5),
    "many depths": lambda d: d.update(n_depths=10**6),
    "same twice": lambda d: d["combinations"].append(d["combinations"][0]),
    "same in another order": lambda d: d["combinations"].append(
        d["combinations"][0] | {"types": ["Q4_K", "Q8_0"]}
    ),
    "density twice": lambda d: d["densities"].append(d["densities"][0]),
    "three rows": lambda d: d["densities"][0]["rows"].pop(),
    "varying atom": lambda d: d["densities"][0]["rows"][3].__setitem__(2, 0.1),
    "varying reach": lambda d: d["densities"][0]["rows"][3].__setitem__(3, -0.1),
    "huge varying coefficient": lambda d: d["densities"][0]["rows"][3].__setitem__(0, -1e30),
    "weighted a number": lambda d: d["densities"][0].update(weighted=0),
    "short row": lambda d: d["densities"][0]["rows"][1].pop(),
    "negative atom": lambda d: d["densities"][0]["rows"][1].__setitem__(2, -1),
    "reach the wrong way": lambda d: d["densities"][0]["rows"][1].__setitem__(3, 0.1),
    "reach of nothing": lambda d: d["densities"][0].update(rows=[[0] * 5] * 4),
    "huge coefficient": lambda d: d["densities"][0]["rows"][0].__setitem__(1, 1e30),
    "constrained a number": lambda d: d.update(constrained=1),
    "negative ratio": lambda d: d["held_out"].update(mse_ratio=-1),
    "half an interval": lambda d: d["held_out"].update(ci95=[1]),
    "terminal codes": lambda d: d["truth"].update({"n_bytes": "\x1b[2J\n" * 99}),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies(tmp_path: Path, lie: str) -> None:
    assert "damaged" in refusal(tmp_path / "c.json", changed(LIES[lie]))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, each in list(items):
        found.append((value, key))
        if isinstance(each, dict | list):
            found += places(each)
    return found


@given(data=st.data(), other=JSON)
def test_anything_anywhere(
    data: st.DataObject, other: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It is refused, or what is read is sane and can be written and read again."""
    document = json.loads(GOOD.to_bytes())
    everywhere = places(document)
    container, key = everywhere[data.draw(st.integers(0, len(everywhere) - 1))]
    if isinstance(container, dict) and data.draw(st.booleans()):
        del container[key]
    else:
        container[key] = other
    path = tmp_path_factory.getbasetemp() / "anything.json"
    path.write_text(json.dumps(document))
    try:
        found = load_calibration(path)
    except CalibrationError as error:
        check_message(str(error), path)
        return
    for each in found.combinations:
        assert all(math.isfinite(weight) for weight in each.weights)
        if each.depth is None:  # others are for that depth alone
            assert len(found.weights_for(each.types, each.role)) == len(each.types)
    path.write_bytes(found.to_bytes())
    assert load_calibration(path) == found


@given(cut=st.integers(0, 3000), insert=st.binary(max_size=5))
def test_damaged_bytes(cut: int, insert: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = GOOD.to_bytes()
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(content[:cut] + insert + content[cut + len(insert) :])
    try:
        load_calibration(path)
    except CalibrationError as error:
        check_message(str(error), path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(CalibrationError) as caught:
            load_calibration(path)
        check_message(str(caught.value), path)
    with pytest.raises(CalibrationError):
        load_calibration("a\0b")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "c.json", tmp_path / "out.gguf"
    path.write_bytes(changed(LIES["negative weight"]))
    inputs = [str(DATA / f"tiny-llama-3m-{name}.gguf") for name in ("Q5_K_M", "Q4_K_M")]
    arguments = ["merge", *inputs, "-o", str(out), "--method", "linear", "--calibration", str(path)]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"recover: error: {path}: is damaged: ")
    assert captured.err.count("\n") == 1
    assert not out.exists()
