"""edgeship: prune, quantize, compile, deploy and report ResNets for TensorRT on Jetson and OpenVINO on Intel.

The four source folders of the repository are linked into this package, so that everything is imported and
installed as `edgeship.*`: quantize/ as `edgeship.quantization`, the others by their names.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeship.toolkit.pipeline import Recipe, run

__all__ = ["Recipe", "__version__", "run"]

try:
    __version__ = version("edgeship")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    """Import the public API on first use: `import edgeship` alone loads no SDK."""
    if name in {"Recipe", "run"}:
        from edgeship.toolkit import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'edgeship' has no attribute '{name}'")
