"""The command line: finds commands by file name, prints errors, decides the exit code."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

import click

from edgeship.toolkit.cli._options import Resumable
from edgeship.toolkit.core.errors import ToolkitError, nearest

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
GOES_ON = "what is finished is kept: the same command goes on from there"


class Commands(click.Group):
    """One file of this folder is one command: `export_jetson.py` is `edgeship export-jetson`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Every command, sorted."""
        files = Path(__file__).parent.glob("*.py")
        stems = {file.stem for file in files} - {Path(__file__).stem}
        return sorted(stem.replace("_", "-") for stem in stems if not stem.startswith("_"))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import one command."""
        if name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"edgeship.toolkit.cli.{name.replace('-', '_')}")
        command: click.Command = module.command
        _with_debug(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is called; a misspelt one gets the nearest name."""
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
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Start with: edgeship run quickstart --out runs/quickstart",
)
@click.version_option(metadata.version("edgeship"), prog_name="edgeship")
def app() -> None:
    """Take a ResNet through pruning and INT8 to Jetson GPUs and Intel CPUs, and report it honestly."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code: 0, 1 failed, 2 wrong use, 3 a gate was missed."""
    sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    debug = goes_on = False
    # torch's threads spin while they wait for each other: on a busy machine training takes ten times longer.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _interrupt)  # so that a stopped run cleans up like an interrupted one
    try:
        with app.make_context("edgeship", arguments) as context:
            context.obj = {"debug": False}
            try:
                app.invoke(context)
            finally:
                debug = context.obj["debug"]
                called = app.get_command(context, context.invoked_subcommand or "")
                goes_on = isinstance(called, Resumable)
        sys.stdout.flush()
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.UsageError as error:
        help_command = f"{error.ctx.command_path if error.ctx else 'edgeship'} --help"
        _print(error.format_message(), getattr(error, "hint", f"see `{help_command}`"))
        return error.exit_code
    except click.ClickException as error:
        _print(error.format_message(), "check the path and your rights to it")
        return error.exit_code
    except ToolkitError as error:
        if debug:
            raise
        _print(str(error), error.hint)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as interrupt:
        # ours say what was stopped; a codec of Python that is interrupted says so in words of its own
        told = str(interrupt) if str(interrupt).startswith(("interrupted", "stopped")) else "interrupted"
        _print(told, GOES_ON if goes_on else "nothing of it is kept: the same command starts anew")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _print(message: str, hint: str) -> None:
    error, tip = ("error:", " hint:")
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        error, tip = click.style(error, fg="red", bold=True), click.style(tip, fg="cyan")
    click.echo(f"{error} {message}\n{tip} {hint}", err=True)


def _with_debug(command: click.Command) -> None:
    """Give a command, and the commands below it, the option that shows tracebacks."""
    if not any(parameter.name == "debug" for parameter in command.params):
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
        _with_debug(inner)


def _note_debug(ctx: click.Context, _parameter: click.Parameter, value: Any) -> None:
    if value:
        ctx.find_root().obj["debug"] = True


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt("stopped by a signal")


if __name__ == "__main__":
    main()
