"""Generate one page for each error class: the hand-written cause and cure, and every message in the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from docs.generators import ROOT, page, summary, table
from edgeship.toolkit.core import errors

WRITTEN = ROOT / "docs" / "pages" / "errors"
SOURCES = ("toolkit", "quantize", "targets", "calibration")
LONGEST = 30  # characters of an expression in a message; longer ones are shown as ...


def classes() -> tuple[type[errors.ToolkitError], ...]:
    """Return the error classes of users' errors."""
    found = [errors.ToolkitError, *errors.ToolkitError.__subclasses__()]
    return tuple(kind for kind in found if kind.__module__ == errors.__name__)


def pages() -> Iterator[tuple[str, str]]:
    """Yield one page for each class, and their list."""
    raised = list(messages())
    rows = []
    for kind in classes():
        name = kind.__name__
        written = (WRITTEN / f"{name}.md").read_text(encoding="utf-8").strip()
        own = sorted({row[1:] for row in raised if row[0] == name})
        listed = table(("message", "hint", "module"), own) if own else "None directly."
        yield f"errors/{name}.md", f"{written}\n\n## Messages in the code\n\n{listed}"
        rows.append((f"[{name}]({name}.md)", str(kind.exit_code), summary(kind).splitlines()[0]))
    text = (
        "An error names what failed, the value seen and the value expected; the line below it, the hint, is "
        "one command or setting. `--debug` shows the traceback. An exception of another class is a fault of "
        "edgeship."
    )
    yield "errors/index.md", page("Errors", text, table(("class", "#exit code", "meaning"), rows))


def messages() -> Iterator[tuple[str, str, str, str]]:
    """Yield class, message, hint and module of every error that the code raises."""
    names = {kind.__name__ for kind in classes()}
    for file in sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                name = ast.unparse(node.exc.func).rsplit(".", 1)[-1]
                hints = [each.value for each in node.exc.keywords if each.arg == "hint"]
                if name in names and hints:
                    where = str(file.relative_to(ROOT).with_suffix("")).replace("quantize", "quantization", 1)
                    yield name, _shown(node.exc.args[0]), _shown(hints[0]), where


def _shown(node: ast.expr) -> str:
    """Return the text of a message, with the expressions that it is formed of in braces."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_shown(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        node = node.value
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _shown(node.left) + _shown(node.right)
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("nearest"):
        return "the nearest known name"
    text = ast.unparse(node)
    return f"{{{text}}}" if len(text) <= LONGEST and "[" not in text else "{...}"
