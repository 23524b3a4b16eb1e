"""Advice to the system on how mapped files are read."""

import gc
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


@pytest.mark.parametrize("n_objects", range(0, 60, 5))
def test_files_that_garbage_holds_are_unmapped_meanwhile(tmp_path: Path, n_objects: int) -> None:
    """Garbage is collected once so many more objects are made, wherever that is."""
    threshold = gc.get_threshold()
    gc.collect()
    gc.disable()
    for number in range(40):
        path = tmp_path / f"{number}"
        path.write_bytes(b"0")
        cycle: list[object] = [mapping.map_file(path)]
        cycle.append(cycle)
    del cycle
    before = len(mapping._mapped)
    try:
        gc.set_threshold(gc.get_count()[0] + n_objects)
        gc.enable()
        with mapping.sampled():
            pass
    finally:
        gc.set_threshold(*threshold)
        gc.enable()
    gc.collect()
    assert len(mapping._mapped) <= before - 40
