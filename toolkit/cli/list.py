"""`edgeship list`: names that options and recipes take."""

from __future__ import annotations

import json

import click

from edgeship.toolkit.cli._options import JSON


def _recipes() -> dict[str, str]:
    from edgeship.toolkit.pipeline.recipe import find, names

    return {name: _first_sentence(find(name).read_text(encoding="utf-8").lstrip("# ")) for name in names()}


def _models() -> dict[str, str]:
    from edgeship.toolkit.models.resnet import names

    return dict.fromkeys(names(), "")


def _targets() -> dict[str, str]:
    from edgeship import targets
    from edgeship.toolkit.core.errors import ToolkitError

    rows = {}
    for name in targets.names():
        target = targets.get(name)
        try:
            versions = ", ".join(f"{key} {value}" for key, value in target.versions().items())
        except ToolkitError as error:
            versions = f"not here: {error}"
        rows[name] = f"{target.title} ({versions})"
    return rows


def _devices() -> dict[str, str]:
    from edgeship.toolkit.deploy.inventory import default_path, load

    return {name: f"{each.host}, {each.target}" for name, each in load(default_path()).items()}


def _observers() -> dict[str, str]:
    from importlib import import_module

    from edgeship.toolkit.core.options import field_of
    from edgeship.toolkit.pipeline.recipe import Recipe

    rows = {"logits": "Least error of the logits; with effort fast: mse"}
    for name in field_of(Recipe(), "quantize.observer").choices():
        if name not in rows:
            module = import_module(f"edgeship.quantization.observers.{name}")
            rows[name] = _first_sentence(module.__doc__ or "")
    return rows


KINDS = {
    "recipes": _recipes,
    "models": _models,
    "targets": _targets,
    "devices": _devices,
    "observers": _observers,
}


@click.command(name="list", epilog="\b\nExamples:\n  edgeship list recipes\n  edgeship list targets --json")
@click.argument("kind", type=click.Choice(tuple(KINDS)), metavar="KIND")
@JSON
def command(kind: str, as_json: bool) -> None:
    """List recipes, models, targets, observers, or devices of the inventory.

    KIND is recipes, models, targets, devices or observers.
    """
    rows = KINDS[kind]()
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        click.echo(f"no {kind}", err=True)
    if not any(rows.values()):
        click.echo("\n".join(rows))
        return
    formatter = click.HelpFormatter()
    formatter.write_dl(list(rows.items()))
    click.echo(formatter.getvalue(), nl=False)


def _first_sentence(text: str) -> str:
    """Return the first sentence of the first paragraph, without comment marks."""
    lines = text.split("\n\n", maxsplit=1)[0].splitlines()
    return " ".join(line.strip("# ") for line in lines).split(". ")[0].rstrip(".:")
