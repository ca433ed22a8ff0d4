"""`edgeship completion`: shell completion."""

from __future__ import annotations

import os
from collections.abc import Mapping

import click
from click.shell_completion import get_completion_class, shell_complete

VARIABLE = "_EDGESHIP_COMPLETE"


@click.command(
    epilog="""\b
Examples:
  edgeship completion bash >> ~/.bashrc
  edgeship completion zsh >> ~/.zshrc
  edgeship completion fish > ~/.config/fish/completions/edgeship.fish
"""
)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")), metavar="bash|zsh|fish")
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell, to append to its startup file."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "edgeship", VARIABLE).source())


def complete(app: click.Command, environment: Mapping[str, str] = os.environ) -> int | None:
    """Answer a request of a shell for completions; return the exit code, or None without a request."""
    instruction = environment.get(VARIABLE)
    return shell_complete(app, {}, "edgeship", VARIABLE, instruction) if instruction else None
