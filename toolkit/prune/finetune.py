"""Label-free distillation of the dense network into a pruned one; the last epochs are quantization-aware."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgeship.toolkit.core.artifact import write_json
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.quant import FloatArray, IntArray, QuantScheme
from edgeship.toolkit.core.tensors import Preprocess, PreprocessSource
from edgeship.toolkit.models.resnet import ResNet
from edgeship.toolkit.models.trainer import EpochBatches, History, Pace, fit
from edgeship.toolkit.models.weights import save
from edgeship.toolkit.prune.distill_options import DistillOptions
from edgeship.toolkit.prune.fake_quant import int8
from edgeship.toolkit.prune.resolution import Grid, resampled
from edgeship.toolkit.prune.time_budget import TimeBudget

TEMPERATURE = 2.0
RESERVE = 0.02  # part of a time budget that is left for the last validation and for writing


def distill(
    student: ResNet,
    teacher: ResNet,
    epoch_batches: EpochBatches,
    options: DistillOptions,
    out: Path,
    *,
    images: int,
    held_out: Iterable[FloatArray],
    kept: Mapping[str, Sequence[int]] | None = None,
    preprocess: Preprocess | None = None,
    source: PreprocessSource | None = None,
    checkpoint: Path | None = None,
    budget: TimeBudget | None = None,
    scheme: QuantScheme | None = None,
) -> tuple[ResNet, History]:
    """Fine-tune a pruned network towards the dense one; return the best weights by held-out KL.

    The initial weights are a candidate too, so the result is never worse than the input. With a time budget
    the cosine rate and the start of the fake quantization follow the clock, the weights are averaged, and
    the held-out KL is that of the fake-quantized network.

    Args:
        student: The pruned network; not changed.
        teacher: The dense network.
        epoch_batches: Epoch -> batches of images (N, C, H, W) and labels (any, without label loss).
        options: Fine-tuning options.
        out: Folder for model.safetensors, widths.json and history.json.
        images: Images per epoch.
        held_out: Validation batches (N, C, H, W); not part of the training images.
        kept: Stream place (`stream1`...) -> channels of the teacher that the student kept; of streams
            that are not named, all (`PrunePlan.kept`).
        preprocess: Preprocessing, stored with the weights.
        source: Origin of its mean and std.
        checkpoint: File for the state between epochs. Default: out/checkpoint.pt.
        budget: Time to use up instead of `options.epochs`; every call of `epoch_batches` has to be in
            another random order.
        scheme: Quantization scheme of the target; None: types by the values alone.

    Raises:
        DataError: The loss is NaN or infinite, labels are missing, or no image is held out.
    """
    checkpoint = checkpoint or out / "checkpoint.pt"
    small, dense = copy.deepcopy(student), copy.deepcopy(teacher).eval()
    if budget is not None:
        _fold_batchnorm(dense)
        for model in (small, dense):
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    validation = [torch.from_numpy(batch) for batch in held_out]
    if not validation:
        raise DataError("fine-tuning: 0 held-out images; at least 1 is expected", hint="give more images")
    step = small.architecture.stem_step / dense.architecture.stem_step
    indices = {place: torch.tensor(list(channels)) for place, channels in (kept or {}).items()}
    norms = [module for module in small.modules() if isinstance(module, nn.BatchNorm2d)]
    steps_per_epoch, done = -(-images // options.batch), 0
    rounding_from = (1 - options.qat_fraction) * steps_per_epoch * options.epochs
    pace = None if budget is None else _pace(budget, options)
    with torch.no_grad():
        targets = [dense(x) for x in validation]

    def loss(model: ResNet, x: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        nonlocal done
        done += 1
        quantized = done > rounding_from if pace is None else pace.progress() >= 1 - options.qat_fraction
        for norm in norms:  # the refit used the current statistics
            norm.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=pace is not None and _has_bf16()):
            references, target = _stages(dense, x)
        with int8(model, scheme) if quantized else nullcontext():
            outputs, logits = _stages(model, x)
        value = divergence(target.float(), logits.float())
        for stage, (reference, output) in enumerate(zip(references, outputs, strict=True), 1):
            channels = indices.get(f"stream{stage}")
            matched = reference if channels is None else reference[:, channels]
            if step != 1:
                matched = resampled(matched, Grid(step, tuple(output.shape[2:])))
            value = value + options.feature_weight * normalized_error(matched.float(), output.float()) / len(
                references
            )
        if options.label_weight:
            if int(labels.min()) < 0:
                raise DataError(
                    "fine-tuning: an image has no label; all need one if label_weight > 0",
                    hint="set finetune.label_weight=0",
                )
            value = value + options.label_weight * F.cross_entropy(logits, labels)
        return value, int((logits.argmax(1) == target.argmax(1)).sum())

    @torch.no_grad()
    def score() -> float:
        with int8(small, scheme) if budget is not None and options.qat_fraction else nullcontext():
            parts = [
                (len(x), float(divergence(target, small(x), temperature=1.0)))
                for x, target in zip(validation, targets, strict=True)
            ]
        return sum(n * value for n, value in parts) / sum(n for n, _ in parts)

    def batches(epoch: int) -> Iterable[tuple[FloatArray, IntArray]]:
        nonlocal done
        done = epoch * steps_per_epoch  # also in a resumed run
        return epoch_batches(epoch)

    history = fit(
        small,
        batches,
        options,
        loss,
        images=images,
        checkpoint=checkpoint,
        score=score,
        label="fine-tuning",
        pace=pace,
    )
    small.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    save(small, out, preprocess, source=source)
    write_json(out / "history.json", history)
    checkpoint.unlink(missing_ok=True)
    return small, history


def _pace(budget: TimeBudget, options: DistillOptions) -> Pace:
    """Return the schedule from now, or from the start of an interrupted run, to the end of the budget."""
    start = budget.phase_start("fine-tuning")
    length = max(budget.limit_s * (1 - RESERVE) - start, 1e-9)

    def progress() -> float:
        return (budget.elapsed_s - start) / length

    def bf16() -> bool:  # bfloat16 has too few digits for INT8 steps
        return _has_bf16() and progress() < 1 - options.qat_fraction

    return Pace(progress, budget.save, options.ema_decay, bf16)


@functools.cache
def _has_bf16() -> bool:
    """Return True if this CPU computes in bfloat16."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())  # PyTorch 2.5 has none


