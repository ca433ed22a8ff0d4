"""OpenVINO, of which a process has one `Core`."""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType
from typing import Any, cast

from edgeship.toolkit.core.errors import TargetError


def sdk() -> Any:
    """The package, without its telemetry.

    On import that would send an event over the network from a forked process, which may hang for ever and
    keeps the standard output open: whoever reads that would wait.

    Raises:
        TargetError: It is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))  # as if not installed
    try:
        import openvino
    except ImportError as error:
        raise TargetError("openvino is not installed", hint="pip install openvino") from error
    return openvino


@cache
def core() -> Any:
    """The one Core of the process.

    Its CPU plug-in gives the thread a stack for signals and, when it goes, brings back the one it found.
    Of two Cores that do not go in reverse order, one so brings back freed memory, and Ctrl-C would crash.
    """
    sdk().Type.f32.to_dtype()  # makes a table that two threads, asking for it first, wait for without end
    return sdk().Core()


def reason(error: Exception) -> str:
    """What OpenVINO complains of: an item of its list, or the last line, after the places in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    listed = [line.removeprefix("-- ") for line in lines if line.startswith("-- ")]
    return (listed or lines or [type(error).__name__])[-1]
