"""The rooms of flaxcle: an import never points up, and the insides of jax stay in one room."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "flaxcle"
LEVELS = (
    ("errors", "tables", "cache"),
    ("paths",),
    ("descent",),
    ("spec",),
    ("jaxpr",),
    ("rules",),
    ("discover",),
    ("ranges",),
    ("solve",),
    ("apply",),
    ("states",),
    ("fold", "clips", "prune"),
    ("quantize",),
    ("bias", "rounding"),
    ("learn", "distill"),
    ("recipe",),
    ("verify", "compare", "analysis", "report", "plot", "checkpoint", "cli"),
    ("__init__",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
DECLARED_CORE = ("spec", "solve", "apply")
ANALYSIS = {"jaxpr", "rules", "discover"}
JAX_INSIDES = ("jax.extend", "jax.core", "jax._src")
EXTRAS = ("matplotlib", "pandas", "rich", "safetensors", "vl_convert", "itables")


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Every dotted name that a module imports, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(name, package)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def mentioned(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that a module spells out in code: `jax.core.Jaxpr`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def rooms_imported(tree: ast.AST, package: str) -> set[str]:
    names = (name for name in imported(tree, package) if name.split(".")[0] == "flaxcle")
    candidates = {room_of(name) for name in names}
    return {room if room in LEVEL else "__init__" for room in candidates}


def parse(file: Path) -> tuple[ast.AST, str]:
    module = module_name(file)
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    return ast.parse(file.read_text(encoding="utf-8"), str(file)), package


MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [module_name(file) for file in MODULES]


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for file in MODULES:
        room = room_of(module_name(file))
        graph.setdefault(room, set()).update(rooms_imported(*parse(file)) - {room})
    return graph


@pytest.mark.parametrize("file", MODULES, ids=NAMES)
def test_import_never_points_up(file):
    room = room_of(module_name(file))
    assert room in LEVEL, f"the room {room!r} is new: give it a level in LEVELS of {__file__}"
    above = {other for other in rooms_imported(*parse(file)) if LEVEL[other] > LEVEL[room]}
    assert not above, f"{module_name(file)} (room {room}) imports from above: {sorted(above)}"


def test_rooms_of_one_level_form_no_cycle(arrows):
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"rooms import each other: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("room", DECLARED_CORE)
def test_hand_written_spec_needs_no_analysis(room, arrows):
    reached, todo = set(), [room]
    while todo:
        for other in arrows.get(todo.pop(), set()) - reached:
            reached.add(other)
            todo.append(other)
    assert not reached & ANALYSIS, f"{room} reaches {sorted(reached & ANALYSIS)}"


@pytest.mark.parametrize("file", MODULES, ids=NAMES)
def test_only_jaxpr_knows_the_insides_of_jax(file):
    tree, package = parse(file)
    names = {*imported(tree, package), *mentioned(tree)}
    inside = {name for name in names if f"{name}.".startswith(tuple(f"{p}." for p in JAX_INSIDES))}
    assert not inside or room_of(module_name(file)) == "jaxpr", (
        f"{module_name(file)} uses {sorted(inside)}: only flaxcle.jaxpr may"
    )


def test_the_check_sees_every_spelling():
    source = "from . import paths\nfrom ..solve import x\nfrom flaxcle import spec, equalize\n"
    tree = ast.parse(source + "def f():\n  import flaxcle.rules.conv\n")
    found = rooms_imported(tree, "flaxcle.spec")
    assert found == {"spec", "solve", "rules", "__init__"}
    assert "jax.core" in set(imported(ast.parse("from jax import core"), "flaxcle"))


def test_import_loads_no_extra():
    """What jax, flax and optax load by themselves is theirs."""
    code = (
        "import sys, jax, optax, flax.linen, flax.nnx\nbefore = set(sys.modules)\nimport flaxcle\n"
        f"print(*sorted(set({EXTRAS}) & (set(sys.modules) - before)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
