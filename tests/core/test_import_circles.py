"""No import circle in the product: neither at import time nor by imports inside functions.

Allowed: a module and the package that contains it, as Python imports the package first; types that only the
type checker reads (`if TYPE_CHECKING`), and plugins that are loaded by name.
"""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "toolkit": "toolkit",
    "quantize": "quantization",
    "targets": "targets",
    "calibration": "calibration",
}


@cache
def modules():
    """Return module name -> file."""
    paths = {f"edgeship.{name}": ROOT / folder for folder, name in FOLDERS.items()}
    found = {"edgeship": ROOT / "edgeship" / "__init__.py"}
    for package, folder in paths.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


def imported(name, tree, known):
    """Return the modules that a module imports anywhere, without those for types alone."""
    result, stack = set(), [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            stack.extend(node.orelse)
            continue
        stack.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            result |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            result |= {each if each in known else node.module for each in names}
    return {each for each in result if each in known and not f"{name}.".startswith(f"{each}.")}


def circle(edges):
    """Return one circle of a graph {node: successors}; [] without one."""
    done = set()
    for start in sorted(edges):
        path, stack = [start], [(start, iter(sorted(edges[start])))]
        while stack:
            following = next(stack[-1][1], None)
            if following is None:
                done.add(path.pop())
                stack.pop()
            elif following in path:
                return [*path[path.index(following) :], following]
            elif following not in done:
                path.append(following)
                stack.append((following, iter(sorted(edges[following]))))
    return []


def test_the_product_has_no_import_circle():
    known = modules()
    assert len(known) > 200
    edges = {
        name: imported(name, ast.parse(path.read_text(encoding="utf-8")), known)
        for name, path in known.items()
    }
    assert edges["edgeship.targets.tensorrt"] >= {"edgeship.targets.tensorrt.repair"}
    assert circle(edges) == []


def test_circles_are_found_also_in_functions_and_not_in_type_checks():
    known = {name: Path() for name in ("a.x", "a.y", "a.z")}
    code = "def f():\n    from a import y\nif TYPE_CHECKING:\n    import a.z\n"
    assert imported("a.x", ast.parse(code), known) == {"a.y"}
    assert circle({"a.x": {"a.y"}, "a.y": {"a.z"}, "a.z": {"a.x"}}) == ["a.x", "a.y", "a.z", "a.x"]
    assert circle({"a.x": {"a.y", "a.z"}, "a.y": {"a.z"}, "a.z": set()}) == []
