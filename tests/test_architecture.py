"""Which room may know which. The arrows are read from every import in the code, those inside functions and under
TYPE_CHECKING too; docs/architecture.md draws them."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Room -> the rooms that its files may import from. A room always knows itself.
ARROWS = {
    "files": set(),
    "pictures": {"files"},
    "drawing": {"files"},
    "core": {"files"},
    "runs": {"core", "files"},
    "miniature": {"files"},
    "miniature.world": {"miniature"},
    "bases": {"runs", "core", "files", "pictures", "miniature", "miniature.world"},
    "measures": {"bases", "runs", "files", "drawing", "miniature", "miniature.world"},
    "miniature.train": {"bases", "runs", "core", "files", "pictures", "drawing", "miniature", "miniature.world"},
    "diffusion": {"measures", "bases", "runs", "core", "files", "pictures", "drawing", "miniature"},
    "classification": {"bases", "runs", "core", "files", "pictures", "miniature", "miniature.world"},
    "integrations": {"bases", "runs", "core", "files"},
    "eval": {"measures", "bases", "runs", "core", "files", "pictures", "drawing", "miniature", "miniature.world"},
    # The front door: the package's __init__ and its command line, and the scripts.
    "": {"core", "files"},
    "commands": {"diffusion", "classification", "bases", "runs", "core", "files", "miniature", "miniature.world"},
    "studio": {
        *("commands", "diffusion", "measures", "runs", "files", "pictures", "drawing", "miniature", "miniature.world"),
        "",
    },
    "command": {"commands", "studio", "diffusion", "classification", "runs", "files", "eval"},
}
# What code outside the standard library a room may import at all; None: anything that pyproject.toml names.
FOREIGN = {"core": {"torch", "safetensors"}, "files": {"torch", "safetensors"}}


def files():
    for folder in ("dash_vision", "eval"):
        yield from sorted((ROOT / folder).rglob("*.py"))
    yield from (ROOT / "train_dreambooth.py", ROOT / "train_vtab.py")


def room_of(dotted):
    """ "dash_vision.miniature.train.vit" -> "miniature.train"; a command line is the room "command"."""
    parts = dotted.split(".")
    if parts[0] in ("train_dreambooth", "train_vtab") or dotted == "dash_vision.__main__":
        return "command"
    if parts[:2] == ["dash_vision", "commands"]:
        return "commands"
    if parts[0] == "eval" or parts[:2] == ["dash_vision", "evaluation"]:  # its name in an install
        return "eval"
    inner = parts[1:]
    if not inner:
        return ""
    if inner[0] == "miniature":
        if inner[1:2] == ["__main__"]:
            return "miniature.train"
        return ".".join(inner[:2]) if inner[1:2] in (["world"], ["train"]) else "miniature"
    return inner[0]


def dotted_name(path):
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Dotted names of every module that a file imports, wherever in it."""
    here = dotted_name(path).split(".")
    package = here if path.name == "__init__.py" else here[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                yield whole if is_module(whole) else module


def is_module(dotted):
    place = ROOT.joinpath(*dotted.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def is_ours(dotted):
    return dotted.split(".")[0] in ("dash_vision", "eval", "train_dreambooth", "train_vtab")


def test_every_arrow_is_in_the_list():
    wrong = []
    for path in files():
        room = room_of(dotted_name(path))
        for name in filter(is_ours, imports(path)):
            if room_of(name) not in {room, *ARROWS[room]}:
                wrong.append(f"{path.relative_to(ROOT)} ({room}) imports {name} ({room_of(name)})")
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_rooms_are_those_of_the_list():
    there = {room_of(dotted_name(path)) for path in files()}
    assert there <= ARROWS.keys()
    root = {path.name for path in (ROOT / "dash_vision").iterdir() if path.is_file()}
    assert root == {"__init__.py", "__main__.py", "py.typed"}


def test_no_arrow_of_the_list_leads_in_a_circle():
    def reachable(room, seen):
        for next_room in ARROWS[room]:
            if next_room not in seen:
                seen.add(next_room)
                reachable(next_room, seen)
        return seen

    assert [room for room in ARROWS if room in reachable(room, set())] == []


def test_no_file_reaches_itself_through_its_imports():
    graph = {dotted_name(path): {name for name in imports(path) if is_ours(name)} for path in files()}
    state = {}

    def visit(name, way):
        state[name] = "open"
        for other in sorted(graph.get(name, ())):
            if state.get(other) == "open":
                pytest.fail(" -> ".join([*way[way.index(other) :], other] if other in way else [*way, other]))
            if other not in state:
                visit(other, [*way, other])
        state[name] = "done"

    for name in graph:
        if name not in state:
            visit(name, [name])


def test_eval_never_imports_a_trainer():
    for path in sorted((ROOT / "eval").rglob("*.py")):
        trainers = {n for n in imports(path) if n.startswith(("dash_vision.diffusion", "dash_vision.classification"))}
        assert not trainers, f"{path.name}: {trainers}"


@pytest.mark.parametrize("room", FOREIGN)
def test_the_core_knows_torch_and_safetensors_alone(room):
    for path in sorted((ROOT / "dash_vision" / room).rglob("*.py")):
        for name in imports(path):
            top = name.split(".")[0]
            known = top in sys.stdlib_module_names or top in FOREIGN[room] or is_ours(name)
            assert known, f"{path.relative_to(ROOT)} imports {name}"


def test_no_module_hides_a_function_of_its_package():
    """`import dash_vision.inject` gave the function, not the module of that name."""
    for package in [p.parent for p in (ROOT / "dash_vision").rglob("__init__.py")]:
        tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        listed = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        defined |= {alias.asname or alias.name for node in listed for alias in node.names}
        modules = {p.stem for p in package.glob("*.py")} | {p.name for p in package.iterdir() if p.is_dir()}
        assert not (defined & modules - {"annotations"}), package
