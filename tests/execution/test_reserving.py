"""Space of output files: all of it is reserved, in steps, or an error says that there is none."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from recover.errors import OutputError
from recover.execution import reserving
from recover.execution.output import OutputFile

_STEP, _N_BYTES = 1 << 16, 300_000


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserving, "_STEP", _STEP)


def test_all_of_a_file_is_reserved(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with OutputFile(path, _N_BYTES) as file:
        file.write_at(_N_BYTES - 5, b"bytes")
    status = path.stat()
    assert status.st_size == _N_BYTES
    assert path.read_bytes() == bytes(_N_BYTES - 5) + b"bytes"
    with path.open("r+b") as again:
        can_reserve = reserving._allocate(again.fileno(), 0, _N_BYTES) == 0
    assert not can_reserve or 512 * status.st_blocks >= _N_BYTES


def test_a_full_disk_shows_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = SimpleNamespace(f_blocks=1000, f_bfree=60, f_frsize=4096)
    monkeypatch.setattr(os, "fstatvfs", lambda _descriptor: full)
    with pytest.raises(OutputError, match="no space left"), OutputFile(tmp_path / "out", _N_BYTES):
        pytest.fail("there is no space")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_gets_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def allocate(_descriptor: int, start: int, _n_bytes: int) -> int:
        return number if start >= 3 * _STEP else 0

    monkeypatch.setattr(reserving, "_allocate", allocate)
    with pytest.raises(OutputError, match="no space left"), OutputFile(tmp_path / "out", _N_BYTES):
        pass
    assert not list(tmp_path.iterdir())


def test_a_file_system_that_reserves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reserving, "_allocate", lambda *_: errno.EOPNOTSUPP)
    with OutputFile(tmp_path / "out", _N_BYTES):
        pass
    assert (tmp_path / "out").read_bytes() == bytes(_N_BYTES)
