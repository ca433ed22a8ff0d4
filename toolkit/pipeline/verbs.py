"""The steps of the main path as functions, for stages, commands and the Python API."""

from edgeship.quantization.calibrate import collect as calibrate
from edgeship.toolkit.pipeline.evaluation import run as evaluate
from edgeship.toolkit.pipeline.measure import measure as benchmark
from edgeship.toolkit.pipeline.quantizing import quantize
from edgeship.toolkit.pipeline.variants import build as compile

__all__ = ["benchmark", "calibrate", "compile", "evaluate", "quantize"]
