"""What the calibration doctor says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Attributes:
        severity: "error" spoils the result, "warning" may, "info" is good to know.
        what: What is so, with examples.
        hint: What to do about it; empty where nothing is to do.
    """

    severity: Severity
    what: str
    hint: str = ""
