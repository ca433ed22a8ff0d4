"""Compute the import closure of a stage function: all source files that its result depends on.

Imports are read from the syntax trees, those inside functions too, and nothing is imported. Of the stage
function's own module only what its body uses counts; a module below it counts with all its imports. Imports
for type checkers do not count, nor what a parent package imports for its users: of that its own file counts.
"""

from __future__ import annotations

import ast
import gc
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeAlias

from edgeship.toolkit.core import plugins
from edgeship.toolkit.core.artifact import canonical_json, sha256_bytes, sha256_file

PACKAGE = "edgeship"  # the product's own
FILE_ONLY = "!"  # after the name of a module whose imports do not count
EVERY = "*"  # in place of an imported name: every public module of the package
PLUGIN_CALLS = ("plugins.names", "plugins.get")  # their first argument is a package of plug-ins
DATA_CALLS = ("jinja2.PackageLoader",)  # their arguments are a package and a folder in it

Import: TypeAlias = tuple[str, str]  # module, and name in it or ""


class Sources:
    """The source files of packages, found by name and read once."""

    def __init__(self, roots: Mapping[str, Path]) -> None:
        """Take the folder of each package, by the package's name."""
        self._roots = dict(roots)
        self._modules: dict[str, _Module | None] = {}
        self._digests: dict[Path, str] = {}

    def digest(self, function: Callable[..., Any]) -> str:
        """Return the SHA-256 of a function, its helpers and the content of all files it reaches."""
        text, imports = self._module_of(function).used_by(function.__qualname__)
        files = {name: self._file_digest(file) for name, file in self._closure(imports).items()}
        return sha256_bytes(canonical_json([text, files]).encode())

    def files(self, function: Callable[..., Any]) -> dict[str, Path]:
        """Return the files that a function reaches: dotted module name, or package/file name -> path."""
        return self._closure(self._module_of(function).used_by(function.__qualname__)[1])

    def _closure(self, imports: Iterable[Import]) -> dict[str, Path]:
        files: dict[str, Path] = {}
        done: set[str] = set()
        pending = [name for each in imports for name in self._names(each)]
        while pending:
            name = pending.pop()
            if name in done or (module := self._module(name.rstrip(FILE_ONLY))) is None:
                continue
            done.add(name)
            parts = module.name.split(".")
            for parent in (self._module(".".join(parts[:count])) for count in range(1, len(parts) + 1)):
                if parent is not None:
                    files[parent.name] = parent.file
            if name.endswith(FILE_ONLY):
                continue
            files.update(self._data_files(module))
            pending += [name for each in module.imports for name in self._names(each)]
        return files

    def _names(self, item: Import) -> list[str]:
        """Return the modules that an import takes in; of one that only imports the name, its file counts."""
        module, name = item
        if name != EVERY:
            if name and self._module(f"{module}.{name}"):
                return [f"{module}.{name}"]
            source = self._module(module)
            if source is None and self._module(outer := module.rpartition(".")[0]):
                return self._names(
                    (outer, module.rpartition(".")[2])
                )  # an attribute of a class or a function
            if source is not None and (origin := source.imported_as(name)):
                return [f"{module}{FILE_ONLY}", *self._names(origin)]
            return [module]
        folder = self._folder(module)
        files = [*folder.glob("*.py"), *(file.parent for file in folder.glob("*/__init__.py"))]
        names = [f"{module}.{file.stem}" for file in files if not file.stem.startswith("_")]
        if PACKAGE in self._roots:
            outside = {f"{module}.{stem}": file for stem, file in plugins.outside(module).items()}
            self._modules |= {name: _Module(name, outside[name]) for name in outside if name not in names}
            names += outside
        return names

    def _data_files(self, module: _Module) -> Iterator[tuple[str, Path]]:
        for package, below in module.data_folders:
            folder = self._folder(package)
            for file in (folder / below).rglob("*"):
                if file.is_file() and "__pycache__" not in file.parts:
                    yield f"{package}/{file.relative_to(folder).as_posix()}", file

    def _module_of(self, function: Callable[..., Any]) -> _Module:
        name = function.__module__
        return self._module(name) or _Module(name, Path(function.__code__.co_filename))

    def _module(self, name: str) -> _Module | None:
        """Return the module of a dotted name; None if it is not in the packages."""
        if name not in self._modules:
            self._modules[name] = None
            if name.partition(".")[0] in self._roots:
                folder = self._folder(name)
                for file in (folder / "__init__.py", folder.with_name(f"{folder.name}.py")):
                    if file.is_file():
                        self._modules[name] = _Module(name, file)
                        break
        return self._modules[name]

    def _folder(self, name: str) -> Path:
        package, *parts = name.split(".")
        return self._roots[package].joinpath(*parts)

    def _file_digest(self, file: Path) -> str:
        if file not in self._digests:
            self._digests[file] = sha256_file(file)
        return self._digests[file]


