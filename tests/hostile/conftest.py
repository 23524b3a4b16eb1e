"""No hostile file may make the reader hang: every test here has a deadline."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from recover.quants import all_types
from tests.hostile.deadline import deadline
from tests.support.outputs import OLD

SECONDS = 20


@pytest.fixture(scope="session", autouse=True)
def _imported_types() -> None:
    """Import the tensor types beforehand: neither time nor memory of that belong to a test."""
    all_types()


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    with deadline(SECONDS):
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.gguf"


@pytest.fixture(params=[False, True], ids=["new", "replaced"])
def before(request: pytest.FixtureRequest, path: Path) -> bytes | None:
    """What lies at the path beforehand: nothing, or an old file."""
    if not request.param:
        return None
    path.write_bytes(OLD)
    return OLD
