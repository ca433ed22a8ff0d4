"""Stub of OpenVINO for a fast probe."""

from __future__ import annotations

__fake__ = True


class Core:
    """Stub of a CPU without 16-bit floats."""

    def get_property(self, device: str, name: str) -> list[str]:
        return ["FP32", "INT8"]


def get_version() -> str:
    return "2026.0-stub"
