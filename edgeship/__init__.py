"""Prune, quantize, compile, deploy and report image classifiers for TensorRT on Jetson and OpenVINO.

    import edgeship

    result = edgeship.quantize("resnet18.onnx", "photos/", target="openvino")
    print(result.summary())
    result.save("resnet18-int8.onnx")

Progress is logged to the logger "edgeship". Errors that a user can correct are `ToolkitError`, with a `hint`.

The four source folders of the repository are linked into this package, so that everything is imported and
installed as `edgeship.*`: quantize/ as `edgeship.quantization`, the others by their names.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeship.toolkit.api.actions import benchmark, compile, deploy, evaluate, prune, run
    from edgeship.toolkit.api.classifier import Classifier
    from edgeship.toolkit.api.prove import golden_images, prove
    from edgeship.toolkit.api.quantize import quantize
    from edgeship.toolkit.api.verify import verify
    from edgeship.toolkit.core.errors import ToolkitError
    from edgeship.toolkit.core.tensors import Preprocess
    from edgeship.toolkit.pipeline.recipe import Recipe

__all__ = [
    "Classifier",
    "Preprocess",
    "Recipe",
    "ToolkitError",
    "__version__",
    "benchmark",
    "compile",
    "deploy",
    "evaluate",
    "golden_images",
    "prove",
    "prune",
    "quantize",
    "run",
    "verify",
]

_MODULES = {
    **dict.fromkeys(("benchmark", "compile", "deploy", "evaluate", "prune", "run"), "toolkit.api.actions"),
    "Classifier": "toolkit.api.classifier",
    "Preprocess": "toolkit.core.tensors",
    "Recipe": "toolkit.pipeline.recipe",
    "ToolkitError": "toolkit.core.errors",
    **dict.fromkeys(("golden_images", "prove"), "toolkit.api.prove"),
    "quantize": "toolkit.api.quantize",
    "verify": "toolkit.api.verify",
}

try:
    __version__ = version("edgeship")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    """Import the public API on first use: `import edgeship` alone loads no SDK."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"edgeship.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'edgeship' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
