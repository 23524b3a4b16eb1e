"""Commands whose work is shared, each of them."""

from pathlib import Path

import pytest

from tests.support.sharded_commands import NAMES, Shared, commands


@pytest.fixture(params=NAMES)
def shared(
    request: pytest.FixtureRequest,
    tiny: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Shared:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    return Shared(commands(tiny, inputs)[request.param], capsys)
