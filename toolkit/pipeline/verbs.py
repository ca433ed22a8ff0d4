"""The steps of the main path as functions, for stages, commands and the Python API."""

from edgeship.quantization.calibrate import collect as calibrate
from edgeship.toolkit.pipeline.compilation import compile_variant as compile
from edgeship.toolkit.pipeline.evaluation import run as evaluate
from edgeship.toolkit.pipeline.measure import measure as benchmark
from edgeship.toolkit.pipeline.quantizing import quantize

__all__ = ["benchmark", "calibrate", "compile", "evaluate", "quantize"]
