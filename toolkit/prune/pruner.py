"""Pruning from unlabelled images: survey, widths, repair, and what came of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.core.artifact import plain, replacing
from toolkit.core.errors import DataError, ModelError
from toolkit.core.progress import track
from toolkit.core.quant import FloatArray
from toolkit.core.statistics import agreement, kl_divergence
from toolkit.models.resnet import Architecture, ResNet, macs
from toolkit.prune import importances, widths
from toolkit.prune.apply import shrink
from toolkit.prune.groups import kept_places, stream_groups
from toolkit.prune.plan import Measure, PruneOptions, PrunePlan
from toolkit.prune.sequential import POSITIONS, Choice, Repair
from toolkit.prune.survey import Surveyed, survey_inner, survey_streams

BATCH = 32  # images of a batch before mirroring
HELD_OUT = 0.08  # part of the images that no refit sees: they judge the result
STREAM_PARTS = (1.0, 0.875, 0.75, 0.625, 0.5)  # tried in turn, when channels inside blocks are not enough
SEARCH_ROUNDS = 5


class _Batches(Sequence[Tensor]):
    """Batches of a tensor of images, each followed by its mirror image where asked; views until read."""

    def __init__(self, images: Tensor, size: int, mirror: bool) -> None:
        self._parts, self._mirror = torch.split(images, size), mirror

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: Any) -> Any:
        part = self._parts[index]
        return torch.cat([part, part.flip(3)]) if self._mirror else part


@dataclass(frozen=True, slots=True)
class _Images:
    """Batches to fit, and images held out with the dense network's logits for them."""

    fit: _Batches
    check: Tensor
    reference: FloatArray
    size: int
    warnings: tuple[str, ...]


def prune(
    model: ResNet,
    images: Iterable[FloatArray],
    options: PruneOptions,
    measure: Measure | None = None,
    *,
    checkpoint: Path | None = None,
) -> tuple[ResNet, PrunePlan]:
    """Prune a network for a goal, from unlabelled images and without training.

    Args:
        model: The dense network; left as it is.
        images: Batches (N, C, H, W), preprocessed; 500 to 2,000 images are usual.
        options: The goal, and how.
        measure: Milliseconds of a network in INT8 on the device; needed for `target_latency`.
        checkpoint: Where an interrupted pass leaves its state; the same call goes on from its last
            block.

    Returns:
        The pruned network, in evaluation mode, and what was done.

    Raises:
        ModelError: The goal cannot be met, brings less than 3 %, or nothing is left to prune.
        DataError: There are no images.
    """
    if options.method == "none":
        return model, unpruned(model)
    dense = copy.deepcopy(model).eval()
    seen = _split(dense, images, options)
    importance = importances.get(options.method)
    arch = dense.architecture
    if options.keep is not None and options.scope == "inner" and not options.drop_blocks:
        narrow = widths.uniform(arch, options.keep, options.step)
        return _repaired(dense, seen, options, _Choice({}, {}, narrow), checkpoint=checkpoint)
    surveyed = survey_inner(dense, seen.fit, importance, probe=options.keep is None, seed=options.seed)
    if options.max_drop_pp is not None:
        return _search(dense, seen, options, surveyed, checkpoint)
    if options.target_latency is not None and measure is None:
        raise ModelError(
            "prune.target_latency needs a device to measure on", hint="set prune.macs, or name a target"
        )
    last: ModelError | None = None
    for streams in _streams(dense, seen, options):
        student = shrink(dense, streams)
        try:
            narrow, latency = _allocate(dense, student, surveyed, options=options, measure=measure, seen=seen)
        except ModelError as error:
            last = error
            continue
        return _repaired(
            dense, seen, options, _Choice(streams, surveyed, narrow), latency=latency, checkpoint=checkpoint
        )
    raise last or ModelError("nothing to prune", hint="set prune.keep")


