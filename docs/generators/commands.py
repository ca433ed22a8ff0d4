"""Generate the reference of the command line from the click commands."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from docs.generators import cell, code, page, table
from edgeship.toolkit.cli.app import app


def pages() -> Iterator[tuple[str, str]]:
    """Yield one page for each command, and their list."""
    context = click.Context(app, info_name="edgeship")
    rows = []
    for name in app.list_commands(context):
        command = app.get_command(context, name)
        assert command is not None, name
        if command.hidden:
            continue
        rows.append((f"[{name}]({name}.md)", command.get_short_help_str(200)))
        yield f"reference/commands/{name}.md", page(f"edgeship {name}", *_described(command, context, name))
    text = _paragraphs(app.help or "")
    yield "reference/commands/index.md", page("Commands", text, table(("command", "purpose"), rows))


def _described(command: click.Command, parent: click.Context, name: str, level: int = 2) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{context.command_path} {usage}\n```"
    yield _paragraphs(command.help or "")
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    options = [each for each in command.get_params(context) if isinstance(each, click.Option)]
    rows = [(_names(each), _value(each), _help(each, context)) for each in options if not each.hidden]
    if arguments and not isinstance(command, click.Group):
        named = [(code(each.make_metavar(context)), cell(each.type.name)) for each in arguments]
        yield table(("argument", "type"), named)
    yield table(("option", "value", "meaning"), rows)
    if command.epilog:
        yield _paragraphs(command.epilog)
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            each = command.get_command(context, inner)
            assert each is not None, inner
            yield f"{'#' * level} {context.command_path} {inner}"
            yield from _described(each, context, inner, level + 1)


def _names(option: click.Option) -> str:
    return ", ".join(code(name) for name in (*option.opts, *option.secondary_opts))


def _value(option: click.Option) -> str:
    if option.is_flag or option.count:
        return ""
    if isinstance(option.type, click.Choice):
        return ", ".join(code(choice) for choice in option.type.choices)
    return code(option.metavar or option.type.name.upper())


def _help(option: click.Option, context: click.Context) -> str:
    text = option.help or ""
    default = option.get_default(context, call=False)
    shown = option.show_default and default is not None and not callable(default)
    repeated = " Repeatable." if option.multiple and "repeatable" not in text.lower() else ""
    return f"{text}{repeated}" + (f" Default: {code(default)}." if shown else "")


def _paragraphs(text: str) -> str:
    """Return help text as Markdown; paragraphs that click keeps as they are become code."""
    parts = []
    for part in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if part.startswith("\b"):
            parts.append("```text\n" + part.lstrip("\b\n") + "\n```")
        else:
            parts.append(re.sub(r"\s+", " ", part).replace("<", "&lt;"))
    return "\n\n".join(parts)
