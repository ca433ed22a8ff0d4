"""Clip points: the least change of the logits, worked out by hand; outliers count that no probe image has."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from float_graphs import Graph

from edgeship.quantization.calibrate import collect
from edgeship.quantization.clipping import CUTS, _beyond, _larger, logit_aware_clipping
from edgeship.quantization.torch_executor import TorchExecutor
from edgeship.toolkit.core.quant import QuantSpec
from edgeship.toolkit.graph import io

SPEC = QuantSpec("int8", symmetric=True)
SIDE = 8
POINT = "relu1"


def averaged(tmp_path):
    """A network whose one logit is three times the mean of what ReLU leaves of the image."""
    g = Graph(SIDE, channels=1)
    x = g.unary("Relu", g.conv("images", 1, 1, bias=False, weight=np.ones((1, 1, 1, 1))))
    pooled = g.node("GlobalAveragePool", [x], (1, 1, 1))
    flat = g.node("Flatten", [pooled], (1,), axis=1)
    g.node("Gemm", [flat, g.constant("w", [[3.0]])], (1,))
    g.nodes[-1].output[0] = "logits"
    g.shapes["logits"] = (1,)
    return g.save(tmp_path / "m.onnx")


def pictures(count, outliers, seed=0):
    """Images of which every so many-th has a few values far from the rest."""
    random = np.random.default_rng(seed)
    result = np.abs(random.normal(size=(count, 1, SIDE, SIDE))).astype(np.float32)
    result[::outliers, 0, 0, :3] = random.uniform(15, 25, (len(result[::outliers]), 3))
    return result


def chosen(path, probe, statistics):
    return logit_aware_clipping(
        TorchExecutor(io.read_classifier(path).model), probe, {POINT: SPEC}, statistics
    )[POINT].scale[0]


def by_hand(pixels):
    """The clip point at which rounding and clipping change the logit least, in squares."""
    gradient = 3 / SIDE**2
    cuts = CUTS * pixels.max()
    excess = np.maximum(pixels[..., None] - cuts, 0).sum((1, 2, 3))  # (images, cuts)
    clipping = np.square(gradient * excess).sum(0)
    rounding = gradient**2 * (pixels > 0).sum() * np.square(cuts / 127) / 12
    return float(cuts[np.argmin(clipping + rounding)]) / 127


@pytest.mark.parametrize("outliers", [1, 2, 10])
def test_clip_points_are_those_worked_out_by_hand(outliers, tmp_path):
    path, pixels = averaged(tmp_path), pictures(64, outliers)
    seen = collect(path, [pixels], exact=True).tensors
    step = 1.5 * float((CUTS[0] - CUTS[1]) * pixels.max()) / 127
    assert chosen(path, pixels, seen) == pytest.approx(by_hand(pixels), abs=step)


def test_outliers_that_no_probe_image_has_are_not_cut_off(tmp_path):
    path, pixels = averaged(tmp_path), pictures(100, 10)
    seen = collect(path, [pixels], exact=True).tensors
    tame = pixels[np.arange(len(pixels)) % 10 != 0]
    knowing = chosen(path, tame, seen)
    blind = chosen(path, tame, {POINT: replace(seen[POINT], peaks=tame.max((2, 3)))})
    assert blind == pytest.approx(CUTS[-1] * pixels.max() / 127)
    assert knowing >= 2 * blind
    assert knowing == pytest.approx(by_hand(pixels), rel=0.25)


def test_bfloat16_finds_the_same_clip_points(tmp_path):
    path, pixels = averaged(tmp_path), pictures(64, 4)
    seen = collect(path, [pixels], exact=True).tensors
    rough = TorchExecutor(io.read_classifier(path).model, torch.bfloat16)
    result = logit_aware_clipping(rough, pixels, {POINT: SPEC}, seen)[POINT].scale[0]
    assert result == pytest.approx(chosen(path, pixels, seen), rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_larger_magnitudes_are_found_by_their_bits(dtype):
    values = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    values[0, 0, :4] = torch.tensor([0.0, -0.0, 1e30, -1e30], dtype=dtype)
    limits = [0.0, 0.3, 1.0, float(values[1, 1, 1].abs()), 1e29]
    for limit in limits:
        np.testing.assert_array_equal(_larger(values, limit), np.flatnonzero(values.float().abs() > limit))


def test_what_lies_beyond_every_cut_is_summed_image_by_image():
    generator = torch.Generator().manual_seed(1)
    cuts = torch.from_numpy(np.ascontiguousarray(CUTS[::-1] * 3.0))
    sizes = torch.rand(40, generator=generator, dtype=torch.float64) * 2.5 + 0.75
    sizes[:3] = cuts[[0, 30, 60]]
    image, weights = torch.arange(40) % 3, torch.randn(40, generator=generator, dtype=torch.float64)
    excess = (sizes[:, None] - cuts).clamp_min(0) * weights[:, None]
    exact = torch.stack([excess[image == each].sum(0) for each in range(3)])
    np.testing.assert_allclose(_beyond(cuts, image, 3, sizes, weights), exact, atol=1e-12)
