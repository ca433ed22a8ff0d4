"""Command-line entry point: find commands by file name, print errors, set the exit code."""

from __future__ import annotations

import codecs
import errno
import importlib
import io
import logging
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from edgeship.toolkit.cli._options import Resumable
from edgeship.toolkit.core import signals
from edgeship.toolkit.core.errors import ToolkitError, nearest
from edgeship.toolkit.core.paths import siblings

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
RESUMES = "finished work is saved; repeat the command to continue"
RESTARTS = "no partial results were saved; repeat the command to start again"
PLAIN = str.maketrans({"−": "-", "–": "-", "─": "-", "×": "x", "·": ".", "≥": ">=", "…": "...", "±": "+-"})
TASKS = {  # title of the help -> commands
    "Start": ("run", "init", "list", "doctor"),
    "Models and images": ("train", "data", "inspect", "audit"),
    "Compress": ("prune", "quantize"),
    "Measure and report": ("bench", "report", "compare", "verify", "predict", "prove"),
    "Deploy": (
        "bundle",
        "deploy",
        "device",
        "status",
        "watch",
        "rollback",
        "prune-releases",
        "export-jetson",
    ),
    "Build an application": ("export-app",),
    "Housekeeping": ("store", "completion"),
}


class Commands(click.Group):
    """Group with one command per file of this folder: `export_jetson.py` is `edgeship export-jetson`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the sorted command names."""
        files = Path(__file__).parent.glob("*.py")
        stems = {file.stem for file in files} - {Path(__file__).stem}
        return sorted(stem.replace("_", "-") for stem in stems if not stem.startswith("_"))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import one command."""
        if name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"edgeship.toolkit.cli.{name.replace('-', '_')}")
        command: click.Command = module.command
        _with_common_options(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by task, each with its whole first sentence."""
        listed = [name for names in TASKS.values() for name in names]
        others = tuple(name for name in self.list_commands(ctx) if name not in listed)
        for title, names in {**TASKS, "Other": others}.items():
            commands = [(name, command) for name in names if (command := self.get_command(ctx, name))]
            rows = [(name, (command.help or "").split("\n\n")[0]) for name, command in commands]
            if rows:
                with formatter.section(title):
                    formatter.write_dl([(name, " ".join(text.split())) for name, text in rows], col_max=16)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command; raise with the nearest name as hint if there is none."""
        name = args[0]
        if not name.startswith("-") and name not in self.list_commands(ctx):
            raise _UnknownCommandError(f"no command named '{name}'", nearest(name, self.list_commands(ctx)))
        return super().resolve_command(ctx, args)


class _UnknownCommandError(click.UsageError):
    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: edgeship run quickstart",
)
@click.version_option(metadata.version("edgeship"), prog_name="edgeship")
def app() -> None:
    """Prune, quantize, compile and deploy image classifiers.

    Takes ResNets and other ONNX image classifiers through structured pruning, INT8 post-training
    quantization and compilation for OpenVINO, ONNX Runtime and TensorRT (Jetson), and reports accuracy and
    latency with 95 % intervals.

    Exit codes: 0 success; 1 the command failed; 2 wrong usage (option, recipe or missing path); 3 a limit
    was missed; 130 interrupted.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Exit codes: 0 success, 1 failure, 2 wrong usage, 3 missed gate, 130 interrupted.
    """
    signals.leave(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    if (code := _complete()) is not None:
        return code
    debug = resumable = False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # closed
                stream.reconfigure(errors="edgeship")
    # OpenMP's default of spinning at barriers slows training tenfold on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signals.install()
    try:
        with app.make_context("edgeship", arguments) as context:
            context.obj = {"debug": False, "quiet": False}
            try:
                with signals.interrupts():
                    app.invoke(context)
            finally:
                debug = context.obj["debug"]
                called = app.get_command(context, context.invoked_subcommand or "")
                resumable = isinstance(called, Resumable)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.UsageError as error:
        message = " ".join(error.format_message().split())  # click lists choices on lines of their own
        _print(message, getattr(error, "hint", "") or _usage_hint(error))
        return error.exit_code
    except click.ClickException as error:
        _print(error.format_message(), "check the path and its permissions")
        return error.exit_code
    except ToolkitError as error:
        if debug:
            raise
        _print(str(error), error.hint, _page(error))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as interrupt:
        # Python's codecs raise KeyboardInterrupt with messages of their own, which are of no use here.
        message = str(interrupt) if str(interrupt).startswith(("interrupted", "stopped")) else "interrupted"
        _print(message, RESUMES if resumable else RESTARTS)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of stdout exited, e.g. `| head`
        _drop_output()
        return 1
    except OSError as error:
        if debug:
            raise
        _drop_output()
        place = f"{error.filename}: " if error.filename else ""
        hint = "check the path, its permissions and the free space"
        if error.errno == errno.ENOSPC:
            hint = "free space on the disk that is written to, or write to another one, e.g. with --out"
        _print(f"{place}{error.strerror or error}", hint)
        return 1
    return 0


def _drop_output() -> None:
    """Discard what stdout still holds, where it cannot be written, so that Python does not try again."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _replacement(error: UnicodeError) -> tuple[str, int]:
    """Replace what a terminal or file of another encoding than UTF-8 cannot show."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(PLAIN)
    return text.encode(error.encoding, "backslashreplace").decode(error.encoding), error.end


codecs.register_error("edgeship", _replacement)


def _usage_hint(error: click.UsageError) -> str:
    """Return the next step after wrong usage: the place of an option, the nearest path, or the help."""
    context = error.ctx
    if isinstance(error, click.NoSuchOption) and not error.possibilities and context and not context.parent:
        return f"options follow the command: edgeship COMMAND {error.option_name} ..."
    missing = re.search(r"(?:Path|File|Directory) '(.+)' does not exist", error.message)
    if missing and (others := siblings(Path(missing[1]))):
        return nearest(Path(missing[1]).name, others)
    return f"see `{context.command_path if context else 'edgeship'} --help`"


def _complete() -> int | None:
    if "_EDGESHIP_COMPLETE" not in os.environ:
        return None
    from edgeship.toolkit.cli.completion import complete

    return complete(app)


def _print(message: str, hint: str, page: str = "") -> None:
    error, tip = ("error:", " hint:")
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        error, tip = click.style(error, fg="red", bold=True), click.style(tip, fg="cyan")
        error = f"\x1b]8;;{page}\x1b\\{error}\x1b]8;;\x1b\\" if page else error  # a link, by OSC 8
    click.echo(f"{error} {message}\n{tip} {hint}", err=True)


def _page(error: ToolkitError) -> str:
    """Return the address of the page with causes and cures of an error's class; empty without the sources."""
    top = Path(__file__).resolve().parents[2]
    file = top / "docs" / "pages" / "errors" / f"{type(error).__name__}.md"
    return file.as_uri() if file.is_file() else ""


