"""Define the findings of the calibration image checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding.

    Attributes:
        severity: "error" invalidates the result, "warning" may degrade it, "info" needs no action.
        what: Problem or observation, with examples.
        hint: One command or setting; empty if no action is needed.
    """

    severity: Severity
    what: str
    hint: str = ""
