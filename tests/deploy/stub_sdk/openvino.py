"""Enough of OpenVINO for a probe to find it, at once."""

__fake__ = True


class Core:
    """Knows nothing."""


def get_version() -> str:
    return "2026.0-stub"
