"""Tests share nothing but what lies beside them: no test, and nothing shared, imports a test."""

import ast
from pathlib import Path

import pytest

from tests.support.scheduling import TABLES, group_of

ROOT = Path(__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def modules(path: Path) -> set[str]:
    """What a file imports, also inside functions: modules, and names that may be modules."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_no_test_is_imported() -> None:
    for path in FILES:
        for module in modules(path):
            parts = module.split(".")
            is_test = parts[0] == "tests" and any(part.startswith("test_") for part in parts)
            assert not is_test, f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("path", sorted((ROOT / "naive").glob("*.py")), ids=lambda path: path.stem)
def test_naive_twins_know_nothing_of_what_they_check(path: Path) -> None:
    assert not [module for module in modules(path) if module.split(".")[0] == "recover"]


def test_files_are_short() -> None:
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 500, path.relative_to(ROOT)


def test_files_with_the_same_tables_stay_together() -> None:
    groups = {path: group_of(str(path.relative_to(ROOT.parent))) for path in FILES}
    assert groups[ROOT / "test_layers.py"] == "tests/test_layers.py"
    together = {path.name for path, group in groups.items() if group == TABLES}
    assert together >= {"test_posterior_quality.py", "test_dequantize.py", "test_right_sets.py"}
