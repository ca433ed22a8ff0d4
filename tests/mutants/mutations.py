"""Generate small faults in Python source: operators, constants, bounds, calls and branches."""

from __future__ import annotations

import ast
from collections.abc import Iterator

COMPARED = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.Is: "is not",
    ast.IsNot: "is",
}
CALCULATED = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "/", ast.BitOr: "&"}
RENAMED = {"min": "max", "max": "min", "all": "any", "any": "all", "sorted": "list", "floor": "ceil"}
NO_EFFECT = {"strict", "frozen", "slots", "indent", "encoding", "exist_ok", "copy", "parents"}  # keywords


def of(text: str) -> Iterator[tuple[str, str, str]]:
    """Return every mutation of a source text: line:column, change, and the whole text with it."""
    tree = ast.parse(text)
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    data = text.encode()
    for node, replacement in _faults(tree):
        start, end = (
            starts[node.lineno - 1] + node.col_offset,
            starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0),
        )
        before = data[start:end].decode()
        faulty = (data[:start] + replacement.encode() + data[end:]).decode()
        shown = (" ".join(before.split()), " ".join(replacement.split()))
        yield f"{node.lineno}:{node.col_offset + 1}", f"{shown[0][:90]} -> {shown[1][:90]}", faulty


def _faults(tree: ast.Module) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    skipped = _skipped(tree)
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        yield from _expression_faults(node)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield node, "pass"
        if isinstance(node, (ast.If, ast.IfExp)):
            yield node.test, f"(not ({ast.unparse(node.test)}))"
        if isinstance(node, ast.Continue):
            yield node, "break"


def _expression_faults(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED and len(node.ops) == 1:
        left, right = ast.unparse(node.left), ast.unparse(node.comparators[0])
        yield node, f"({left} {COMPARED[type(node.ops[0])]} {right})"
    if isinstance(node, ast.BinOp) and type(node.op) in CALCULATED:
        yield node, f"({ast.unparse(node.left)} {CALCULATED[type(node.op)]} {ast.unparse(node.right)})"
    if isinstance(node, ast.BoolOp):
        other = " or " if isinstance(node.op, ast.And) else " and "
        yield node, "(" + other.join(f"({ast.unparse(value)})" for value in node.values) + ")"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield node, f"({ast.unparse(node.operand)})"
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield node, str(not node.value)
        elif isinstance(node.value, int):
            yield node, str(node.value + 1)
        elif isinstance(node.value, float):
            yield node, repr(node.value * 2 or 1.0)
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in RENAMED:
            yield node.func, ast.unparse(node.func)[: -len(name)] + RENAMED[name]


def _skipped(tree: ast.Module) -> set[int]:
    """Return the ids of nodes without effect on behaviour: annotations, messages, type-checking blocks."""
    excluded: list[ast.AST | None] = []
    for node in ast.walk(tree):
        excluded += [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Assert)):
            excluded.append(node)
        if isinstance(node, ast.keyword) and node.arg in NO_EFFECT:
            excluded.append(node)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            excluded.append(node)
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and ast.unparse(node).startswith("__all__"):
            excluded.append(node)
        for decorator in getattr(node, "decorator_list", []):
            excluded.append(decorator)
    return {id(inner) for each in excluded if each is not None for inner in ast.walk(each)}
