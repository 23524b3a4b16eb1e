"""Advice to the system on how mapped files are read."""

from pathlib import Path

import numpy as np
import pytest

from recover.containers import mapping


def test_samples_are_read_without_what_is_around_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 100)
    told: list[str] = []
    monkeypatch.setattr(mapping, "_advise", told.append)
    with mapping.sampled():
        assert told == ["MADV_RANDOM"]
        with mapping.sampled():
            pass
        assert told == ["MADV_RANDOM"]
    assert told == ["MADV_RANDOM", "MADV_NORMAL"]
    with pytest.raises(ZeroDivisionError), mapping.sampled():
        _ = 1 / 0
    assert told[2:] == ["MADV_RANDOM", "MADV_NORMAL"]


def test_files_that_are_mapped_no_more_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 100)
    before = set(mapping._mapped)
    data = mapping.map_file(path)
    (address,) = set(mapping._mapped) - before
    assert mapping._mapped[address] == data.size
    with mapping.sampled():
        assert data[300] == 44
    assert np.array_equal(data[:256], np.arange(256))
    del data
    assert address not in mapping._mapped
