"""Read the model of a user of the Python API as an ONNX file: a PyTorch module, an ONNX model or a path."""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.paths import user_path
from edgeship.toolkit.core.tensors import as_size
from edgeship.toolkit.pipeline import load_and_export
from edgeship.toolkit.pipeline.recipe import Recipe, names
from edgeship.toolkit.runs.network import ModelInfo

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from edgeship.toolkit.api.images import Shape

Model: TypeAlias = "nn.Module | onnx.ModelProto | str | os.PathLike[str]"

OPSET = 17


def onnx_file(model: Model, folder: Path, recipe: Recipe, shape: Shape | None = None) -> Path:
    """Return a model as a float ONNX file.

    Args:
        model: A PyTorch module with one image input and logits as output; an ONNX model; or the path of an
            ONNX file, a checkpoint of a ResNet, or a recipe.
        folder: Folder for the file, if one has to be written.
        recipe: Options of loading and export.
        shape: Channels, height and width of the input; None: unknown.

    Raises:
        ModelError: The model is none of these, or cannot be exported.
        DataError: The file cannot be read.
    """
    if isinstance(model, (str, os.PathLike)):
        return _of_path(os.fspath(model), folder, recipe)
    if hasattr(model, "SerializeToString"):
        import onnx

        onnx.save(model, str(folder / "model.onnx"))
        return folder / "model.onnx"
    if hasattr(model, "state_dict"):
        if shape is None:
            raise ModelError("the input size of the module is unknown", hint="pass size=224, for example")
        return _export(model, folder / "model.onnx", shape)
    raise ModelError(
        f"model is a {type(model).__name__}, expected a PyTorch module, an ONNX model or a path",
        hint="pass the network itself, or the path of its .onnx, .pth or .safetensors file",
    )


def _of_path(path: str, folder: Path, recipe: Recipe) -> Path:
    file = user_path(path)
    if file.suffix == ".onnx":
        return file
    if file.suffix == ".toml" or (path in names() and not file.exists()):
        from edgeship.toolkit.pipeline.runner import run

        exported = run(Recipe.read(path), until="export").folder("export")
        pruned = exported / "pruned.onnx"
        return pruned if pruned.is_file() else exported / "float.onnx"
    from dataclasses import replace

    loaded = folder / "load"
    chosen = replace(recipe, load=replace(recipe.load, weights=path))
    load_and_export.load_checkpoint(chosen, loaded, folder)
    load_and_export.export(recipe.export, loaded, ModelInfo.read(loaded), folder / "model.onnx")
    return folder / "model.onnx"


def _export(module: nn.Module, file: Path, shape: Shape) -> Path:
    """Export a module with a batch of 1; it is not changed.

    Raises:
        ModelError: The module cannot be exported, or graph and module compute different logits.
    """
    import torch

    from edgeship.targets.onnxruntime import simulate
    from edgeship.toolkit.models import export as exporter
    from edgeship.toolkit.models.resnet import ResNet

    own = copy.deepcopy(module).cpu().float().eval()
    images = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    if isinstance(own, ResNet):
        exporter.export(own, file, size=as_size(*shape[1:]))
    try:
        with torch.inference_mode():
            expected = own(torch.from_numpy(images))
        if not isinstance(expected, torch.Tensor):
            raise ModelError(
                f"the module returns a {type(expected).__name__}, expected the logits (N, classes)",
                hint="wrap it in a module that returns only the logits",
            )
        if not isinstance(own, ResNet):
            _export_any(own, torch.from_numpy(images), file)
    except ModelError:
        raise
    except Exception as error:  # user code and PyTorch's exporter raise many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"the module cannot be exported for an input of shape {(1, *shape)}: {reason}",
            hint="check its input size, or export it to ONNX yourself and pass that file",
        ) from error
    with simulate(file) as session:
        logits = session.infer(images)
    limit = load_and_export.MAX_PARITY * max(float(expected.abs().max()), 1e-30)
    if logits.shape != expected.shape or not np.abs(logits - expected.numpy()).max() <= limit:
        raise ModelError(
            "the exported graph computes other logits than the module",
            hint="export it to ONNX yourself, and pass that file",
        )
    return file


def _export_any(module: Any, images: Any, file: Path) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no further package is deprecated
        torch.onnx.export(
            module,
            (images,),
            str(file),
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
        )
