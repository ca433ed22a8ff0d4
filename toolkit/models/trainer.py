"""A small trainer: SGD with one cycle, resumable after every epoch, the same weights for the same seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgeship.toolkit.core.artifact import plain, replacing, write_json
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.progress import report_progress
from edgeship.toolkit.core.quant import FloatArray, IntArray
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.models.resnet import ResNet
from edgeship.toolkit.models.weights import save

EpochBatches: TypeAlias = Callable[[int], Iterable[tuple[FloatArray, IntArray]]]
Loss: TypeAlias = Callable[
    [ResNet, Tensor, Tensor], tuple[Tensor, int]
]  # -> mean loss, images that were right

MOMENTUM = 0.9
WARM_UP = 0.25  # part of the cycle in which the rate rises
START = 0.04  # rate at the start of the rise, as part of the highest
CLIP_NORM = 5.0  # of all gradients: one bad batch must not end a run


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How to train.

    Attributes:
        epochs: Passes over the images.
        batch: Images a step.
        learning_rate: Highest rate of the cycle.
        weight_decay: Of convolutions and the last layer's matrix; BatchNorm and biases have none.
        flip: Whether to mirror half of the images.
        crop_px: Random shift, in pixels, the border filled with the mean colour.
        seed: Of augmentation.
    """

    epochs: int = 12
    batch: int = 64
    learning_rate: float = 0.05
    weight_decay: float = 5e-4
    flip: bool = True
    crop_px: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch) < 1 or self.learning_rate <= 0 or self.crop_px < 0:
            raise DataError(
                f"unusable training options: {self}", hint="epochs and batch at least 1, rate above 0"
            )


@dataclass(frozen=True, slots=True)
class History:
    """What each epoch gave: mean loss, accuracy on the augmented images, and a score where one is kept."""

    loss: tuple[float, ...] = ()
    accuracy: tuple[float, ...] = ()
    score: tuple[float, ...] = ()


def train(
    model: ResNet,
    epoch_batches: EpochBatches,
    options: TrainOptions,
    out: Path,
    *,
    images: int,
    preprocess: Preprocess | None = None,
    checkpoint: Path | None = None,
) -> History:
    """Train with labels; write model.safetensors, widths.json and history.json into `out`.

    Args:
        model: Freshly built; trained in place and left in evaluation mode.
        epoch_batches: Epoch, from 0 -> its batches: images (N, C, H, W), preprocessed, and N labels.
        options: How.
        out: Folder for the result.
        images: Training images an epoch, for the schedule.
        preprocess: Kept with the weights.
        checkpoint: Where the state between epochs lies; a run that finds one of the same options
            goes on from it. Default: out/checkpoint.pt.

    Raises:
        DataError: The loss is no longer a number, or a label has no output.
    """
    checkpoint = checkpoint or out / "checkpoint.pt"
    history = fit(model, epoch_batches, options, _label_loss, images=images, checkpoint=checkpoint)
    save(model, out, preprocess, source="stated")
    write_json(out / "history.json", history)
    checkpoint.unlink(missing_ok=True)
    return history


