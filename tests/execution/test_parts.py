"""Commands whose work several processes share: bytes and reports are those of one."""

from pathlib import Path

import pytest

from recover.cli import main
from tests.support.sharded_commands import Shared, commands
from tests.support.sharding import LAST_MOMENTS, MOMENTS, in_a_process

pytestmark = pytest.mark.long


def test_any_order(shared: Shared, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert shared.do(home, "3/3")["missing"] == [1, 2]
    assert shared.do(home, "1/3")["missing"] == [2]
    document = shared.do(home, "2/3")
    shared.check(home, document, tmp_path / "once")
    for shard in ("1/3", "2/3"):
        shared.check(home, shared.do(home, shard), tmp_path / "once")


def test_killed_and_repeated(
    shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    for moment, shard in zip(MOMENTS, ("2/3", "1/3"), strict=True):
        with monkeypatch.context() as patch:
            MOMENTS[moment](patch)
            assert in_a_process(lambda shard=shard: shared.do(home, shard)) < 0  # type: ignore[misc]
    for shard in ("3/3", "1/3"):
        shared.do(home, shard)
    for moment in LAST_MOMENTS:
        with monkeypatch.context() as patch:
            LAST_MOMENTS[moment](patch)
            assert in_a_process(lambda: shared.do(home, "2/3")) < 0
    shared.check(home, shared.do(home, "2/3"), tmp_path / "once")


def test_other_options(shared: Shared, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    shared.do(home, "1/2")
    with pytest.raises(AssertionError, match=r"parts of another plan \(in 2 parts, not 4\)"):
        shared.do(home, "1/4")


def test_an_export_replaces_nothing_unasked(
    tiny: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = Shared(commands(tiny, tmp_path)["export"], capsys)
    home = tmp_path / "home"
    shared.do(home)
    with pytest.raises(AssertionError, match="is there already; --force replaces it"):
        shared.do(home, "1/2")
    shared.do(home, "1/2", "--force")
    shared.check(home, shared.do(home, "2/2", "--force"), tmp_path / "once")


def test_a_summary_has_no_parts(tiny: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bounds", *map(str, tiny), "--summary", "--shard", "1/2"]) == 2
    assert "name a file with -o" in capsys.readouterr().err
