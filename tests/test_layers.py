"""Imports point down only: no room knows one above it, and no two know each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1] / "recover"

# From the top; rooms of one line do not import each other.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("__init__",),
    ("api",),
    ("evaluate",),
    ("inspect",),
    ("bounds", "export", "reblock"),
    ("training",),
    ("merge",),
    ("quantize",),
    ("calibration",),
    ("estimators",),
    ("inputs",),
    ("evidence",),
    ("execution",),
    ("containers",),
    ("quants",),
    ("_compiled",),
    ("_stopping", "_json", "_files", "_brief"),
    ("_text", "errors", "_version", "_calling"),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
FILES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool, bool]]:
    """What a file imports of this package: module, whether in a function, whether for types."""

    def walk(node: ast.AST, inside: bool, types: bool) -> Iterator[tuple[str, bool, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, inside, types) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                for alias in child.names:
                    whole = f"{child.module}.{alias.name}"
                    is_module = ROOT.parent.joinpath(*whole.split(".")).with_suffix(".py").exists()
                    is_package = ROOT.parent.joinpath(*whole.split("."), "__init__.py").exists()
                    yield (whole if is_module or is_package else child.module or ""), inside, types
            else:
                is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                yield from walk(child, inside or is_function, types or for_types)

    for name, inside, types in walk(ast.parse(path.read_text()), False, False):
        if name.split(".")[0] == "recover":
            yield name, inside, types


def room_of(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def test_every_room_has_a_layer() -> None:
    rooms = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES}
    assert rooms == set(LEVEL)


def test_imports_point_down() -> None:
    for path in FILES:
        name = str(path.relative_to(ROOT))
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for module, inside, types in imports(path):
            other = room_of(module)
            if other == room or (room == "__init__" and types):  # public names, loaded on first use
                continue
            assert LEVEL[other] > LEVEL[room], f"{name} imports {module}"
            # The command line starts fast because each command loads what it needs.
            assert room == "cli" or not inside, f"{name} imports {module} inside a function"
