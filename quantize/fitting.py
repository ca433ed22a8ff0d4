"""Weights and biases that make up for each other's rounding."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from edgeship.quantization import bias, gptq
from edgeship.quantization.torch_executor import TorchExecutor, one_thread
from edgeship.toolkit.core.quant import FloatArray, PairOrder, QParams


def fit_layers(
    network: TorchExecutor,
    probe: FloatArray,
    activations: Mapping[str, QParams],
    weights: Mapping[str, QParams],
    together: int | None = gptq.NEAR,
    pairs: PairOrder | None = None,
    *,
    biases: bool = True,
    nearest: bool = False,
) -> tuple[dict[str, Tensor], dict[str, FloatArray]]:
    """Fit weights to the inputs of their layers, then biases to the errors that are left.

    Args:
        network: The float graph.
        probe: Calibration images (N, C, H, W).
        activations: Quantized tensors.
        weights: Quantized initializers.
        together: See `gptq.fitted`.
        pairs: See `gptq.fitted`.
        biases: Whether biases are corrected; without, weights make up for errors of the mean too.
        nearest: Round weights to the nearest integers instead of by GPTQ.

    Returns:
        Initializer name -> values on their grid; node name -> correction of its bias.
    """
    with one_thread():  # much is done between what runs side by side
        found = gptq.gptq_weights(network, probe, weights, together, pairs, biases=biases, nearest=nearest)
        if not biases:
            return found.weights, {}
        return found.weights, bias.corrections(network, probe, activations, found.weights, found.means)
