"""Packages that are not installed, but found as if they were."""

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from recover.estimators import ENTRY_POINTS, estimator
from recover.estimators.error_calibration import calibrate_errors


def install(monkeypatch: pytest.MonkeyPatch, group: str, *points: tuple[str, str]) -> list[str]:
    """Let entry points of a group be found, by name and value; returns the names of groups asked.

    Other groups have what is really installed.
    """
    here = EntryPoints(EntryPoint(name, value, group) for name, value in points)
    asked: list[str] = []
    real = importlib.metadata.entry_points

    def entry_points(**wanted: str) -> Any:
        if wanted != {"group": group}:
            return real(**wanted)
        asked.append(group)
        return here

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    return asked


@contextmanager
def estimators(monkeypatch: pytest.MonkeyPatch, **values: str) -> Iterator[list[str]]:
    """Let estimators of other packages be found; which groups were asked for."""
    asked = install(monkeypatch, ENTRY_POINTS, *values.items())
    _forget_estimators()
    yield asked
    _forget_estimators()


def _forget_estimators() -> None:
    estimator.cache_clear()
    calibrate_errors.cache_clear()
