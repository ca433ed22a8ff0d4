"""Label-free distillation of the dense network into a pruned one; the last epochs are quantization-aware."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeship.toolkit.core.artifact import write_json
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.quant import FloatArray, IntArray
from edgeship.toolkit.core.tensors import Preprocess, PreprocessSource
from edgeship.toolkit.models.resnet import ResNet
from edgeship.toolkit.models.trainer import EpochBatches, History, fit
from edgeship.toolkit.models.weights import save
from edgeship.toolkit.prune.distill_options import DistillOptions

TEMPERATURE = 2.0


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
) -> tuple[ResNet, History]:
    """Fine-tune a pruned network towards the dense one; return the best weights by held-out KL.

    The initial weights are a candidate too, so the result is never worse than the input.

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

    Raises:
        DataError: The loss is NaN or infinite, labels are missing, or no image is held out.
    """
    checkpoint = checkpoint or out / "checkpoint.pt"
    small, dense = copy.deepcopy(student), copy.deepcopy(teacher).eval()
    validation = [torch.from_numpy(batch) for batch in held_out]
    if not validation:
        raise DataError("fine-tuning: 0 held-out images; at least 1 is expected", hint="give more images")
    indices = {place: torch.tensor(list(channels)) for place, channels in (kept or {}).items()}
    norms = [module for module in small.modules() if isinstance(module, nn.BatchNorm2d)]
    steps_per_epoch, done = -(-images // options.batch), 0
    rounding_from = (1 - options.qat_fraction) * steps_per_epoch * options.epochs

    def loss(model: ResNet, x: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        nonlocal done
        done += 1
        quantized = done > rounding_from
        for norm in norms:  # the refit used the current statistics
            norm.eval()
        with torch.no_grad():
            references, target = _stages(dense, x)
        with int8(model) if quantized else nullcontext():
            outputs, logits = _stages(model, x)
        value = divergence(target, logits)
        for stage, (reference, output) in enumerate(zip(references, outputs, strict=True), 1):
            channels = indices.get(f"stream{stage}")
            matched = reference if channels is None else reference[:, channels]
            value = value + options.feature_weight * normalized_error(matched, output) / len(references)
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
        parts = [(len(x), float(divergence(dense(x), small(x), temperature=1.0))) for x in validation]
        return sum(n * value for n, value in parts) / sum(n for n, _ in parts)

    def batches(epoch: int) -> Iterable[tuple[FloatArray, IntArray]]:
        nonlocal done
        done = epoch * steps_per_epoch  # also in a resumed run
        return epoch_batches(epoch)

    history = fit(
        small, batches, options, loss, images=images, checkpoint=checkpoint, score=score, label="fine-tuning"
    )
    save(small, out, preprocess, source=source)
    write_json(out / "history.json", history)
    checkpoint.unlink(missing_ok=True)
    return small, history


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


@contextmanager
def int8(model: ResNet) -> Iterator[None]:
    """Fake-quantize weights and inputs of every convolution to INT8 inside the block.

    Weights are symmetric per output channel, inputs per tensor over the batch's range; gradients pass
    straight through the rounding.

    Source:
        Jacob et al. 2018, arXiv:1712.05877, sec. 3; straight-through, Bengio et al. 2013, arXiv:1308.3432.
    """
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    for conv in convs:
        conv.forward = partial(_fake_quantized_conv, conv)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for conv in convs:
            del conv.forward  # restores the class's method


def _fake_quantized_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    low, high = (float(bound) for bound in torch.aminmax(x.detach()))
    levels = 255 if low >= 0 else 127
    rounded = _fake_quantized(x, torch.tensor(max(-low, high, 1e-12) / levels))
    scale = conv.weight.detach().abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12) / 127
    stride, pad = conv.stride, conv.kernel_size[0] // 2
    return F.conv2d(rounded, _fake_quantized(conv.weight, scale), None, stride, pad)


def _fake_quantized(x: Tensor, scale: Tensor) -> Tensor:
    """Round x to multiples of the scale; the gradient is that of x."""
    return x + (torch.round(x.detach() / scale) * scale - x.detach())


def _stages(model: ResNet, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the output of every stage, and the logits."""
    x = model.forward_stem(images)
    outputs = []
    for stage in range(len(model.architecture.widths.streams)):
        x = getattr(model, f"layer{stage + 1}")(x)
        outputs.append(x)
    return outputs, model.forward_head(x)