def fit(
    model: ResNet,
    epoch_batches: EpochBatches,
    options: TrainOptions,
    loss: Loss,
    *,
    images: int,
    checkpoint: Path,
    score: Callable[[], float] | None = None,
    label: str = "training",
) -> History:
    """The loop, for any loss; keeps the weights with the lowest score where there is one.

    Args:
        model: Trained in place.
        epoch_batches: Epoch -> batches, as in `train`.
        options: How.
        loss: Model, images, labels -> mean loss of the batch, and how many images were right.
        images: Training images an epoch.
        checkpoint: Where the state between epochs lies.
        score: Called before the first and after every epoch, in evaluation mode; lower is better.
        label: What is done, for progress.

    Raises:
        DataError: The loss is no longer a number.
    """
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": options.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=options.learning_rate,
        momentum=MOMENTUM,
        nesterov=True,
    )
    key = {"options": asdict(options), "images": images, "label": label}
    state = _resume(checkpoint, key, model, optimizer)
    if state is None:
        model.eval()
        first = [] if score is None else [score()]
        state = {"epoch": 0, "loss": [], "accuracy": [], "score": first, "best": _weights(model)}
    total = options.epochs * math.ceil(images / options.batch)
    for epoch in range(state["epoch"], options.epochs):
        model.train()
        rng = np.random.default_rng((options.seed, epoch))
        seen, right, loss_sum = 0, 0, 0.0
        for batch, labels in epoch_batches(epoch):
            done = min((epoch + seen / images) / options.epochs, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * one_cycle(done)
            x = torch.from_numpy(augment(batch, rng, flip=options.flip, crop_px=options.crop_px))
            y = torch.from_numpy(labels.astype(np.int64))
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=_bf16_pays()):
                value, hits = loss(model, x, y)
            if not math.isfinite(value.item()):
                raise DataError(
                    f"{label}: the loss is {value.item()} in epoch {epoch + 1}",
                    hint=f"lower the learning rate of {options.learning_rate}, or look for bad images",
                )
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            seen += len(x)
            loss_sum += value.item() * len(x)
            right += hits
            report_progress(label, min(math.ceil((epoch * images + seen) / options.batch), total), total)
        if seen == 0:
            raise DataError(f"{label}: no images", hint="check the training source")
        model.eval()
        state["epoch"] = epoch + 1
        state["loss"].append(loss_sum / seen)
        state["accuracy"].append(right / seen)
        if score is not None:
            state["score"].append(score())
        if score is None or state["score"][-1] <= min(state["score"]):
            state["best"] = _weights(model)
        with replacing(checkpoint) as temporary:
            content = {"key": key, "state": state, "model": _weights(model)}
            torch.save({**content, "optimizer": optimizer.state_dict()}, temporary)
    model.load_state_dict(state["best"])
    model.eval()
    return History(tuple(state["loss"]), tuple(state["accuracy"]), tuple(state["score"]))


def one_cycle(done: float) -> float:
    """Learning rate as part of the highest, at `done` of the run in [0, 1]: linear rise, cosine to 0."""
    if done < WARM_UP:
        return START + (1 - START) * done / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def augment(images: FloatArray, rng: np.random.Generator, *, flip: bool, crop_px: int) -> FloatArray:
    """Mirror half of the images (N, C, H, W) and shift each by up to `crop_px` pixels; a new array.

    What comes in at the border is 0, the mean colour of normalized images.
    """
    n, _, height, width = images.shape
    out = np.pad(images, ((0, 0), (0, 0), (crop_px, crop_px), (crop_px, crop_px)))
    tops, lefts = rng.integers(0, 2 * crop_px + 1, (2, n))
    mirrored = np.less(rng.random(n), 0.5 if flip else 0.0)
    result: FloatArray = np.empty(images.shape, np.float32)
    for i in range(n):
        view = out[i, :, tops[i] : tops[i] + height, lefts[i] : lefts[i] + width]
        result[i] = view[:, :, ::-1] if mirrored[i] else view
    return result


def _label_loss(model: ResNet, images: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    classes = model.architecture.classes
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise DataError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}, the model has {classes} outputs",
            hint="every training image needs a label; build the model with as many classes",
        )
    logits = model(images).float()
    return F.cross_entropy(logits, labels), int((logits.argmax(1) == labels).sum())


def _resume(
    checkpoint: Path, key: dict[str, Any], model: ResNet, optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Take up the state of an interrupted run; None where there is none of the same options."""
    if not checkpoint.is_file():
        return None
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if content["key"] != plain(key) or content["model"].keys() != model.state_dict().keys():
        return None
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    state: dict[str, Any] = content["state"]
    return state


def _weights(model: ResNet) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _bf16_pays() -> bool:
    """Whether bfloat16 is faster here: tile units are, vector instructions alone hardly."""
    return torch.cpu._is_amx_tile_supported()
