"""Space of output files: reserved, or asked for, before the work."""

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from recover.errors import OutputError
from recover.execution import reserving
from recover.execution.output import OutputFile

_N_BYTES = 300_000


@pytest.mark.skipif(not Path("/proc/self/mounts").exists(), reason="nothing tells of mounts")
@pytest.mark.parametrize("folder", ["/dev/shm", "/tmp", "/var/tmp"])
def test_what_is_in_memory_is_known(folder: str) -> None:
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    kinds = {fields[1]: fields[2] for fields in mounts}
    place = Path(folder).resolve()
    mount = next(each for each in (place, *place.parents) if str(each) in kinds)
    with tempfile.TemporaryFile(dir=place) as file:
        found = reserving._is_in_memory(file.fileno())
    assert found == (kinds[str(mount)] in ("tmpfs", "ramfs"))


@pytest.mark.parametrize(("n_free", "is_full"), [(60, True), (80, False)])
def test_space_in_memory_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_free: int, is_full: bool
) -> None:
    told = SimpleNamespace(f_blocks=1000, f_bfree=n_free, f_frsize=4096)
    monkeypatch.setattr(os, "fstatvfs", lambda _descriptor: told)
    monkeypatch.setattr(reserving, "_is_in_memory", lambda _descriptor: True)
    path = tmp_path / "out"
    if is_full:
        with pytest.raises(OutputError, match="no space left"), OutputFile(path, _N_BYTES):
            pytest.fail("there is no space")
        assert not list(tmp_path.iterdir())
        return
    with OutputFile(path, _N_BYTES) as file:
        file.write_at(_N_BYTES - 5, b"bytes")
    assert path.read_bytes() == bytes(_N_BYTES - 5) + b"bytes"


def test_space_on_a_disk_is_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserving, "_is_in_memory", lambda _descriptor: False)
    with OutputFile(tmp_path / "out", _N_BYTES) as file:
        assert 512 * file.place.stat().st_blocks >= _N_BYTES


def test_where_nothing_is_reserved_space_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reserving, "_is_in_memory", lambda _descriptor: False)
    monkeypatch.setattr(reserving, "_allocate", lambda *_each: False)
    with OutputFile(tmp_path / "out", _N_BYTES) as file:
        assert file.place.stat().st_size == _N_BYTES
    with pytest.raises(OutputError, match="no space left"), OutputFile(tmp_path / "large", 1 << 60):
        pytest.fail("there is no space")
