"""Access OpenVINO through one `Core` per process."""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType
from typing import Any, cast

from edgeship.toolkit.core.errors import TargetError


def sdk() -> Any:
    """Import the package without its telemetry.

    On import telemetry sends an event from a forked process, which may hang for ever with the standard output
    open, and block a reader of the pipe.

    Raises:
        TargetError: OpenVINO is not installed.
    """
    hidden = "openvino_telemetry" not in sys.modules
    if hidden:
        sys.modules["openvino_telemetry"] = cast(ModuleType, None)  # as if not installed
    try:
        import openvino
    except ImportError as error:
        raise TargetError("openvino is not installed", hint="pip install openvino") from error
    finally:
        if hidden:
            sys.modules.pop("openvino_telemetry", None)
    return openvino


@cache
def core() -> Any:
    """Return the one Core of the process.

    Its CPU plug-in sets a signal stack and, when destroyed, restores the previous one. Two Cores that are not
    destroyed in reverse order restore freed memory, and Ctrl-C crashes.
    """
    sdk().Type.f32.to_dtype()  # creates a table whose first use from two threads deadlocks
    return sdk().Core()


def reason(error: Exception) -> str:
    """Return the cause in an OpenVINO error: the last list item, else the last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    listed = [line.removeprefix("-- ") for line in lines if line.startswith("-- ")]
    return (listed or lines or [type(error).__name__])[-1]
