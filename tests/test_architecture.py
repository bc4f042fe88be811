"""The import rules of the house: downward only, and the pass library only through the public door."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fxexport

HOUSE = Path(next(iter(fxexport.__path__)))
# From the ground up. A module may import from its own room and from rooms below, never sideways or upwards.
FLOORS = [
    {"errors", "repro"},
    {
        "signature",
        "decisions",
        "input_assumption",
        "shape_rules",
        "destination",
        "graph_copy",
        "control_flow",
        "tensor_types",
        "pipeline",
    },
    {"value_cache", "publishing", "type_naming", "node_values", "program_parts"},
    {"program", "type_alignment"},
    {"capture"},
    {"exportable"},
    {"rewrite"},
    {"ops", "assumptions"},
    {"lowering"},
    {"session", "validation", "precision"},
    {"blame", "subnets"},
    {"report"},
    {"artifact", "assuming", "doctor", "rejection"},
    {"compiling"},
    {"pipeline_export"},
    {"subnet_request"},
    {"subnet_examples"},
    {"subnet_export"},
    {"compiler", "verification"},
    {"testing", "cli", "cli_console", "cli_doctor", "cli_options", "cli_passes", "cli_run", "cli_targets"},
    {"__main__"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
PUBLIC_TO_PASSES = {"fxexport.rewrite", "fxexport.program", "fxexport.ops", "fxexport.assumptions"}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module of ours that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} uses a relative import"
            names = [str(node.module)]
            if node.module == "fxexport":
                names = [f"fxexport.{alias.name}" for alias in node.names]
        yield from ((name, node.lineno) for name in names if name.split(".")[0] == "fxexport")


def sources() -> list[Path]:
    return [
        p
        for p in sorted(HOUSE.rglob("*.py"))
        if "passes" not in p.relative_to(HOUSE).parts and p != HOUSE / "__init__.py"
    ]


def room_of(path: Path) -> str:
    parts = path.relative_to(HOUSE).parts
    return parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(HOUSE)))
def test_imports_go_downward(path: Path) -> None:
    room = room_of(path)
    assert room in FLOOR_OF, f"{room} has no floor: add it to FLOORS"
    for name, line in imports(path):
        other = name.split(".")[1] if "." in name else ""
        if other in ("", room) or name == "fxexport.__version__":
            continue
        assert other in FLOOR_OF, f"{path.name}:{line} imports {name}, which has no floor"
        same_hall = FLOOR_OF[other] == FLOOR_OF[room] and room.startswith(("cli", "session", "validation"))
        assert FLOOR_OF[other] < FLOOR_OF[room] or same_hall, f"{path.name}:{line}: {room} must not import {other}"


@pytest.mark.parametrize("path", sorted((HOUSE / "passes").glob("*.py")), ids=lambda p: p.name)
def test_passes_use_only_the_public_door(path: Path) -> None:
    for name, line in imports(path):
        allowed = name in PUBLIC_TO_PASSES or (path.name == "__init__.py" and name.startswith("fxexport.passes."))
        assert allowed, f"{path.name}:{line} imports {name}"


def test_nothing_imports_the_pass_library() -> None:
    for path in sources():
        found = [line for name, line in imports(path) if name.startswith("fxexport.passes")]
        assert not found, f"{path}:{found} imports fxexport.passes; only the entry point may"


def test_a_pass_file_its_class_and_its_name_agree() -> None:
    from fxexport.rewrite import available

    for name, cls in available().items():
        if cls.__module__.startswith("fxexport.passes."):
            module = cls.__module__.rpartition(".")[2]
            assert module == name.replace("-", "_")
            assert cls.__name__ == "".join(part.capitalize() for part in name.split("-"))
            assert "->" in (cls.__doc__ or ""), f"{cls.__name__} does not draw its rewrite"
