"""A synthetic run for every test of the report, and a browser."""

import pytest
from browsing import axe, browser  # noqa: F401
from synthetic import synthetic_run


@pytest.fixture
def run(tmp_path):
    """Stage -> folder of a synthetic run."""
    return synthetic_run(tmp_path / "run")
