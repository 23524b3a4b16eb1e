"""JSON objects from files: what is refused, and what is written in place of odd numbers."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recover._json import JSONError, finite, parse_object, to_text

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
DOCUMENTS = st.recursive(
    SCALARS,
    lambda each: st.lists(each) | st.lists(each).map(tuple) | st.dictionaries(st.text(), each),
)


def test_right_ones() -> None:
    document = {"a": [1, 2.5, None, True, {"b": "\u00e9\n"}], "": {}}
    assert parse_object(json.dumps(document).encode()) == document
    assert parse_object(json.dumps(document, ensure_ascii=False).encode()) == document


def test_numbers_of_configurations() -> None:
    assert parse_object(b'{"time_step_limit": [0.0, Infinity]}') == {
        "time_step_limit": [0, math.inf]
    }


def nested(depth: int) -> bytes:
    return b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "is no JSON: "),
        (b"[]", "is no JSON object"),
        (b"{", "is no JSON: "),
        (b'{"a": "\xff"}', "is no JSON: "),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": -Infinity}', "-Infinity is no JSON number"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "is no JSON: "),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' is there twice"),
        (b'{"b": {"\\u001b[m": 1, "\\u001b[m": 2}}', r"'\\x1b\[m' is there twice"),
        (nested(33), "is nested more than 32 deep"),
        (nested(100_000), "nested too deep"),
        (b'{"a": [' + b"0," * (1 << 20) + b"0]}", "more than 1,048,576 are not read"),
        (b'{"a": "' + b"x" * (1 << 25) + b'"}', "more than 33,554,432 are not read"),
    ],
)
def test_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(JSONError, match=reason) as caught:
        parse_object(raw, strict=True)
    assert str(caught.value).isprintable()


def test_as_deep_as_may_be() -> None:
    assert list(parse_object(nested(32))) == ["a"]


def test_numbers_that_json_lacks_become_null() -> None:
    document = {"a": [math.inf, -math.inf, math.nan, 1.5], "b": (0, math.inf)}
    assert finite(document) == {"a": [None, None, None, 1.5], "b": [0, None]}


@given(DOCUMENTS)
def test_text_is_that_of_the_standard_library(document: object) -> None:
    assert to_text(document) == json.dumps(finite(document), indent=2)


@pytest.mark.parametrize("value", [{1, 2}, b"a", [object()], {"a": 1j}])
def test_text_of_what_json_lacks(value: object) -> None:
    with pytest.raises(TypeError):
        to_text(value)