def _fold_batchnorm(model: ResNet) -> None:
    """Fold every BatchNorm that follows a convolution into it, in place; of a network that only evaluates."""
    if model.architecture.preactivation:
        return
    model.conv1, model.bn1 = fuse_conv_bn_eval(model.conv1, model.bn1), nn.Identity()  # type: ignore[assignment]
    for _, _, _, block in model.blocks():
        for i in range(1, block.depth + 1):
            setattr(block, f"conv{i}", fuse_conv_bn_eval(block.conv(i), block.bn(i)))
            setattr(block, f"bn{i}", nn.Identity())
        if block.projection is not None:
            block.downsample = fuse_conv_bn_eval(*block.projection)


def divergence(target: Tensor, output: Tensor, *, temperature: float = TEMPERATURE) -> Tensor:
    """Return the mean KL(softmax(target / T) || softmax(output / T)) T^2 over a batch (N, classes).

    Source:
        Hinton et al. 2015, arXiv:1503.02531, sec. 2: T^2 keeps the gradients' scale.
    """
    log_p, log_q = (F.log_softmax(logits / temperature, 1) for logits in (target, output))
    return (log_p.exp() * (log_p - log_q)).sum(1).mean() * temperature**2


def normalized_error(target: Tensor, output: Tensor) -> Tensor:
    """Return the squared error of activations relative to the power of the target."""
    return (output - target).square().sum() / target.square().sum().clamp_min(1e-12)


def _stages(model: ResNet, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the output of every stage, and the logits."""
    x = model.forward_stem(images)
    outputs = []
    for stage in range(len(model.architecture.widths.streams)):
        x = getattr(model, f"layer{stage + 1}")(x)
        outputs.append(x)
    return outputs, model.forward_head(x)