def _with_common_options(command: click.Command) -> None:
    """Add --quiet, --verbose and --debug to a command and its subcommands; name the values of numbers."""
    if not any(parameter.name == "debug" for parameter in command.params):
        for each in command.params:
            if isinstance(each.type, (click.IntRange, click.FloatRange)):
                whole = isinstance(each.type, click.IntRange)
                each.type.name = "whole number" if whole else "number"
                each.metavar = each.metavar or ("N" if whole else "NUMBER")
        if not any("-v" in parameter.opts for parameter in command.params):
            command.params.append(
                click.Option(
                    ["-v", "--verbose"],
                    is_flag=True,
                    expose_value=False,
                    callback=_set_verbose,
                    help="Log more, to standard error.",
                )
            )
        command.params.append(
            click.Option(
                ["-q", "--quiet"],
                is_flag=True,
                expose_value=False,
                callback=_set_quiet,
                help="Print results and errors only: no progress, no notes.",
            )
        )
        command.params.append(
            click.Option(
                ["--debug"],
                is_flag=True,
                expose_value=False,
                callback=_note_debug,
                help="Show the traceback of an error.",
            )
        )
    for inner in getattr(command, "commands", {}).values():
        _with_common_options(inner)


def _note_debug(ctx: click.Context, _parameter: click.Parameter, value: Any) -> None:
    if value:
        ctx.find_root().obj["debug"] = True


def _set_quiet(ctx: click.Context, _parameter: click.Parameter, value: Any) -> None:
    if value:
        ctx.find_root().obj["quiet"] = True
        _log_from(logging.ERROR, ctx)


def _set_verbose(ctx: click.Context, _parameter: click.Parameter, value: Any) -> None:
    if value:
        logging.basicConfig(format="%(name)s: %(message)s", level=logging.WARNING)
        _log_from(logging.DEBUG, ctx)


def _log_from(level: int, ctx: click.Context) -> None:
    """Set the level of the product's log until the command ends."""
    logger = logging.getLogger("edgeship")
    ctx.call_on_close(partial(logger.setLevel, logger.level))
    logger.setLevel(level)


if __name__ == "__main__":
    main()