def family(
    model: ResNet, images: Iterable[FloatArray], parts: Sequence[float], options: PruneOptions
) -> list[tuple[ResNet, PrunePlan]]:
    """Nested networks from one survey: each keeps a subset of the channels of the wider ones.

    Args:
        model: The dense network; left as it is.
        images: Batches (N, C, H, W), preprocessed.
        parts: Of the inner channels that stay, e.g. (0.9, 0.75, 0.6, 0.5, 0.4).
        options: Method, step and seed; its goal is not used.

    Raises:
        DataError: There are no images.
    """
    dense = copy.deepcopy(model).eval()
    seen = _split(dense, images, options)
    importance = importances.get(options.method)
    surveyed = survey_inner(dense, seen.fit, importance, probe=False, seed=options.seed)
    found = []
    for part in track(sorted(parts, reverse=True), "pruning a family"):
        narrow = widths.uniform(dense.architecture, part, options.step)
        found.append(_repaired(dense, seen, options, _Choice({}, surveyed, narrow)))
    return found


def unpruned(model: ResNet) -> PrunePlan:
    """The plan of a network that is passed on as it is."""
    arch = model.architecture
    count = macs(arch, 224)
    return PrunePlan("none", arch.widths, arch.widths, count, count)


@dataclass(frozen=True, slots=True)
class _Choice:
    """What is decided before the repair.

    Attributes:
        streams: Place -> kept channels of the residual streams.
        surveyed: Rankings of the inner groups; where one is missing, the repair ranks.
        arch: The network to reach.
    """

    streams: Mapping[str, Tensor]
    surveyed: Mapping[str, Surveyed]
    arch: Architecture


def _allocate(
    dense: ResNet,
    student: ResNet,
    surveyed: Mapping[str, Surveyed],
    *,
    options: PruneOptions,
    measure: Measure | None,
    seen: _Images,
) -> tuple[Architecture, dict[str, float]]:
    """Inner widths for a goal, on streams that are decided."""
    arch = student.architecture
    drops = _drop_losses(dense, seen) if options.drop_blocks else {}
    if options.keep is not None:
        if options.scope == "stream":
            return arch, {}
        return widths.uniform(arch, options.keep, options.step), {}
    if options.target_latency is not None and measure is not None:
        dense_ms = measure(dense.architecture)
        part = options.target_latency
        if arch != dense.architecture:
            part = min(1.0, part * dense_ms / measure(arch))
        found = widths.for_latency(arch, surveyed, drops, part, step=options.step, measure=measure)
        latency = {
            "latency_before_ms": dense_ms,
            "latency_after_ms": found.measured,
            "latency_predicted_ms": found.predicted,
        }
        return found.arch, latency
    assert options.macs is not None
    goal = options.macs * macs(dense.architecture, seen.size) / macs(arch, seen.size)
    if options.scope == "stream" and goal < 1:
        raise ModelError("prune: the streams alone cannot save so much", hint="set prune.scope=both")
    if goal >= 1:
        return arch, {}
    return widths.for_macs(arch, surveyed, drops, goal, size=seen.size, step=options.step).arch, {}


def _streams(dense: ResNet, seen: _Images, options: PruneOptions) -> Iterable[dict[str, Tensor]]:
    """What the residual streams may keep, widest first."""
    if options.scope == "inner":
        yield {}
        return
    arch = dense.architecture
    groups = stream_groups(arch)
    rankings = survey_streams(dense, seen.fit, importances.get(options.method), seed=options.seed)
    parts = (options.keep,) if options.keep is not None else STREAM_PARTS
    for part in parts:
        kept = {
            group.name: rankings[group.name].order[
                group.width - widths.nearest(group.width, part, options.step) :
            ]
            for group in groups
        }
        places = kept_places(arch, groups, kept)
        yield {place: indices for place, indices in places.items() if "." not in place}