class _Module:
    """One source file and what its syntax tree refers to."""

    def __init__(self, name: str, file: Path) -> None:
        self.name, self.file = name, file
        self._is_package = file.name == "__init__.py"

    @cached_property
    def _text(self) -> str:
        return self.file.read_text(encoding="utf-8")

    @cached_property
    def imports(self) -> list[Import]:
        """Return every import and plug-in look-up of the module."""
        return self._imports_in(_parsed(self._text))

    @cached_property
    def data_folders(self) -> list[tuple[str, str]]:
        """Return (package, folder in it) of the data files of the module."""
        folders = [(self.name, ".")] if self._is_package and "__file__" in self._text else []
        if "PackageLoader" in self._text:
            calls = [_texts(call) for call in _calls(_parsed(self._text), DATA_CALLS)]
            folders += [(package, folder) for package, folder in calls]
        return folders

    @cached_property
    def _top(self) -> tuple[dict[str, Import], dict[str, ast.stmt]]:
        """Return name -> import, and name -> definition, of the top-level statements."""
        bound: dict[str, Import] = {}
        defined: dict[str, ast.stmt] = {}
        for statement in _parsed(self._text):
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                names = [alias.asname or alias.name.split(".")[0] for alias in statement.names]
                bound |= dict(zip(names, self._imported(statement), strict=True))
            defined |= dict.fromkeys(_names_bound(statement), statement)
        return bound, defined

    def imported_as(self, name: str) -> Import | None:
        """Return the import that binds a name in this module; None if it is defined here or unknown."""
        bound, defined = self._top
        return None if name in defined else bound.get(name)

    def used_by(self, function: str) -> tuple[str, list[Import]]:
        """Return the source of a function and of what it uses in this module; and what these import.

        Of a function that is not at the top, all of the module counts.
        """
        bound, defined = self._top
        if function not in defined:
            return self._text, self.imports
        used: dict[str, ast.stmt] = {}
        imports: set[Import] = set()
        pending, done = [function], set()
        while pending:
            name = pending.pop()
            if name in done:
                continue
            done.add(name)
            first, _, attribute = name.partition(".")
            if first in bound:
                module, inner = bound[first]
                whole = f"{module}.{inner}" if inner else module
                imports.add((whole, attribute) if attribute else bound[first])
            if first in defined and first not in used:
                used[first] = defined[first]
                imports |= set(self._imports_in([defined[first]]))
                pending += _names_used(defined[first])
        lines = self._text.splitlines()
        texts = [lines[used[name].lineno - 1 : used[name].end_lineno] for name in sorted(used)]
        return canonical_json(texts), sorted(imports)

    def _imports_in(self, body: list[ast.stmt]) -> list[Import]:
        imports = []
        for statement in _statements(body):
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                imports += self._imported(statement)
        if "plugins" in self._text:
            imports += [(_texts(call)[0], EVERY) for call in _calls(body, PLUGIN_CALLS) if _texts(call)]
        if "__package__" in self._text:  # relative imports by computed names
            imports += [(self.name if self._is_package else self.name.rpartition(".")[0], EVERY)]
        return imports

    def _imported(self, statement: ast.Import | ast.ImportFrom) -> list[Import]:
        if isinstance(statement, ast.Import):
            return [(alias.name, "") for alias in statement.names]
        module = statement.module or ""
        if statement.level:
            parts = self.name.split(".")
            base = parts[: len(parts) - statement.level + self._is_package]
            module = ".".join([*base, *module.split(".")] if module else base)
        return [(module, alias.name) for alias in statement.names]


def _parsed(text: str) -> list[ast.stmt]:
    enabled = gc.isenabled()
    gc.disable()  # collecting amid so many new nodes takes longer than parsing
    try:
        return ast.parse(text).body
    finally:
        if enabled:
            gc.enable()


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Return all statements that run, nested ones too: not those for type checkers."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If) and _dotted(statement.test).endswith("TYPE_CHECKING"):
            yield from _statements(statement.orelse)
            continue
        for field in ("body", "orelse", "handlers", "finalbody", "cases"):
            yield from _statements(getattr(statement, field, ()))


def _calls(body: Iterable[ast.stmt], names: tuple[str, ...]) -> Iterator[ast.Call]:
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and _dotted(node.func) in names:
                yield node


def _dotted(node: ast.expr) -> str:
    """Return `a.b` for names and attributes; empty for other expressions."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _texts(call: ast.Call) -> list[str]:
    """Return the arguments of a call that are constant texts."""
    return [
        each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)
    ]


def _names_bound(statement: ast.stmt) -> list[str]:
    """Return the names that a statement at the top of a module defines."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        names = (node for node in ast.walk(statement) if isinstance(node, ast.Name))
        return [name.id for name in names if isinstance(name.ctx, ast.Store)]
    return []


def _names_used(statement: ast.stmt) -> list[str]:
    """Return the names that run with a statement, `a.b` of attributes too: not those of annotations."""
    annotations = [
        each
        for node in ast.walk(statement)
        for each in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if each is not None
    ]
    skipped = {id(inner) for each in annotations for inner in ast.walk(each)}
    names = []
    for node in ast.walk(statement):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and id(node) not in skipped:
            names.append(f"{node.value.id}.{node.attr}")
            skipped.add(id(node.value))
        elif isinstance(node, ast.Name) and id(node) not in skipped:
            names.append(node.id)
    return names


@cache
def installed() -> Sources:
    """Return the sources of the product as installed here, found without importing them."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(PACKAGE)
    return Sources({PACKAGE: Path(spec.submodule_search_locations[0])})
