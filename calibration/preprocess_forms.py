"""List the usual preprocessing forms and search for the one a network was trained with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from edgeship.calibration.preprocess import normalize
from edgeship.toolkit.core import baseline
from edgeship.toolkit.core.quant import FloatArray, IntArray, PixelArray
from edgeship.toolkit.core.tensors import Interpolation, Preprocess, Size, as_size, size_text

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BYTE = 1 / 255
USUAL = (  # name, mean, std; of pixels in 0..1
    ("ImageNet's mean and std", *IMAGENET),
    ("CIFAR-10's mean and std", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ("pixels in 0..1", (0.0,) * 3, (1.0,) * 3),
    ("pixels in -1..1", (0.5,) * 3, (0.5,) * 3),
    ("pixels in 0..255", (0.0,) * 3, (BYTE,) * 3),
    ("pixels in 0..255 without ImageNet's mean", IMAGENET[0], (BYTE,) * 3),
)
GREY = (  # the same for one channel
    ("MNIST's mean and std", (0.1307,), (0.3081,)),
    ("pixels in 0..1", (0.0,), (1.0,)),
    ("pixels in -1..1", (0.5,), (0.5,)),
    ("pixels in 0..255", (0.0,), (BYTE,)),
)
STATED = "the stated mean and std"
MARGIN = 256 / 224  # resize over crop in torchvision's evaluation
FILTERS: tuple[Interpolation, ...] = ("bilinear", "bicubic", "nearest")

FEWEST_IMAGES = 30  # no search with fewer images
ROUNDS = ((32, 4), (96, 2))  # (images, forms that stay); the last round uses all images
SURE_T = 3.5  # Student's t of the losses: about one false alarm in 200 searches over 14 forms
LEAST_GAIN = 0.02  # minimum gain in accuracy of another form

Exchange = Literal["none", "files", "network"]
Infer = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True, slots=True)
class Form:
    """Preprocessing from a decoded image to the input of a network.

    Attributes:
        name: Description for messages.
        preprocess: Sizes, filter, mean and std.
        exchange: Exchange of red and blue: "files" before mean and std, "network" after them (BGR input),
            "none": RGB throughout.
    """

    name: str
    preprocess: Preprocess
    exchange: Exchange = "none"

    def inputs(self, pixels: PixelArray) -> FloatArray:
        """Convert (N, H, W, C) pixels, resized and cropped, to (N, C, H, W) float32 inputs."""
        if self.exchange == "files":
            return normalize(pixels[..., ::-1], self.preprocess)
        inputs = normalize(pixels, self.preprocess)
        return np.ascontiguousarray(inputs[:, ::-1]) if self.exchange == "network" else inputs


@dataclass(frozen=True, slots=True)
class Search:
    """Result of a search over forms.

    Attributes:
        best: Form with the smallest cross-entropy loss.
        accuracy: Top-1 of the best form.
        accuracy_stated: Top-1 of the stated form, on the same images.
        images: Number of images.
        tried: Number of forms.
        t: Student's t of the paired losses: stated minus best form.
    """

    best: Form
    accuracy: float
    accuracy_stated: float
    images: int
    tried: int
    t: float

    @property
    def better(self) -> bool:
        """Return True if another form is significantly better."""
        return self.t > SURE_T and self.accuracy - self.accuracy_stated >= LEAST_GAIN


def value_forms(stated: Preprocess) -> tuple[Form, ...]:
    """Return the stated form and the usual mean, std and channel orders at the same geometry."""
    colour = len(stated.mean) == 3
    candidates: list[Form] = []
    for name, mean, std in ((STATED, stated.mean, stated.std), *(USUAL if colour else GREY)):
        form = Form(name, replace(stated, mean=mean, std=std))
        exchanged = [
            replace(form, name=f"{name}, then BGR order", exchange="network"),
            replace(form, name=f"{name}, and files without red and blue exchanged", exchange="files"),
        ]
        if len(set(mean)) == len(set(std)) == 1:  # both exchanges are equal
            exchanged = [replace(exchanged[0], name=f"{name}, BGR order")]
        candidates += [form, *exchanged] if colour else [form]
    unique: dict[tuple[object, ...], Form] = {}
    for form in candidates:
        unique.setdefault((form.preprocess.mean, form.preprocess.std, form.exchange), form)
    return tuple(unique.values())


def size_forms(base: Form) -> tuple[Form, ...]:
    """Return the usual resizes, crops and filters that differ from those of a form."""
    p = base.preprocess
    height, width = p.sides
    sizes: dict[str, Size] = {
        "resized to the input's size": p.crop,
        "resized with torchvision's margin": as_size(round(height * MARGIN), round(width * MARGIN)),
    }
    forms = [
        replace(
            base, name=f"{base.name}, {name} ({size_text(side)} pixels)", preprocess=replace(p, resize=side)
        )
        for name, side in sizes.items()
        if side != p.resize
    ]
    forms += [
        replace(base, name=f"{base.name}, {name} filter", preprocess=replace(p, interpolation=name))
        for name in FILTERS
        if name != p.interpolation
    ]
    return tuple(forms)


def search(
    stated: Preprocess, pixels: Mapping[Preprocess, PixelArray], labels: IntArray, infer: Infer
) -> Search | None:
    """Search the form with the smallest cross-entropy loss by successive halving.

    First mean, std and channel order, then sizes.

    Args:
        stated: Stated preprocessing.
        pixels: Geometry (see `geometry`) -> (N, H, W, C) pixels of the same images.
        labels: (N,) class indices.
        infer: Function from (N, C, H, W) inputs to the (N, classes) logits of the float network.

    Returns:
        Search result; None with fewer than `FEWEST_IMAGES` images.
    """
    if len(labels) < FEWEST_IMAGES:
        return None
    race = _Race(pixels, labels, infer)
    values = value_forms(stated)
    own = values[0]
    best = race.run(values, own)
    if best != own and not race.compare(own, best).better:
        best = own
    sizes = [form for form in size_forms(best) if geometry(form.preprocess) in pixels]
    last = race.run((best, *sizes), own)
    if last != best and not race.compare(best, last).better:
        last = best
    return replace(race.compare(own, last), tried=len(values) + len(sizes))


def compare(stated: Preprocess, other: Form, pixels: PixelArray, labels: IntArray, infer: Infer) -> Search:
    """Compare a form with the stated one, at the stated geometry; see `search`."""
    race = _Race({geometry(stated): pixels}, labels, infer)
    return race.compare(Form(STATED, stated), other)


def geometry(preprocess: Preprocess) -> Preprocess:
    """Return a preprocessing with neutral mean and std: the key of its pixels."""
    channels = len(preprocess.mean)
    return replace(preprocess, mean=(0.0,) * channels, std=(1.0,) * channels)


def geometries(stated: Preprocess) -> tuple[Preprocess, ...]:
    """Return every geometry that a search needs."""
    forms = (Form(STATED, stated), *size_forms(Form(STATED, stated)))
    return tuple(dict.fromkeys(geometry(form.preprocess) for form in forms))


def most_informative_form(stated: Preprocess, pixels: PixelArray, infer: Infer) -> tuple[Form, float, float]:
    """Return the form with the largest mutual information of images and predictions (weak evidence).

    Returns:
        The form, the mutual information of this form and of the stated form, in nats.
    """
    forms = value_forms(stated)
    values = [baseline.mutual_information(infer(form.inputs(pixels))) for form in forms]
    best = int(np.argmax(values))
    return forms[best], values[best], values[0]


class _Race:
    """Successive halving over forms, with cached logits."""

    def __init__(self, pixels: Mapping[Preprocess, PixelArray], labels: IntArray, infer: Infer) -> None:
        self._pixels, self._labels, self._infer = pixels, labels, infer
        self._logits: dict[Form, FloatArray] = {}

    def run(self, forms: Sequence[Form], own: Form) -> Form:
        """Return the form with the smallest loss; the stated form stays in every round."""
        remaining = list(forms)
        for count, survivors in ROUNDS:
            if count < len(self._labels):
                ranked = sorted(remaining, key=lambda form: self._loss(form, count))
                remaining = list(dict.fromkeys([*ranked[:survivors], *([own] if own in remaining else [])]))
        return min(remaining, key=lambda form: self._loss(form, len(self._labels)))

    def compare(self, own: Form, other: Form) -> Search:
        """Compare two forms on all images."""
        first, second = (self.logits(form, len(self._labels)) for form in (own, other))
        losses = [baseline.label_losses(logits, self._labels) for logits in (first, second)]
        accuracy = [float((logits.argmax(1) == self._labels).mean()) for logits in (first, second)]
        t = baseline.paired_t(losses[0] - losses[1])
        return Search(other, accuracy[1], accuracy[0], len(self._labels), 2, t)

    def logits(self, form: Form, count: int) -> FloatArray:
        """Return the logits of the first `count` images."""
        cached = self._logits.get(form)
        start = 0 if cached is None else len(cached)
        if start < count:
            part = self._infer(form.inputs(self._pixels[geometry(form.preprocess)][start:count]))
            self._logits[form] = part if cached is None else np.concatenate([cached, part])
        return self._logits[form][:count]

    def _loss(self, form: Form, count: int) -> float:
        return float(baseline.label_losses(self.logits(form, count), self._labels[:count]).mean())