def _repaired(
    dense: ResNet,
    seen: _Images,
    options: PruneOptions,
    choice: _Choice,
    *,
    latency: Mapping[str, float] | None = None,
    checkpoint: Path | None = None,
) -> tuple[ResNet, PrunePlan]:
    """Prune to the widths of `choice.arch`, repair, recalibrate where it helps, and judge."""
    before, after = dense.architecture, choice.arch
    if after.widths == before.widths and any(g not in (None, 1.0) for g in (options.keep, options.macs)):
        raise ModelError(
            f"{before.name} is as narrow as steps of {options.step} channels allow",
            hint="set a smaller prune.step or a lower goal",
        )
    dropped = {
        (s, b)
        for s, blocks in enumerate(after.widths.inner)
        for b, inner in enumerate(blocks)
        if not inner and before.widths.inner[s][b]
    }
    wanted: dict[str, Tensor | int] = {}
    for name, stage, block, _ in dense.blocks():
        for i, (old, new) in enumerate(
            zip(before.widths.inner[stage][block], after.widths.inner[stage][block], strict=False)
        ):
            group = f"{name}.conv{i + 1}"
            if new < old:
                wanted[group] = choice.surveyed[group].keep(new) if group in choice.surveyed else new
    student = shrink(dense, choice.streams, dropped)
    repair = _Resumable(
        dense, student, streams=choice.streams, choice=wanted, options=options, checkpoint=checkpoint
    )
    small = repair.run(seen.fit).eval()
    small = _recalibrated(small, seen)
    given = _logits(small, seen.check)
    plan = PrunePlan(
        method=options.method,
        widths_before=before.widths,
        widths_after=small.architecture.widths,
        macs_before=macs(before, seen.size),
        macs_after=macs(small.architecture, seen.size),
        kept={name: tuple(indices.tolist()) for name, indices in {**choice.streams, **repair.chosen}.items()},
        dropped=tuple(f"layer{stage + 1}.{block}" for stage, block in sorted(dropped)),
        kl=kl_divergence(seen.reference, given),
        agreement=agreement(seen.reference, given),
        expected_drop_pp=expected_drop_pp(seen.reference, given),
        errors=repair.errors,
        warnings=seen.warnings,
        **(latency or {}),
    )
    return small, plan


def expected_drop_pp(reference: FloatArray, other: FloatArray) -> float:
    """Estimated drop of accuracy in percentage points, without labels.

    The reference puts a probability on every class: the one of its own first class is the accuracy it
    expects of itself, the one of the other's first class what it expects of the other.

    Args:
        reference: Logits of the dense network (N, classes).
        other: Logits of the other (N, classes).
    """
    shifted = np.exp(reference.astype(np.float64) - reference.max(1, keepdims=True))
    probability = shifted / shifted.sum(1, keepdims=True)
    rows = np.arange(len(reference))
    lost = probability[rows, reference.argmax(1)] - probability[rows, other.argmax(1)]
    return float(100 * lost.mean())


def _search(
    dense: ResNet,
    seen: _Images,
    options: PruneOptions,
    surveyed: Mapping[str, Surveyed],
    checkpoint: Path | None,
) -> tuple[ResNet, PrunePlan]:
    """The fewest multiply-accumulates whose expected drop stays within the limit, by bisection."""
    limit = options.max_drop_pp or 0.0
    low, high = 0.2, 1.0
    best: tuple[ResNet, PrunePlan] | None = None
    drops = _drop_losses(dense, seen) if options.drop_blocks else {}
    for _ in range(SEARCH_ROUNDS):
        part = (low + high) / 2
        try:
            found = widths.for_macs(
                dense.architecture, surveyed, drops, part, size=seen.size, step=options.step
            )
        except ModelError:
            low = part
            continue
        result = _repaired(dense, seen, options, _Choice({}, surveyed, found.arch), checkpoint=checkpoint)
        if (result[1].expected_drop_pp or 0.0) <= limit:
            best, high = result, part
        else:
            low = part
    if best is None:
        raise ModelError(
            f"no pruning of {dense.architecture.name} has an expected drop within {limit} pp",
            hint="raise prune.max_drop_pp, give more images, or fine-tune afterwards",
        )
    return best


