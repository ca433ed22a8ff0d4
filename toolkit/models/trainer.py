"""Training loop: SGD with a one-cycle rate, resumable after every epoch, deterministic for a seed."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgeship.toolkit.core.artifact import plain, write_json
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.progress import report_progress
from edgeship.toolkit.core.quant import FloatArray, IntArray
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.models.checkpoints import read_checkpoint, write_checkpoint
from edgeship.toolkit.models.resnet import ResNet
from edgeship.toolkit.models.train_options import TrainOptions
from edgeship.toolkit.models.weights import save

EpochBatches: TypeAlias = Callable[[int], Iterable[tuple[FloatArray, IntArray]]]
Loss: TypeAlias = Callable[[ResNet, Tensor, Tensor], tuple[Tensor, int]]  # -> mean loss, correct images

MOMENTUM = 0.9
WARMUP_RATIO = 0.25  # ratio of the cycle with a rising rate
DIVERGED = 2.0  # score of a round relative to the best, above which training by the clock returns to the best
STEP_BACK = 0.3  # factor of the rate then, and where the loss is NaN or infinite
LEAST_RATE = 1e-3  # factor of the rate below which such a loss is an error
START_RATIO = 0.04  # initial rate relative to the highest
CLIP_NORM = 5.0  # gradient clipping, so that one bad batch does not diverge


@dataclass(frozen=True, slots=True)
class History:
    """Per-epoch mean loss, accuracy on the augmented images, and validation score if there is one."""

    loss: tuple[float, ...] = ()
    accuracy: tuple[float, ...] = ()
    score: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Pace:
    """Schedule by the clock instead of a number of epochs.

    An epoch then ends after `round_s` at the latest, so that its batches have to be in a random order.

    Attributes:
        progress: Returns the fraction of the time that has passed; training ends at 1.
        save: Called with every checkpoint: saves the state of the clock.
        ema_decay: Decay per step of the exponential moving average of the weights, which is the result.
        bf16: Returns True if convolutions are to be computed in bfloat16 at present.
        warmup: Ratio of the time with a rising rate.
        round_s: Seconds between checkpoints.
    """

    progress: Callable[[], float]
    save: Callable[[], None]
    ema_decay: float
    bf16: Callable[[], bool]
    warmup: float = 0.05
    round_s: float = 60.0


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
        model: Initialized network; trained in place and left in evaluation mode.
        epoch_batches: Epoch, from 0 -> its batches: images (N, C, H, W), preprocessed, and N labels.
        options: Training options.
        out: Folder for the result.
        images: Training images per epoch, for the schedule.
        preprocess: Preprocessing, stored with the weights.
        checkpoint: File for the state between epochs; a run with the same options resumes from it.
            Default: out/checkpoint.pt.

    Raises:
        DataError: The loss is NaN or infinite, or a label has no output.
    """
    checkpoint = checkpoint or out / "checkpoint.pt"
    history = fit(model, epoch_batches, options, label_loss, images=images, checkpoint=checkpoint)
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
    pace: Pace | None = None,
) -> History:
    """Train with any loss; with `score`, keep the weights of the lowest score.

    Args:
        model: Trained in place.
        epoch_batches: Epoch -> batches, as in `train`.
        options: Training options.
        loss: Model, images, labels -> mean loss of the batch, and number of correct images.
        images: Training images per epoch.
        checkpoint: File for the state between epochs.
        score: Called before the first and after every epoch, in evaluation mode; lower is better.
        label: Label of the progress.
        pace: Schedule by the clock, instead of `options.epochs`.

    Raises:
        DataError: The loss is NaN or infinite; by the clock, also at low rates.
    """
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [
            {"params": matrices, "weight_decay": options.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=options.learning_rate,
        momentum=MOMENTUM,
        nesterov=True,
    )
    key = {"options": asdict(options), "images": images, "label": label}
    state = _resume(checkpoint, key, model, optimizer)
    if state is None:
        model.eval()
        initial = [] if score is None else [score()]
        state = {"epoch": 0, "loss": [], "accuracy": [], "score": initial, "best": _weights(model)}
        if pace is not None:
            state |= {"average": _weights(model), "steps": 0}
    total = options.epochs * math.ceil(images / options.batch)
    for epoch in itertools.count(state["epoch"]):
        if epoch >= options.epochs if pace is None else pace.progress() >= 1:
            break
        started = time.monotonic()
        model.train()
        rng = np.random.default_rng((options.seed, epoch))
        images_seen, correct, loss_sum, stepped_back = 0, 0, 0.0, False
        for batch, labels in epoch_batches(epoch):
            if pace is None:
                rate = one_cycle(min((epoch + images_seen / images) / options.epochs, 1.0))
            elif (progress := pace.progress()) >= 1 or time.monotonic() - started > pace.round_s:
                break
            else:
                rate = one_cycle(progress, pace.warmup) * state.get("rate", 1.0)
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * rate
            x = torch.from_numpy(augment(batch, rng, flip=options.flip, crop_px=options.crop_px))
            y = torch.from_numpy(labels.astype(np.int64))
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(
                "cpu", torch.bfloat16, enabled=_bf16_is_faster() if pace is None else pace.bf16()
            ):
                value, batch_correct = loss(model, x, y)
            if not math.isfinite(value.item()):
                if pace is None or state.get("rate", 1.0) < LEAST_RATE:
                    raise DataError(
                        f"{label}: the loss is {value.item()} in epoch {epoch + 1}",
                        hint=f"lower the learning rate: set learning_rate below {options.learning_rate:g}",
                    )
                _step_back(model, optimizer, state)
                stepped_back = True
                continue
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            images_seen += len(x)
            loss_sum += value.item() * len(x)
            correct += batch_correct
            if pace is None:
                done = min(math.ceil((epoch * images + images_seen) / options.batch), total)
                report_progress(label, done, total)
            else:
                report_progress(label, int(100 * progress), 100)
                state["steps"] += 1
                decay = min(pace.ema_decay, state["steps"] / (10 + state["steps"]))  # short at the start
                _move_average(state["average"], model, decay)
        if pace is not None and images_seen == 0:
            if stepped_back:
                continue
            break
        if images_seen == 0:
            raise DataError(f"{label}: no images; at least 1 is expected", hint="check the training source")
        model.eval()
        state["epoch"] = epoch + 1
        state["loss"].append(loss_sum / images_seen)
        state["accuracy"].append(correct / images_seen)
        with _averaged(model, state.get("average")):
            if score is not None:
                state["score"].append(score())
            if score is None or state["score"][-1] <= min(state["score"]):
                state["best"] = _weights(model)
        if pace is not None:
            if state["score"] and state["score"][-1] > DIVERGED * min(state["score"]):
                _step_back(model, optimizer, state)
            pace.save()
        content = {"key": key, "state": state, "model": _weights(model)}
        write_checkpoint(checkpoint, {**content, "optimizer": optimizer.state_dict()})
    model.load_state_dict(state["best"])
    model.eval()
    return History(tuple(state["loss"]), tuple(state["accuracy"]), tuple(state["score"]))


def _step_back(model: ResNet, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Return to the best weights, at a lower rate."""
    model.load_state_dict(state["best"])
    rate = state.get("rate", 1.0) * STEP_BACK
    state |= {"average": _weights(model), "steps": 0, "rate": rate}
    optimizer.state.clear()


def one_cycle(progress: float, warmup: float = WARMUP_RATIO) -> float:
    """Return the rate relative to the highest at `progress` in [0, 1]: linear rise, cosine decay to 0."""
    if progress < warmup:
        return START_RATIO + (1 - START_RATIO) * progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def augment(images: FloatArray, rng: np.random.Generator, *, flip: bool, crop_px: int) -> FloatArray:
    """Mirror half of the images (N, C, H, W) and shift each by up to `crop_px` pixels; return a new array.

    The border is filled with 0, the mean colour of normalized images.
    """
    n, _, height, width = images.shape
    out = np.pad(images, ((0, 0), (0, 0), (crop_px, crop_px), (crop_px, crop_px)))
    tops, lefts = rng.integers(0, 2 * crop_px + 1, (2, n))
    flipped = np.less(rng.random(n), 0.5 if flip else 0.0)
    result: FloatArray = np.empty(images.shape, np.float32)
    for i in range(n):
        view = out[i, :, tops[i] : tops[i] + height, lefts[i] : lefts[i] + width]
        result[i] = view[:, :, ::-1] if flipped[i] else view
    return result


def label_loss(model: ResNet, images: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Return the mean cross-entropy of a batch, and the number of correct images.

    Raises:
        DataError: A label has no output.
    """
    classes = model.architecture.classes
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise DataError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}, the model has {classes} outputs",
            hint="label every training image, and set the number of classes",
        )
    logits = model(images).float()
    return F.cross_entropy(logits, labels), int((logits.argmax(1) == labels).sum())


def _resume(
    checkpoint: Path, key: dict[str, Any], model: ResNet, optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Restore the state of an interrupted run; None without one of the same options."""
    content = read_checkpoint(checkpoint)
    if (
        content is None
        or content["key"] != plain(key)
        or content["model"].keys() != model.state_dict().keys()
    ):
        return None
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    state: dict[str, Any] = content["state"]
    return state


@torch.no_grad()
def _move_average(average: dict[str, Tensor], model: ResNet, decay: float) -> None:
    """Move an exponential average of the weights by one step, in place."""
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)


@contextmanager
def _averaged(model: ResNet, average: dict[str, Tensor] | None) -> Iterator[None]:
    """Give the network its averaged weights inside the block; without an average, its own."""
    if average is None:
        yield
        return
    own = _weights(model)
    model.load_state_dict(average)
    try:
        yield
    finally:
        model.load_state_dict(own)


def _weights(model: ResNet) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _bf16_is_faster() -> bool:
    """Return True if the CPU has AMX tiles; with vector instructions alone bfloat16 is hardly faster."""
    return torch.cpu._is_amx_tile_supported()
