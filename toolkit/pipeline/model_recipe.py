"""Make the recipe of a model and its images, for `edgeship run MODEL --data IMAGES`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgeship.toolkit.core.errors import DataError, RecipeError, nearest
from edgeship.toolkit.core.paths import siblings, user_path
from edgeship.toolkit.pipeline import recipe as recipes
from edgeship.toolkit.pipeline.recipe import Recipe

RECIPE = "recipe.toml"  # in the folder of a run
CHECKPOINTS = (".pth", ".pt", ".safetensors", ".ckpt", ".bin", ".tar", ".pkl")
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".zip", ".npz", ".npy", ".csv")
FEWEST = 2  # images: one to calibrate with, one to evaluate
KINDS = "a checkpoint (.pth, .safetensors), an ONNX file or a recipe (.toml, or the name of one)"


def recipe_of(model: str, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Recipe:
    """Return the recipe of a model.

    Args:
        model: A recipe file or its name, the folder of a run, a checkpoint (file or folder), or an ONNX file.
        overrides: As of `Recipe.read`.

    Raises:
        RecipeError: The model is none of these; or an option cannot be used.
    """
    path = user_path(model)
    if (path / RECIPE).is_file():
        return Recipe.read(path / RECIPE, overrides)
    if path.suffix.lower() == ".toml" or (not path.exists() and model in recipes.names()):
        return Recipe.read(model, overrides)
    _check_model(model, path)
    load = {"model": model} if path.suffix.lower() == ".onnx" else {"weights": model}
    built = Recipe.build({"load": load}, overrides)
    return recipes.named(built, model)


def _check_model(model: str, path: Path) -> None:
    """Raise if a model is neither a checkpoint nor an ONNX file.

    Raises:
        RecipeError: It is not; the hint shows the right way.
    """
    if model.startswith("torchvision:"):
        return
    if not path.exists():
        near = siblings(path)
        known = near if path.suffix or len(path.parts) > 1 else [*recipes.names(), *near]
        hint = nearest(path.name, known) if known else f"check the path {path.absolute()}"
        raise RecipeError(f"no checkpoint, ONNX file or recipe: {model}", hint=hint)
    suffix = path.suffix.lower()
    if path.is_dir() and not (path / "model.safetensors").is_file():
        raise RecipeError(
            f"MODEL is a folder without model.safetensors: {model}",
            hint=f"give {KINDS} as MODEL, and images as --data {model}",
        )
    if suffix in IMAGES:
        raise RecipeError(f"MODEL is a file of images: {model}", hint=f"give {KINDS}, and --data {model}")
    if path.is_file() and suffix not in (*CHECKPOINTS, ".onnx", ""):
        raise RecipeError(f"MODEL is a {suffix} file: {model}", hint=f"expected {KINDS}")


def with_data(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with calibration and evaluation images from one source, `select.source`.

    A source with train and test (or val) is used as it says; another one is split in half, unless
    `evaluate.source` is given. A source with fewer images than the default calibrates with all that it has.

    Raises:
        DataError: The source cannot be opened, or has one image.
    """
    from edgeship.calibration.datasets import open_dataset

    result = dict(options)
    source = options.get("select.source")
    if source is None:
        return result
    if "evaluate.source" not in options:
        dataset = open_dataset(source, use="train")
        if dataset.name == open_dataset(source, use="evaluate").name:  # one set of images
            if len(dataset) < FEWEST:
                raise DataError(
                    f"{source} has {len(dataset)} image, which cannot both calibrate and evaluate",
                    hint="give a folder of some hundred images, or evaluation images as --eval-data",
                )
            result |= {
                "select.source": f"{source}:calibration",
                "evaluate.source": f"{source}:evaluation",
            }
        else:
            result["evaluate.source"] = source
    available = len(open_dataset(result["select.source"], use="train"))
    if "select.images" not in options and available < Recipe().select.images:
        result["select.images"] = available
    return result