def _split(dense: ResNet, images: Iterable[FloatArray], options: PruneOptions) -> _Images:
    """Batches of a common size, mirrored where asked; the last images are held out."""
    batches = list(images)
    count = sum(len(batch) for batch in batches)
    if count < 2:
        raise DataError(f"prune: {count} images", hint="give at least a few hundred unlabelled images")
    everything = torch.from_numpy(np.concatenate(batches).astype(np.float32, copy=False))
    del batches
    if not bool(torch.isfinite(everything).all()):
        raise DataError("prune: an image holds NaN or infinite pixels", hint="check the preprocessing")
    held = max(1, min(int(count * HELD_OUT), 256))
    check, rest = everything[count - held :], everything[: count - held]
    size = max(1, min(BATCH, len(rest) // 10))
    warnings = _too_few(dense, len(rest) * (2 if options.mirror else 1), everything.shape[2])
    return _Images(
        _Batches(rest, size, options.mirror), check, _logits(dense, check), everything.shape[2], warnings
    )


def _too_few(dense: ResNet, images: int, size: int) -> tuple[str, ...]:
    """A warning where a convolution has more columns than rows to fit them on."""
    sides = widths.block_sides(dense.architecture, size)
    short: dict[str, int] = {}
    for name, stage, block, module in dense.blocks():
        side = math.ceil(sides[stage, block] / dense.architecture.stride(stage, block))
        rows = min(side**2, POSITIONS)
        conv = module.conv(2)  # the 3x3 convolution that reads an inner group
        columns = conv.in_channels * conv.kernel_size[0] ** 2
        if rows * images < columns:
            short[name] = math.ceil(columns / rows)
    if not short:
        return ()
    need = max(short.values())
    return (
        f"{images} images (mirrored ones counted) give fewer rows than columns in {', '.join(short)}: "
        f"the ridge holds their weights; {need} would do",
    )


@torch.no_grad()
def _recalibrated(model: ResNet, seen: _Images) -> ResNet:
    """With BatchNorm statistics of the images, if that brings the logits nearer to the dense ones."""
    other = copy.deepcopy(model)
    norms = [module for module in other.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # the mean over all batches
        module.train()
    for batch in seen.fit:
        other(batch)
    for module in norms:
        module.momentum = 0.1
    other.eval()
    nearer = kl_divergence(seen.reference, _logits(other, seen.check))
    return other if nearer < kl_divergence(seen.reference, _logits(model, seen.check)) else model


@torch.no_grad()
def _drop_losses(dense: ResNet, seen: _Images) -> dict[tuple[int, int], float]:
    """KL divergence in nats of leaving out each block that can be left out."""
    losses = {}
    for _, stage, block, _ in dense.blocks():
        if dense.architecture.keeps_shape(stage, block) and block > 0:
            without = shrink(dense, {}, {(stage, block)})
            losses[stage, block] = kl_divergence(seen.reference, _logits(without, seen.check))
    return losses


@torch.no_grad()
def _logits(model: ResNet, images: Tensor) -> FloatArray:
    logits: FloatArray = torch.cat([model(batch) for batch in torch.split(images, BATCH)]).numpy()
    return logits


class _Resumable:
    """A repair that saves its state after every block and goes on from there."""

    def __init__(
        self,
        dense: ResNet,
        student: ResNet,
        *,
        streams: Mapping[str, Tensor],
        choice: Choice,
        options: PruneOptions,
        checkpoint: Path | None,
    ) -> None:
        self._dense, self._student, self._streams = dense, student, streams
        self._choice, self._options, self._checkpoint = choice, options, checkpoint
        self.chosen: dict[str, Tensor] = {}
        self.errors: dict[str, float] = {}

    def run(self, images: Sequence[Tensor]) -> ResNet:
        key = plain(
            {
                "options": asdict(self._options),
                "choice": self._choice,
                "streams": self._streams,
                "images": [float(images[0].sum()), len(images)],
            }
        )
        state = self._found(key)
        student = self._student
        if state is not None:
            student = _rebuilt(student, state["kept"], state["model"])
        repair = Repair(
            self._dense,
            student,
            kept=self._streams,
            choice=self._choice,
            importance=importances.get(self._options.method),
            seed=self._options.seed,
        )
        if state is not None:
            repair.chosen, repair.errors = state["kept"], state["errors"]

        def save(done: int) -> None:
            if self._checkpoint is None:
                return
            with replacing(self._checkpoint) as temporary:
                content = {"key": key, "done": done, "kept": repair.chosen, "errors": repair.errors}
                torch.save({**content, "model": student.state_dict()}, temporary)

        small = repair.run(images, save, done=state["done"] if state else 0)
        self.chosen, self.errors = repair.chosen, repair.errors
        if self._checkpoint is not None:
            self._checkpoint.unlink(missing_ok=True)
        return small

    def _found(self, key: Any) -> dict[str, Any] | None:
        if self._checkpoint is None or not self._checkpoint.is_file():
            return None
        state: dict[str, Any] = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
        return state if state["key"] == key else None


def _rebuilt(student: ResNet, kept: Mapping[str, Tensor], state: dict[str, Tensor]) -> ResNet:
    """The student as an interrupted pass left it."""
    small = shrink(student, kept)
    small.load_state_dict(state)
    return ResNet.eval(small)
