"""A text to evaluate on."""

from pathlib import Path

import pytest

from tests.support.text import some_text


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(some_text(), encoding="utf-8")
    return path
