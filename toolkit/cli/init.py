"""`edgeship init`: write a commented recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeship.toolkit.cli._options import Command, recipe_options
from edgeship.toolkit.cli._outputs import OutPath


@click.command(
    cls=Command,
    epilog="""\b
Examples:
  edgeship init
  edgeship init resnet18.pth --data photos/ --target openvino --out my.toml
""",
)
@click.argument("model", default="")
@recipe_options("select.source", "evaluate.source", "select.images", "compile.targets", "export.size")
@recipe_options("report.max_drop_pp", "quantize.effort")
@click.option(
    "--out",
    type=OutPath(dir_okay=False),
    default="recipe.toml",
    show_default=True,
    help="File to write.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file.")
def command(*, model: str, options: dict[str, Any], out: Path, overwrite: bool) -> None:
    """Write a recipe with every option, its help and its default as comments.

    MODEL is a checkpoint, an ONNX file or a recipe to start from. Edit the file, then `edgeship run` it.
    """
    from edgeship.toolkit.core.artifact import write_text
    from edgeship.toolkit.core.errors import RecipeError
    from edgeship.toolkit.pipeline.model_recipe import recipe_of, with_data
    from edgeship.toolkit.pipeline.recipe import Recipe, as_toml

    if out.exists() and not overwrite:
        raise RecipeError(f"{out} exists", hint="name another file with --out, or add --overwrite")
    given = with_data(options)
    recipe = recipe_of(model, given) if model else Recipe.build({}, given)
    title = "# Recipe of edgeship. A line without # sets an option; the others show the default."
    write_text(out, f"{title}\n# Run it with: edgeship run {out}\n\n{as_toml(recipe, commented=True)}")
    click.echo(out)
    missing = [name for name in ("select.source", "evaluate.source") if not _value(recipe, name)]
    if not (recipe.load.weights or recipe.load.model != "auto"):
        missing.insert(0, "load.weights")
    if missing:
        click.echo(f"set in it: {', '.join(missing)}", err=True)


def _value(recipe: Any, name: str) -> Any:
    section, _, key = name.partition(".")
    return getattr(getattr(recipe, section), key)
