"""Stub of OpenVINO for a fast probe."""

__fake__ = True


class Core:
    """Empty stub."""


def get_version() -> str:
    return "2026.0-stub"
