"""The figures of a report's page are those of JSON."""

import json
from typing import Any

import pytest

from tests.support.html_pages import Cell, Page

ERRORS = {
    "n_weights": "weights",
    "rmse": "rmse",
    "mse": "mse",
    "max_abs_error": "max",
    "p95_abs_error": "p95",
    "median_abs_error": "median",
    "sqnr_db": "SQNR dB",
    "exact_fraction": "exact",
}


def embedded(page: Page) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(page.scripts[0][1])
    return document


def check_errors(heads: list[Cell], row: list[Cell], errors: dict[str, Any]) -> None:
    keys = {cell.attributes.get("data-key"): i for i, cell in enumerate(heads)}
    for key, name in ERRORS.items():
        at = keys[key]
        assert heads[at].text == name
        assert json.loads(row[at].attributes["data-value"]) == errors[key]
        check_shown(row[at], errors[key])


def check_shown(cell: Cell, value: Any) -> None:
    """What people read is the figure, rounded."""
    if value is None:
        assert cell.text == "-"
        return
    values = value if isinstance(value, list) else [value]
    for part, each in zip(cell.text.split(" to "), values, strict=True):
        factor = 0.01 if part.endswith("%") else 1
        shown = float(part.rstrip("%").replace(",", "")) * factor
        assert shown == pytest.approx(each, rel=6e-4, abs=6e-5 if factor < 1 else 6e-7)


def check_figures(page: Page, document: dict[str, Any]) -> None:
    assert embedded(page) == document
    summary, *others = page.tables
    models = document["models"]
    assert len(summary) == 1 + len(models)
    for row, model in zip(summary[1:], models, strict=True):
        check_errors(summary[0], row, model["total"])
        assert float(row[-1].text) == pytest.approx(
            model["total"]["mse"] / models[0]["total"]["mse"], abs=6e-5
        )
    measured = [model["divergence"] for model in models if model["divergence"]]
    if measured:
        check_divergence(others.pop(0), measured)
    for table, model in zip(others, models, strict=True):
        assert len(table) == 1 + len(model["tensors"])
        for row, tensor in zip(table[1:], model["tensors"], strict=True):
            assert row[1].text == tensor["type"]
            check_errors(table[0], row, tensor)


def check_divergence(table: list[list[Cell]], measured: list[dict[str, Any]]) -> None:
    rows = {row[0].attributes["data-key"]: row[1:] for row in table[1:]}
    keys = [key for key in measured[1] if key != "paired"]
    assert set(rows) == {*keys, *(f"paired.{key}" for key in measured[1]["paired"])}
    for i, divergence in enumerate(measured):
        figures = {key: divergence[key] for key in keys}
        paired = divergence.get("paired", dict.fromkeys(measured[1]["paired"]))
        figures |= {f"paired.{key}": value for key, value in paired.items()}
        for key, value in figures.items():
            assert json.loads(rows[key][i].attributes["data-value"]) == value
            check_shown(rows[key][i], value)
