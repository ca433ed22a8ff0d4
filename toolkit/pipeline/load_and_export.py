"""Load or train a network, and export it as ONNX."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeship.toolkit.core.artifact import sha256_file
from edgeship.toolkit.core.errors import DataError, ModelError, RecipeError
from edgeship.toolkit.core.paths import user_path
from edgeship.toolkit.core.quant import FloatArray, IntArray
from edgeship.toolkit.core.tensors import Preprocess, PreprocessSource, Size, preprocess_metadata, sides
from edgeship.toolkit.pipeline import preprocessing
from edgeship.toolkit.runs.network import ExportedGraph, ModelInfo

if TYPE_CHECKING:
    from edgeship.calibration.preprocessing_check import Stem
    from edgeship.toolkit.models.resnet import ResNet
    from edgeship.toolkit.pipeline.recipe import ExportOptions, Recipe

ONNX = "float.onnx"
MAX_PARITY = 1e-4  # relative to the largest logit


@dataclass(frozen=True, slots=True)
class FirstLayer:
    """Statistics of the training images in a checkpoint.

    Attributes:
        preprocess: Their preprocessing, if stored.
        stem: The first convolution and the statistics of its output, if these follow it directly.
        classes: Outputs of the network.
    """

    preprocess: Preprocess | None
    stem: Stem | None
    classes: int


def loader(recipe: Recipe) -> Callable[[Recipe, Path, Path], None]:
    """Return the function that loads or trains the network of a recipe."""
    options = recipe.load
    if options.model.endswith(".onnx"):
        return import_onnx
    return train if options.weights == "train" else load_checkpoint


def load_checkpoint(recipe: Recipe, out: Path, _work_dir: Path) -> None:
    """Convert a checkpoint file, a folder, or published weights to our checkpoint format."""
    from edgeship.toolkit.models import weights

    options = recipe.load
    if not options.weights:
        raise RecipeError(
            "load.weights is not set",
            hint="--set load.weights=FILE, torchvision:IMAGENET1K_V1 or train; an ONNX file is a load.model",
        )
    source = user_path(options.weights)
    if options.weights.startswith("torchvision:"):
        source = weights.download(options.weights, options.model)
    loaded = weights.load(source, options.model)
    prepared = preprocessing.resolve(options.preprocess, loaded.preprocess, recipe.export.size)
    preprocessing.check_channels(prepared, loaded.model.architecture.channels)
    origin = preprocessing.source_of(options.preprocess, loaded.preprocess, loaded.preprocess_source)
    if origin == "assumed" and options.weights.startswith("torchvision:"):
        origin = "published"  # all of these share mean and std
    weights.save(loaded.model, out, prepared, source=origin)
    _describe(loaded.model, loaded.sha256, prepared, origin, options.labels, out)


def train(recipe: Recipe, out: Path, work_dir: Path) -> None:
    """Train the named network on `load.train`.

    Args:
        recipe: Network, preprocessing, size and training.
        out: Folder for the network, model.json and history.json.
        work_dir: Folder for a checkpoint per epoch, from which training resumes.
    """
    import numpy as np
    import torch

    from edgeship.calibration.datasets import open_dataset
    from edgeship.calibration.loader import batches
    from edgeship.toolkit.models import resnet, trainer

    options, how = recipe.load, recipe.load.train
    if options.model == "auto":
        raise RecipeError(
            "load.model is auto, expected the name of a network to train", hint="--set load.model=resnet18"
        )
    if not how.source:
        raise RecipeError(
            "load.train.source is not set", hint="--set load.train.source=FOLDER (labelled images)"
        )
    prepared = preprocessing.resolve(options.preprocess, None, recipe.export.size)
    dataset = open_dataset(how.source, labelled=True, use="train").without_empty_classes()
    torch.manual_seed(how.seed)  # of the first weights
    channels, classes = len(prepared.mean), len(dataset.classes)
    _class_names(options.labels, classes)  # refused before the training
    model = resnet.ResNet(resnet.architecture(options.model, classes=classes, channels=channels))

    def epoch_batches(epoch: int) -> Iterator[tuple[FloatArray, IntArray]]:
        order = np.random.default_rng((how.seed, epoch)).permutation(len(dataset)).tolist()
        for batch in batches(dataset, order, prepared, batch=how.batch):
            if len(batch.images) > 1:  # BatchNorm needs two images
                yield batch.images, batch.labels

    trainer.train(
        model,
        epoch_batches,
        how,
        out,
        images=len(dataset),
        preprocess=prepared,
        checkpoint=work_dir / "checkpoint.pt",
    )
    _describe(model, sha256_file(out / "model.safetensors"), prepared, "stated", options.labels, out)


def import_onnx(recipe: Recipe, out: Path, _work_dir: Path) -> None:
    """Import a float ONNX classifier; its input shape sets the size of the images.

    A file with (N, H, W, C) or uint8 input is converted to float32 (N, C, H, W); notes in its model.json
    state the original form, and the normalization inside the graph.

    Raises:
        ModelError: The graph is no classifier, is quantized, or has NaN.
        RecipeError: The recipe asks for another input size than the file has.
    """
    from edgeship.toolkit.graph import io
    from edgeship.toolkit.graph.conversion import check_conversion

    options = recipe.load
    source = user_path(options.model)
    graph = io.read_classifier(source, options.output or None)
    size = preprocessing.input_size(graph, recipe.export.size)
    prepared = preprocessing.resolve(options.preprocess, graph.preprocess, size, graph.normalization)
    preprocessing.check_channels(prepared, graph.channels)
    check_conversion(graph, prepared.crop)
    io.save(graph.model, out / ONNX)
    origin = preprocessing.source_of(
        options.preprocess, graph.preprocess, graph.preprocess_source, graph.normalization
    )
    ModelInfo(
        source.stem,
        sha256_file(source),
        graph.parameters,
        graph.classes,
        prepared,
        origin,
        _class_names(options.labels, graph.classes),
        tuple(preprocessing.notes(graph.form, graph.normalization, prepared)),
    ).write(out)


def export(options: ExportOptions, folder: Path, info: ModelInfo, file: Path) -> tuple[ExportedGraph, float]:
    """Export the network of a folder as ONNX.

    Returns:
        The graph and its cost, and the largest difference of its logits from the network's, relative to the
        largest logit.

    Raises:
        ModelError: Logits of graph and network differ.
    """
    from edgeship.toolkit.graph.cost import cost

    prepared, source = info.preprocess, info.preprocess_source
    batch = None if options.batch == "dynamic" else options.batch
    if (folder / ONNX).is_file():
        metadata = preprocess_metadata(prepared, source)
        parity = _reshape(folder / ONNX, file, batch, prepared.crop, metadata)
    else:
        from edgeship.toolkit.models import export as exporter
        from edgeship.toolkit.models import weights

        model = weights.load(folder).model
        exporter.export(model, file, size=prepared.crop, batch=batch, preprocess=prepared, source=source)
        parity = exporter.parity(model, file, size=prepared.crop)
        if not parity <= MAX_PARITY:
            raise ModelError(
                f"the exported graph differs from the network by {parity:.1e} of the largest logit; at most "
                f"{MAX_PARITY:.0e} is expected",
                hint="export it with torch.onnx.export, and give the .onnx file: edgeship run FILE.onnx",
            )
    counted = cost(file)
    return ExportedGraph(file.name, counted.macs, counted.parameters), parity


def first_layer(source: Path) -> FirstLayer:
    """Read preprocessing and first-layer statistics of a checkpoint."""
    from edgeship.calibration.preprocessing_check import Stem
    from edgeship.toolkit.models import weights

    loaded = weights.load(source)
    arch, state = loaded.model.architecture, loaded.model.state_dict()
    stem = None
    if not arch.preactivation:
        stem = Stem(
            weight=state["conv1.weight"].numpy(),
            mean=state["bn1.running_mean"].numpy(),
            variance=state["bn1.running_var"].numpy(),
            stride=loaded.model.conv1.stride[0],
        )
    return FirstLayer(loaded.preprocess, stem, arch.classes)


def _reshape(source: Path, file: Path, batch: int | None, size: Size, metadata: Mapping[str, str]) -> float:
    """Copy an ONNX file with another batch (None: dynamic) and size in pixels; add metadata.

    Returns:
        Largest difference of the logits at another batch, relative to the largest logit.

    Raises:
        ModelError: The graph does not support the batch.
    """
    import numpy as np
    import onnx_ir as ir

    from edgeship.toolkit.graph import io
    from edgeship.toolkit.graph.batch import check_batch_change, make_batch_dynamic
    from edgeship.toolkit.graph.shapes import infer

    classifier = io.read(source)
    graph = classifier.model.graph
    changed = classifier.batch is not None and batch != classifier.batch
    if classifier.batch is not None and changed:
        make_batch_dynamic(classifier.model, classifier.batch)
    dim = "batch" if batch is None else batch
    graph.inputs[0].shape = ir.Shape([dim, classifier.channels, *sides(size)])
    graph.outputs[0].shape = ir.Shape([dim, classifier.classes])
    infer(classifier.model)
    classifier.model.metadata_props.update(metadata)
    io.save(classifier.model, file)
    if classifier.batch is None or not changed:
        return 0.0
    batches = (classifier.batch, batch or 2)
    shape = (math.lcm(*batches), classifier.channels, *sides(size))
    return check_batch_change(
        source, file, np.random.default_rng(0).normal(size=shape).astype(np.float32), batches
    )


def _class_names(labels: str, classes: int) -> tuple[tuple[str, ...], ...]:
    """Return all names of each output, from the file `load.labels`; empty without that option.

    Raises:
        DataError: The file has another number of names than the network has outputs.
    """
    from edgeship.calibration.class_names import read_class_aliases

    if not labels:
        return ()
    names = read_class_aliases(user_path(labels))
    if len(names) != classes:
        raise DataError(
            f"{labels} has {len(names)} class names, the network {classes} outputs",
            hint="write one name per line, in the order of the outputs",
        )
    return names


def _describe(
    model: ResNet, digest: str, prepared: Preprocess, source: PreprocessSource, labels: str, out: Path
) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    arch = model.architecture
    names = _class_names(labels, arch.classes)
    ModelInfo(arch.name, digest, parameters, arch.classes, prepared, source, names).write(out)
