"""The list of types in the docs is what the types declare."""

from recover.quants import all_types
from tests.golden.make_formats import OUT, text


def test_the_list_is_current() -> None:
    """Otherwise: ``python -m tests.golden.make_formats``."""
    assert OUT.read_text(encoding="utf-8") == text()


def test_every_type_is_described() -> None:
    written = text()
    for kind in all_types():
        assert f"\n| {kind.name} | " in written
        heads = [line for line in written.splitlines() if line.startswith("### ")]
        assert any(kind.name in line.removeprefix("### ").split(", ") for line in heads)
